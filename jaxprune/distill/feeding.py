"""Rows for the inner loop: indices into data on the device, or whole batches."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxprune.distill.batches import Feed, Orders, Shuffled, check_labels
from jaxprune.distill.placing import spread


class Feeder(Protocol):
    """What a step's batch is made of.

    Attributes:
      data: what `take` reads, on the device.
      ahead: whether rows may be asked for before a checkpoint of the steps before them.
    """

    data: Any
    ahead: bool

    def peek(self) -> Any:
        """A row like those to come."""

    def row(self, step: int) -> Any:
        """The row of a step; steps come in order."""

    def take(self, row: Any, data: Any) -> Any:
        """The batch of a row, inside the compiled step."""

    def state(self) -> Any:
        """The source's own place, for a checkpoint; None if the step tells it."""


def feeder(batches: Any, sharding: Any, step: int, place: Any) -> Feeder:
    """The feeder of a source, set to a step.

    Args:
      batches, sharding: as in `fit`.
      step: of the first row that is asked for.
      place: what `state()` gave then.
    """
    if isinstance(batches, Shuffled):
        check_labels(batches.data, "Shuffled")
        return _OnDevice(batches) if sharding is None else _InOrder(batches, sharding)
    return _Whole(batches, sharding, step, place)


class _OnDevice:
    """Indices; the data lies on the device."""

    def __init__(self, source: Shuffled) -> None:
        self._source, self._orders = source, Orders(source)
        self.data, self.ahead = jax.tree.map(jnp.asarray, dict(source.data)), True

    def peek(self) -> Any:
        return self.row(0)

    def row(self, step: int) -> Any:
        return self._orders.one(step)

    def take(self, row: Any, data: Any) -> Any:
        return self._source.taken(row, data)

    def state(self) -> Any:
        return None


class _InOrder:
    """Whole batches of a `Shuffled`, laid out on a mesh."""

    def __init__(self, source: Shuffled, sharding: Any) -> None:
        self._source, self._orders, self._sharding = source, Orders(source), sharding
        self.data, self.ahead = {}, True

    def peek(self) -> Any:
        return self.row(0)

    def row(self, step: int) -> Any:
        return spread(self._source.taken(self._orders.one(step), self._source.data), self._sharding)

    def take(self, row: Any, data: Any) -> Any:
        return row

    def state(self) -> Any:
        return None


class _Whole:
    """Whole batches of an iterable."""

    def __init__(self, source: Any, sharding: Any, step: int, place: Any) -> None:
        self._feed, self._sharding, self._waiting = Feed(source, step, place), sharding, []
        self.data, self.ahead = {}, False

    def peek(self) -> Any:
        self._waiting = [next(self._feed)]
        return spread(self._waiting[0], self._sharding)

    def row(self, step: int) -> Any:
        batch = self._waiting.pop() if self._waiting else next(self._feed)
        return spread(batch, self._sharding)

    def take(self, row: Any, data: Any) -> Any:
        return row

    def state(self) -> Any:
        return self._feed.state()
