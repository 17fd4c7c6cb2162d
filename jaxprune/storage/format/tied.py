"""Leaves that are the same arrays, bit for bit, as an earlier one: an output layer tied to its
embedding. A file holds such arrays once.

Small leaves and constant ones are not looked for: they take a few bytes, and zeros are alike by
chance.
"""

import hashlib
from typing import Any

import numpy as np

from jaxprune.storage.format.words import Array, Code, Leaf

LEAST = 1 << 10  # bytes of a leaf's arrays
SAMPLE = 1 << 8  # elements that are looked at first


class Ties:
    """The leaves that were seen, in order.

    Args:
      held: whether the arrays of all leaves stay in memory, and can be compared; else each is
        hashed (SHA-256).
    """

    def __init__(self, held: bool) -> None:
        self._held = held
        self._seen: dict[Any, list[tuple[int, Any]]] = {}
        self._count = 0

    def first(self, leaf: Leaf) -> int | None:
        """The number of the earlier leaf with the same arrays, counting those that have arrays and
        no earlier one.
        """
        if not isinstance(leaf.node, Array | Code):
            return None
        arrays = _arrays(leaf.node)
        if arrays is not None and _worth(arrays):
            key = (_outline(leaf.node), *map(_sample, arrays))
            whole: Any = arrays if self._held else _digest(arrays)
            for number, other in self._seen.get(key, ()):
                if _equal(whole, other) if self._held else whole == other:
                    return number
            self._seen.setdefault(key, []).append((self._count, whole))
        self._count += 1
        return None


def _arrays(node: Any) -> list[np.ndarray] | None:
    """What a file would hold of a node's arrays; None where a codebook lies elsewhere (in a
    `Common`).
    """
    if isinstance(node, Array):
        return [node.kept()]
    found: list[np.ndarray] = []
    for place, part in enumerate(node.parts):
        if isinstance(part, Array | Code):
            inner = _arrays(part)
            if inner is None:
                return None
            found += inner
        elif node.tag == "C" and place == 0:  # its codebook
            return None
    return found


def _outline(node: Any) -> Any:
    """Everything of a node but the numbers."""
    if isinstance(node, Array):
        return node.dtype, node.host, node.shape
    if isinstance(node, Code):
        return node.tag, node.statics, tuple(map(_outline, node.parts))
    return node


def _worth(arrays: list[np.ndarray]) -> bool:
    large = sum(array.nbytes for array in arrays) >= LEAST
    return large and any(np.any(some != some[0]) for array in arrays if (some := _some(array)).size)


def _some(array: np.ndarray) -> np.ndarray:
    return array[:: max(1, array.size // SAMPLE)]


def _sample(array: np.ndarray) -> bytes:
    return _some(array).tobytes()


def _equal(arrays: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return all(a is b or np.array_equal(a, b) for a, b in zip(arrays, others))


def _digest(arrays: list[np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
