"""A run takes functions, linen and NNX modules; what has more than params is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.app.experiments.config import load_config
from jaxprune.app.experiments.experiment import run
from jaxprune.app.experiments.models import model_of
from tests.app import toy

TOML = """
name = "toy"
model = "tests.app.toy:{model}"
data = "tests.app.toy:blobs"
model_args = {{ hidden = 16 }}

[train]
batch = 20
learning_rate = 1e-2

[[phase]]
name = "train"
epochs = 12

[[phase]]
name = "distill"
epochs = 8
distill = 4.0
[[phase.rule]]
where = "(.*/)?kernel"
prune = {{ sparsity = 0.5 }}
"""


@pytest.mark.parametrize("model", ["Linen", "Nnx"])
def test_modules_run_and_are_distilled(model, tmp_path):
    (tmp_path / "toy.toml").write_text(TOML.format(model=model))
    _, folder = run(load_config(tmp_path / "toy.toml"), tmp_path)
    tree = jp.load(folder / "model.jpz")
    kernels = [x for x in jax.tree.leaves(jp.materialize(tree)) if x.ndim == 2]
    assert sorted(x.shape for x in kernels) == [(8, 16), (16, 3)]
    assert all(np.mean(np.asarray(x) == 0) == 0.5 for x in kernels)
    ours = {"Linen": toy.Linen, "Nnx": toy.Nnx}[model]
    made = model_of(ours, {"hidden": 16}, (8,), np.float32)
    x, y = toy.blobs().test
    params = jax.tree.unflatten(
        jax.tree.structure(made.init(jax.random.key(0))), jax.tree.leaves(jp.materialize(tree))
    )
    assert np.mean(np.argmax(made.apply(params, x), 1) == y) > 0.8


def test_a_key_gives_its_params_and_the_module_its_values():
    for factory in (toy.Linen, toy.Nnx):
        made = model_of(factory, {"hidden": 5}, (8,), np.float32)
        a, b, c = (jax.tree.leaves(made.init(jax.random.key(k))) for k in (0, 0, 1))
        assert all(np.array_equal(x, y) for x, y in zip(a, b)) and any(
            (x != y).any() for x, y in zip(a, c)
        )
        assert made.example == (8,)
    module = toy.Nnx(5, rngs=nnx.Rngs(3))
    x = jnp.ones((2, 8))
    np.testing.assert_array_equal(made.apply(nnx.split(module, nnx.Param, ...)[1], x), module(x))


class Dropping(nnx.Module):
    def __init__(self, *, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.drop(x))


WRONG = {
    "statistics": (lambda: nn.BatchNorm(use_running_average=False), "no params .batch_stats"),
    "dropout": (lambda rngs: Dropping(rngs=rngs), "no params .drop/rngs"),
    "a number": (lambda: 3, "the model is a int: give a factory of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_models(case):
    with pytest.raises(ValueError, match=WRONG[case][1]):
        model_of(WRONG[case][0], {}, (8,), np.float32)
