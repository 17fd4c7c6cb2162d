"""`Plan.cut` on trees that name params otherwise: with or without their collection, in optimizers,
in one vector.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp

VARIABLES = {
    "params": {
        "a": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)},
        "b": {"kernel": jnp.zeros((8, 2))},
    },
    "batch_stats": {"a": {"mean": jnp.zeros(8)}},
}
KEPT = np.array([1, 4, 5])
PLAN = jp.Plan(
    {
        "params/a/kernel": (4, 8),
        "params/a/bias": (8,),
        "params/b/kernel": (8, 2),
        "batch_stats/a/mean": (8,),
    },
    {
        "params/a/kernel": {1: KEPT},
        "params/a/bias": {0: KEPT},
        "params/b/kernel": {0: KEPT},
        "batch_stats/a/mean": {0: KEPT},
    },
)
SMALL = jax.tree.map(jnp.shape, PLAN.cut(VARIABLES))["params"]
OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "masked": optax.masked(
        optax.adam(1e-3), {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
    ),
    "several steps": optax.MultiSteps(optax.adam(1e-3), 2),
    "an average": optax.ema(0.9),
    "schedules in the state": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
    "two groups": optax.partition(
        {"one": optax.adam(1e-3), "two": optax.sgd(1e-3, momentum=0.9)},
        {"a": {"kernel": "one", "bias": "two"}, "b": {"kernel": "one"}},
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_optimizers_are_cut_as_the_params_are(name):
    params = VARIABLES["params"]
    whole = {
        "params": params,
        "batch_stats": VARIABLES["batch_stats"],
        "opt_state": OPTIMIZERS[name].init(params),
    }
    small = PLAN.cut(whole)
    assert jax.tree.map(jnp.shape, small["params"]) == SMALL
    fresh = OPTIMIZERS[name].init(small["params"])
    assert jax.tree.map(jnp.shape, small["opt_state"]) == jax.tree.map(jnp.shape, fresh)
    back = PLAN.expand(small)
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, whole)


def test_the_state_of_an_nnx_optimizer_is_cut_as_the_model_is():
    class Net(nnx.Module):
        def __init__(self):
            self.a = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
            self.b = nnx.Linear(8, 2, rngs=nnx.Rngs(1))

    plan = jp.Plan(
        {"a/kernel": (4, 8), "b/kernel": (8, 2)}, {"a/kernel": {1: KEPT}, "b/kernel": {0: KEPT}}
    )
    state = plan.cut(nnx.state(nnx.Optimizer(Net(), optax.adam(1e-3), wrt=nnx.Param)))
    assert state["opt_state"][0]["mu"]["a"]["kernel"][...].shape == (4, 3)
    assert state["opt_state"][0]["nu"]["b"]["kernel"][...].shape == (3, 2)


def test_what_is_a_param_by_its_shape_and_not_by_its_name_is_refused():
    plan = jp.Plan(
        {"net/a/kernel": (4, 8), "net/a/bias": (8,)},
        {"net/a/kernel": {1: KEPT}, "net/a/bias": {0: KEPT}},
    )
    net = VARIABLES["params"]["a"]
    moments = optax.adam(1e-3).init(net)
    with pytest.raises(
        ValueError, match=r"opt/0/mu/bias is \(8,\) as net/a/bias is.*would stay as it is"
    ):
        plan.cut({"net": {"a": net}, "opt": moments})
    with pytest.raises(ValueError, match=r"copy is \(4, 8\) as net/a/kernel"):
        plan.cut({"net": {"a": net}, "copy": jnp.zeros((4, 8))})
    with pytest.raises(ValueError, match=r"copy is \(4, 3\) as net/a/kernel"):
        plan.expand(
            {"net": {"a": plan.cut({"net": {"a": net}})["net"]["a"]}, "copy": jnp.zeros((4, 3))}
        )
    rest = {
        "step": jnp.zeros(()),
        "table": jnp.zeros(8),
        "key": jax.random.key(0),
        "schedule": jnp.zeros((3, 8)),
    }
    assert plan.cut({"net": {"a": net}, **rest})["table"].shape == (8,)


def test_moments_in_one_vector_are_refused():
    params = VARIABLES["params"]
    flat = optax.flatten(optax.adam(1e-3)).init(params)
    with pytest.raises(
        ValueError, match=r"opt/0/mu is \(56,\): all params in one vector.*optax.flatten"
    ):
        PLAN.cut({"params": params, "opt": flat})


def test_a_name_that_could_be_of_two_collections_is_refused():
    plan = jp.Plan({"params/a/w": (4,), "ema/a/w": (4,)}, {"params/a/w": {0: KEPT[:2]}})
    with pytest.raises(ValueError, match=r"mu/a/w could be any of params/a/w, ema/a/w"):
        plan.cut({"mu": {"a": {"w": jnp.zeros(4)}}})
    assert plan.cut({"params": {"a": {"w": jnp.zeros(6)[:4]}}})["params"]["a"]["w"].shape == (2,)
