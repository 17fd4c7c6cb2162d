"""Rows for the inner loop: indices into data on the device, or whole batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.distill.batches import Feed, Orders, Shuffled, check_labels
from jaxprune.distill.placing import spread


class Feeder(NamedTuple):
    """What a step's batch is made of.

    Attributes:
      row: step -> row. Steps come in order; one may be asked for again before the next.
      take: (row, data) -> batch, inside the compiled step.
      data: what `take` reads, on the device.
      state: the source's own place, for a checkpoint; None if the step tells it.
      ahead: whether rows may be asked for before a checkpoint of the steps before them.
    """

    row: Callable[[int], Any]
    take: Callable[[Any, Any], Any]
    data: Any
    state: Callable[[], Any]
    ahead: bool


def feeder(batches: Any, sharding: Any, step: int, place: Any) -> Feeder:
    """The feeder of a source, set to a step.

    Args:
      batches, sharding: as in `fit`.
      step: of the first row that is asked for.
      place: what `state()` gave then.
    """

    def whole(row, data):
        return row

    if not isinstance(batches, Shuffled):
        feed = Feed(batches, step, place)
        return Feeder(
            lambda step: spread(feed.at(step), sharding), whole, {}, feed.state, ahead=False
        )
    check_labels(batches.data, "Shuffled")
    orders = Orders(batches)

    def nothing() -> None:
        return None

    if sharding is None:
        data = jax.tree.map(jnp.asarray, dict(batches.data))
        return Feeder(orders.one, batches.taken, data, nothing, ahead=True)

    def row(step):
        return spread(batches.taken(orders.one(step), batches.data), sharding)

    return Feeder(row, whole, {}, nothing, ahead=True)
