"""Which arrays share a bank: chosen by size, like every codec.

Leaves in file order, up to 2^22 elements, make a batch, so that a writer need hold no more; masks
and integers of a batch are a group each. Each array's bits in the group's contexts are compared
with its stream by itself; those that lose leave, the tables are made again, and the rest have a
bank if it is smaller than their streams together. A very large array stays out: `numerics.rans` by
itself is some five times faster.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxprune.coding import code_lengths as codes
from jaxprune.coding import context_coder, contexts
from jaxprune.coding import table_banks as fitting
from jaxprune.core.leaves.layout import axes_of
from jaxprune.core.leaves.names import Place
from jaxprune.storage.format import words as f
from jaxprune.storage.format.words import DTYPES, Array, Code, Leaf
from jaxprune.storage.streams import banks, smallest

ROUNDS = 3  # of leaving out arrays that lose
HALF = f.MAX_WIDTH_OF_BANK // 2  # magnitudes that a table may hold


class Member(NamedTuple):
    """An array, and how it would be in a bank: `CONTEXT`, or `CONTEXT_FIRST` where its outputs are
    its first axis.
    """

    array: Array
    codec: int = f.CONTEXT


class Group(NamedTuple):
    """Arrays with one bank, and how long it will be (a prediction, good to some bytes)."""

    members: list[Member]
    size: int
    write: Callable[[], bytes]


def arrays_of(leaves: Iterable[Leaf]) -> Iterator[Array]:
    """The arrays of leaves, in order."""
    for leaf in leaves:
        yield from _arrays(leaf.node)


def _arrays(node: Any) -> Iterator[Array]:
    if isinstance(node, Array):
        yield node
    elif isinstance(node, Code):
        for part in node.parts:
            yield from _arrays(part)


def members_of(leaves: Iterable[Leaf]) -> list[Member]:
    """The arrays of leaves, in order, each with the axis of its outputs, which the leaf's path
    tells.
    """
    return [
        Member(array, _codec(leaf.path, array.shape))
        for leaf in leaves
        for array in _arrays(leaf.node)
    ]


def _codec(path: str, shape: tuple[int, ...]) -> int:
    first = len(shape) >= 2 and axes_of(Place(path, shape)).outputs == (-len(shape),)
    return f.CONTEXT_FIRST if first else f.CONTEXT


def elements(leaf: Leaf) -> int:
    """How many elements the arrays of a leaf have. A batch has up to 2^22; a larger leaf is one by
    itself.
    """
    return sum(x.words.size for x in _arrays(leaf.node))


def batches(leaves: Iterable[Leaf]) -> Iterator[list[Leaf]]:
    """Leaves in the runs among which arrays may share a bank."""
    batch: list[Leaf] = []
    total = 0
    for leaf in leaves:
        n = elements(leaf)
        if batch and total + n > f.MOST_BANK:
            yield batch
            batch = []
            total = 0
        batch.append(leaf)
        total += n
    yield batch


def groups(members: list[Member]) -> list[Group]:
    """The banks that pay, for a batch's arrays in order: one of masks, one of integers, one of each
    array too large to share one.
    """
    found = [_paying(some) for kind in (True, False) for some in _alike(members, kind)]
    return [group for group in found if group is not None]


def _alike(members: list[Member], masks: bool) -> list[list[Member]]:
    fit = [x for x in members if (x.array.dtype == "?") == masks and _fits(x.array)]
    if sum(x.array.words.size for x in fit) <= f.MOST_BANK:
        return [fit]
    return [[x] for x in fit]


def _fits(array: Array) -> bool:
    plain = array.mask is None and array.dtype[0] in "?iu" and len(array.shape) >= 2
    if not plain or not 0 < array.words.size <= f.MOST_OF_ONE:
        return False
    span = int(array.words.max()) - int(array.words.min())
    return 0 < span < HALF


def _centre(words: np.ndarray) -> int:
    """What counts as 0: that itself where it can, else the middle."""
    low = int(words.min())
    high = int(words.max())
    return 0 if (low < 0 or high < 2) and low > -HALF and high < HALF else (low + high + 1) // 2


def _near(words: np.ndarray, centre: int) -> np.ndarray:
    """words − centre, which 16 bits hold: modulo 2^16 it is the same."""
    return words.astype(np.int16, order="C") - np.array(centre % (1 << 16), np.uint16).view(
        np.int16
    )


def _paying(members: list[Member]) -> Group | None:
    """A bank for those that gain by it, if together they do."""
    alone = {id(x): smallest.predict(x.array.words.ravel(), DTYPES[x.array.dtype]) for x in members}
    group = None
    for _ in range(ROUNDS):
        if sum(x.array.words.size for x in members) < f.LEAST_BANK:
            return None
        group, shares = _group(members)
        members = [x for x, share in zip(members, shares) if share < alone[id(x)]]
        if len(members) == len(group.members):
            break
    return group if group and group.size < sum(alone[id(x)] for x in group.members) else None


def _group(members: list[Member]) -> tuple[Group, np.ndarray]:
    """The group, and bytes of each array in it, the tables apart."""
    arrays = [banks.rows_of(array.words, codec) for array, codec in members]
    order = contexts.layout([x.shape for x in arrays])
    centres = [_centre(x) for x in arrays]
    values = [_near(x, centre) for x, centre in zip(arrays, centres)]
    classes = fitting.fit_classes(values)
    flat = contexts.gathered(values, order)
    del values
    ids = fitting.contexts_of(flat, order, classes)
    bank = fitting.fit_bank(ids, flat)
    bits = contexts.sums(fitting.bits(ids, flat, bank), order)
    lanes = context_coder.lanes_for(order, float(bits.sum()))
    head = banks.write_head(banks.Head(bank, lanes, classes, centres))

    def write():
        return head + context_coder.encode(ids, flat, order, bank, lanes)

    size = len(head) + 4 * lanes + round(max(0.0, float(bits.sum()) - 8 * lanes) / 8)
    return Group(members, size, write), (bits + _bits_of(classes)) / 8


def _bits_of(classes: list[contexts.Classes]) -> np.ndarray:
    """Bits that each array's classes take: their number by the entropy of all."""
    every = np.concatenate([part for x in classes for part in x[1:]])
    each = codes.entropy_bits(np.bincount(every + contexts.REACH)) / every.size
    return np.array([each * sum(part.size for part in x[1:]) + 16 for x in classes])
