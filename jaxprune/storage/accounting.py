"""Bytes of a file's leaves: stored, decoded and dense, from the manifest alone. NumPy and the
standard library only.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from .format.manifest import Contents
from .format.shapes import Shaped, dense, integers_of
from .format.words import DTYPES, Code, Group, Leaf, Row
from .streams.context_stream import working_bytes

NO_BANK = -1


def leaves(node: Any, group: Group | None = None) -> Iterator[tuple[Leaf, Group | None]]:
    """Every leaf, with the `Common` that it is in; a codebook comes before its tree."""
    if isinstance(node, Leaf):
        yield node, group
    elif isinstance(node, Group):
        yield node.codebook, None
        yield from leaves(node.tree, node)
    elif node is not None:
        for child in node.values() if isinstance(node, dict) else node:
            yield from leaves(child, group)


def rows(node: Any) -> Iterator[Row]:
    """The arrays of a leaf's node, in order."""
    if isinstance(node, Row):
        yield node
    elif isinstance(node, Code):
        for part in node.parts:
            yield from rows(part)


def shared(group: Group | None) -> Shaped | None:
    """Shape and dtype of what the codebook of a `Common` stands for."""
    return dense(group.codebook.node) if group else None


def dense_bytes(node: Any, group: Group | None) -> int:
    """Bytes of the array that a leaf stands for; 0 for a Python number."""
    if not isinstance(node, Row | Code):
        return 0
    shape, dtype = dense(node, shared(group))
    return math.prod(shape) * DTYPES[dtype].itemsize


def decoded_bytes(node: Any) -> int:
    """Bytes of the arrays of a leaf's node, decoded."""
    if isinstance(node, Row):
        return math.prod(node.shape) * DTYPES[node.dtype].itemsize
    if not isinstance(node, Code):
        return 0
    part_bytes = sum(decoded_bytes(part) for part in node.parts)
    if node.tag == "M" and not isinstance(node.parts[0], Row):
        # The mask is not stored: it is made of the integers below it.
        return part_bytes + math.prod(integers_of(node.parts[1]).shape)
    return part_bytes


def needed(
    contents: Contents, wanted: Collection[Leaf], made_bytes: Callable[[Any, Group | None], int]
) -> int:
    """Bytes that some leaves take decoded.

    A bank is decoded whole, one at a time, and its decoder's memory counts too.

    Args:
      contents: of the file.
      wanted: the leaves.
      made_bytes: (node, group) -> bytes that are made of a wanted leaf besides its decoded arrays.
    """
    used_banks = {number for leaf in wanted for number in _banks_of(leaf)}
    total = 0
    for leaf, group in leaves(contents.tree):
        if leaf in wanted:
            total += decoded_bytes(leaf.node) + made_bytes(leaf.node, group)
        else:
            total += sum(decoded_bytes(row) for row in rows(leaf.node) if row.bank in used_banks)
    decoder_bytes = [working_bytes(contents.banks[number].rows) for number in used_banks]
    return total + max(decoder_bytes, default=0)


class LeafMemory:
    """Bytes that the leaves of a file take when they are decoded one by one."""

    def __init__(self, contents: Contents):
        # A bank is decoded whole with its first leaf; its other arrays wait until they are asked
        # for.
        self._bank_bytes = [
            sum(map(decoded_bytes, bank.rows)) + working_bytes(bank.rows) for bank in contents.banks
        ]

    def decoded(self, leaf: Leaf) -> int:
        """Bytes of a leaf's arrays, and of the banks that they are in."""
        return decoded_bytes(leaf.node) + sum(self._bank_bytes[bank] for bank in _banks_of(leaf))

    def dense(self, leaf: Leaf, group: Group | None) -> int:
        """The same, with the array that the leaf stands for."""
        codebook = decoded_bytes(group.codebook.node) if group else 0
        array = dense_bytes(leaf.node, group) if isinstance(leaf.node, Code) else 0
        return self.decoded(leaf) + codebook + array


def _banks_of(leaf: Leaf) -> set[int]:
    """The banks that a leaf's arrays are in."""
    return {row.bank for row in rows(leaf.node)} - {NO_BANK}


def stored_bytes(contents: Contents) -> Iterator[int]:
    """Bytes of data of each leaf, in order: its own streams, and a part of its banks.

    A manifest does not tell which symbols of a bank cost more, so an array's part is that of its
    symbols. Together it is all of the data: a leaf that is tied to an earlier one takes none.
    """
    bank_shares = [
        shares(bank.length, [math.prod(row.shape) for row in bank.rows]) for bank in contents.banks
    ]
    for leaf in contents.leaves:
        if leaf.tied is not None:
            yield 0
            continue
        banked_rows = [row for row in rows(leaf.node) if row.bank != NO_BANK]
        yield leaf.length + sum(bank_shares[row.bank][row.offset] for row in banked_rows)


def shares(total: int, weights: Iterable[int]) -> list[int]:
    """A whole number divided by weights into whole numbers, whose sum it is.

    >>> shares(10, [1, 1, 1])
    [3, 3, 4]
    """
    ends = list(itertools.accumulate(weights, initial=0))
    cuts = [total * end // ends[-1] for end in ends]
    return [after - before for before, after in itertools.pairwise(cuts)]
