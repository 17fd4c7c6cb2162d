"""What a compression costs and what it loses: bytes, bits, distortion, density.

Four sizes of one tree, each under another assumption:

    dense      every weight at its own dtype
    nonzero    the kept weights at their dtype, as if places were free: what pruning papers call the
               compression
    stored     what `save` writes: each array of the code raw, packed, or coded by itself or with
               others, as is least
    entropy    Σ n H(array) over masks, indices and integers, H the order-0 entropy, and floats as
               they are: no static
               coder of single symbols goes below for the first; `save` may in large arrays, where
               it looks at neighbours too, and in floats, whose exponents it codes

All of it on the host, of concrete arrays.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxprune.coding import code_lengths as codes
from jaxprune.core.arrays import dtype_bits
from jaxprune.core.pieces import Leaf, Piece, dense, kept, leaves, pieces, select
from jaxprune.core.where import is_float
from jaxprune.report.deep_compression import deep_compression_bits as deep_compression_bits
from jaxprune.report.distortion import distortion as distortion
from jaxprune.report.distortion import sqnr as sqnr
from jaxprune.report.stored import stored_bytes


class Sizes(NamedTuple):
    """Bytes of a tree, a leaf's bits rounded up to whole bytes.

    Attributes:
      dense: every weight at its dense dtype.
      nonzero: the weights that are kept, at their dense dtype; where they are is free.
      stored: the payload that `save` writes.
      entropy: the least for a coder of single symbols.
    """

    dense: int
    nonzero: int
    stored: int
    entropy: int


def sizes(tree: Any) -> Sizes:
    """The size of a tree in bytes, counted four ways.

    Args:
      tree: any pytree of concrete arrays, compressed or not.

    Returns:
      `Sizes`. In `nonzero` the mask decides what is kept, and where there is none, whether the
      value is 0. `stored` is the payload, without the file's header, which names the leaves.

    Raises:
      ValueError: arrays are traced, or a leaf cannot be saved.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> code = jp.Masked(jnp.arange(64.0).reshape(8, 8), jnp.zeros((8, 8), bool).at[0].set(True))
      >>> # 8 floats, and a mask of 64 bits with H(1/8) = 0.54; 2 bytes say how
      >>> jp.measure.sizes({"w": code})
      Sizes(dense=256, nonzero=32, stored=42, entropy=37)
    """
    found = leaves(tree)
    return total([leaf_sizes(leaf, stored) for leaf, stored in zip(found, stored_bytes(found))])


def total(many: list[Sizes]) -> Sizes:
    """The sum of sizes."""
    return Sizes(*(sum(column) for column in zip(Sizes(0, 0, 0, 0), *many)))


def leaf_sizes(leaf: Leaf, stored: int) -> Sizes:
    """`sizes` of a leaf stored in so many bytes. A codebook shared by a whole tree stands for no
    weights."""
    entropy = _bytes(sum(entropy_bits(p) for p in pieces(leaf)))
    if leaf.side:
        return Sizes(0, 0, stored, entropy)
    there = kept(leaf)
    width = dtype_bits(dense(leaf).dtype)
    return Sizes(_bytes(there.size * width), _bytes(int(there.sum()) * width), stored, entropy)


def _bytes(bits: float) -> int:
    return math.ceil(bits / 8 - 1e-9)


def entropy_bits(piece: Piece) -> float:
    """n H of one array, H its order-0 entropy; of floats, their bits."""
    return (
        codes.entropy_bits(_counts(piece.symbols))
        if piece.coded
        else piece.symbols.size * piece.bits
    )


def _counts(symbols: np.ndarray) -> np.ndarray:
    """How often each symbol occurs; where they lie far apart, only of those that do."""
    x = symbols.astype(np.int64)
    if x.size == 0:
        return np.zeros(1, np.int64)
    low = int(x.min())
    return (
        np.bincount(x - low)
        if int(x.max()) - low < 1 << 16
        else np.unique(x, return_counts=True)[1]
    )


def density(tree: Any, *, where: Any = None) -> float:
    """The fraction of weights that are kept: those under a True mask, and where there is no mask,
    those that are not 0.

    Args:
      tree: any pytree of concrete arrays, compressed or not.
      where: which leaves; all float leaves by default.

    Returns:
      A float; 1 where there are no weights.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.measure.density(jp.prune(0.75).init(jnp.arange(1.0, 17.0).reshape(4, 4)))
      0.25
    """
    chosen = [kept(leaf) for leaf in select(tree, where) if not leaf.side and is_float(dense(leaf))]
    total = sum(x.size for x in chosen)
    return sum(int(x.sum()) for x in chosen) / total if total else 1.0
