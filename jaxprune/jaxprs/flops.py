"""Floating point operations by reading the jaxpr: what a function does, before a compiler changes
it.

`costs` prices one equation; this file walks: into jit, remat and custom calls, `length` times into
a scan, once into a while, into the dearest branch of a cond.
"""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex

from jaxprune.core.arrays import materialize
from jaxprune.core.pieces import Leaf, kept, leaves
from jaxprune.jaxprs.calls import Body, bodies
from jaxprune.jaxprs.equation_flops import COSTS, OPAQUE, SAME, cost, plain, unpadded
from jaxprune.jaxprs.interpret import interpret

Counts = dict[str, Fraction]
Density = Fraction | None
"""The share of a weight's entries that are not 0; None for what is no weight."""


def flops(f: Callable[..., Any], *args: Any, **kw: Any) -> int:
    """Operations of one call of f, counted on its jaxpr; nothing is run or compiled.

    `scan` counts its body length times, `while` once (its number of turns is not known), `cond` its
    dearest branch.

    Args:
      f: a pure function.
      args: its arguments: arrays, `ShapeDtypeStruct`s, or trees of them, compressed or not.
      kw: keyword arguments; those that hold no arrays (`train=False`) are given to f as they are.

    Returns:
      The number of operations; a multiply-add is two.

    Raises:
      ValueError: f calls what cannot be looked into (a callback, a Pallas kernel, an iterative
        solver): which.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> # 2·5·30·10 + 5·10
      >>> jp.flops(lambda w, x: jnp.tanh(x @ w), jnp.zeros((30, 10)), jnp.zeros((5, 30)))
      3050
    """
    return sum(flops_by_primitive(f, *args, **kw).values())


def flops_by_primitive(f: Callable[..., Any], *args: Any, **kw: Any) -> dict[str, int]:
    """`flops`, split by primitive, the dearest first; what costs nothing is left out.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.jaxprs.flops import flops_by_primitive
      >>> flops_by_primitive(lambda w, x: jnp.tanh(x @ w), jnp.zeros((30, 10)), jnp.zeros((5, 30)))
      {'dot_general': 3000, 'tanh': 50}
    """
    return _whole(_count(_trace(f, args, kw).jaxpr, []).counts)


def unpadded_flops(f: Callable[..., Any], *args: Any, **kw: Any) -> int:
    """`flops` without the products with a convolution's padding, as XLA's `cost_analysis` counts.

    Papers count them. A network made smaller has them in another proportion, so ratios differ by a
    few percent, too.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> from jaxprune.jaxprs.flops import unpadded_flops
      >>> f = lambda w, x: jax.lax.conv_general_dilated(x, w, (1,), [(1, 1)],
      ...     dimension_numbers=("NHC", "HIO", "NHC"))
      >>> w, x = jnp.zeros((3, 1, 1)), jnp.zeros((1, 8, 1))
      >>> # 2·8·3, and without both ends 2·(8·3 − 2)
      >>> jp.flops(f, w, x), unpadded_flops(f, w, x)
      (48, 44)
    """
    return sum(_whole(_count(_trace(f, args, kw).jaxpr, [], unpadded).counts).values())


def sparse_flops(f: Callable[..., Any], params: Any, *args: Any, **kw: Any) -> int:
    """Operations of f(params, *args) were no product with a zero weight computed: 2 · nonzeros in
    place of 2 · weights.

    A theoretical number, the one that pruning papers print: dense hardware does not run faster for
    it. A matrix product or a convolution is scaled by the density of its operand where that is a
    leaf of `params` (converted, reshaped, transposed, or sliced by a scan); where both operands
    are, by the smaller density. All else counts as in `flops`.

    Args:
      f: a pure function of dense params.
      params: a tree of concrete arrays, compressed or not. A mask tells what a `Masked` keeps;
        elsewhere it is what is not 0.
      args: the further arguments of f, as in `flops`.

    Returns:
      The number of operations.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> from jaxprune.jaxprs.flops import sparse_flops
      >>> w = jp.Masked(jnp.ones((30, 10)), jnp.zeros((30, 10), bool).at[:3].set(True))
      >>> sparse_flops(lambda w, x: x @ w, w, jnp.zeros((5, 30)))          # 2·5·(3·10)
      300
    """
    dense = jax.eval_shape(materialize, params)
    jaxpr = _trace(f, (dense, *args), kw).jaxpr
    weights = [_density(leaf) for leaf in leaves(params) if not leaf.side]
    return sum(_whole(_count(jaxpr, weights).counts).values())


def _trace(f: Callable[..., Any], args: tuple[Any, ...], kw: dict[str, Any]) -> jex.ClosedJaxpr:
    traced = {k: v for k, v in kw.items() if all(hasattr(x, "dtype") for x in jax.tree.leaves(v))}
    fixed = {k: v for k, v in kw.items() if k not in traced}
    return jax.make_jaxpr(lambda *a, **k: f(*a, **k, **fixed))(*args, **traced)


def operations(jaxpr: jex.Jaxpr) -> int:
    """Of a jaxpr."""
    return sum(_whole(_count(jaxpr, []).counts).values())


def _density(leaf: Leaf) -> Fraction:
    there = kept(leaf)
    return Fraction(int(np.count_nonzero(there)), there.size) if there.size else Fraction(1)


def _whole(counts: Counts) -> dict[str, int]:
    dear = sorted(counts.items(), key=lambda item: -item[1])
    return {name: round(n) for name, n in dear if n}


class Counted(NamedTuple):
    """The operations of a jaxpr by primitive, and the densities of its results that are weights
    still.
    """

    counts: Counts
    results: list[Density]


def _count(
    jaxpr: jex.Jaxpr, inputs: Sequence[Density], price: Callable[[Any], int] = cost
) -> Counted:
    """Operations by primitive, given the densities of the weights among the inputs."""
    parts: list[Counts] = []

    def visit(eqn: Any, densities: list[Density]) -> list[Density]:
        counts, results = _equation(eqn, densities, price)
        parts.append(counts)
        return results

    consts: list[Density] = [None] * len(jaxpr.constvars)
    results = interpret(jaxpr, consts, inputs, visit, literal=lambda literal: None, unknown=None)
    return Counted(_sum(parts), results)


def _equation(eqn: Any, densities: list[Density], price: Callable[[Any], int]) -> Counted:
    name = eqn.primitive.name
    called = _bodies(eqn)
    if not called:
        share = _share(eqn, densities)
        return Counted({name: price(eqn) * share}, densities if name in SAME else [])
    of_operand = {id(v): density for v, density in zip(eqn.invars, densities)}
    inside = [
        _count(body.jaxpr, [of_operand.get(id(v)) for v in body.operands], price) for body in called
    ]
    parts = [_times(body.times, one.counts) for body, one in zip(called, inside)]
    counts = max(parts, key=lambda c: sum(c.values())) if name == "cond" else _sum(parts)
    # Of a scan: constants and slices that come out as they went in.
    return Counted(counts, inside[0].results if len(called) == 1 else [])


def _share(eqn: Any, densities: list[Density]) -> Fraction:
    if eqn.primitive.name not in ("dot_general", "ragged_dot_general", "conv_general_dilated"):
        return Fraction(1)
    return min((density for density in densities if density is not None), default=Fraction(1))


def _sum(many: Iterable[Counts]) -> Counts:
    total: Counts = {}
    for counts in many:
        for name, n in counts.items():
            total[name] = total.get(name, Fraction(0)) + n
    return total


def _times(n: int, counts: Counts) -> Counts:
    return {name: n * x for name, x in counts.items()}


def _bodies(eqn: Any) -> list[Body]:
    """What an equation calls; a reduction's or a scatter's body is part of its cost."""
    name = plain(eqn.primitive.name)
    return [] if name in COSTS or name in OPAQUE else bodies(eqn)
