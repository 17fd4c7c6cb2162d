"""Group penalties: training towards units that `shrink` can remove without loss.

    lasso    R = λ Σ_g Σ_i ‖w_{g,i}‖₂          ∂R/∂w = λ w / ‖w_{g,i}‖   Wen et al. 2016, 1608.03665
    sparse   R = λ/2 Σ_g Σ_i γ_i ‖w_{g,i}‖₂²   ∂R/∂w = λ γ_i w           DepGraph, 2301.12900
    γ_i = 2^(4 (I_max − I_i) / (I_max − I_min)),  I_i = ‖w_{g,i}‖₂

w_{g,i} are all weights that go with unit i of group g. With γ the least unit of a group decays 16
times as fast as the largest. λ may be a schedule: one that grows is growing regularisation (Wang et
al. 2021, arXiv:2012.09243).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxprune.core.arguments import at_least_zero
from jaxprune.core.leaves.paths import leaf_path, map_with_path
from jaxprune.core.trees.selection import no_match, selected_leaves
from jaxprune.core.types import Params, Schedule, WhereLike
from jaxprune.core.where import Slot, is_float
from jaxprune.core.words import choice
from jaxprune.numerics.placement import gathered
from jaxprune.numerics.precision import widen
from jaxprune.structure.axes.groups import Group, Member
from jaxprune.training.steps import StepState, check_params, first_step, next_step, value_at

if TYPE_CHECKING:
    import optax

Weights = dict[str, Float[Array, "..."]]
"""path -> array."""


def group_penalty(
    groups: Sequence[Group],
    strength: float | Schedule,
    *,
    kind: Literal["lasso", "sparse"] = "sparse",
    where: WhereLike = None,
) -> "optax.GradientTransformationExtraArgs":
    """An optax transform, first in its chain: adds the penalty's gradient.

    Args:
      groups: of `jp.coupled_axes(f, params, x).groups`; those that shall not shrink are left out.
      strength: λ, or an optax schedule.
      kind: "lasso" or "sparse", as above.
      where: the weights that count and are penalised; `jp.where.weights` by default.

    Returns:
      A `GradientTransformation` on dense params.

    Raises:
      ValueError: no groups, a negative strength, a `where` that matches nothing, or without params.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, optax
      >>> params = {"v": jnp.array([[4.0], [0.0]]), "w": jnp.array([[3.0, 1.0]])}
      >>> groups = jp.coupled_axes(lambda p, x: x @ p["w"] @ p["v"], params,
      ...     jnp.ones((1, 1))).groups
      >>> tx = jp.group_penalty(groups, 1.0, kind="lasso", where=jp.where.every_leaf)
      >>> gradient = {"v": jnp.zeros((2, 1)), "w": jnp.zeros((1, 2))}
      >>> updates, _ = tx.update(gradient, tx.init(params), params)
      >>> print(updates["v"].T, updates["w"])
      [[0.8 0. ]] [[0.6 1. ]]
    """
    import optax  # a quarter of a second that only users of this transform pay

    groups = tuple(groups)
    if not groups:
        raise ValueError(
            "group_penalty(groups): there are none; give jp.coupled_axes(f, params, x).groups"
        )
    choice("group_penalty(kind={})", kind, ("lasso", "sparse"))
    at_least_zero("group_penalty(strength={})", strength)

    def init(params: Params) -> StepState:
        return first_step()

    def update(
        updates: Any, state: Any, params: Params = None, **extra: Any
    ) -> tuple[Any, StepState]:
        check_params("group_penalty", params)
        selected = selected_leaves(where, params, of=_is_float_leaf)
        if not selected:
            raise no_match(where, params)
        weights = {slot.path: widen(slot.value) for slot in selected}
        slopes = _gradient(groups, weights, kind)
        factor = value_at(strength, state)

        def add_slope(keys: Any, gradient: Any) -> Any:
            slope = slopes.get(leaf_path(keys))
            if slope is None or not is_float(gradient):
                return gradient
            return gradient + (factor * slope).astype(gradient.dtype)

        return map_with_path(add_slope, updates), next_step(state)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_float_leaf(slot: Slot) -> bool:
    return is_float(slot.value)


def _gradient(groups: Sequence[Group], weights: Weights, kind: str) -> Weights:
    """∂R/∂w of every weight, at λ = 1."""
    total = {path: jnp.zeros_like(w) for path, w in weights.items()}
    for group in groups:
        members = [member for member in group.members if member.path in weights]
        squares = [_unit_squares(m, group.size, weights[m.path]) for m in members]
        norms = jnp.sqrt(sum(squares, jnp.zeros(group.size)))
        factor = _inverse(norms) if kind == "lasso" else _gamma(norms)
        for member in members:
            w = weights[member.path]
            total[member.path] += w * _along_axis(member, factor, w.ndim)
    return total


def _inverse(norms: Float[Array, " units"]) -> Float[Array, " units"]:
    """1 / ‖w_i‖; 0 for units without weights, where the norm has no slope."""
    return jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)


def _gamma(norms: Float[Array, " units"]) -> Float[Array, " units"]:
    """γ: 1 for the largest unit, 16 for the least."""
    span = norms.max() - norms.min()
    return jnp.exp2(4 * (norms.max() - norms) / jnp.where(span > 0, span, 1))


def _unit_squares(member: Member, num_units: int, w: Float[Array, "..."]) -> Float[Array, " units"]:
    """Σ w² of the weights of a member that belong to each unit."""
    other_axes = tuple(axis for axis in range(w.ndim) if axis != member.axis)
    # One number a position: small enough to be on every device, where indexing may mix positions.
    squares = gathered(jnp.square(w).sum(other_axes))
    total = jnp.zeros(num_units)
    for unit_at in member.maps:  # the unit at each position of the axis; -1 for none
        positions = np.nonzero(unit_at >= 0)[0]
        of_map = jnp.zeros(num_units).at[unit_at[unit_at >= 0]].add(squares[positions])
        total = total + of_map
    return total


def _along_axis(member: Member, factor: Float[Array, " units"], ndim: int) -> Float[Array, "..."]:
    """A number a unit as one a position of the member's axis, for arrays of `ndim` axes."""
    along = jnp.zeros(len(member.maps[0]))
    for unit_at in member.maps:
        along = along + jnp.where(unit_at >= 0, factor[np.maximum(unit_at, 0)], 0)
    return along.reshape([-1 if axis == member.axis else 1 for axis in range(ndim)])
