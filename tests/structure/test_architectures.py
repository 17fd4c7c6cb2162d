"""The small function is the large one with zeros, on every architecture: values, gradients, and no false comfort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.core.where import leaf_path
from tests.structure.models import MODELS

SLOW = {"resnet A", "resnet B", "mobilenet", "vit", "densenet", "recurrent", "shufflenet", "encoder"}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]


def distance(a, b):
    """Of two trees, relative to the largest number."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    scale = max(float(jnp.abs(x).max()) for x, _ in pairs)
    return max(float(jnp.abs(x - y).max()) for x, y in pairs) / scale


def value_and_grads(f, args):
    return jax.jit(lambda p: (f(p, *args), jax.grad(lambda p: jnp.sum(jnp.cos(f(p, *args))))(p)))


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_masked_model(name):
    f, params, args = MODELS[name]()
    rng = np.random.default_rng(0)
    score = jax.tree.map(lambda x: rng.random(x.shape), params)  # at random: no order hides a wrong index
    thin = jp.shrink(f, params, *args, ratio=0.5, score=score, scope="group")
    y, grads = value_and_grads(f, args)(thin.plan.mask(params))
    small = value_and_grads(thin.apply, args)
    z, small_grads = small(thin.params)
    assert thin.report.error < 5e-6 and distance(y, z) < 5e-6
    assert distance(thin.cut(grads), small_grads) < 2e-5
    assert thin.report.params[1] < 0.75 * thin.report.params[0] and not thin.report.unknown
    flops, (before, after) = jp.flops(thin.apply, thin.params, *args), thin.report.flops
    assert before == jp.flops(f, params, *args) and abs(after / flops - 1) < 0.02 and after < 0.8 * before
    seen = []
    for path, axes in thin.plan.keep.items():
        for axis in (k for k in axes if thin.plan.small(path)[k] > 1):
            roll = lambda keys, w, path=path, axis=axis: jnp.roll(w, 1, axis) if leaf_path(keys) == path else w
            shifted = jax.tree_util.tree_map_with_path(roll, thin.params)
            seen.append(distance(y, small(shifted)[0]) > 1e-5)
    # A shifted index is seen, but for what the output does not feel at all: a bias of keys, a gate that is shut.
    assert seen and np.mean(seen) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MODELS if n != "recurrent"])  # Flax's cells carry float32
def test_in_float64_nothing_but_rounding_is_left(name):
    with jax.enable_x64(True):
        wide = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x
        f, params, args = MODELS[name]()
        params, args = jax.tree.map(wide, params), jax.tree.map(wide, args)
        with pytest.raises(ValueError, match="cannot be met") as caught:
            jp.shrink(f, params, *args, ratio=1e-6, scope="group")
        least = float(str(caught.value).split("Nearest: ratio=")[1].split(",")[0]) + 1e-4
        for ratio in (0.9, least):
            assert jp.shrink(f, params, *args, ratio=ratio, scope="group").report.error <= 1e-12
