"""A jaxpr evaluated anew, its taps brought out or replaced: the interpreter behind `taps`.

Runs of equations without a tap are evaluated as one jaxpr, untouched. Calls that hold taps are entered; a scan stacks
what is brought out of it, and slices what is put in.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core as jex

from jaxprune.transforms.calls import ENTERED, bodies, enter
from jaxprune.transforms.jaxpr import run_equations

PREFIX = "tap:"

Taps = dict[str, list[Any]]
Edit = Callable[[Any], Any]


def _name(eqn: Any) -> str | None:
    """The name of a tap; None for any other equation."""
    if eqn.primitive.name != "name" or not eqn.params["name"].startswith(PREFIX):
        return None
    return eqn.params["name"].removeprefix(PREFIX)


def names_in(jaxpr: Any, where: Any) -> list[str]:
    """Names of the matching taps in order, those of inner jaxprs included; branches of a cond count once."""
    found = []
    for eqn in jaxpr.eqns:
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
    """The outputs of a jaxpr and its taps, by name in order; `given` are values to put in their places."""
    env = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, args))
    read = lambda v: v.val if isinstance(v, jex.Literal) else env[v]
    taps: Taps = {}
    given = {name: list(values) for name, values in given.items()}
    runs = list(_runs(jaxpr, where))
    ends = _last_runs(runs, jaxpr.outvars)
    for i, (eqns, special) in enumerate(runs):
        values = [read(v) for v in eqns[0].invars] if special else []
        if special:
            outs, brought = _visit(eqns[0], values, where, edits, given)
            env.update(zip(eqns[0].outvars, outs))
            for name, found in brought.items():
                taps.setdefault(name, []).extend(found)
        else:
            wanted = {v for v, last in ends.items() if last > i}
            env.update(run_equations(eqns, env, jaxpr.debug_info, wanted))
        for v in [v for v in env if ends.get(v, -1) <= i]:  # outside of jit nothing else lets an activation go
            del env[v]
    return [read(v) for v in jaxpr.outvars], taps


def _last_runs(runs: list[tuple[list[Any], bool]], results: list[Any]) -> dict[Any, int]:
    """Variable -> the number of the last run that reads it; those read at the end come after all."""
    last: dict[Any, int] = {}
    for i, (eqns, _) in enumerate(runs):
        last.update((v, i) for eqn in eqns for v in eqn.invars if not isinstance(v, jex.Literal))
    last.update((v, len(runs)) for v in results if not isinstance(v, jex.Literal))
    return last


def _visit(eqn: Any, values: list[Any], where: Any, edits: dict[str, Edit], given: Taps) -> tuple[list[Any], Taps]:
    """A tap, or an equation that holds some; takes its share of `given` away."""
    name = _name(eqn)
    if name is None:
        _refuse(eqn, where)
        names = names_in(bodies(eqn)[0].jaxpr, where)
        share = {n: [given[n].pop(0) for _ in range(names.count(n))] for n in dict.fromkeys(names) if n in given}
        run = lambda body, args, given: run_with(body.jaxpr, body.consts, args, where, edits, given)
        return enter(eqn, values, run, share)
    [old] = values
    new = given[name].pop(0) if name in given else edits[name](old) if name in edits else old
    if (jax.numpy.shape(new), jax.numpy.result_type(new)) != (old.shape, old.dtype):
        kind = f"{jax.numpy.result_type(new)}{list(jax.numpy.shape(new))}"
        raise ValueError(f"plant: {name!r} is {old.dtype}{list(old.shape)}, and its new value is {kind}")
    return [checkpoint_name(new, PREFIX + name)], {name: [new]}


def _refuse(eqn: Any, where: Any) -> None:
    """A while loop has nowhere to put a tap, and the branches of a cond must bring the same ones."""
    arms, kind = [names_in(b.jaxpr, where) for b in bodies(eqn)], eqn.primitive.name
    if kind not in ENTERED:
        tapped = max(arms, key=len)[0]
        raise ValueError(f"tap {tapped!r} is inside {kind!r}: only jit, remat, scan and cond can be entered")
    if any(arm != arms[0] for arm in arms):
        raise ValueError(f"the branches of a cond tap different names, {arms}: tap the same in each")


def _runs(jaxpr: Any, where: Any) -> Iterator[tuple[list[Any], bool]]:
    """The equations: runs without a tap, and single ones that are a tap or hold one."""
    run: list[Any] = []
    for eqn in jaxpr.eqns:
        name = _name(eqn)
        special = where.fullmatch(name) if name is not None else any(names_in(b.jaxpr, where) for b in bodies(eqn))
        if not special:
            run.append(eqn)
            continue
        if run:
            yield run, False
        yield [eqn], True
        run = []
    if run:
        yield run, False
