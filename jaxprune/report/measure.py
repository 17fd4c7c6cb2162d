"""What a compression costs and what it loses: bytes, bits, distortion, density.

Four sizes of one tree, each under another assumption:

    dense      every weight at its own dtype
    nonzero    the kept weights at their dtype, as if places were free: what pruning papers call the compression
    stored     what `save` writes: each array of the code raw, packed, or coded by itself or with others, as is least
    entropy    Σ n H(array) over masks, indices and integers, H the order-0 entropy, and floats as they are: no static
               coder of single symbols goes below; `save` may in large arrays, where it looks at neighbours too

All of it on the host, of concrete arrays.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.core.arrays import dtype_bits, materialize
from jaxprune.core.tree import by_path, nearest
from jaxprune.core.where import is_float
from jaxprune.numerics import codes
from jaxprune.report.deep_compression import deep_compression_bits as deep_compression_bits
from jaxprune.report.pieces import Leaf, Piece, dense, kept, leaves, pieces, select
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
      `Sizes`. In `nonzero` the mask decides what is kept, and where there is none, whether the value is 0. `stored` is
      the payload, without the file's header, which names the leaves.

    Raises:
      ValueError: arrays are traced, or a leaf cannot be saved.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> code = jp.Masked(jnp.arange(64.0).reshape(8, 8), jnp.zeros((8, 8), bool).at[0].set(True))
      >>> jp.measure.sizes({"w": code})        # 8 floats, and a mask of 64 bits with H(1/8) = 0.54; 2 bytes say how
      Sizes(dense=256, nonzero=32, stored=42, entropy=37)
    """
    found = leaves(tree)
    return total([leaf_sizes(leaf, stored) for leaf, stored in zip(found, stored_bytes(found))])


def total(many: list[Sizes]) -> Sizes:
    """The sum of sizes."""
    return Sizes(*(sum(column) for column in zip(Sizes(0, 0, 0, 0), *many)))


def leaf_sizes(leaf: Leaf, stored: int) -> Sizes:
    """`sizes` of a leaf stored in so many bytes. A codebook shared by a whole tree stands for no weights."""
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
    return codes.entropy_bits(_counts(piece.symbols)) if piece.coded else piece.symbols.size * piece.bits


def _counts(symbols: np.ndarray) -> np.ndarray:
    """How often each symbol occurs; where they lie far apart, only of those that do."""
    x = symbols.astype(np.int64)
    if x.size == 0:
        return np.zeros(1, np.int64)
    low = int(x.min())
    return np.bincount(x - low) if int(x.max()) - low < 1 << 16 else np.unique(x, return_counts=True)[1]


def density(tree: Any, *, where: Any = None) -> float:
    """The fraction of weights that are kept: those under a True mask, and where there is no mask, those that are not 0.

    Args:
      tree: any pytree of concrete arrays, compressed or not.
      where: which leaves; all float leaves by default.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.measure.density(jp.prune(0.75).init(jnp.arange(1.0, 17.0).reshape(4, 4)))
      0.25
    """
    chosen = [kept(leaf) for leaf in select(tree, where) if not leaf.side and is_float(dense(leaf))]
    return sum(int(x.sum()) for x in chosen) / max(sum(x.size for x in chosen), 1)


def distortion(params: Any, tree: Any, weights: Any = None) -> Any:
    """What the code loses: Σᵢ hᵢ (wᵢ − Δᵢ)², over all float leaves.

    Unlike the sizes it may be traced, so that a `vmap` over sparsities is a rate-distortion curve.

    Args:
      params: the dense params w.
      tree: their code; Δ = `materialize(tree)`.
      weights: h, a tree of arrays that broadcast against the leaves of the same path; 1 where it has none.

    Returns:
      A float (float64 sums); a float32 scalar under trace.

    Raises:
      ValueError: the trees have different leaves, or h has one that w does not.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([[1.0, -2.0], [3.0, 0.5]])
      >>> jp.measure.distortion(w, jp.prune(0.5).init(w))      # 1² + 0.5²
      1.25
    """
    return _squares(params, tree, weights)[0]


def sqnr(params: Any, tree: Any) -> Any:
    """Signal to quantisation noise in dB, over all float leaves together: 10 log10(Σ w² / Σ (w − Δ)²).

    Returns:
      A float, or a scalar under trace; infinite where nothing is lost.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([[10.0, 1.0]])
      >>> round(jp.measure.sqnr(w, jp.prune(0.5).init(w)), 2)     # 101 : 1
      20.04
    """
    noise, signal = _squares(params, tree, None)
    if isinstance(noise, jax.Array):
        return 10 * jnp.log10(signal / noise)
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf


def _squares(params: Any, tree: Any, weights: Any) -> tuple[Any, Any]:
    """Σ h (w − Δ)² and Σ w²."""
    w, code = by_path(params, "params"), by_path(materialize(tree), "compressed")
    h = {} if weights is None else by_path(weights, "weights")
    _same_leaves(w, code, h)
    names = [name for name in w if is_float(w[name])]
    traced = any(isinstance(x, Tracer) for named in (w, code, h) for x in named.values())
    wide = (lambda x: jnp.asarray(x).astype(jnp.float32)) if traced else (lambda x: np.asarray(x).astype(np.float64))
    noise = sum((_wide_h(h, n, wide) * (wide(w[n]) - wide(code[n])) ** 2).sum() for n in names)
    signal = sum((wide(w[n]) ** 2).sum() for n in names)
    return (noise, signal) if traced else (float(noise), float(signal))


def _wide_h(h: dict[str, Any], name: str, wide: Any) -> Any:
    return wide(h[name]) if name in h and h[name] is not None else 1


def _same_leaves(w: dict[str, Any], code: dict[str, Any], h: dict[str, Any]) -> None:
    for name in sorted({*code, *h} - {*w}):
        which = "compressed tree" if name in code else "weights"
        raise ValueError(f"the {which} has a leaf {name!r} that params lacks. Nearest: {nearest(name, w)}")
    for name in w:
        if name not in code:
            raise ValueError(f"the compressed tree lacks the leaf {name!r} of params. Nearest: {nearest(name, code)}")
        shapes = np.shape(w[name]), np.shape(code[name])
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name or 'the array'} has the shape {shapes[0]} in params and {shapes[1]} in its code")
