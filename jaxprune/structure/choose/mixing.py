"""How many blocks and layers go where they and units share a budget.

What a block matters and what a unit matters are numbers on different scales, so they are not ranked
together. For k = 0, 1, 2, 4, … the k blocks (or layers) that matter least go, and then units until
the budget is met. All these plans cost the same, and the one that changes the outputs y of f least
on the examples is taken:

    change = ‖y' − y‖² / ‖y‖²

y' are the outputs after a least-squares refit of what is left (`reconstruct`), for units and blocks
differ in how much of them can be repaired: without it the order of the plans is often another. The
plan without blocks is among those that are compared, so a mix is never taken that does worse by
this measure than widths alone.

Few examples can be fitted by any plan. Where the outputs have fewer than 32 rows, the change is
that before the refit.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.apply.plan import Plan
from jaxprune.structure.axes.groups import Groups
from jaxprune.structure.choose.budget import Step
from jaxprune.structure.choose.depth import switchable
from jaxprune.structure.repair.reconstruct import change_after

ENOUGH = 32
"""Rows of outputs from which a refit can be judged by the examples that it was fitted to."""


class Tried(NamedTuple):
    """A plan that was compared: how many blocks and layers it leaves out, and the change of the
    outputs.
    """

    deep: int
    change: float


def counts(most: int) -> list[int]:
    """The numbers of blocks that are tried: none, the powers of two below the most, and the
    most.
    """
    powers = [1 << i for i in range(most.bit_length())]
    return sorted({0, *(n for n in powers if n < most), most})


def best(
    candidates: Sequence[tuple[int, Sequence[Step]]],
    plan_after: Callable[[Sequence[Step]], tuple[Plan, Narrow]],
    change_of: Callable[[Plan, Narrow], float],
) -> tuple[int, tuple[Tried, ...]]:
    """The index of the candidate that changes the outputs least, of those that do alike the one
    with fewest blocks.

    Args:
      candidates: (how many blocks and layers go, the steps that are taken), by how many.
      plan_after: steps -> what is kept.
      change_of: of `output_change`.
    """
    tried = []
    for deep, steps in candidates:
        change = change_of(*plan_after(steps))
        tried.append(Tried(deep, change if np.isfinite(change) else np.inf))
    return int(np.argmin([one.change for one in tried])), tuple(tried)


def output_change(
    found: Groups, tree: Any, values: list[Any], repaired: bool
) -> Callable[[Plan, Narrow], float]:
    """(plan, what it keeps) -> how much it changes the outputs of the first function.

    Args:
      found: of `axes`.
      tree: the params.
      values: of the inputs of the function: params and examples.
      repaired: whether what is left is refit first, if there are examples enough.
    """
    program = found.programs[0]
    num_params = len(jax.tree.leaves(tree))
    run = switchable(program, values)
    dense = run(values, Narrow({}))
    rows = [y.size // y.shape[-1] if jnp.ndim(y) > 1 else 1 for y in dense if _is_float(y)]

    def after(plan: Plan, narrow: Narrow) -> float:
        return change_after(program, narrow, plan, tree, values[num_params:])

    def before(plan: Plan, narrow: Narrow) -> float:
        outputs = run([*jax.tree.leaves(plan.mask(tree)), *values[num_params:]], narrow)
        lost = narrow.lost(program)
        pairs = [
            (a, b) for k, (a, b) in enumerate(zip(outputs, dense)) if k not in lost and _is_float(b)
        ]
        whole = sum(float(jnp.square(b).sum()) for _, b in pairs)
        return sum(float(jnp.square(a - b).sum()) for a, b in pairs) / whole if whole else 0.0

    return after if repaired and max(rows, default=0) >= ENOUGH else before


def _is_float(y: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(y), jnp.floating) and np.size(y) > 0
