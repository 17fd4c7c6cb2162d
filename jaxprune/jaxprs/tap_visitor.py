"""A jaxpr evaluated anew, its taps brought out or replaced: the interpreter behind `taps`.

Runs of equations without a tap are evaluated as one jaxpr, untouched. Calls that hold taps are
entered; a scan stacks what is brought out of it, and slices what is put in.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core as jex

from jaxprune.jaxprs.calls import ENTERED, bodies, enter
from jaxprune.jaxprs.equations import run_equations
from jaxprune.jaxprs.interpret import equations, interpret, last_uses

PREFIX = "tap:"

Taps = dict[str, list[Any]]
Edit = Callable[[Any], Any]


def _name(eqn: Any) -> str | None:
    """The name of a tap; None for any other equation."""
    if eqn.primitive.name != "name" or not eqn.params["name"].startswith(PREFIX):
        return None
    return eqn.params["name"].removeprefix(PREFIX)


def names_in(jaxpr: Any, where: Any) -> list[str]:
    """Names of the matching taps in order, those of inner jaxprs included; branches of a cond count
    once.
    """
    found = []
    for eqn in equations(jaxpr):
        name = _name(eqn)
        if name is not None:
            found += [name] if where.fullmatch(name) else []
            continue
        inside = bodies(eqn)
        inside = inside[:1] if eqn.primitive.name == "cond" else inside
        found += [n for body in inside for n in names_in(body.jaxpr, where)]
    return found


def run_with(
    jaxpr: Any, consts: list[Any], args: list[Any], where: Any, edits: dict[str, Edit], given: Taps
) -> tuple[list[Any], Taps]:
    """The outputs of a jaxpr and its taps, by name in order; `given` are values to put in their
    places.
    """
    taps: Taps = {}
    given = {name: list(values) for name, values in given.items()}

    def visit(run: Run, values: list[Any]) -> list[Any]:
        if not run.tapped:
            made = run_equations(
                run.equations, dict(zip(run.invars, values)), jaxpr.debug_info, set(run.outvars)
            )
            return [made[v] for v in run.outvars]
        outs, brought = _visit(run.equations[0], values, where, edits, given)
        for name, found in brought.items():
            taps.setdefault(name, []).extend(found)
        return outs

    runs = _runs(jaxpr, where)
    # Outside of jit nothing else lets an activation go.
    outs = interpret(jaxpr, consts, args, visit, steps=runs, ends=last_uses(runs, jaxpr.outvars))
    return outs, taps


def _visit(
    eqn: Any, values: list[Any], where: Any, edits: dict[str, Edit], given: Taps
) -> tuple[list[Any], Taps]:
    """A tap, or an equation that holds some; takes its share of `given` away."""
    name = _name(eqn)
    if name is None:
        _refuse(eqn, where)
        names = names_in(bodies(eqn)[0].jaxpr, where)
        share = {
            n: [given[n].pop(0) for _ in range(names.count(n))]
            for n in dict.fromkeys(names)
            if n in given
        }

        def run(body, args, given):
            return run_with(body.jaxpr, body.consts, args, where, edits, given)

        return enter(eqn, values, run, share)
    [old] = values
    new = given[name].pop(0) if name in given else edits[name](old) if name in edits else old
    if (jax.numpy.shape(new), jax.numpy.result_type(new)) != (old.shape, old.dtype):
        kind = f"{jax.numpy.result_type(new)}{list(jax.numpy.shape(new))}"
        raise ValueError(
            f"plant: {name!r} is {old.dtype}{list(old.shape)}, and its new value is {kind}"
        )
    return [checkpoint_name(new, PREFIX + name)], {name: [new]}


def _refuse(eqn: Any, where: Any) -> None:
    """A while loop has nowhere to put a tap, and the branches of a cond must bring the same
    ones.
    """
    arms = [names_in(b.jaxpr, where) for b in bodies(eqn)]
    kind = eqn.primitive.name
    if kind not in ENTERED:
        tapped = max(arms, key=len)[0]
        raise ValueError(
            f"tap {tapped!r} is inside {kind!r}: only jit, remat, scan and cond can be entered"
        )
    if any(arm != arms[0] for arm in arms):
        raise ValueError(
            f"the branches of a cond tap different names, {arms}: tap the same in each"
        )


class Run(NamedTuple):
    """Equations that are run as one.

    Attributes:
      equations: in order; one, if it is a tap or holds some.
      tapped: whether it is such a one.
      invars: what they take from outside; of a tapped one its operands, literals too.
      outvars: what others use of what they make; of a tapped one its results.
    """

    equations: list[Any]
    tapped: bool
    invars: list[Any]
    outvars: list[Any]


def _runs(jaxpr: Any, where: Any) -> list[Run]:
    """The equations: runs without a tap, and single ones that are a tap or hold one."""
    parts: list[tuple[list[Any], bool]] = []
    for eqn in equations(jaxpr):
        name = _name(eqn)
        inside = [names_in(body.jaxpr, where) for body in bodies(eqn)]
        tapped = bool(where.fullmatch(name)) if name is not None else any(inside)
        if tapped or not parts or parts[-1][1]:
            parts.append(([eqn], tapped))
        else:
            parts[-1][0].append(eqn)
    needed = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}
    runs = []
    for eqns, tapped in reversed(parts):
        run = _run_of(eqns, tapped, needed)
        needed |= {v for v in run.invars if not isinstance(v, jex.Literal)}
        runs.append(run)
    return runs[::-1]


def _run_of(eqns: list[Any], tapped: bool, needed: set[Any]) -> Run:
    """The run of some equations, of which others need some variables."""
    if tapped:
        return Run(eqns, True, list(eqns[0].invars), list(eqns[0].outvars))
    made = dict.fromkeys(v for eqn in eqns for v in eqn.outvars)
    taken = dict.fromkeys(
        v for eqn in eqns for v in eqn.invars if not isinstance(v, jex.Literal) and v not in made
    )
    return Run(eqns, False, list(taken), [v for v in made if v in needed])
