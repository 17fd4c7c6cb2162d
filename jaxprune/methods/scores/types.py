"""What a score is, and the loop over float leaves that scores share."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from jaxprune.core.where import is_float
from jaxprune.numerics.precision import widen

Score: TypeAlias = Callable[..., Any]
"""params -> a tree of scores; keyword-only arguments are extras of `init` and `update`."""

Scores: TypeAlias = Any
"""A tree of float32 or float64 arrays, shaped like the params."""


def map_floats(f: Callable[..., Any], params: Any, *trees: Any) -> Scores:
    """f on the float leaves, in float32 or wider; other leaves stay as they are."""

    def score_leaf(x: Any, *others: Any) -> Any:
        return f(widen(x), *map(widen, others)) if is_float(x) else x

    return jax.tree.map(score_leaf, params, *trees)
