"""Two checkpoints, leaf by leaf."""

from collections.abc import Callable, Iterator
from typing import Any

from jaxprune.report.differences import Difference, difference, other_shape, together
from jaxprune.storage.checkpoints.tensors import Checkpoint


def compare(a: Checkpoint, b: Checkpoint, tick: Callable[[str, int], Any]) -> Iterator[Difference]:
    """Each leaf of either, those of `a` first."""
    for path, tensor in a.tensors.items():
        yield _leaf(path, a, b)
        tick(path, tensor.nbytes)
    for path, tensor in b.tensors.items():
        if path not in a.tensors:
            yield Difference(path, tensor.size, compared=False, note="only in the second")


def _leaf(path: str, a: Checkpoint, b: Checkpoint) -> Difference:
    first = a.tensors[path]
    second = b.tensors.get(path)
    if second is None:
        return Difference(path, first.size, compared=False, note="only in the first")
    if first.shape != second.shape:
        return Difference(path, first.size, compared=False, note=other_shape(first, second))
    # The second is read first: where it is compressed, reading it takes more memory than the leaf.
    second_array = b.read(path)
    return difference(path, a.read(path), second_array)


def total_of_different(rows: list[Difference]) -> Difference:
    """The leaves that differ, as one: equal leaves, however large, would hide what became of the
    others."""
    total = together("total", [row for row in rows if not row.same])
    return total._replace(other_bits=sum(row.other_bits for row in rows))


def remarks(row: Difference) -> str:
    """What the numbers of a row do not tell, in words; "" when there is nothing."""
    words = [row.note] if row.note else []
    if row.not_finite:
        words.append(f"{row.not_finite:,} that are NaN or infinite differ")
    if row.other_bits:
        words.append(f"{row.other_bits:,} of equal value differ in bits: -0 for 0, or another NaN")
    return "; ".join(words)
