"""Training towards units that can go: a penalty on what is cut together, added to the gradient.

    R = λ Σ_g Σ_i ‖w_{g,i}‖₂             lasso: ∂R/∂w = λ w / ‖w_{g,i}‖    (group lasso; Wen et al. 2016, 1608.03665)
    R = λ/2 Σ_g Σ_i γ_i ‖w_{g,i}‖₂²      sparse: ∂R/∂w = λ γ_i w           (DepGraph, Fang et al. 2023, 2301.12900)
    γ_i = 2^(4 (I_max − I_i) / (I_max − I_min)),  I_i = ‖w_{g,i}‖₂

w_{g,i} are all weights that go with unit i of group g. With γ the least unit of a group decays 16 times as fast as the
largest. λ may be a schedule: one that grows is growing regularisation (Wang et al. 2021, arXiv:2012.09243).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxprune.core.arguments import at_least_zero
from jaxprune.core.leaves.paths import leaf_path, map_with_path
from jaxprune.core.leaves.where import is_float, leaf_slots
from jaxprune.core.tree import no_match, selector
from jaxprune.core.words import choice
from jaxprune.numerics.precision import widen
from jaxprune.structure.axes.groups import Group, Member

if TYPE_CHECKING:
    import optax


class GroupPenaltyState(NamedTuple):
    """Steps taken."""

    count: Any


def group_penalty(
    groups: Sequence[Group],
    strength: float | Callable[[Any], Any],
    *,
    kind: Literal["lasso", "sparse"] = "sparse",
    where: Any = None,
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
      >>> groups = jp.coupled_axes(lambda p, x: x @ p["w"] @ p["v"], params, jnp.ones((1, 1))).groups
      >>> tx = jp.group_penalty(groups, 1.0, kind="lasso", where=jp.where.every_leaf)
      >>> updates, _ = tx.update({"v": jnp.zeros((2, 1)), "w": jnp.zeros((1, 2))}, tx.init(params), params)
      >>> print(updates["v"].T, updates["w"])                           # units (3, 4) and (1, 0): over 5, over 1
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

    def init(params: Any) -> GroupPenaltyState:
        return GroupPenaltyState(jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, GroupPenaltyState]:
        if params is None:
            raise ValueError("group_penalty needs the params: tx.update(grads, state, params)")
        test = selector(where, params)
        chosen = [slot for slot in leaf_slots(params)[0] if is_float(slot.value) and test(slot)]
        weights = {slot.path: widen(slot.value) for slot in chosen}
        if not weights:
            raise no_match(where, params)
        rate = strength(state.count) if callable(strength) else strength
        added = _gradient(groups, weights, kind)

        def one(keys: Any, u: Any) -> Any:
            slope = added.get(leaf_path(keys))
            return u if slope is None or not is_float(u) else u + (rate * slope).astype(u.dtype)

        return map_with_path(one, updates), GroupPenaltyState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _gradient(groups: Sequence[Group], weights: dict[str, Array], kind: str) -> dict[str, Array]:
    """∂R/∂w of every weight, at λ = 1."""
    total = {path: jnp.zeros_like(w) for path, w in weights.items()}
    for group in groups:
        members = [m for m in group.members if m.path in weights]
        norms = jnp.sqrt(
            sum((_squares(m, group.size, weights[m.path]) for m in members), jnp.zeros(group.size))
        )
        factor = (
            jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
            if kind == "lasso"
            else _steepness(norms)
        )
        for m in members:
            total[m.path] += weights[m.path] * _spread(m, factor, weights[m.path].ndim)
    return total


def _steepness(norms: Array) -> Array:
    """γ: 1 for the largest unit, 16 for the least."""
    span = norms.max() - norms.min()
    return jnp.exp2(4 * (norms.max() - norms) / jnp.where(span > 0, span, 1))


def _squares(m: Member, size: int, w: Array) -> Array:
    """Of all weights of a member, by unit."""
    each = jnp.square(w).sum(tuple(k for k in range(w.ndim) if k != m.axis))
    return sum(
        (jnp.zeros(size).at[at[at >= 0]].add(each[np.nonzero(at >= 0)[0]]) for at in m.maps),
        jnp.zeros(size),
    )


def _spread(m: Member, factor: Array, ndim: int) -> Array:
    """A number a unit as one a position of the member's axis."""
    along = sum(
        (jnp.where(at >= 0, factor[np.maximum(at, 0)], 0) for at in m.maps),
        jnp.zeros(len(m.maps[0])),
    )
    return along.reshape([-1 if k == m.axis else 1 for k in range(ndim)])
