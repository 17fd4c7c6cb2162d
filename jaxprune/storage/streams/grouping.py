"""Which arrays share a bank (codecs `context` and `context first`): chosen by size, like every
codec.

Leaves in file order, up to 2^22 elements, make a batch, so that a writer need hold no more. The
masks of a batch are candidates for one bank, its integers for another. Each array's bits in the
bank's contexts are compared with its stream by itself; those that lose leave, the tables are made
again, and the rest have a bank if it is smaller than their streams together. A very large array
stays out: `coding.rans` by itself is some five times faster.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxprune.coding import context_coder, contexts, table_banks
from jaxprune.coding.code_lengths import entropy_bits
from jaxprune.core.leaves.layout import axes_of
from jaxprune.core.leaves.names import Place
from jaxprune.storage.format import words as limits
from jaxprune.storage.format.words import (
    CONTEXT,
    CONTEXT_FIRST,
    DTYPES,
    LEAST_BANK,
    MAX_WIDTH_OF_BANK,
    Array,
    Code,
    Leaf,
)
from jaxprune.storage.streams import context_stream, smallest

MAX_ROUNDS = 3  # of leaving out arrays that lose
MAX_MAGNITUDE = MAX_WIDTH_OF_BANK // 2  # that a table may hold
MIN_GROUP = LEAST_BANK  # elements


class Member(NamedTuple):
    """An array, and how it would be in a bank: `CONTEXT`, or `CONTEXT_FIRST` where its outputs are
    its first axis.
    """

    array: Array
    codec: int = CONTEXT


class BankPlan(NamedTuple):
    """Arrays with one bank, and how long it will be (a prediction, good to some bytes)."""

    members: list[Member]
    size: int
    write: Callable[[], bytes]


# --- batches -------------------------------------------------------------------------------------


class Batcher:
    """Divides leaves into the runs within which arrays may share a bank."""

    def __init__(self) -> None:
        self._leaves: list[Leaf] = []
        self._num_elements = 0

    def add(self, leaf: Leaf) -> Iterator[list[Leaf]]:
        """The batches that are complete now that this leaf follows: none, one or two."""
        num_elements = sum(array.words.size for array in arrays_of(leaf.node))
        if self._leaves and self._num_elements + num_elements > limits.MOST_BANK:
            yield self.rest()
        self._leaves.append(leaf)
        self._num_elements += num_elements
        if num_elements > limits.MOST_BANK:  # too large for company: it need not wait
            yield self.rest()

    def rest(self) -> list[Leaf]:
        """The last batch."""
        batch = self._leaves
        self._leaves = []
        self._num_elements = 0
        return batch


def batches(leaves: Iterable[Leaf]) -> Iterator[list[Leaf]]:
    """The batches of all leaves."""
    batcher = Batcher()
    for leaf in leaves:
        yield from batcher.add(leaf)
    rest = batcher.rest()
    if rest:
        yield rest


def arrays_of(node: Any) -> Iterator[Array]:
    """The arrays of a leaf's node, in order."""
    if isinstance(node, Array):
        yield node
    elif isinstance(node, Code):
        for part in node.parts:
            yield from arrays_of(part)


# --- banks ---------------------------------------------------------------------------------------


def plan_banks(batch: Iterable[Leaf]) -> list[BankPlan]:
    """The banks that pay, for the leaves of a batch."""
    return banks_of([member for leaf in batch for member in members_of(leaf)])


def members_of(leaf: Leaf) -> list[Member]:
    """The arrays of a leaf, each with the axis of its outputs, which the leaf's path tells."""
    return [Member(array, _codec(leaf.path, array.shape)) for array in arrays_of(leaf.node)]


def banks_of(members: list[Member]) -> list[BankPlan]:
    """One bank of masks, one of integers, and one of each array too large to share one, where they
    pay.
    """
    masks = [member for member in members if member.array.dtype == "?" and _fits(member.array)]
    integers = [member for member in members if member.array.dtype != "?" and _fits(member.array)]
    plans = [_paying_bank(group) for kind in (masks, integers) for group in _sharing(kind)]
    return [plan for plan in plans if plan is not None]


def _codec(path: str, shape: tuple[int, ...]) -> int:
    rank = len(shape)
    outputs_first = rank >= 2 and axes_of(Place(path, shape)).outputs == (-rank,)
    return CONTEXT_FIRST if outputs_first else CONTEXT


def _fits(array: Array) -> bool:
    """Whether an array may be in a bank: integers of a narrow range, two axes at least, no mask
    above.
    """
    if array.mask is not None or array.dtype[0] not in "?iu" or len(array.shape) < 2:
        return False
    if not 0 < array.words.size <= limits.MOST_OF_ONE:
        return False
    span = int(array.words.max()) - int(array.words.min())
    return 0 < span < MAX_MAGNITUDE


def _sharing(members: list[Member]) -> list[list[Member]]:
    """Members that may share a bank: all together, or each by itself where they are too large."""
    if sum(member.array.words.size for member in members) <= limits.MOST_BANK:
        return [members]
    return [[member] for member in members]


def _paying_bank(members: list[Member]) -> BankPlan | None:
    """A bank for those that gain by it, if together they do."""
    stream_size = {id(member): _stream_size(member.array) for member in members}
    plan = None
    for _ in range(MAX_ROUNDS):
        if sum(member.array.words.size for member in members) < MIN_GROUP:
            return None
        plan, sizes = fit_bank(members)
        members = [member for member, size in zip(members, sizes) if size < stream_size[id(member)]]
        if len(members) == len(plan.members):
            break
    if plan is None or plan.size >= sum(stream_size[id(member)] for member in plan.members):
        return None
    return plan


def _stream_size(array: Array) -> int:
    return smallest.predict_size(array.words.ravel(), DTYPES[array.dtype])


def fit_bank(members: list[Member]) -> tuple[BankPlan, np.ndarray]:
    """(the bank of some arrays, bytes of each array in it, the tables apart)."""
    arrays = [context_stream.to_view(array.words, codec) for array, codec in members]
    layout = contexts.layout([array.shape for array in arrays])
    centres = [_centre(array) for array in arrays]
    symbols = [_subtract_centre(array, centre) for array, centre in zip(arrays, centres)]
    classes = table_banks.fit_classes(symbols)
    flat = contexts.gathered(symbols, layout)
    del symbols  # as large as the arrays, and not needed any more
    ids = table_banks.contexts_of(flat, layout, classes)
    bank = table_banks.fit_bank(ids, flat)
    array_bits = contexts.sums(table_banks.bits(ids, flat, bank), layout)
    total_bits = float(array_bits.sum())
    lanes = context_coder.lanes_for(layout, total_bits)
    head = context_stream.write_head(context_stream.Head(bank, lanes, classes, centres))

    def write() -> bytes:
        return head + context_coder.encode(ids, flat, layout, bank, lanes)

    # As in `rans_stream.plan`: a lane's state of 4 bytes, of which one holds symbols.
    size = len(head) + 4 * lanes + round(max(0.0, total_bits - 8 * lanes) / 8)
    return BankPlan(members, size, write), (array_bits + _class_bits(classes)) / 8


def _centre(words: np.ndarray) -> int:
    """The word that counts as 0: 0 itself where it can, else the middle."""
    low = int(words.min())
    high = int(words.max())
    signed_or_bits = low < 0 or high < 2
    if signed_or_bits and low > -MAX_MAGNITUDE and high < MAX_MAGNITUDE:
        return 0
    return (low + high + 1) // 2


def _subtract_centre(words: np.ndarray, centre: int) -> np.ndarray:
    """words − centre, which 16 bits hold: modulo 2^16 it is the same."""
    modular_centre = np.array(centre % (1 << 16), np.uint16).view(np.int16)
    return words.astype(np.int16, order="C") - modular_centre


def _class_bits(classes: list[contexts.Classes]) -> np.ndarray:
    """Bits that each array's classes take: their number by the entropy of all, and a level and a
    centre.
    """
    all_classes = np.concatenate([part for array_classes in classes for part in array_classes[1:]])
    counts = np.bincount(all_classes + contexts.REACH)
    bits_each = entropy_bits(counts) / all_classes.size
    num_classes = [sum(part.size for part in array_classes[1:]) for array_classes in classes]
    return np.array([bits_each * count + 16 for count in num_classes])
