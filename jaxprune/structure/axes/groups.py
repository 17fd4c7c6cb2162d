"""Which axes of the params must be cut together, which cannot be cut, and why: `axes`.

A group is a class of positions. Cutting position i takes away one slice (or several) of each of its
members: an output of a kernel, its bias, the statistics of the norm after it, the inputs of all
kernels that read it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.core.words import compiled, nearest
from jaxprune.structure.axes.blocks import Block, joined, residual_blocks
from jaxprune.structure.axes.expressions import (
    UNIT,
    Var,
    freeze,
    fresh,
    is_frozen,
    reason,
    size,
    unify,
    variables,
)
from jaxprune.structure.axes.masks import positions
from jaxprune.structure.axes.odd_calls import refuse_odd_call
from jaxprune.structure.axes.traced import Traced, shapes_of, trace
from jaxprune.structure.axes.walk import Axes, Walk, Walked
from jaxprune.structure.axes.zeros import Zeros


class Member(NamedTuple):
    """An axis of a leaf that goes with a group.

    Attributes:
      path: of the leaf.
      axis: which.
      maps: for each time that the group lies on the axis: the group's position at every position of
        it, −1 for none.
    """

    path: str
    axis: int
    maps: tuple[np.ndarray, ...]


class Group(NamedTuple):
    """Positions that can be cut, each from all members at once.

    Attributes:
      name: "path[axis]" of its first member; unique.
      size: how many positions.
      members: what is cut.
      approximate: places of sums that leave out what may not be zero; empty if cutting is exact.
      layers: the place of the scan whose turns the positions are; empty for units.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    approximate: tuple[str, ...]
    layers: str = ""

    def __str__(self) -> str:
        exact = f"approximate: {self.approximate[0]}" if self.approximate else "exact"
        exact = f"layers of a {self.layers}; {exact}" if self.layers else exact
        return (
            f"{self.size:>5}  {', '.join(f'{m.path}[{m.axis}]' for m in self.members)}  ({exact})"
        )


class Groups(NamedTuple):
    """What `axes` found.

    Attributes:
      groups: what can be cut.
      frozen: "path[axis]" -> why it, or a part of it, cannot be cut.
      unknown: places of primitives without a rule -> how often.
      shapes: path -> shape and dtype of every leaf.
      leaf_axes: path -> the axes of the leaf, for `Narrow`.
      variables: of each group, in order.
      programs: of each function.
      traced: of each function.
      blocks: what can be left out whole; only looked for with `depth`.
      scans: place -> why no turn of a scan can be left out.
    """

    groups: tuple[Group, ...]
    frozen: dict[str, str]
    unknown: dict[str, int]
    shapes: dict[str, Any]
    leaf_axes: dict[str, Axes]
    variables: tuple[Var, ...]
    programs: tuple[Walked, ...]
    traced: tuple[Traced, ...]
    blocks: tuple[Block, ...] = ()
    scans: Mapping[str, str] = {}

    def __str__(self) -> str:
        lines = [
            f"{len(self.groups)} groups",
            *map(str, self.groups),
            f"{len(self.frozen)} axes that cannot be cut",
        ]
        return "\n".join([*lines, *(f"       {name}: {why}" for name, why in self.frozen.items())])


def coupled_axes(
    f: Any, params: Any, *args: Any, state: str | None = None, depth: bool = False, **kw: Any
) -> Groups:
    """Which axes of the params must be cut together, found by reading the jaxpr of f; nothing is
    run.

    Args:
      f: a pure function f(params, *args, **kw); or several that share the params: a list of
        functions with the same arguments, or of pairs (function, arguments).
      params: a tree of arrays or of their shapes.
      args, kw: arrays or their shapes; whatever else (`train=False`) is given to f as it is.
      state: outputs, by a regular expression for their whole path, that are new values of params
        (batch statistics, a cache): each is cut as the leaf whose path its own ends with. All other
          outputs stay whole.
      depth: also find residual blocks, and make a group of the layers that a scan runs over
        (`jp.residual_blocks`).

    Returns:
      `Groups`; print it.

    Raises:
      ValueError: f cannot be traced, has side effects or returns what is not an array; a `state`
        that matches no output, or one that is no param.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> f = lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"]
      >>> print(jp.coupled_axes(f, {"w": jnp.ones((3, 8)), "b": jnp.ones(8), "v": jnp.ones((8, 2))},
      ...     jnp.ones((1, 3))))
      1 groups
          8  b[0], v[0], w[1]  (exact)
      2 axes that cannot be cut
             v[1]: an output of the function
             w[0]: an argument of the function
    """
    if state is not None:
        compiled("state", state)
    calls = pairs(f, args)
    refuse_odd_call("coupled_axes", [g for g, _ in calls], params)
    shapes = shapes_of(params)
    leaf_axes = {path: [fresh(n) for n in x.shape] for path, x in shapes.items()}
    walk = Walk(depth)
    traced = []
    programs = []
    for g, given in calls:
        traced.append(trace(g, params, tuple(given), kw))
        programs.append(walked(walk, traced[-1], leaf_axes, state))
    refuse_unmatched(state, traced)
    found = _grouped(shapes, leaf_axes, walk, programs, traced)
    whole = {place: reason(e) for e, place in walk.layers if is_frozen(e)}
    return found._replace(blocks=joined(programs, list(shapes)), scans=whole)


def pairs(f: Any, args: tuple[Any, ...]) -> list[tuple[Any, tuple[Any, ...]]]:
    """(function, its arguments) of one function or several."""
    return [
        call if isinstance(call, tuple) else (call, args)
        for call in (f if isinstance(f, list) else [f])
    ]


def walked(walk: Walk, t: Traced, leaf_axes: dict[str, Axes], state: str | None) -> Walked:
    """Walks one function; its arguments stay whole, and so do its outputs, but for those that are
    params anew.
    """
    given = [
        [fresh(n, "an argument of the function") for n in v.aval.shape]
        for v in t.jaxpr.invars[len(leaf_axes) :]
    ]
    program = walk.program(t.jaxpr, t.consts, [*leaf_axes.values(), *given])
    replaced: list[str | None] = []
    for path, outs in zip(t.paths, program.outs):
        replaced.append(
            _param_of(path, leaf_axes, [size(e) for e in outs]) if replaces(path, state) else None
        )
        if replaced[-1] is None:
            for e in outs:
                freeze(e, "an output of the function")
            continue
        for a, b in zip(leaf_axes[replaced[-1]], outs):
            unify(a, b, f"the output {path} and the param that it replaces do not line up")
    found = residual_blocks(program, list(leaf_axes), replaced) if walk.depth else ()
    return program._replace(blocks=tuple(found))


def replaces(output: str, state: str | None) -> bool:
    """Whether an output is a new value of a param."""
    return state is not None and re.fullmatch(state, output) is not None


def refuse_unmatched(state: str | None, traced: Sequence[Traced]) -> None:
    """A rule that matches nothing is an error."""
    paths = [path for t in traced for path in t.paths]
    if state is not None and not any(replaces(path, state) for path in paths):
        raise ValueError(f"state={state!r} matches no output. The nearest: {nearest(state, paths)}")


def _param_of(output: str, leaf_axes: dict[str, Axes], shape: list[int]) -> str:
    """The longest path of a param that the output's path ends with."""
    found = [p for p in leaf_axes if f"/{output}".endswith(f"/{p}")]
    fit = [p for p in found if [size(e) for e in leaf_axes[p]] == shape]
    if not fit:
        raise ValueError(
            f"state: the output {output!r} of shape {shape} is no param. The nearest: "
            f"{nearest(output, leaf_axes)}"
        )
    return max(fit, key=len)


def _grouped(
    shapes: dict[str, Any],
    leaf_axes: dict[str, Axes],
    walk: Walk,
    programs: list[Walked],
    traced: list[Traced],
) -> Groups:
    members: dict[Var, list[Member]] = {}
    frozen: dict[str, str] = {}
    for path, axes in leaf_axes.items():
        for k, e in enumerate(axes):
            for v in dict.fromkeys(variables(e)):
                if v.why is None:
                    members.setdefault(v, []).append(Member(path, k, tuple(positions(e, v))))
                elif v.why != UNIT:
                    frozen.setdefault(f"{path}[{k}]", v.why)
    zeros = Zeros(members)
    for program in programs:
        zeros.run(program, [zeros.of(axes) for axes in program.ins])
    layers = {v: place for e, place in walk.layers for v in variables(e) if not v.why}
    known = zeros.summed | layers.keys()
    alone = [
        v
        for v, found in members.items()
        if len(found) == 1 and len(found[0].maps) == 1 and v not in known
    ]
    for v in alone:  # an axis that no other array shares is not used by the function
        frozen.setdefault(
            f"{members[v][0].path}[{members[v][0].axis}]", "nothing else in the function has it"
        )
        del members[v]
    groups = tuple(
        Group(
            _name(m[0]),
            v.size,
            tuple(m),
            tuple(sorted(zeros.approximate.get(v, ()))),
            layers.get(v, ""),
        )
        for v, m in members.items()
    )
    return Groups(
        groups,
        frozen,
        walk.unknown,
        shapes,
        leaf_axes,
        tuple(members),
        tuple(programs),
        tuple(traced),
    )


def _name(m: Member) -> str:
    """ "path[axis]", and where on the axis the group first lies, if it is not all of it: "@8"."""
    start = int(np.argmax(m.maps[0] >= 0))
    whole = len(m.maps) == 1 and np.array_equal(m.maps[0], np.arange(len(m.maps[0])))
    part = "" if whole else f"@{start}" if (m.maps[0] < 0).any() else f"/{m.maps[0].max() + 1}"
    return f"{m.path}[{m.axis}]{part}"
