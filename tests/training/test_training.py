"""The four ways of training a code, and zeros that stay in every wrapper and optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.helpers import bits, compiled_once, normal

CODES = {
    "prune": jp.prune(0.5),
    "cluster": jp.cluster(4),
    "quantize": jp.quantize(bits=4),
    "factorize": jp.factorize(rank=2),
}


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax raises floats to integer step counts."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def problem():
    x = normal((64, 12))
    w = normal((12, 8), 1)

    def loss(p):
        return jnp.mean((x @ p["kernel"] + p["bias"] - x @ w) ** 2)

    return {"kernel": normal((12, 8), 2), "bias": jnp.zeros(8)}, loss


@pytest.mark.parametrize("code", CODES)
def test_train_the_code(code):
    params, loss = problem()
    tree = CODES[code].init(params)
    free, fixed = jp.partition(tree)
    tx = optax.adam(0.05)

    @jax.jit
    def step(free, state):
        value, grads = jp.value_and_grad(loss)(jp.combine(free, fixed))
        updates, state = tx.update(grads, state, free)
        return optax.apply_updates(free, updates), state, value

    state = tx.init(free)
    values = []
    for _ in range(60):
        free, state, value = step(free, state)
        values.append(float(value))
    assert values[-1] < 0.8 * values[0]
    if code == "prune":
        assert jnp.sum(jp.materialize(jp.combine(free, fixed))["kernel"] == 0) == 48


@pytest.mark.parametrize("code", CODES)
def test_straight_through_has_the_values_of_the_code_and_the_gradient_of_the_identity(code):
    params, loss = problem()
    f = jp.straight_through(CODES[code])
    hard = jp.materialize(jax.jit(CODES[code].init)(params))
    np.testing.assert_array_equal(bits(jax.jit(f)(params)["kernel"]), bits(hard["kernel"]))
    np.testing.assert_allclose(
        jax.grad(lambda p: loss(f(p)))(params)["kernel"],
        jax.grad(loss)(hard)["kernel"],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("code", CODES)
def test_project_lands_on_the_code(code):
    params, loss = problem()
    tx = optax.chain(optax.sgd(0.05), jp.project(CODES[code]))
    state = tx.init(params)

    def moved(p, u):
        return (optax.apply_updates(p, u[0]), u[1])

    step = compiled_once(jax.jit(lambda p, s: moved(p, tx.update(jax.grad(loss)(p), s, p))))
    for _ in range(5):
        params, state = step(params, state)
    again = jp.materialize(CODES[code].init(params))["kernel"]
    np.testing.assert_allclose(params["kernel"], again, rtol=1e-4, atol=1e-5)


def test_project_every_other_step():
    tx = jp.project(jp.prune(0.5), every=2)
    params = {"kernel": normal((4, 4))}
    state = tx.init(params)
    zeros = []
    for _ in range(4):
        updates, state = tx.update({"kernel": jnp.full((4, 4), 0.01)}, state, params)
        zeros.append(int(jnp.sum(optax.apply_updates(params, updates)["kernel"] == 0)))
    assert zeros == [0, 8, 0, 8]


@pytest.mark.parametrize("code", CODES)
def test_attract_pulls_weights_to_the_code(code):
    params, _ = problem()
    tx = optax.chain(jp.attract(CODES[code], mu=lambda t: 0.5 + 0.0 * t), optax.sgd(0.5))

    def gap(p):
        return float(jnp.sum((jp.materialize(CODES[code].init(p))["kernel"] - p["kernel"]) ** 2))

    state = tx.init(params)
    before = gap(params)
    for _ in range(20):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert gap(params) < 0.01 * before


OPTIMIZERS = {
    "adam": lambda: optax.adam(0.1),
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "lion": lambda: optax.lion(0.1),
    "adafactor": lambda: optax.adafactor(0.1),
    "muon": lambda: optax.contrib.muon(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
}
WRAPPERS = {
    "chain": lambda tx: optax.chain(tx, jp.keep_pruned()),
    "MultiSteps": lambda tx: optax.MultiSteps(
        optax.chain(tx, jp.keep_pruned()), 2
    ).gradient_transformation(),
    "masked": lambda tx: optax.masked(
        optax.chain(tx, jp.keep_pruned()), {"kernel": True, "bias": False}
    ),
    "multi_transform": lambda tx: optax.multi_transform(
        {
            "k": optax.chain(tx, jp.keep_pruned()),
            "b": optax.chain(optax.sgd(0.1), jp.keep_pruned()),
        },
        {"kernel": "k", "bias": "b"},
    ),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda rate: optax.chain(tx, optax.scale(rate), jp.keep_pruned())
    )(rate=1.0),
    "apply_if_finite": lambda tx: optax.apply_if_finite(optax.chain(tx, jp.keep_pruned()), 3),
}


def train(tx, steps=4):
    params, loss = problem()
    params = jp.materialize(jp.prune(0.5).init(params))
    gone = np.asarray(params["kernel"]) == 0
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    start = params
    for _ in range(steps):
        params, state = step(params, state)
    return start, params, gone


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_under_every_optimizer(name):
    start, params, gone = train(WRAPPERS["chain"](OPTIMIZERS[name]()))
    kernel = np.asarray(params["kernel"])
    assert np.all(bits(kernel[gone]) == 0) and not np.allclose(
        kernel[~gone], np.asarray(start["kernel"])[~gone]
    )


@pytest.mark.parametrize("name", WRAPPERS)
def test_zeros_stay_in_every_wrapper(name):
    start, params, gone = train(WRAPPERS[name](optax.adam(0.1)))
    kernel = np.asarray(params["kernel"])
    assert np.all(bits(kernel[gone]) == 0) and np.all(
        kernel[~gone] != np.asarray(start["kernel"])[~gone]
    )


def test_keep_pruned_serves_nnx_optimizers():
    from flax import nnx

    net = nnx.Linear(12, 8, rngs=nnx.Rngs(0))
    nnx.update(net, jp.materialize(jp.prune(0.5).init(nnx.state(net, nnx.Param))))
    gone = np.asarray(net.kernel[...]) == 0
    optimizer = nnx.Optimizer(net, optax.chain(optax.adam(0.1), jp.keep_pruned()), wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.mean((m(normal((16, 12))) - 1.0) ** 2))(net)
    optimizer.update(net, grads)
    after = np.asarray(net.kernel[...])
    assert gone.sum() == 48 and np.all(bits(after[gone]) == 0) and np.all(after[~gone] != 0)


def test_keep_pruned_takes_a_mask_leaves_zero_leaves_free_and_refuses_nonsense():
    params = {"kernel": jnp.zeros((2, 2)), "head": {"kernel": jnp.array([[0.0, 1.0]])}}
    tx = jp.keep_pruned()
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert updates["kernel"].tolist() == [[1, 1], [1, 1]] and updates["head"][
        "kernel"
    ].tolist() == [[0, 1]]
    masks = {
        "kernel": jnp.array([[True, False], [True, True]]),
        "head": {"kernel": jnp.array([[True, True]])},
    }
    tx = jp.keep_pruned(masks)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert updates["kernel"].tolist() == [[1, 0], [1, 1]]
    with pytest.raises(ValueError, match="matches nothing"):
        jp.keep_pruned(where=jp.where.path("nope")).init(params)
    with pytest.raises(ValueError, match="needs the params"):
        tx.update(params, tx.init(params))


def test_what_a_mask_holds_lands_on_plus_zero_from_anywhere():
    params = {"kernel": jnp.array([[3.0, -0.0], [1.0, -2.0]])}
    tx = jp.keep_pruned({"kernel": jnp.array([[False, False], [True, False]])})
    updates, _ = tx.update({"kernel": jnp.full((2, 2), 0.5)}, tx.init(params), params)
    after = np.asarray(optax.apply_updates(params, updates)["kernel"])
    assert after.tolist() == [[0, 0], [1.5, 0]] and not np.any(np.signbit(after))
