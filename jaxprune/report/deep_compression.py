"""The size of a tree as Deep Compression counts it: fixed-width values and relative gaps, then
Huffman on both.

Han, Mao, Dally 2016, arXiv:1510.00149, sections 2 to 5: how the paper's ratios (40x, 35x, 49x) were
counted. What `save` writes is `measure.sizes`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.coding import code_lengths as codes
from jaxprune.core.arguments import whole
from jaxprune.core.arrays import (
    Clustered,
    Dense,
    Masked,
    Stacked,
    dtype_bits,
    is_code,
    materialize,
    nbits,
)
from jaxprune.core.pieces import Leaf, Piece, dense, kept, leaves, pieces
from jaxprune.core.quantized import Quantized

ANY = 16  # bits of an integer that is as wide as it may get: the levels of `entropy_quantize`


class DeepCompression(NamedTuple):
    """Bits of a tree by Deep Compression's accounting.

    Attributes:
      fixed: pruning and shared values: fixed-width values and gaps.
      huffman: with both streams Huffman coded.
    """

    fixed: int
    huffman: int


def deep_compression_bits(
    tree: Any, *, value_bits: int | None = None, gap_width: int | None = None
) -> DeepCompression:
    """Bits of a tree as Deep Compression counts them (Han et al. 2016, arXiv:1510.00149).

    What is counted, leaf by leaf:

    * pruned: an entry a kept weight, its value and the gap from the entry before; where a gap is
      too wide, filler entries of the same width, whose value is zero. Zeros after the last weight
      cost nothing.
    * values: indices of `value_bits` into the codebook; of a `Masked` that is not clustered, floats
      at their dtype's width, which Huffman leaves alone.
    * codebooks in full: float32 centroids 32 bits each; of a quantised codebook its integers and
      its scale. A shared one, once.
    * clustered but not pruned: an index a weight, no gaps.
    * pruned integers on a grid: as pruned indices, with the levels but 0 in the place of centroids,
      and scales in that of the codebook. A weight of level 0 is pruned, and 0 is the filler's
      value, so that levels from a to b take ⌈log2(b − a + 1)⌉ bits, where a <= 0 <= b. So are the
      levels of `entropy_quantize`, integers of 16 bits with one scale, without a mask.
    * all other leaves in full: biases and unpruned layers, 32 bits a float32; of a `Quantized` its
      integers and scales.

    Huffman's tables are not counted, as in the paper; nor are names and shapes.

    Args:
      tree: plain, `Quantized`, `Masked`, `Clustered`, masked `Clustered` and masked `Quantized`
        leaves of concrete arrays.
      value_bits: of an index or a level; by default ⌈log2(k + 1)⌉ in pruned leaves (k centroids and
        the filler's zero), ⌈log2 k⌉ in others, and of levels as above.
      gap_width: bits of a gap; by default the one that makes the leaf smallest. Han: 5, and 4 or 8
        in some layers.

    Raises:
      ValueError: a leaf has another code (see `sizes`), or k or the levels do not fit `value_bits`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> # the paper's figure 2: one filler
      >>> w = jnp.zeros(16).at[jnp.array([1, 4, 15])].set(3.4)
      >>> # 4·(32 + 3); gaps 1 2 7 2: 6 bits
      >>> jp.measure.deep_compression_bits(jp.Masked(w, w != 0), gap_width=3)
      DeepCompression(fixed=140, huffman=134)
    """
    if value_bits is not None:
        value_bits = whole("deep_compression_bits(value_bits={})", value_bits, 1, 32)
    if gap_width is not None:
        gap_width = whole("deep_compression_bits(gap_width={})", gap_width, 1, 32)
    each = [_deep_compression(leaf, value_bits, gap_width) for leaf in leaves(tree)]
    return DeepCompression(sum(x.fixed for x in each), sum(x.huffman for x in each))


def _deep_compression(leaf: Leaf, value_bits: int | None, gap_width: int | None) -> DeepCompression:
    code = leaf.code
    pruned = False
    while isinstance(code, Masked | Stacked | Dense):
        pruned = pruned or isinstance(code, Masked)
        code = code.each if isinstance(code, Stacked) else code.values
    if isinstance(code, Clustered):
        return _clustered(leaf, code, pruned, value_bits, gap_width)
    if (
        isinstance(code, Quantized)
        and _on_a_grid(code)
        and (pruned or (code.bits == ANY and code.scale.size == 1))
    ):
        return _levels(leaf, value_bits, gap_width)
    if isinstance(code, Quantized) and not pruned:
        return _twice(nbits(leaf.code))
    if is_code(code) and not leaf.side:
        raise ValueError(
            f"{leaf.path or 'the array'} is {type(code).__name__}: Deep Compression counts plain, "
            "Quantized, Masked and Clustered leaves, and pruned integers that have no zero point. "
            "For other codes see measure.sizes"
        )
    return _floats(leaf, gap_width) if pruned else _twice(_raw_bits(pieces(leaf)))


def _clustered(
    leaf: Leaf, code: Clustered, pruned: bool, value_bits: int | None, gap_width: int | None
) -> DeepCompression:
    k = (leaf.codebook if code.codebook is None else code.codebook).shape[-1]
    indices = _indices(leaf)
    bits = codes.deep_compression_bits(
        kept(leaf) if pruned else None, indices, k, value_bits, gap_width
    )
    centroids = _raw_bits([p for p in pieces(leaf) if "codebook" in p.fields]) - bits.codebook
    return DeepCompression(bits.fixed + centroids, bits.huffman + centroids)


def _on_a_grid(code: Quantized) -> bool:
    """Whether its integers are levels, of which 0 stands for 0."""
    integers = jnp.issubdtype(materialize(code.q).dtype, jnp.signedinteger)
    return integers and code.zero_point is None and code.grid is None


def _levels(leaf: Leaf, value_bits: int | None, gap_width: int | None) -> DeepCompression:
    q = _indices(leaf).astype(np.int64)
    there = (kept(leaf) if isinstance(leaf.code, Masked | Stacked) else True) & (q != 0)
    low, high = (int(f(q[there], initial=0)) for f in (np.min, np.max))
    bits = codes.deep_compression_bits(there, q - low - (q > 0), high - low, value_bits, gap_width)
    scales = _raw_bits([p for p in pieces(leaf) if "scale" in p.fields]) - bits.codebook
    return DeepCompression(bits.fixed + scales, bits.huffman + scales)


def _indices(leaf: Leaf) -> np.ndarray:
    """The indices or levels of a leaf, in its layout."""

    def inner(code: Any) -> Any:
        if isinstance(code, Clustered | Quantized):
            return code.indices if isinstance(code, Clustered) else code.q
        return (
            code.replace(each=inner(code.each)) if isinstance(code, Stacked) else inner(code.values)
        )

    return dense(Leaf(leaf.path, inner(leaf.code)))


def _floats(leaf: Leaf, gap_width: int | None) -> DeepCompression:
    width = dtype_bits(dense(leaf).dtype)
    gap_width = codes.best_gap_width(kept(leaf), width) if gap_width is None else gap_width
    gaps = codes.gap_code(kept(leaf), gap_width)
    values = gaps.entries * width
    return DeepCompression(
        values + gaps.entries * gap_width, values + codes.huffman_bits(np.bincount(gaps.symbols))
    )


def _raw_bits(parts: list[Piece]) -> int:
    return sum(p.symbols.size * p.bits for p in parts)


def _twice(bits: int) -> DeepCompression:
    return DeepCompression(bits, bits)
