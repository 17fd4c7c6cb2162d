"""Weights that a scan uses in every turn: the cells of recurrent networks.

    hₜ = g(xₜ W + hₜ₋₁ U + b)

The rows of W and U are all examples at all times. What they are multiplied with at a time is made
by themselves at times before, so a fit takes the values of the small network as it is; the weights
of a cell are fitted one after another, each behind the changes of those before.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from jaxprune.jaxprs.calls import scan_operands, scan_turns
from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.repair.ridge import Batch, Sums, sums_of
from jaxprune.structure.repair.rows import CONTRACTIONS
from jaxprune.structure.repair.sites import Bias, Layer, Ways, bias_of, layer_of, moved_from
from jaxprune.structure.repair.steps import (
    LARGE,
    MOVES,
    SMALL,
    Equation,
    Steps,
    Values,
    consumers,
    depends_on_params_alone,
    unrolled,
)


class Cell(NamedTuple):
    """The body of a scan, in both programs.

    Attributes:
      step: the scan.
      body: its steps.
      consts, carry, slices: numbers of the operands of the scan.
      constant: values of the body that are the same for all examples and turns.
    """

    step: Equation
    body: Steps
    consts: list[int]
    carry: list[int]
    slices: list[int]
    constant: set[int]


def cell_of(step: Equation, narrow: Narrow, constant: set[int]) -> Cell | None:
    """The cell of a scan; None of other equations."""
    if step.name != "scan" or not step.record.extra:
        return None
    consts, carry, slices = ([step.ins[k] for k in part] for part in scan_operands(step.record.eqn))
    body = unrolled(step.record.extra[0], narrow, 0)
    fixed = {k for k, number in enumerate(consts) if number in constant}
    alike = depends_on_params_alone(body, fixed, len(consts) + len(carry) + len(slices))
    return Cell(step, body, consts, carry, slices, alike)


def layers_of(cell: Cell, narrow: Narrow, fittable: set[int]) -> list[tuple[Layer, int]]:
    """The products of a cell with a weight that comes in as it is, and the number of the scan's
    operand.

    Args:
      cell: of a scan.
      narrow: what the small program keeps.
      fittable: numbers of operands of the scan that may be changed.
    """
    body = cell.body
    readers = consumers(body, SMALL)
    inside = Values(
        body, narrow, [([None], [None])] * (len(cell.consts) + len(cell.carry) + len(cell.slices))
    )
    ways = Ways(body, readers, cell.constant)
    layers = []
    for i, step in enumerate(body.steps):
        if not isinstance(step, Equation) or step.name not in CONTRACTIONS:
            continue
        origins = [moved_from(body, number)[0] for number in step.ins]
        weights = [
            k for k, n in enumerate(origins) if n < len(cell.consts) and cell.consts[n] in fittable
        ]
        if len(weights) == 1 and step.ins[1 - weights[0]] not in cell.constant:
            k = weights[0]
            if uses_of(body, origins[k]) == 1:
                layers.append(
                    (layer_of(step, k, ways.follow(i, inside, set()), narrow), origins[k])
                )
    return layers


def bias_in(
    cell: Cell, layer: Layer, both: Any, narrow: Narrow, leaf_at: Callable[[int], Any]
) -> Bias | None:
    """The bias of a layer of a cell, see `bias_of`; `both`: the scan's operands in both programs,
    of one batch.
    """
    num_consts = len(cell.consts)
    rest = [([None], [None])] * (len(cell.carry) + len(cell.slices))
    values = Values(
        cell.body, narrow, [([a], [b]) for a, b in list(zip(*both))[:num_consts]] + rest
    )
    for link in layer.way.links:
        if link.other is None:
            continue
        if link.other in cell.constant:
            values.demand(link.other, SMALL)
        else:
            values.memo[SMALL][link.other] = [
                None
            ]  # it is added, and differs from example to example
    return bias_of(layer, values, leaf_at)


def uses_of(body: Steps, number: int) -> int:
    """How many steps use a value, or what it was moved into, for more than a move."""
    count = body.outputs.count(number)
    for step in body.steps:
        if number in step.inputs(SMALL):
            moves = isinstance(step, Equation) and step.name in MOVES
            count += uses_of(body, step.outs[0]) if moves else 1
    return count


def sums_over_turns(
    cell: Cell,
    layer: Layer,
    narrow: Narrow,
    operands: Sequence[tuple[Sequence[Any], Sequence[Any]]],
    held_out: bool,
) -> tuple[Sums, Sums]:
    """Sums of a layer of a cell over all turns and batches.

    Args:
      operands: for each batch, the scan's operands (constants, carries, slices) in the large
        program and in the small.
    """
    num_consts = len(cell.consts)
    num_carry = len(cell.carry)
    turns = scan_turns(cell.step.record.eqn)

    def turn(consts: Any, carry: Any, slices: Any) -> tuple[Any, tuple[Sums, Sums]]:
        inputs = [
            ([a], [b]) for a, b in zip(*([*c, *h, *x] for c, h, x in zip(consts, carry, slices)))
        ]
        values = Values(cell.body, narrow, inputs)
        [made], [x] = layer.step.outs, [layer.step.ins[1 - layer.weight]]
        end = narrow.cut(values.demand(layer.way.end, LARGE)[0], layer.end)
        numbers = [link.other for link in layer.way.links]
        others = [None if n is None else values.demand(n, SMALL)[0] for n in numbers]
        sums = sums_of(
            layer,
            Batch(values.demand(x, SMALL)[0], values.demand(made, SMALL)[0], end, others),
            held_out,
        )
        after = [
            [values.demand(n, side)[0] for n in cell.body.outputs[:num_carry]]
            for side in (LARGE, SMALL)
        ]
        return after, sums

    @jax.jit
    def of_batch(both: Any) -> tuple[Sums, Sums]:
        parts = [(list(o[:num_consts]), list(o[num_consts : num_consts + num_carry])) for o in both]
        consts = [c for c, _ in parts]
        start = [h for _, h in parts]
        slices = [list(o[num_consts + num_carry :]) for o in both]
        first = jax.eval_shape(
            lambda s: turn(consts, start, s)[1], jax.tree.map(lambda x: x[0], slices)
        )
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), first)

        def body(state: Any, now: Any) -> Any:
            carry, total = state
            after, sums = turn(consts, carry, now)
            return (after, jax.tree.map(jax.numpy.add, total, sums)), None

        return lax.scan(body, (start, zeros), slices, length=len(turns), reverse=turns.step < 0)[0][
            1
        ]

    total = [jax.tree.map(lambda a: np.asarray(a, np.float64), of_batch(both)) for both in operands]
    fit, rest = total[0]
    for more_fit, more_rest in total[1:]:
        fit = fit + more_fit
        rest = rest + more_rest
    return fit, rest
