"""What a function costs once it is cut: read off the walked program, without a trace or a compilation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.report.costs import COSTS, OPAQUE, cost, plain
from jaxprune.report.flops import operations
from jaxprune.transforms.axes.carriers import WHOLE
from jaxprune.transforms.axes.flat import is_inline
from jaxprune.transforms.axes.groups import Groups
from jaxprune.transforms.axes.narrow import Narrow
from jaxprune.transforms.axes.walk import Record, Walked
from jaxprune.transforms.calls import bodies


def flops(program: Walked, narrow: Narrow, known: dict[int, int] | None = None) -> int:
    """Operations of one call, counted as `jp.flops` counts; equations whose cost is known are not counted again."""
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
        counts = [narrow.turns(r, body.times) * flops(w, narrow, known) for body, w in zip(inside, r.extra)]
    return max(counts) if name == "cond" else sum(counts)


def elements(groups: Groups, narrow: Narrow) -> int:
    """Numbers in all leaves."""
    return sum(_sizes(groups, narrow).values())


def octets(groups: Groups, narrow: Narrow, dtypes: Mapping[str, Any]) -> int:
    """Bytes of all leaves."""
    return sum(n * dtypes[p].itemsize for p, n in _sizes(groups, narrow).items())


def _sizes(groups: Groups, narrow: Narrow) -> dict[str, int]:
    lost = unused(groups, narrow)
    there = {p: axes for p, axes in groups.leaf_axes.items() if p not in lost}
    return {p: int(np.prod(narrow.shape(axes), dtype=np.int64)) for p, axes in there.items()}


def unused(groups: Groups, narrow: Narrow) -> set[str]:
    """The leaves that nothing uses any more, now that some blocks are left out; Python numbers and keys stay."""
    if not any(narrow.off(b.switch) for b in groups.blocks):
        return set()
    uses = lambda n: np.any([n.needs(p)[: len(groups.shapes)] for p in groups.programs], axis=0)
    gone = uses(Narrow({})) & ~uses(narrow)
    plain = lambda x: not x.weak_type and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return {path for (path, x), dead in zip(groups.shapes.items(), gone) if dead and plain(x)}
