"""A function on params that a plan has cut."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.structure.apply.assign import assign
from jaxprune.structure.apply.carriers import Carriers
from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.apply.plan import Plan
from jaxprune.structure.apply.switched import switched
from jaxprune.structure.axes.blocks import used
from jaxprune.structure.axes.expressions import Var, fresh, settled, size
from jaxprune.structure.axes.groups import refuse_unmatched, walked
from jaxprune.structure.axes.traced import Traced, shapes_of, trace
from jaxprune.structure.axes.walk import Walk, Walked


class Ready(NamedTuple):
    """A function walked at some shapes of its arguments, and what of it is kept."""

    traced: Traced
    program: Walked
    narrow: Narrow


def narrowed(f: Callable[..., Any], plan: Plan, state: str | None = None) -> Callable[..., Any]:
    """f on smaller params: g(plan.cut(params), *args) = f(plan.mask(params), *args), where cutting
    is exact.

    Where a plan leaves out blocks or layers, g is as f with streams that pass them by (`bypassed`).
    g is pure, and works under jit, grad, vmap, `jax.export`. It traces f at the old shapes of the
    params for whatever shapes its arguments have, so a plan made for one batch size or length
    serves all.

    Args:
      f: a pure function f(params, *args, **kw): the one that the plan is of, or another that shares
        its params.
      plan: what is kept.
      state: outputs that are cut as the params they replace, as in `axes`.

    Raises:
      ValueError: params that are not of the plan's smaller shapes; a plan that f does not allow,
        when it is called.
    """
    return _remembered(
        f, plan, state, lambda ready, values: ready.narrow.run(ready.program, values)
    )


def bypassed(f: Callable[..., Any], plan: Plan, state: str | None = None) -> Callable[..., Any]:
    """f on params of the old shapes, where streams pass by the blocks and layers that a plan leaves
    out.

    All else is computed as f does it, what is left out too: that its result is not used is what
    `narrowed` must match.
    """
    whole = Plan(plan.shapes, {})

    def run(ready: Ready, values: list[Any]) -> list[Any]:
        outs, _ = switched(ready.program, values, lambda e: jnp.asarray(ready.narrow.mask(e)))
        lost = ready.narrow.lost(ready.program)
        return [None if k in lost else x for k, x in enumerate(outs)]

    return _remembered(f, plan, state, run, whole)


def _remembered(
    f: Callable[..., Any],
    plan: Plan,
    state: str | None,
    run: Callable[..., Any],
    given: Plan | None = None,
) -> Callable[..., Any]:
    """f run by its walked program, which is made once for arguments of the same shapes; params are
    as `given` says.
    """
    seen: dict[Any, Ready] = {}
    given = given or plan

    def g(params: Any, *args: Any, **kw: Any) -> Any:
        _check(shapes_of(params), given)
        params = given.filled(params)
        shapes = shapes_of(params)
        leaves, tree = jax.tree.flatten((args, kw))
        arrays = [x for x in leaves if hasattr(x, "dtype")]
        key = _key(shapes, leaves, tree)
        ready = seen.get(key) or _ready(f, plan, state, params, shapes, args, kw)
        if key is not None and not any(
            isinstance(c, Tracer) for c in jax.tree.leaves(ready.program.consts)
        ):
            seen[key] = ready
        outs = run(ready, [*jax.tree.leaves(params), *arrays])
        return jax.tree.unflatten(ready.traced.tree, outs)

    return g


def _key(shapes: Any, leaves: list[Any], tree: Any) -> Any:
    """What a walk depends on; None if that cannot be looked up. 2 and 2.0, 0.0 and -0.0 are equal
    and not the same.
    """

    def of_array(x):
        return (x.shape, str(x.dtype), getattr(x, "weak_type", False))

    def one(x):
        return of_array(x) if hasattr(x, "dtype") else (type(x), repr(x), x)

    params = tuple((path, str(s.dtype), s.weak_type) for path, s in shapes.items())
    key = (params, tree, *map(one, leaves), jax.config.read("jax_enable_x64"))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _check(shapes: dict[str, Any], plan: Plan) -> None:
    there = [path for path in plan.shapes if path not in plan.dropped]
    if list(shapes) != there:
        odd = sorted(set(shapes) ^ set(there))
        raise ValueError(f"params and plan are not of one model: only one of them has {odd[:5]}")
    for path, x in shapes.items():
        if x.shape != plan.small(path):
            raise ValueError(
                f"{path} is {x.shape}; after the cut it is {plan.small(path)}: give "
                f"plan.cut(params)"
            )


def _ready(
    f: Any, plan: Plan, state: str | None, params: Any, shapes: Any, args: Any, kw: Any
) -> Ready:
    like = [
        jax.ShapeDtypeStruct(plan.shapes[p], x.dtype, weak_type=x.weak_type)
        for p, x in shapes.items()
    ]
    traced = trace(f, jax.tree.unflatten(jax.tree.structure(params), like), args, kw)
    refuse_unmatched(state, [traced])
    leaf_axes = {path: [fresh(n) for n in shape] for path, shape in plan.shapes.items()}
    program = walked(Walk(depth=True), traced, leaf_axes, state)
    return Ready(traced, program, Narrow(kept(leaf_axes, [program], plan)))


def kept(leaf_axes: dict[str, Any], programs: Sequence[Walked], plan: Plan) -> dict[Any, Any]:
    """What the plan keeps of the variables of a walk.

    Raises:
      ValueError: the plan is of other params, or cuts what the functions that were walked do not
        allow.
    """
    shapes = {path: tuple(map(size, axes)) for path, axes in leaf_axes.items()}
    odd = [path for path in {**shapes, **plan.shapes} if shapes.get(path) != plan.shapes.get(path)]
    if odd:
        raise ValueError(
            f"the plan is of another model: "
            f"{[(p, plan.shapes.get(p), shapes.get(p)) for p in odd[:3]]}"
        )
    keep: dict[Any, Any] = {}
    for program in programs if plan.blocks else ():
        uses = used(program, list(leaf_axes))
        keep |= {
            v: np.zeros(1, bool) for leaves in plan.blocks for v in _switch(program, leaves, uses)
        }
    carriers = functools.cache(
        lambda: Carriers(leaf_axes, programs)
    )  # only some plans ask for them
    for path, axes in leaf_axes.items():
        try:
            assign(
                axes if path not in plan.dropped else [],
                plan.keep.get(path, {}),
                keep,
                lambda v: carriers()(v),
            )
        except ValueError as error:
            raise ValueError(f"the plan does not fit this function: {path}{error}") from None
    return keep


def _switch(program: Walked, leaves: tuple[str, ...], uses: set[str]) -> list[Var]:
    """Of the block that alone uses these params, as far as a program uses them at all."""
    there = set(leaves) & uses
    same = [settled(b.switch) for b in program.blocks if set(b.leaves) == there]
    if not there or (same and same[0].why is None):
        return same[:1]
    why = (
        same[0].why
        if same
        else "its params are used elsewhere too, or it is no branch of an addition"
    )
    raise ValueError(
        f"the plan does not fit this function: the block of {', '.join(leaves[:3])} is left out: "
        f"{why}"
    )
