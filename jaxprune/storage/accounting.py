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
from .streams import banks


def leaves(node: Any, group: Group | None = None) -> Iterator[tuple[Leaf, Group | None]]:
    """Every leaf, with the `Common` that it is in; a codebook comes before its tree."""
    if isinstance(node, Leaf):
        yield node, group
    elif isinstance(node, Group):
        yield node.codebook, None
        yield from leaves(node.tree, node)
    else:
        for kid in node.values() if isinstance(node, dict) else node or ():
            yield from leaves(kid, group)


def rows(node: Any) -> Iterator[Row]:
    """The arrays of a leaf's node, in order."""
    if isinstance(node, Row):
        yield node
    for part in node.parts if isinstance(node, Code) else ():
        yield from rows(part)


def shared(group: Group | None) -> Shaped | None:
    """What the codebook of a `Common` stands for."""
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
    mask = (
        math.prod(integers_of(node.parts[1]).shape)
        if node.tag == "M" and not isinstance(node.parts[0], Row)
        else 0
    )
    return mask + sum(map(decoded_bytes, node.parts))


def needed(
    contents: Contents, wanted: Collection[Leaf], made: Callable[[Any, Group | None], int]
) -> int:
    """Bytes that some leaves take decoded, where of each node `made` are made besides.

    A bank is decoded whole, one at a time, and its decoder's memory counts too.
    """
    total = 0
    used = {row.bank for leaf in wanted for row in rows(leaf.node)} - {-1}
    for leaf, group in leaves(contents.tree):
        if leaf in wanted:
            total += decoded_bytes(leaf.node) + made(leaf.node, group)
        else:
            total += sum(decoded_bytes(row) for row in rows(leaf.node) if row.bank in used)
    return total + max((banks.working_bytes(contents.banks[i].rows) for i in used), default=0)


class LeafMemory:
    """Bytes that the leaves of a file take when they are decoded one by one, from the manifest
    alone.
    """

    def __init__(self, contents: Contents):
        # A bank is decoded whole with its first leaf, and its other arrays wait until they are
        # asked for.
        self.of_banks = [
            sum(map(decoded_bytes, bank.rows)) + banks.working_bytes(bank.rows)
            for bank in contents.banks
        ]

    def decoded(self, leaf: Leaf) -> int:
        """Bytes of a leaf's arrays, and of the banks that they are in."""
        used = {row.bank for row in rows(leaf.node)} - {-1}
        return decoded_bytes(leaf.node) + sum(self.of_banks[bank] for bank in used)

    def dense(self, leaf: Leaf, group: Group | None) -> int:
        """The same, with the array that the leaf stands for."""
        codebook = decoded_bytes(group.codebook.node) if group else 0
        made = dense_bytes(leaf.node, group) if isinstance(leaf.node, Code) else 0
        return self.decoded(leaf) + codebook + made


def stored_bytes(contents: Contents) -> Iterator[int]:
    """Bytes of data of each leaf, in order: its own streams, and of a bank the part that its
    symbols are of all.

    A manifest does not tell which symbols of a bank cost more. Together it is all of the data: a
    leaf that is tied to an earlier one takes none.
    """
    parts = [
        shares(bank.length, (math.prod(row.shape) for row in bank.rows)) for bank in contents.banks
    ]
    for leaf in contents.leaves:
        if leaf.tied is not None:
            yield 0
            continue
        yield leaf.length + sum(
            parts[row.bank][row.offset] for row in rows(leaf.node) if row.bank >= 0
        )


def shares(total: int, weights: Iterable[int]) -> list[int]:
    """A whole number divided by weights into whole numbers, whose sum it is.

    >>> shares(10, [1, 1, 1])
    [3, 3, 4]
    """
    ends = list(itertools.accumulate(weights, initial=0))
    return [total * b // ends[-1] - total * a // ends[-1] for a, b in itertools.pairwise(ends)]
