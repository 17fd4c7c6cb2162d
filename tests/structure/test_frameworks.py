"""Whatever wrote the function: NNX, Equinox, Haiku, linen in train mode; and the small one is
trained on.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.testing import assert_allclose

import jaxprune as jp

X = jax.random.normal(jax.random.key(0), (6, 5))


def test_nnx_after_a_split():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(5, 12, rngs=rngs)
            self.norm = nnx.BatchNorm(12, rngs=rngs)
            self.b = nnx.Linear(12, 3, rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.norm(self.a(x))))

    graph, state = nnx.split(Net(nnx.Rngs(0)))

    def f(state, x):
        model = nnx.merge(graph, state)
        model.eval()
        return model(x)

    thin = jp.shrink(f, state, X, flops=0.5)
    assert isinstance(thin.params, nnx.State) and thin.report.error < 1e-6
    assert thin.params["a"]["kernel"].shape[1] == thin.params["norm"]["mean"].shape[0] < 7
    assert_allclose(thin.apply(thin.params, X), f(thin.plan.mask(state), X), rtol=1e-5, atol=1e-6)


def test_equinox_after_a_partition():
    net = eqx.nn.MLP(5, 3, 12, 2, key=jax.random.key(1))
    arrays, rest = eqx.partition(net, eqx.is_array)

    def f(arrays, x):
        return jax.vmap(eqx.combine(arrays, rest))(x)

    thin = jp.shrink(f, arrays, X, flops=0.5)
    assert thin.params.layers[0].weight.shape[0] == thin.params.layers[1].weight.shape[1] < 12
    assert_allclose(thin.apply(thin.params, X), f(thin.plan.mask(arrays), X), rtol=1e-5, atol=1e-6)


def test_haiku_with_its_state():
    def f(x, train):
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Linear(12)(x), train))
        return hk.Linear(3)(x)

    net = hk.transform_with_state(f)
    params, state = net.init(jax.random.key(0), X, True)

    def train(v, x):
        return net.apply(v["params"], v["state"], None, x, True)

    variables = {"params": params, "state": train({"params": params, "state": state}, X)[1]}

    def evaluate(v, x):
        return net.apply(v["params"], v["state"], None, x, False)[0]

    calls = [evaluate, lambda v, x: (lambda y, new: {"y": y, "state": new})(*train(v, x))]
    thin = jp.shrink(calls, variables, X, ratio=0.5, state="state/.*")
    assert thin.params["params"]["linear"]["w"].shape == (5, 6)
    assert thin.params["state"]["batch_norm/~/mean_ema"]["average"].shape == (1, 6)
    assert_allclose(
        thin.apply(thin.params, X), evaluate(thin.plan.mask(variables), X), rtol=1e-5, atol=1e-6
    )


class Trained(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(not train)(nn.Dense(16)(x)))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(3)(x)


def test_training_goes_on_with_the_optimizers_state():
    module = Trained()
    variables = dict(module.init(jax.random.key(0), X, False))
    rngs = {"dropout": jax.random.key(3)}

    def train(v, x):
        return module.apply(v, x, True, rngs=rngs, mutable=["batch_stats"])

    def evaluate(v, x):
        return module.apply(v, x, False)

    tx = optax.adam(0.1)
    state = "1/batch_stats/.*"

    def loss(f):
        return lambda v: jnp.square(f(v, X)[0] - 1).mean()

    opt = tx.init(variables)
    updates, opt = tx.update(jax.grad(loss(train))(variables), opt)
    variables = optax.apply_updates(variables, updates)
    thin = jp.shrink([train, evaluate], variables, X, ratio=0.5, state=state)
    small = thin.params
    opt = thin.cut(opt)
    assert opt[0].mu["params"]["Dense_0"]["kernel"].shape == (5, 8)
    step = thin.apply
    before = float(loss(step)(small))
    for _ in range(20):
        updates, opt = tx.update(jax.grad(loss(step))(small), opt)
        small = optax.apply_updates(small, updates)
        small = small | {"batch_stats": step(small, X)[1]["batch_stats"]}
    assert float(loss(step)(small)) < 0.5 * before
    assert thin.of(evaluate)(small, X).shape == (6, 3)
    full = thin.expand(small)
    assert_allclose(evaluate(full, X), thin.of(evaluate)(small, X), rtol=1e-4, atol=1e-4)
    assert np.count_nonzero(np.asarray(full["params"]["Dense_1"]["kernel"]).any(1)) == 8
