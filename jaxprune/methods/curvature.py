"""The weights h >= 0 of a distortion Σ h (w − Δ)², as `cluster` and `factorize` take them from the user."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.core.leaves.where import Slot
from jaxprune.core.tree import look_up
from jaxprune.numerics.affine import power_of_two, ratio
from jaxprune.numerics.placement import not_finite


def look_up_curvature(tree: Any, chosen: Sequence[Slot], what: str) -> list[Any]:
    """h of each slot, by path; of concrete ones every entry is checked.

    Raises:
      ValueError: entries that are NaN, infinite or negative, with path and count.
    """
    weights = look_up(tree, chosen, what)
    for slot, h in zip(chosen, weights):
        if not isinstance(h, Tracer) and not isinstance(slot.mask, Tracer):
            _check(h, slot, what)
    return weights


def _check(h: Any, slot: Slot, what: str) -> None:
    bad = not_finite(h, slot.mask)
    if bad:
        raise ValueError(f"the {what} of {slot} has {bad} NaN or infinite entries: give finite ones, at least 0")
    negative = jnp.less(h, 0) if slot.mask is None else jnp.less(h, 0) & slot.mask
    count = int(jnp.sum(negative))
    if count:
        raise ValueError(f"the {what} of {slot} has {count} negative entries: give finite ones, at least 0")


def in_common_units(weights: Sequence[Any], chosen: Sequence[Slot]) -> list[Any]:
    """h of slots whose errors are added up, over one power of two, and 0 under masks; 1 if every h is 0.

    The best code does not change with the unit of h, but sums of large ones would overflow. Where all are 0 (the
    Fisher information of a network whose units are dead) no error would matter, and any code would do, all zeros too.
    """
    kept = [jnp.where(_mask(slot), h, jnp.zeros((), h.dtype)) for slot, h in zip(chosen, weights)]
    largest = jnp.stack([jnp.max(h, initial=0).astype(jnp.float32) for h in kept]).max()
    unit = power_of_two(largest)
    return [
        jnp.where(largest > 0, ratio(h, unit.astype(h.dtype)), jnp.where(_mask(slot), 1, 0).astype(h.dtype))
        for slot, h in zip(chosen, kept)
    ]


def _mask(slot: Slot) -> Any:
    return True if slot.mask is None else slot.mask
