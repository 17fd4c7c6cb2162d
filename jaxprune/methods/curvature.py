"""The weights h >= 0 of a distortion Σ h (w − Δ)², as `cluster` and `factorize` take them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from jaxprune.core.compression import call_with
from jaxprune.core.trees.lookup import look_up
from jaxprune.core.types import Params
from jaxprune.core.where import Slot
from jaxprune.numerics.affine import power_of_two, ratio
from jaxprune.numerics.placement import not_finite

CurvatureLike: TypeAlias = Any | Callable[..., Any]
"""A tree shaped like the params, a function that makes one of them, or None for h = 1."""

Curvature: TypeAlias = Float[Array, "..."]


def check_curvature(call: str, curvature: CurvatureLike) -> None:
    """Refuses a word, as "fisher": a curvature is made from data.

    Raises:
      ValueError: with the function that makes one.
    """
    if isinstance(curvature, str):
        raise ValueError(
            f"{call}(curvature={curvature!r}): a curvature needs data: give a tree like the "
            "params, as curvature=jp.scores.diagonal_fisher(loss, params, batches)"
        )


def curvature_of(
    curvature: CurvatureLike, slots: Sequence[Slot], params: Params, **extra: Any
) -> list[Curvature] | None:
    """h of each slot, by path; None where none is given.

    Args:
      curvature: as the user gives it.
      slots: the weights.
      params: that they are in.
      **extra: what `init` was given, for a function that names some of it.

    Raises:
      ValueError: a slot has none, or, in a concrete one, entries that are NaN, infinite or
        negative.
    """
    tree = call_with(curvature, params, **extra) if callable(curvature) else curvature
    if tree is None:
        return None
    by_slot = look_up(tree, slots, "curvature")
    for slot, h in zip(slots, by_slot):
        _check_entries(slot, h)
    return by_slot


def _check_entries(slot: Slot, h: Curvature) -> None:
    """Refuses what is no weight of an error; nothing is known of traced entries."""
    if isinstance(h, Tracer) or isinstance(slot.mask, Tracer):
        return
    advice = "give finite ones, at least 0"
    num_bad = not_finite(h, slot.mask)
    if num_bad:
        raise ValueError(f"the curvature of {slot} has {num_bad} NaN or infinite entries: {advice}")
    negative = jnp.less(h, 0) if slot.mask is None else jnp.less(h, 0) & slot.mask
    num_negative = int(jnp.sum(negative))
    if num_negative:
        raise ValueError(f"the curvature of {slot} has {num_negative} negative entries: {advice}")


def in_common_units(curvatures: Sequence[Curvature], slots: Sequence[Slot]) -> list[Curvature]:
    """h of slots whose errors are added up, over one power of two, and 0 under masks.

    The best code does not change with the unit of h, but sums of large ones would overflow. Where
    all are 0 (the Fisher information of a network whose units are dead) no error would matter, and
    any code would do, all zeros too: then h is 1.
    """
    visible = [
        jnp.where(_kept(slot), h, jnp.zeros((), h.dtype)) for slot, h in zip(slots, curvatures)
    ]
    largest = jnp.stack([jnp.max(h, initial=0).astype(jnp.float32) for h in visible]).max()
    unit = power_of_two(largest)
    scaled = []
    for slot, h in zip(slots, visible):
        ones = jnp.where(_kept(slot), 1, 0).astype(h.dtype)
        scaled.append(jnp.where(largest > 0, ratio(h, unit.astype(h.dtype)), ones))
    return scaled


def _kept(slot: Slot) -> Any:
    return True if slot.mask is None else slot.mask
