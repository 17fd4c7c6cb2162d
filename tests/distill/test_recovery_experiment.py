"""The experiment of recovery at toy size: what it trains keeps its code, and what it caches is what was asked."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments import resnet
from experiments.distillation import recovery

SMALL = recovery.SETTINGS | {
    "images": 24,
    "tuning_images": 8,
    "validation_images": 8,
    "batch": 4,
    "seeds": [0, 1],
    "rates": [0.01, 0.03],
}


def net(blocks: int, seed: int, width: int = 4) -> dict[str, dict[str, jax.Array]]:
    """A ResNet of 6 · blocks + 2 layers."""
    rng = np.random.default_rng(seed)
    he = lambda *shape: jnp.asarray(rng.normal(size=shape) * (2 / np.prod(shape[:-1])) ** 0.5, jnp.float32)
    norm = lambda c: {"scale": jnp.ones(c), "bias": jnp.zeros(c), "mean": jnp.zeros(c), "var": jnp.ones(c)}
    params, last = {"conv1": {"kernel": he(3, 3, 3, width)}, "bn1": norm(width)}, width
    for stage in (1, 2, 3):
        c = width * 2 ** (stage - 1)
        for i in range(blocks):
            at, ins = f"layer{stage}.{i}.", (last, c)
            for j in (0, 1):
                params |= {f"{at}conv{j + 1}": {"kernel": he(3, 3, ins[j], c)}, f"{at}bn{j + 1}": norm(c)}
            last = c
    return params | {"linear": {"kernel": he(last, 10), "bias": jnp.zeros(10)}}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    pair = lambda n: (rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n).astype(np.int32))
    return {"train": pair(40), "test": pair(12)}
