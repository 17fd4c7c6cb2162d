"""The experiments of `experiments/structured` at a small size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments import resnet
from experiments.structured import resnet56


def network(widths=(4, 8, 16), seed=0):
    """A ResNet-8 of the shapes that `resnet.load` gives."""
    rng = np.random.default_rng(seed)
    kernel = lambda *s: {"kernel": jnp.asarray(rng.normal(size=s) / np.prod(s[:-1]) ** 0.5, jnp.float32)}
    unit = lambda n: {k: jnp.asarray(rng.random(n) + 0.5, jnp.float32) for k in ("scale", "bias", "mean", "var")}
    params = {"conv1": kernel(3, 3, 3, widths[0]), "bn1": unit(widths[0])}
    for stage, (a, b) in enumerate(zip((widths[0], *widths), widths), 1):
        at = f"layer{stage}.0."
        params |= {at + "conv1": kernel(3, 3, a, b), at + "bn1": unit(b)}
        params |= {at + "conv2": kernel(3, 3, b, b), at + "bn2": unit(b)}
    return params | {"linear": kernel(widths[-1], 10) | {"bias": jnp.zeros(10)}}


def images(n, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 8, 8, 3), np.uint8), rng.integers(0, 10, n)


@pytest.mark.slow
def test_every_arm_is_cut_and_counted():
    settings = resnet56.SETTINGS | {"flops": [0.5], "images": 12, "seeds": [0], "batch": 6}
    saved = []
    found = resnet56.measured(
        settings, network(), (images(12, 1), images(20, 2)), lambda f: saved.append(len(f["arms"]))
    )
    json.dumps(found)
    assert saved == [1, 2, 3] and [a["arm"] for a in found["arms"]] == ["l2", "fisher", "random"]
    for arm in found["arms"]:
        assert arm["flops"][1] <= arm["flops"][0] / 2 and arm["error"] < 1e-5 and 0 <= arm["accuracy_settled"] <= 100
        assert abs(arm["xla"] / found["dense"]["xla"] * arm["flops"][0] / arm["flops"][1] - 1) < 0.1


def test_statistics_are_those_of_the_images_that_are_given():
    params, x = network(), resnet.normalised(images(16, 3)[0])
    logits, seen = jax.jit(resnet56.with_statistics)(params, x)
    settled = resnet.joined(params, seen)
    assert set(seen) == {name for name in params if ".bn" in name or name == "bn1"}
    np.testing.assert_allclose(resnet.apply(settled, x), logits, rtol=1e-4, atol=1e-4)
    assert jp.axes(resnet56.with_statistics, params, x, state=".*/(mean|var)").groups
