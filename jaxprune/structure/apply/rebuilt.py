"""Whether a module that was built anew with smaller widths computes what the smaller function does.

`thin.apply` runs the equations of the large function. A module of smaller sizes is another
function: a norm divides by the new number of channels, attention by the root of the new head size,
groups have other members. Where that changes the result, the first equation that differs is named.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from jaxprune.jaxprs.calls import bodies
from jaxprune.jaxprs.equations import open_jaxpr
from jaxprune.jaxprs.interpret import equations
from jaxprune.structure.apply.check import concrete
from jaxprune.structure.axes.places import place
from jaxprune.structure.axes.traced import shapes_of


def agreement(
    small: Callable[..., Any],
    rebuilt: Callable[..., Any],
    params: Any,
    args: Any,
    own: Any,
    allowed: float,
) -> float:
    """The largest difference of the outputs, relative to the largest output.

    Args:
      small: `thin.apply`.
      rebuilt: the function to be compared with it.
      params: the smaller params.
      args: examples of further arguments.
      own: params or shapes that the rebuilt module would make itself, or None.
      allowed: the largest difference that rounding explains.

    Raises:
      ValueError: params of other names or shapes, a function that fails on them, outputs of other
        shapes, or a difference; with what differs first.
    """
    if own is not None:
        _check_shapes(shapes_of(params), shapes_of(own))
    args = jax.tree.map(concrete, args)
    want = small(params, *args)
    try:
        got = rebuilt(params, *args)
    except Exception as error:  # whatever a framework raises for a shape that it does not expect
        raise ValueError(f"the rebuilt function fails on the smaller params: {error}") from error
    wants = jax.tree.leaves(want)
    gots = jax.tree.leaves(got)
    if [np.shape(x) for x in wants] != [np.shape(x) for x in gots]:
        raise ValueError(
            f"the rebuilt function returns {[*map(np.shape, gots)]}, and apply "
            f"{[*map(np.shape, wants)]}"
        )
    error = max((_distance(a, b) for a, b in zip(wants, gots)), default=0.0)
    if not error <= allowed:
        raise ValueError(
            f"the rebuilt function differs from apply by {error:.1e} of the largest output, where "
            f"{allowed:.0e} is rounding. {_first_difference(small, rebuilt, params, args)}"
        )
    return error


def _check_shapes(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    odd = [
        p
        for p in {**ours, **theirs}
        if p not in ours or p not in theirs or ours[p].shape != theirs[p].shape
    ]

    def shape(of, path):
        return of[path].shape if path in of else "nothing"

    if odd:
        told = "; ".join(
            f"{p}: {shape(ours, p)} after the cut, {shape(theirs, p)} in the rebuilt one"
            for p in odd[:8]
        )
        raise ValueError(
            f"params of the rebuilt function have other names or shapes than thin.widths says. "
            f"{told}"
        )


def _distance(a: Any, b: Any) -> float:
    a, b = (np.asarray(x).astype(np.complex128) for x in (a, b))
    scale = max(float(np.abs(a).max(initial=0)), np.finfo(float).tiny)
    return float(np.nan_to_num(np.abs(a - b), nan=np.inf).max(initial=0)) / scale


def _first_difference(small: Any, rebuilt: Any, params: Any, args: Any) -> str:
    """Where two functions start to differ, read side by side."""
    ours, theirs = (
        list(_equations(open_jaxpr(jax.make_jaxpr(f)(params, *args))[0])) for f in (small, rebuilt)
    )
    for a, b in zip(ours, theirs):
        if a.primitive is not b.primitive:
            return f"They differ first in {place(b)}, where apply has {place(a)}"
        x = _numbers(a)
        y = _numbers(b)
        if x != y:
            return (
                f"They differ first in {place(b)}: a number is {y} there, and {x} in apply, as it "
                f"was before the cut"
            )
        x, y = ([v.aval.shape for v in (*e.invars, *e.outvars)] for e in (a, b))
        if x != y:
            return f"They differ first in {place(b)}: its shapes are {y}, and {x} in apply"
    return "Equation by equation they look alike: constants that they close over differ"


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations that compute, those inside of others in their place."""
    for eqn in equations(jaxpr):
        inside = bodies(eqn)
        for body in inside:
            yield from _equations(body.jaxpr)
        if not inside:
            yield eqn


def _numbers(eqn: Any) -> list[Any]:
    return [
        np.asarray(v.val).tolist()
        for v in eqn.invars
        if isinstance(v, jex.Literal) and np.ndim(v.val) == 0
    ]
