"""Where batches come from, and how a resumed run finds its place among them.

Shuffled            arrays in memory, in an order that (seed, epoch) determine: any step's batch is
                    known at once
any iterable        each `iter()` is an epoch; a resumed run skips what was seen, so the order must
                    repeat itself
iterators with get_state and set_state (grain)          their state lies in the checkpoint
"""

import base64
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxprune.core.arguments import whole
from jaxprune.distill.losses.inputs import IGNORED


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Batches of arrays that fit into memory, in a new order every epoch.

    The order of an epoch is a permutation drawn by NumPy's Philox from (seed, epoch), the same on
    every machine; the last examples that do not fill a batch wait for another epoch. `fit` puts the
    arrays on the device once and sends indices after that.

    Attributes:
      data: a mapping of arrays with equal first axes, as {"x": …, "y": …, "teacher": …}.
      batch: examples a batch.
      seed: of the orders.
      index: the name of a field that tells which examples a batch holds (int32), for losses that
        remember; None: none.

    Raises:
      ValueError: first axes that differ; no examples; a batch larger than the data.

    Example:
      >>> import numpy as np, jaxprune as jp
      >>> batches = jp.distill.Shuffled({"x": np.arange(6)}, batch=2)
      >>> [batch["x"].tolist() for _, batch in zip(range(3), batches)]     # iterating never ends
      [[4, 0], [3, 5], [2, 1]]
      >>> batches.at(4)["x"].tolist()                  # the second epoch's second batch
      [5, 3]
    """

    data: Mapping[str, Any]
    batch: int
    seed: int = 0
    index: str | None = None

    def __post_init__(self) -> None:
        lengths = {name: np.shape(x)[0] if np.ndim(x) else None for name, x in _leaves(self.data)}
        if not lengths or len(set(lengths.values())) > 1 or None in lengths.values():
            raise ValueError(
                f"Shuffled: the arrays have {lengths or 'no'} examples; they need equal first axes"
            )
        object.__setattr__(self, "batch", whole("Shuffled(batch={})", self.batch))
        object.__setattr__(self, "seed", whole("Shuffled(seed={})", self.seed, 0))
        if self.batch > len(self):
            raise ValueError(
                f"Shuffled(batch={self.batch}): there are {len(self)} examples; a batch has 1 to "
                f"as many"
            )
        if self.index in self.data:
            raise ValueError(f"Shuffled(index={self.index!r}): the data has such a field already")

    def __len__(self) -> int:
        """How many examples there are."""
        return np.shape(jax.tree.leaves(self.data)[0])[0]

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return len(self) // self.batch

    def indices(self, step: int) -> np.ndarray:
        """(batch,) int32: which examples the batch of a step holds."""
        return Orders(self).one(step)

    def order(self, epoch: int) -> np.ndarray:
        """(examples,) int32: the permutation of an epoch."""
        return (
            np.random.Generator(np.random.Philox([self.seed, epoch]))
            .permutation(len(self))
            .astype(np.int32)
        )

    def at(self, step: int) -> dict[str, Any]:
        """The batch of a step."""
        return self.taken(self.indices(step), self.data)

    def taken(self, indices: Any, data: Mapping[str, Any]) -> dict[str, Any]:
        """The rows of `data`; works on the device too."""
        rows = jax.tree.map(lambda x: x[indices], dict(data))
        return rows if self.index is None else rows | {self.index: indices}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        orders = Orders(self)
        return (self.taken(orders.one(step), self.data) for step in itertools.count())


def _leaves(data: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(k, simple=True), x)
        for k, x in jax.tree_util.tree_leaves_with_path(data)
    ]


class Orders:
    """Indices of consecutive steps of a `Shuffled`, one permutation at a time."""

    def __init__(self, source: Shuffled) -> None:
        self._source = source
        self._epoch = -1
        self._order = np.zeros(0, np.int32)

    def one(self, step: int) -> np.ndarray:
        """(batch,) int32."""
        epoch, i = divmod(step, self._source.steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._source.order(epoch)
        return self._order[i * self._source.batch : (i + 1) * self._source.batch]


class Feed:
    """An iterable as an endless sequence of batches, checked against the first one.

    Args:
      source: iterable of pytrees of arrays.
      start: how many batches to skip, where the source cannot be set to a state.
      state: what `state()` gave when the checkpoint was written; None for none.
    """

    def __init__(self, source: Any, start: int = 0, state: Any = None) -> None:
        self._source = source
        self._seen = 0
        self._first = None
        self._now = None
        self._iterator = iter(source)
        self._once = self._iterator is source
        if state is not None and hasattr(self._iterator, "set_state"):
            self._iterator.set_state(_from_json(state))
            self._seen = start
        else:
            for _ in range(start):
                self._next()

    def at(self, step: int) -> Any:
        """The batch of a step: the next one, or the newest again."""
        if self._now is None or step == self._seen:
            self._now = self._checked()
        return self._now

    def _checked(self) -> Any:
        batch = self._next()
        specs = jax.tree.structure(batch), [np.shape(x) for x in jax.tree.leaves(batch)]
        if self._first is None:
            self._first = specs
        elif specs != self._first:
            raise ValueError(
                f"batch {self._seen - 1} has the shapes {specs[1]}, and the first had "
                f"{self._first[1]}: every batch "
                f"needs the same; drop the remainder of an epoch, or pad it and give a 'mask'"
            )
        check_labels(batch, f"batch {self._seen - 1}")
        return batch

    def state(self) -> Any:
        """What the source says of its place; None if it cannot."""
        return (
            _for_json(self._iterator.get_state()) if hasattr(self._iterator, "get_state") else None
        )

    def _next(self) -> Any:
        for _ in range(2):
            try:
                batch = next(self._iterator)
                self._seen += 1
                return batch
            except StopIteration:
                if self._once or not self._seen:
                    break
                self._iterator = iter(self._source)
        once = (
            "it can be iterated once only: give a list, or an object whose iter() starts an "
            "epoch anew"
        )
        raise ValueError(
            f"the batches ended after {self._seen}: {once if self._seen else 'there are none'}"
        ) from None


def _for_json(state: Any) -> Any:
    """A state as JSON: grain's data sets say theirs in a dict, its `DataLoader` in bytes."""
    return {"base64": base64.b64encode(state).decode()} if isinstance(state, bytes) else state


def _from_json(state: Any) -> Any:
    is_bytes = isinstance(state, Mapping) and set(state) == {"base64"}
    return base64.b64decode(state["base64"]) if is_bytes else state


def check_labels(batch: Any, what: str) -> None:
    """Refuses negative labels that no mask hides, where they lie on the host; the step tells those
    that are too large.

    Raises:
      ValueError: the first one, and where.
    """
    y = batch.get("y") if isinstance(batch, Mapping) else None
    if not isinstance(y, np.ndarray) or not np.issubdtype(y.dtype, np.integer):
        return
    wrong = (y < 0) & (y != IGNORED)
    if batch.get("mask") is not None:
        wrong &= np.asarray(batch["mask"])
    if wrong.any():
        where = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"{what}: the label {y[wrong][0]} at {where} is no class; mask examples "
            f"without a label, or give them the label {IGNORED}"
        )
