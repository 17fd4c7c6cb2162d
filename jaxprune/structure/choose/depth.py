"""What can be left out whole, and how much that would change: residual blocks, and layers that a
scan runs over.

    cosine    1 − cos(s, s + b(s)): Block Influence (ShortGPT, Men et al. 2024, arXiv:2403.03853)
    a loss    loss(f without the block) − loss(f)

What an addition alone uses is found on the jaxpr (`structure/axes/blocks.py`). A block is one unit
that is there or not, a scan over n layers n units; how many of them go beside units of widths,
`mixing` says.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core.arguments import ratio
from jaxprune.core.words import compiled, nearest
from jaxprune.structure.apply.check import concrete
from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.apply.switched import switched
from jaxprune.structure.axes.expressions import Axis, Var, settled, size
from jaxprune.structure.axes.groups import Group, Groups, Member, coupled_axes
from jaxprune.structure.axes.masks import positions
from jaxprune.structure.choose import cut_cost as cost
from jaxprune.structure.choose.importance import Normalize, Scope


class Depth(NamedTuple):
    """Which blocks and layers `shrink` may leave out, and in which order.

    Attributes:
      score: the lower, the sooner: "cosine" (see the module); a function (outputs of f on the
        example) -> loss, for what the loss gains without it; or {regular expression for paths: a
        number, or one a layer}, which chooses too.
      least, most: the share of the operations of f that one carries; others stay.
      only: nothing else is cut: no widths.
      repaired: where blocks and units share a budget: whether the plans that leave out none, one,
        two, four, … blocks are compared after a refit to the examples (`jp.reconstruct`), as they
        should be; False is quicker.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> f = lambda p, x: (h := x + jnp.tanh(x @ p["a"])) + jnp.tanh(h @ p["b"])
      >>> p = {"a": 0.01 * jnp.eye(4), "b": jnp.ones((4, 4))}
      >>> thin = jp.shrink(f, p, jnp.arange(4.0)[None], flops=0.6, depth=jp.Depth(only=True))
      >>> # it changed the stream least
      >>> thin.params["a"], thin.plan.blocks
      (None, (('a',),))
    """

    score: Any = "cosine"
    least: float = 0.0
    most: float = 1.0
    only: bool = False
    repaired: bool = True


class Unit(NamedTuple):
    """A block, or the layers of a scan.

    Attributes:
      group: its name, its number of positions (1: a block), the leaves that go with it, and where
        it was written.
      variable: that says what of it stays.
      share: of the operations of the first function, that one of its positions carries.
      block: whether it is one.
    """

    group: Group
    variable: Var
    share: float
    block: bool


class Blocks(NamedTuple):
    """What `blocks` found, and the scans that keep all turns, with the reason; print it."""

    units: tuple[Unit, ...]
    scans: Mapping[str, str]

    def __str__(self) -> str:
        def kind(u):
            return "block" if u.block else f"{u.group.size} layers, each"

        lines = [
            f"{kind(u):>16}  {u.share:>7.2%}  {u.group.name}  ({u.group.layers})"
            for u in self.units
        ]
        return "\n".join(
            [*lines, *(f"            stays  {name}: {why}" for name, why in self.scans.items())]
        )


def residual_blocks(f: Any, params: Any, *args: Any, state: str | None = None) -> Blocks:
    """Residual blocks and layers that can be left out, the operations that they carry, and where
    they were written.

    Args:
      f, params, args, state: as in `jp.coupled_axes`.

    Returns:
      `Blocks`; print it.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> f = lambda p, x: (x + jax.nn.relu(x @ p["w"]) @ p["v"]) @ p["out"]
      >>> p = {"out": jnp.ones((4, 2)), "v": jnp.ones((8, 4)), "w": jnp.ones((4, 8))}
      >>> print(jp.residual_blocks(f, p, jnp.ones((1, 4))))
                 block   89.74%  v and 1 more  (add at <doctest
                                               jaxprune.structure.choose.depth.residual_blocks[1]>:1
                                               (<lambda>))
    """
    found = coupled_axes(f, params, *args, state=state, depth=True)
    return Blocks(tuple(units(found)), found.scans)


def units(found: Groups) -> list[Unit]:
    """All blocks and layers."""
    program = found.programs[0]
    known = {}
    made = []
    whole = max(1, cost.flops(program, Narrow({}), known))

    def share(v, kept, known=None):
        return 1 - cost.flops(program, Narrow({v: kept}), known) / whole

    for b in found.blocks:
        group = Group("", 1, tuple(Member(path, 0, ()) for path in b.leaves), (), b.place)
        made.append(Unit(group, b.switch, share(b.switch, np.zeros(1, bool), known), True))
    for g, v in zip(found.groups, found.variables):
        if g.layers and not g.approximate:
            made.append(Unit(g, v, share(v, np.arange(g.size) > 0), False))
    return [u._replace(group=u.group._replace(name=_name(u.group.members, found))) for u in made]


def _name(members: Sequence[Member], found: Groups) -> str:
    """Its largest leaf, and how many more there are."""
    largest = max(members, key=lambda m: np.prod(found.shapes[m.path].shape)).path
    return largest + (f" and {len(members) - 1} more" if len(members) > 1 else "")


def chosen(found: Groups, depth: Depth) -> list[Unit]:
    """The blocks and layers that a `Depth` allows.

    Raises:
      ValueError: there are none; those that there are, are listed.
    """
    if isinstance(depth, Depth):
        ratio("jp.Depth(least={})", depth.least)
        ratio("jp.Depth(most={})", depth.most)
    if not isinstance(depth, Depth) or not depth.least <= depth.most:
        raise ValueError(f"depth={depth!r}: give True, or a jp.Depth with 0 <= least <= most <= 1")
    there = units(found)
    fit = [u for u in there if depth.least <= u.share <= depth.most]
    if not fit:
        shares = [f"{u.group.name} carries {u.share:.2%}" for u in there][:10]
        scans = [f"{place}: {why}" for place, why in found.scans.items()][:3]
        why = (
            "; ".join(shares or scans)
            or "no branch that alone uses some params is added to what it comes from"
        )
        raise ValueError(
            f"depth: no block and no layer can be left out: {why}. jp.residual_blocks(f, params, "
            "x) lists all"
        )
    return fit


def scored(
    found: Groups, there: Sequence[Unit], depth: Depth, tree: Any, calls: Sequence[Any]
) -> list[tuple[Unit, np.ndarray]]:
    """The units that have a score, with one number a position.

    Raises:
      ValueError: a score that is none, that matches nothing, or that is not finite.
    """
    if isinstance(depth.score, Mapping):
        made = _by_path(there, depth.score)
    elif callable(depth.score):
        made = _by_loss(found, there, depth.score, values_of(tree, calls[0][1]))
    elif depth.score == "cosine":
        made = _by_cosine(found, there, [values_of(tree, given) for _, given in calls])
    else:
        raise ValueError(
            f'depth: score={depth.score!r} is none of "cosine", a function of outputs, '
            "{path: number}"
        )
    for unit, values in made:
        if not np.isfinite(values).all():
            raise ValueError(f"depth: the score of {unit.group.name} has NaN or Inf: {values[:5]}")
    return made


def ranks(values: Sequence[np.ndarray], scope: Scope, normalize: Normalize) -> list[np.ndarray]:
    """Scores as numbers that may be ranked with those of widths: all blocks and layers are as one
    group.

    Args:
      values: of `scored`; those of a loss may be negative.
      scope: "global": over their mean size; otherwise by quantile.
      normalize: "none": with "global", as they are.
    """
    if scope == "global" and normalize == "none":
        return [np.asarray(v, float) for v in values]
    together = np.concatenate(values)
    if scope == "global":
        rank = together / max(float(np.abs(together).mean()), np.finfo(float).tiny)
    else:
        rank = np.empty(len(together))
        rank[np.argsort(together, kind="stable")] = (np.arange(len(together)) + 0.5) / len(together)
    return np.split(rank, np.cumsum([len(v) for v in values])[:-1])


def values_of(tree: Any, args: tuple[Any, ...]) -> list[Any]:
    """The inputs of a walked function; noise where only shapes are given."""
    return [
        *jax.tree.leaves(tree),
        *(concrete(x) for x in jax.tree.leaves(args) if hasattr(x, "dtype")),
    ]


def _by_path(there: Sequence[Unit], score: Mapping[str, Any]) -> list[tuple[Unit, np.ndarray]]:
    made = {}
    for pattern, number in score.items():
        test = compiled("depth: score", pattern)
        hits = [
            k for k, u in enumerate(there) if any(test.fullmatch(m.path) for m in u.group.members)
        ]
        if not hits:
            paths = [m.path for u in there for m in u.group.members]
            raise ValueError(
                f"depth: score of {pattern!r} matches no block. The nearest: "
                f"{nearest(pattern, paths)}"
            )
        made |= {
            k: np.broadcast_to(np.asarray(number, np.float64), (there[k].group.size,)) for k in hits
        }
    return [(there[k], values) for k, values in sorted(made.items())]


def _by_cosine(
    found: Groups, there: Sequence[Unit], given: Sequence[list[Any]]
) -> list[tuple[Unit, np.ndarray]]:
    """Block Influence, in the first function that has the block."""
    made: dict[int, np.ndarray] = {}

    def every(e):
        return jnp.ones(size(e), bool)

    for program, values in zip(found.programs, given):
        if len(made) == len(there):
            break
        sites: list[Axis] = []

        def changes(
            values: list[Any], program: Any = program, sites: list[Axis] = sites
        ) -> list[Any]:
            seen = switched(program, values, every)[1]
            sites.extend(e for e, _ in seen)
            return [change for _, change in seen]

        seen = [np.asarray(x, np.float64).reshape(-1) for x in jax.jit(changes)(values)]
        for k, u in enumerate(there):
            lies = [(at, x) for e, x in zip(sites, seen) for at in positions(e, u.variable)]
            if lies and k not in made:
                made[k] = np.zeros(u.group.size)
                for at, x in lies:
                    np.add.at(made[k], at[at >= 0], x[at >= 0])
    return [(there[k], values) for k, values in sorted(made.items())]


def switchable(program: Any, values: list[Any]) -> Callable[[list[Any], Narrow], list[Any]]:
    """(inputs, what is kept) -> the results of a function whose blocks and layers are on as that
    says; compiled once.

    Args:
      program: of the function.
      values: of its inputs, for their shapes.
    """
    sites: list[Axis] = []

    def note(e: Axis) -> Any:
        sites.append(e)
        return jnp.ones(size(e), bool)

    jax.eval_shape(lambda values: switched(program, values, note)[0], values)

    @jax.jit
    def compiled_once(values: list[Any], flags: list[Any]) -> list[Any]:
        on = iter(flags)
        return switched(program, values, lambda e: next(on))[0]

    def run(values: list[Any], narrow: Narrow) -> list[Any]:
        return compiled_once(values, [jnp.asarray(narrow.mask(e)) for e in sites])

    return run


def _by_loss(
    found: Groups, there: Sequence[Unit], loss: Callable[[Any], Any], values: list[Any]
) -> list[Any]:
    """loss(f without it) − loss(f), of each; one compilation."""
    tree = found.traced[0].tree
    run = switchable(found.programs[0], values)

    def of(keep: dict[Var, np.ndarray]) -> float:
        narrow = Narrow({settled(v): kept for v, kept in keep.items()})
        found = loss(jax.tree.unflatten(tree, run(values, narrow)))
        if np.shape(found):
            raise ValueError(
                f"depth: score gives a loss of shape {np.shape(found)}: it must return one number"
            )
        return float(found)

    whole = of({})

    def without(u, i):
        return of({u.variable: np.arange(u.group.size) != i})

    return [(u, np.array([without(u, i) - whole for i in range(u.group.size)])) for u in there]
