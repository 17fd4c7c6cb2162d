"""The small function is the large one with zeros, on every architecture: values, gradients, and no
false comfort.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path, map_with_path
from tests.structure.models import MODELS, STATE, distance, floats, value_and_grads

SLOW = {
    "resnet A",
    "resnet B",
    "mobilenet",
    "vit",
    "densenet",
    "recurrent",
    "shufflenet",
    "encoder",
    *STATE,
}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_masked_model(name):
    f, params, args = MODELS[name]()
    rng = np.random.default_rng(0)
    score = jax.tree.map(
        lambda x: rng.random(x.shape), params
    )  # at random: no order hides a wrong index
    thin = jp.shrink(f, params, *args, ratio=0.5, score=score, scope="group", state=STATE.get(name))
    cut = (
        thin.cut if name in STATE else lambda outs: outs
    )  # new values of params are cut as they are
    c = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), jax.eval_shape(f, params, *args)
    )
    y, grads = value_and_grads(f, args)(thin.plan.mask(params), c)
    small = partial(value_and_grads(thin.apply, args), c=cut(c))
    z, small_grads = small(thin.params)
    y = cut(y)
    assert thin.report.error < 1e-6 and distance(y, z) < 1e-6
    assert distance(floats(thin.cut(grads)), floats(small_grads)) < 1e-6
    assert thin.report.params[1] < 0.75 * thin.report.params[0] and not thin.report.unknown
    flops, (before, after) = jp.flops(thin.apply, thin.params, *args), thin.report.flops
    assert (
        before == jp.flops(f, params, *args)
        and abs(after / flops - 1) < 0.02
        and after < 0.8 * before
    )
    steep = max(float(jnp.abs(g).max()) for g in floats(small_grads))
    leaves = flatten_with_path(small_grads)[0]
    slope = {
        leaf_path(k): float(jnp.abs(g).max()) / steep
        for k, g in leaves
        if g.dtype != jax.dtypes.float0
    }
    seen = 0
    unseen = []
    for path, axes in thin.plan.keep.items():
        for axis in (k for k in axes if thin.plan.small(path)[k] > 1):

            def roll(keys, w, path=path, axis=axis):
                return jnp.roll(w, 1, axis) if leaf_path(keys) == path else w

            moved = small(map_with_path(roll, thin.params))[0]
            seen += (there := distance(y, moved) > 1e-5)
            unseen += [] if there else [f"{path}[{axis}]"]
    # A shifted index is seen, but of what the output does not feel at all: a bias of keys, under a
    # softmax.
    assert seen and all(slope[index.rsplit("[")[0]] < 1e-5 for index in unseen), unseen


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_in_float64_nothing_but_rounding_is_left(name):
    with jax.enable_x64(True):

        def wide(x):
            return x.astype(jnp.float64) if x.dtype == jnp.float32 else x

        f, params, args = MODELS[name]()
        params = jax.tree.map(wide, params)
        args = jax.tree.map(wide, args)
        with pytest.raises(ValueError, match="cannot be met") as caught:
            jp.shrink(f, params, *args, ratio=1e-6, scope="group", state=STATE.get(name))
        least = float(str(caught.value).split("Nearest: ratio=")[1].split(",")[0]) + 1e-4
        for ratio in (0.9, least):
            thin = jp.shrink(f, params, *args, ratio=ratio, scope="group", state=STATE.get(name))
            assert thin.report.error <= 1e-12
