"""What a function costs once it is cut: read off the walked program, without a trace or a
compilation.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs.calls import bodies
from jaxprune.jaxprs.equation_flops import COSTS, OPAQUE, cost, plain
from jaxprune.jaxprs.flops import operations
from jaxprune.structure.apply.carriers import WHOLE, Carriers
from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.axes import expressions as index
from jaxprune.structure.axes.expressions import Sum, Var, settled
from jaxprune.structure.axes.flat import is_inline
from jaxprune.structure.axes.groups import Groups
from jaxprune.structure.axes.walk import Record, Walked


def flops(program: Walked, narrow: Narrow, known: dict[int, int] | None = None) -> int:
    """Operations of one call, counted as `jp.flops` counts; equations whose cost is known are not
    counted again.
    """
    known = {} if known is None else known
    live = [r for r in narrow.live(program) if narrow.stream(r) is None]
    for r in live:
        if id(r) not in known or is_inline(r):
            known[id(r)] = _of(r, narrow, known)
    return sum(known[id(r)] for r in live)


def _of(r: Record, narrow: Narrow, known: dict[int, int]) -> int:
    name = r.eqn.primitive.name
    inside = [] if plain(name) in COSTS or plain(name) in OPAQUE else bodies(r.eqn)
    if not inside:
        return cost(r.eqn if name in WHOLE else narrow.equation(r))
    if r.extra is None:  # nothing of it is cut
        counts = [body.times * operations(body.jaxpr) for body in inside]
    else:
        counts = [
            narrow.turns(r, body.times) * flops(w, narrow, known)
            for body, w in zip(inside, r.extra)
        ]
    return max(counts) if name == "cond" else sum(counts)


def elements(groups: Groups, narrow: Narrow) -> int:
    """Numbers in all leaves."""
    return sum(_sizes(groups, narrow).values())


def octets(groups: Groups, narrow: Narrow, dtypes: Mapping[str, Any]) -> int:
    """Bytes of all leaves."""
    return sum(n * dtypes[p].itemsize for p, n in _sizes(groups, narrow).items())


def counted_together(
    groups: Groups, variables: Sequence[Var], deep: Sequence[bool]
) -> list[tuple[Var, ...]]:
    """The axes of the params whose positions are units, each by the variables that it is a product
    of.

    Heads × dimensions are counted as positions of that product, as one would by hand, and not heads
    and dimensions each by itself: where an axis is made of both, and where dimensions always come
    with their head on axes of their own. Of an axis that is made of what another has too (keys of
    grouped queries) only the larger one counts.

    Args:
      groups: of `axes`.
      variables: of the groups that may be cut.
      deep: of each, whether it is a block or layers, which count by themselves.
    """
    number = {v: i for i, v in enumerate(variables)}
    wide = {v for v, is_deep in zip(variables, deep) if not is_deep}
    products: set[tuple[Var, ...]] = {(v,) for v in variables}
    for axis in (e for axes in groups.leaf_axes.values() for e in axes):
        e = settled(axis)
        for term in e.parts if isinstance(e, Sum) else (e,):
            factors = [v for v in index.variables(term) if v in wide]
            products.add(tuple(sorted(factors, key=number.__getitem__)))
    carriers = Carriers(groups.leaf_axes, groups.programs)
    for v in wide:
        factors = [v, *(u for u in carriers(v) if u in wide)]
        products.add(tuple(sorted(factors, key=number.__getitem__)))
    sets = [frozenset(factors) for factors in products]
    largest = [
        factors
        for factors in products
        if factors and not any(set(factors) < other for other in sets)
    ]
    return sorted(largest, key=lambda factors: [number[v] for v in factors])


def units(counted: Sequence[tuple[Var, ...]], narrow: Narrow) -> int:
    """Positions that are left of the axes that count."""
    return sum(math.prod(narrow.size(v) for v in factors) for factors in counted)


def _sizes(groups: Groups, narrow: Narrow) -> dict[str, int]:
    lost = unused(groups, narrow)
    there = {p: axes for p, axes in groups.leaf_axes.items() if p not in lost}
    return {p: int(np.prod(narrow.shape(axes), dtype=np.int64)) for p, axes in there.items()}


def unused(groups: Groups, narrow: Narrow) -> set[str]:
    """The leaves that nothing uses any more, now that some blocks are left out; Python numbers and
    keys stay.
    """
    if not any(narrow.off(b.switch) for b in groups.blocks):
        return set()

    def uses(n):
        return np.any([n.needs(p)[: len(groups.shapes)] for p in groups.programs], axis=0)

    gone = uses(Narrow({})) & ~uses(narrow)

    def plain(x):
        return not x.weak_type and not jnp.issubdtype(x.dtype, jax.dtypes.extended)

    return {path for (path, x), dead in zip(groups.shapes.items(), gone) if dead and plain(x)}
