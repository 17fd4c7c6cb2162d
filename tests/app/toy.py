"""A problem that trains in a second: three Gaussian blobs in eight dimensions, and a small
network.
"""

import flax.linen as nn
import numpy as np
from flax import nnx

from experiments.data import Data
from experiments.models import Model, mlp


def blobs(n: int = 240, spread: float = 0.6) -> Data:
    """The splits of n points."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n).astype(np.int32)
    x = (rng.normal(size=(3, 8))[y] + spread * rng.normal(size=(n, 8))).astype(np.float32)
    a = n // 2
    b = 3 * n // 4
    return Data((x[:a], y[:a]), (x[a:b], y[a:b]), (x[b:], y[b:]))


def net(hidden: int = 24) -> Model:
    """8-hidden-3."""
    return mlp((8, hidden, 3))


class Linen(nn.Module):
    """The same of Flax linen."""

    hidden: int = 24

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(self.hidden)(x)))


class Nnx(nnx.Module):
    """The same of Flax NNX."""

    def __init__(self, hidden: int = 24, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(8, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, 3, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


CONFIG = """
name = "toy"
model = "tests.app.toy:net"
data = "tests.app.toy:blobs"

[train]
batch = 20
learning_rate = 1e-2
checkpoint_every = 2

[[phase]]
name = "train"
epochs = 5

[[phase]]
name = "prune"
epochs = 5
ramp = 0.6
update_every = 4
[[phase.rule]]
where = "(.*/)?kernel"
prune = { sparsity = 0.8, allocate = "global" }

[[phase]]
name = "share"
epochs = 3
schedule = "cosine"
[[phase.rule]]
where = "(.*/)?kernel"
cluster = 4

[[phase]]
name = "quantize"
epochs = 0
[[phase.rule]]
where = "(.*/)?kernel"
codebook_bits = 8
"""
