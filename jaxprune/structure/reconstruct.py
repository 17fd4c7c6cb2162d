"""The weights that are left, fitted to what the whole layer gave (He, Zhang & Sun 2017, arXiv:1707.06168).

A layer Y = X W loses inputs and outputs. Its remaining outputs are brought near to what they were, by least squares:

    min over D of  ‖X' (W' + D) − Y‖² + λ ‖D‖²,       λ = ridge · tr(X'ᵀX') / columns
    D = (X'ᵀX' + λ I)⁻¹ X'ᵀ (Y − X' W')

X' is what the smaller network feeds the layer, behind all layers that were fitted before, Y what the whole network has
there, W' the weights that are left. The equations of the two programs are evaluated side by side, once, on all
batches; no gradient is taken and no label is read. Behind a block that is left out the layers are brought near to what
they gave with it.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jaxprune.core.where import is_float, leaf_path
from jaxprune.numerics.precision import widen
from jaxprune.structure.narrowed import kept
from jaxprune.structure.plan import Plan
from jaxprune.structure.ridge import solved
from jaxprune.structure.rows import CONTRACTIONS
from jaxprune.transforms.axes.groups import walked
from jaxprune.transforms.axes.index import fresh
from jaxprune.transforms.axes.narrow import Narrow
from jaxprune.transforms.axes.shapes import IDENTITY
from jaxprune.transforms.axes.traced import shapes_of, trace
from jaxprune.transforms.axes.walk import Axes, Record, Walk, Walked
from jaxprune.transforms.calls import INLINE, REMAT

SAME = (IDENTITY - {"optimization_barrier"}) | {"convert_element_type"}
"""Equations whose result is their operand, in another dtype at most."""


CALLS = INLINE | REMAT | {"custom_jvp_call"}
LOOPS = frozenset({"scan", "while", "cond"})
Paths = list[str | None]
"""Of leaves that values are."""


class Reconstruction(NamedTuple):
    """What `reconstruct` made.

    Attributes:
      params: the smaller params, fitted.
      errors: path of a weight -> ‖Y' − Y‖ / ‖Y‖ of its layer's outputs, before its fit and after.
      left: path of a weight that was not fitted -> why.
    """

    params: Any
    errors: dict[str, tuple[float, float]]
    left: dict[str, str]

    def __str__(self) -> str:
        wide = max(map(len, [*self.errors, *self.left]), default=0)
        lines = [f"{path:<{wide}}  {before:8.4f} -> {after:8.4f}" for path, (before, after) in self.errors.items()]
        return "\n".join([*lines, *(f"{path:<{wide}}  not fitted: {why}" for path, why in self.left.items())])


def reconstruct(
    f: Callable[..., Any],
    params: Any,
    plan: Plan,
    batches: Iterable[tuple[Any, ...]],
    *,
    ridge: float = 1e-3,
    state: str | None = None,
) -> Reconstruction:
    """plan.cut(params), with the weights of all products and convolutions fitted to the whole network's outputs.

    Args:
      f: the pure function f(params, *args) that the plan is of.
      params: its params before the cut.
      plan: what is kept.
      batches: of the arguments after params, as tuples; all of one shape, and held in memory together.
      ridge: the pull towards the weights that are left, as a share of the mean of X'ᵀX' on its diagonal. With few rows
        more of it is needed.
      state: outputs that are new values of params, as in `jp.axes`.

    Returns:
      A `Reconstruction`. Weights used twice, inside a scan, a cond or a loop are left as they are, and named.

    Raises:
      ValueError: no batches, batches of several shapes, a ridge below 0, or of 0 where inputs are dependent, NaN, or a
        plan of another model.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> f = lambda p, x: x @ p["w"] @ p["v"]
      >>> p = {"w": jnp.array([[1.0, 1.0], [0.0, 0.1]]), "v": jnp.array([[2.0], [1.0]])}
      >>> x = jax.random.normal(jax.random.key(0), (64, 2)) * jnp.array([1.0, 0.0])    # only the first input varies
      >>> thin = jp.shrink(f, p, x, ratio=0.5)
      >>> fitted = jp.reconstruct(f, p, thin.plan, [(x,)], ridge=1e-9)
      >>> print(thin.params["v"][0], fitted.params["v"][0])           # what the second unit gave comes from the first
      [2.] [3.]
    """
    given = [tuple(batch) for batch in batches]
    shapes = {str(jax.tree.map(lambda x: (np.shape(x), jnp.result_type(x)), batch)) for batch in given}
    if len(shapes) != 1:
        raise ValueError(f"reconstruct: batches of one shape are asked for; there are {sorted(shapes) or 'none'}")
    if not ridge >= 0:
        raise ValueError(f"reconstruct(ridge={ridge}): a number from 0 on")
    traced, shapes_there = trace(f, params, given[0], {}), shapes_of(params)
    leaf_axes = {path: [fresh(n) for n in x.shape] for path, x in shapes_there.items()}
    program, small = walked(Walk(depth=True), traced, leaf_axes, state), plan.cut(params)
    there = {leaf_path(keys): x for keys, x in jax.tree_util.tree_leaves_with_path(small)}
    fit = _Fit(Narrow(kept(leaf_axes, [program], plan)), ridge, there, len(given))
    paths = [*leaf_axes, *[None] * traced.inputs]
    fit.count(program, paths)
    arrays = [[x for x in jax.tree.leaves(batch) if hasattr(x, "dtype")] for batch in given]
    leaves = [[(x, there.get(path))] * len(given) for path, x in zip(leaf_axes, jax.tree.leaves(params))]
    fit.run(program, [*leaves, *([(x, x) for x in column] for column in zip(*arrays))], paths)
    made = jax.tree.unflatten(jax.tree.structure(small), list(fit.params.values()))
    return Reconstruction(made, fit.errors, fit.left())


Values = list[tuple[Any, Any]]
"""Over batches: a value in the whole program, and in the smaller one (None of what goes with a block)."""


class _Fit:
    """Evaluates two programs side by side, and fits each weight before it is used."""

    def __init__(self, narrow: Narrow, ridge: float, params: dict[str, Any], num_batches: int):
        self.narrow, self.whole, self.ridge, self.params = narrow, Narrow({}), ridge, params
        self.num_batches = num_batches
        self.uses: dict[str, list[str]] = {}
        self.errors: dict[str, tuple[float, float]] = {}

    def left(self) -> dict[str, str]:
        """Weights that were not fitted."""
        odd = lambda uses: [u for u in uses if u in CONTRACTIONS or u in LOOPS]
        why = lambda uses: f"it is used by {', '.join(uses)}"
        there = {path: uses for path, uses in self.uses.items() if path in self.params and path not in self.errors}
        return {path: why(uses) for path, uses in there.items() if odd(uses)}

    def count(self, program: Walked, paths: Paths) -> Paths:
        """Notes what uses each leaf, but to hand it on; gives the leaves among the results."""
        env = dict(zip(program.jaxpr.invars, paths))
        for r in program.records:
            taken = [_read(env, v) for v in r.eqn.invars]
            if entered(r):
                outs = self.count(r.extra[0], taken)
            else:
                outs = handed_on(r, taken)
                for path in (path for path in taken if path and path not in outs):
                    self.uses.setdefault(path, []).append(r.eqn.primitive.name)
            env.update(zip(r.eqn.outvars, outs))
        return [_read(env, v) for v in program.jaxpr.outvars]

    def run(self, program: Walked, values: list[Values], paths: Paths) -> tuple[list[Values], Paths]:
        """Both programs on all batches; what nothing reads any more is let go."""
        known = zip(program.consts, program.const_axes)
        consts = [[(x, self.narrow.cut(x, axes))] * self.num_batches for x, axes in known]
        env = dict(zip(program.jaxpr.constvars, consts)) | dict(zip(program.jaxpr.invars, values))
        names, ends = dict(zip(program.jaxpr.invars, paths)), last_uses(program)
        live = set(map(id, self.narrow.live(program)))

        def read(v: Any, axes: Axes) -> Values:
            return [(v.val, self.narrow.cut(v.val, axes))] * self.num_batches if isinstance(v, jex.Literal) else env[v]

        for i, r in enumerate(program.records):
            taken, known = (
                [read(v, axes) for v, axes in zip(r.eqn.invars, r.ins)],
                [_read(names, v) for v in r.eqn.invars],
            )
            if id(r) not in live:
                outs, handed = self.alone(r, taken, program.jaxpr.debug_info), [None] * len(r.outs)
            elif entered(r):
                outs, handed = self.run(r.extra[0], taken, known)
            else:
                outs, handed = self.equation(r, taken, known, program.jaxpr.debug_info), handed_on(r, known)
            env.update(zip(r.eqn.outvars, outs))
            names.update(zip(r.eqn.outvars, handed))
            for v in ends.get(i, ()):
                env.pop(v, None)
        ends_in = list(zip(program.jaxpr.outvars, program.outs))
        return [read(v, axes) for v, axes in ends_in], [_read(names, v) for v, _ in ends_in]

    def by_batch(self, operands: list[Values]) -> list[tuple[Any, ...]]:
        """The operands of an equation, batch by batch; one without operands (iota) is run for each batch as well."""
        return list(zip(*operands)) if operands else [()] * self.num_batches

    def alone(self, r: Record, taken: list[Values], info: Any) -> list[Values]:
        """The results of an equation that the smaller program does not have."""
        large = [self.whole.results(r, [a for a, _ in batch], info) for batch in self.by_batch(taken)]
        return [[(y, None) for y in column] for column in zip(*large)]

    def equation(self, r: Record, taken: list[Values], paths: Paths, info: Any) -> list[Values]:
        """The results of an equation, once its weight is fitted."""
        batches = self.by_batch(taken)
        large = [self.whole.results(r, [a for a, _ in batch], info) for batch in batches]
        small = lambda: [self.narrow.results(r, [b for _, b in batch], info) for batch in batches]
        made, k = small(), self.weight(r, paths)
        if k is not None:
            wanted = [self.narrow.cut(y, r.outs[0]) for [y] in large]
            batches[:] = self.fitted(r, k, paths[k], batches, wanted, [y for [y] in made])
            made = small()
        return [list(zip(*pair)) for pair in zip(zip(*large), zip(*made))]

    def weight(self, r: Record, paths: Paths) -> int | None:
        """Which operand of an equation is a weight to be fitted."""
        if r.eqn.primitive.name not in CONTRACTIONS:
            return None
        fit = [k for k, path in enumerate(paths) if path and len(self.uses[path]) == 1 and is_float(self.params[path])]
        return fit[0] if len(fit) == 1 else None

    def fitted(self, r: Record, k: int, path: Any, batches: list[Any], wanted: list[Any], made: list[Any]) -> list[Any]:
        """The batches with the fitted weight in them."""
        w, dtype = batches[0][k][1], self.params[path].dtype
        xs = [batch[1 - k][1] for batch in batches]
        try:
            change, self.errors[path] = solved(r.eqn, k, w, xs, wanted, made, self.ridge)
        except ValueError as error:
            raise ValueError(f"reconstruct: {path}: {error}") from None
        new = (widen(w) + change).astype(dtype)
        self.params[path] = new
        return [
            tuple((a, new.astype(w.dtype)) if i == k else (a, b) for i, (a, b) in enumerate(one)) for one in batches
        ]


def entered(r: Record) -> bool:
    """Whether an equation only calls a program, once."""
    return r.eqn.primitive.name in CALLS and bool(r.extra)


def handed_on(r: Record, paths: Paths) -> Paths:
    """The leaves that an equation's results are."""
    return list(paths) if r.eqn.primitive.name in SAME else [None] * len(r.outs)


def last_uses(program: Walked) -> dict[int, list[Any]]:
    """number of an equation -> what nothing reads after it."""
    outs = {v for v in program.jaxpr.outvars if not isinstance(v, jex.Literal)}
    last = {
        v: i
        for i, r in enumerate(program.records)
        for v in (*r.eqn.outvars, *r.eqn.invars)
        if not isinstance(v, jex.Literal)
    }
    ends: dict[int, list[Any]] = {}
    for v, i in last.items():
        if v not in outs:
            ends.setdefault(i, []).append(v)
    return ends


def _read(env: dict[Any, Any], v: Any) -> Any:
    return None if isinstance(v, jex.Literal) else env.get(v)
