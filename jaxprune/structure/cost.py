"""What a function costs once it is cut: read off the walked program, without a trace or a compilation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxprune.report.costs import COSTS, OPAQUE, cost, plain
from jaxprune.report.flops import operations
from jaxprune.transforms.axes.carriers import WHOLE
from jaxprune.transforms.axes.groups import Groups
from jaxprune.transforms.axes.narrow import Narrow
from jaxprune.transforms.axes.walk import Record, Walked
from jaxprune.transforms.calls import bodies


def flops(program: Walked, narrow: Narrow) -> int:
    """Operations of one call, counted as `jp.flops` counts."""
    return sum(_of(r, narrow) for r in program.records)


def _of(r: Record, narrow: Narrow) -> int:
    name = r.eqn.primitive.name
    inside = [] if plain(name) in COSTS or plain(name) in OPAQUE else bodies(r.eqn)
    if not inside:
        return cost(r.eqn if name in WHOLE else narrow.equation(r))
    if r.extra is None:  # nothing of it is cut
        counts = [body.times * operations(body.jaxpr) for body in inside]
    else:
        counts = [body.times * flops(w, narrow) for body, w in zip(inside, r.extra)]
    return max(counts) if name == "cond" else sum(counts)


def elements(groups: Groups, narrow: Narrow) -> int:
    """Numbers in all leaves."""
    return sum(int(np.prod(narrow.shape(axes), dtype=np.int64)) for axes in groups.leaf_axes.values())


def octets(groups: Groups, narrow: Narrow, dtypes: Mapping[str, Any]) -> int:
    """Bytes of all leaves."""
    sizes = {p: int(np.prod(narrow.shape(axes), dtype=np.int64)) for p, axes in groups.leaf_axes.items()}
    return sum(n * dtypes[p].itemsize for p, n in sizes.items())
