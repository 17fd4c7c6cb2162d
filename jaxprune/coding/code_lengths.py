"""How long a code is, in closed form: nothing here writes a stream.

    entropy      n H, H = −Σ p log2 p            the bound for codes that look at one symbol at a
                                                 time
    rANS         table + states + Σ c log2(4096 / f)
    Huffman      Σ c l, with the optimal whole lengths l (Huffman 1952); its table is not counted
    fixed        n ⌈log2 k⌉

and the accounting of Deep Compression (Han, Mao, Dally 2016, arXiv:1510.00149, figure 2 and section
5). There a pruned leaf is a list of entries (gap, value). The gap is the distance d >= 1 to the
previous entry (the first counts from position −1), written as d − 1 in w bits, so d <= 2^w; where
the next weight is further away, a filler entry with d = 2^w and the value zero goes first, as often
as needed. Zeros after the last weight are not coded. A value is a centroid's index; fillers need a
code as well, so values take ⌈log2(k + 1)⌉ bits: 63 centroids and zero are Han's 6 bits. Centroids
are float32. NumPy and the standard library only.
"""

import heapq
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import rans

MAX_GAP_WIDTH = 16


def bits_for(k: int) -> int:
    """⌈log2 k⌉: the fixed width of k codes."""
    return max(0, int(k) - 1).bit_length()


def fixed_bits(n: int, k: int) -> int:
    """n ⌈log2 k⌉."""
    return n * bits_for(k)


def entropy_bits(counts: ArrayLike) -> float:
    """n H of the symbols with these counts.

    >>> entropy_bits([2, 2, 0, 4])
    12.0
    """
    c = np.asarray(counts, np.float64).ravel()
    c = c[c > 0]
    return float(c @ (math.log2(c.sum()) - np.log2(c))) if c.size else 0.0


def rans_bits(counts: ArrayLike, lanes: int | None = None) -> float:
    """Bits of the rANS code of these symbols: 16 for each table entry, 32 a lane, and the words.

    A lane ends with the information that did not fill a word; its share of the state's 16 bits
    above 2^16 averages 8.
    """
    c = np.asarray(counts, np.int64).ravel()
    n = int(c.sum())
    f = rans.normalise(c)[: c.size].astype(np.float64)
    used = c > 0
    information = float(c[used] @ (rans.BITS - np.log2(f[used])))
    lanes = rans.lanes_for(n, information) if lanes is None else lanes
    return 16 * c.size + 32 * lanes + max(0.0, information - 8 * lanes)


def huffman_lengths(counts: ArrayLike) -> NDArray[np.int64]:
    """Lengths of an optimal prefix code; 0 for absent symbols, and 1 for a lone one (a decoder
    counts bits).

    >>> huffman_lengths([5, 1, 1, 0]).tolist()
    [1, 2, 2, 0]
    """
    c = [int(x) for x in np.asarray(counts).ravel()]
    present = [s for s, x in enumerate(c) if x > 0]
    length = np.zeros(len(c), np.int64)
    length[present] = int(len(present) == 1)
    # nodes are numbered in the order they are made, so that a child comes before its parent
    heap = [(c[s], i) for i, s in enumerate(present)]
    heapq.heapify(heap)
    parent = [0] * max(0, 2 * len(present) - 1)
    for node in range(len(present), len(parent)):
        (a, i), (b, j) = heapq.heappop(heap), heapq.heappop(heap)
        parent[i] = parent[j] = node
        heapq.heappush(heap, (a + b, node))
    depth = [0] * len(parent)
    for node in reversed(range(len(parent) - 1)):
        depth[node] = depth[parent[node]] + 1
    if len(present) > 1:
        length[present] = depth[: len(present)]
    return length


def huffman_bits(counts: ArrayLike) -> int:
    """Σ c l over the optimal lengths."""
    return int(np.asarray(counts, np.int64).ravel() @ huffman_lengths(counts))


class GapCode(NamedTuple):
    """Relative indices: `symbols` are the gaps d − 1 of all entries in order, and `filler` marks
    the fillers.
    """

    entries: int
    fillers: int
    symbols: NDArray[np.int64]
    filler: NDArray[np.bool_]


def gap_code(mask: ArrayLike, width: int) -> GapCode:
    """The entries of a mask, read in C order, with gaps of `width` bits.

    Han's example, with weights at 1, 4 and 15 and 3-bit gaps, needs one filler, 8 after 4:

    >>> gap_code([i in (1, 4, 15) for i in range(16)], width=3).symbols.tolist()
    [1, 2, 7, 2]
    """
    if not 1 <= width <= MAX_GAP_WIDTH:
        raise ValueError(f"gaps of width={width} bits: give 1 to {MAX_GAP_WIDTH}")
    gap = _gaps(mask)
    fillers = (gap - 1) >> width
    last = np.cumsum(fillers + 1) - 1  # the entry of each weight, after its fillers
    symbols = np.full(gap.size + int(fillers.sum()), (1 << width) - 1, np.int64)
    symbols[last] = gap - 1 - (fillers << width)
    filler = np.ones(symbols.size, bool)
    filler[last] = False
    return GapCode(symbols.size, symbols.size - gap.size, symbols, filler)


def _gaps(mask: ArrayLike) -> NDArray[np.int64]:
    return np.diff(np.flatnonzero(np.asarray(mask)), prepend=-1).astype(np.int64)


def best_gap_width(mask: ArrayLike, value_bits: int) -> int:
    """The width with the fewest bits, entries × (width + value_bits); the smallest if several."""
    gap = _gaps(mask)

    def entries(width):
        return gap.size + int(((gap - 1) >> width).sum())

    return min(range(1, MAX_GAP_WIDTH + 1), key=lambda width: entries(width) * (width + value_bits))


class DeepCompressionBits(NamedTuple):
    """Bits of one leaf; both totals count the codebook, neither the Huffman tables (as in the
    paper).
    """

    fixed: int  # pruned and quantised: fixed-width values and gaps
    huffman: int  # both Huffman coded
    codebook: int
    value_bits: int
    gap_width: int
    entries: int
    fillers: int


def deep_compression_bits(
    mask: ArrayLike | None,
    indices: ArrayLike,
    k: int,
    value_bits: int | None = None,
    gap_width: int | None = None,
) -> DeepCompressionBits:
    """Deep Compression's size of one leaf.

    Args:
        mask: True where a weight is kept; None for a leaf that was not pruned, which has no gaps.
        indices: each weight's centroid, 0 … k − 1, in the shape of the mask; ignored where pruned.
        k: the number of centroids, none of which stands for the pruned zeros.
        value_bits: width of a value; ⌈log2(k + 1)⌉ by default, or ⌈log2 k⌉ without gaps.
        gap_width: width of a gap; the best one by default (Han: 5, and 4 or 8 in some layers).
    """
    index = np.asarray(indices).ravel()
    codes = k if mask is None else k + 1
    value_bits = bits_for(codes) if value_bits is None else value_bits
    if codes > 1 << value_bits:
        raise ValueError(
            f"value_bits={value_bits} cannot hold {codes} codes: give at least {bits_for(codes)}"
        )
    if mask is None:
        return _sizes(index, np.zeros(0, np.int64), k, value_bits, 0, 0)
    kept = np.asarray(mask, bool).ravel()
    if kept.size != index.size:
        raise ValueError(
            f"mask {np.shape(mask)} and indices {np.shape(indices)} must have one shape"
        )
    gap_width = best_gap_width(kept, value_bits) if gap_width is None else gap_width
    gaps = gap_code(kept, gap_width)
    values = np.full(gaps.entries, k, np.int64)  # code k is the filler's zero
    values[~gaps.filler] = index[kept]
    return _sizes(values, gaps.symbols, k, value_bits, gap_width, gaps.fillers)


def _sizes(
    values: NDArray, gaps: NDArray[np.int64], k: int, value_bits: int, gap_width: int, fillers: int
) -> DeepCompressionBits:
    codebook = 32 * k
    fixed = values.size * (value_bits + gap_width) + codebook
    huffman = (
        huffman_bits(np.bincount(values, minlength=1))
        + huffman_bits(np.bincount(gaps, minlength=1))
        + codebook
    )
    return DeepCompressionBits(
        fixed, huffman, codebook, value_bits, gap_width, values.size, fillers
    )
