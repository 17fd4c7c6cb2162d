"""Deep Compression's storage (arXiv:1510.00149, figure 2), one weight at a time."""

import heapq
import itertools


def entries(mask, width):
    """The list of (position, gap, is_filler), walking through the weights."""
    out = []
    previous = -1
    for position, kept in enumerate(mask):
        if position - previous == 2**width and not kept and any(mask[position:]):
            out.append(
                (position, 2**width, True)
            )  # the bound is reached and the weight lies further on: a filler zero
            previous = position
        elif kept:
            out.append((position, position - previous, False))
            previous = position
    return out


def huffman_total(symbols):
    """Bits of a Huffman code: the sum of the merged weights. A lone symbol takes one bit."""
    counts = [len(list(g)) for _, g in itertools.groupby(sorted(symbols))]
    if len(counts) <= 1:
        return sum(counts)
    heapq.heapify(counts)
    bits = 0
    while len(counts) > 1:
        merged = heapq.heappop(counts) + heapq.heappop(counts)
        bits += merged
        heapq.heappush(counts, merged)
    return bits


def sizes(mask, indices, k, value_bits, gap_width):
    """(fixed, huffman) bits with the codebook of k float32."""
    stored = entries(mask, gap_width)
    values = [k if filler else int(indices[position]) for position, _, filler in stored]
    gaps = [gap for _, gap, _ in stored]
    fixed = len(stored) * (value_bits + gap_width) + 32 * k
    return fixed, huffman_total(values) + huffman_total(gaps) + 32 * k
