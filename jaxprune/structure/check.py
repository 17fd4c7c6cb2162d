"""Whether the small function computes what the large one does with zeros in place of what was cut."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core.where import is_float, leaf_path
from jaxprune.structure.plan import Plan
from jaxprune.transforms.axes.walk import Walked


class Found(NamedTuple):
    """What a check found.

    Attributes:
      error: max |g(cut) − f(mask)| / max |f(mask)| of the worst output, where f(mask) is finite.
      finite: whether f(mask) is finite wherever g(cut) is.
    """

    error: float
    finite: bool


def compared(f: Callable[..., Any], g: Callable[..., Any], plan: Plan, tree: Any, args: tuple[Any, ...]) -> Found:
    """The small function beside the large one with zeros, in float64 where that is enabled.

    Args:
      f: the large function.
      g: the small one.
      plan: what is kept.
      tree: params of f.
      args: further arguments; where only shapes are given, normal noise and zeros stand in.
    """
    wide = lambda x: x.astype(jnp.float64) if jax.config.read("jax_enable_x64") and is_float(x) else x
    tree, args = jax.tree.map(wide, tree), jax.tree.map(lambda x: wide(concrete(x)), args)
    large = jax.jit(lambda params: f(params, *args))(plan.mask(tree))
    small = jax.jit(lambda params: g(params, *args))(plan.cut(tree))
    outs = jax.tree_util.tree_flatten_with_path(large)[0]
    return worst([_one(leaf_path(keys), a, b, plan) for (keys, a), b in zip(outs, jax.tree.leaves(small))])


def worst(found: Iterable[Found]) -> Found:
    """Of several."""
    found = list(found)
    return Found(max([0.0, *(x.error for x in found)]), all(x.finite for x in found))


def _one(path: str, large: Any, small: Any, plan: Plan) -> Found:
    if large.shape != small.shape:
        large = plan.cut_one(large, plan.named(path) or path)  # a new value of a param
    if not large.size or not jnp.issubdtype(large.dtype, jnp.number):
        return Found(0.0, True)
    a, b = (np.asarray(x).astype(np.complex128) for x in (large, small))
    there = np.isfinite(a)
    difference = np.abs(np.where(there, b, 0) - np.where(there, a, 0))
    scale = max(float(np.abs(np.where(there, a, 0)).max()), np.finfo(np.float64).tiny)
    error = float(np.nan_to_num(difference, nan=np.inf).max()) / scale if difference.any() else 0.0
    return Found(error, bool(np.all(there | ~np.isfinite(b))))


def concrete(x: Any) -> Any:
    """Normal noise or zeros where only a shape is given."""
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x
    noise = jnp.issubdtype(x.dtype, jnp.floating)
    return jax.random.normal(jax.random.key(0), x.shape, x.dtype) if noise else jnp.zeros(x.shape, x.dtype)


def tolerance(programs: Iterable[Walked]) -> float:
    """The largest error that rounding alone explains, by the narrowest floats that are computed with."""
    bits = min((bits for program in programs for bits in _widths(program)), default=32)
    return 1e-9 if bits >= 64 else 1e-4 if bits >= 32 else 0.1


def _widths(program: Walked) -> Iterator[int]:
    for r in program.records:
        inner = r.extra if isinstance(r.extra, list) else []
        for w in (w for w in inner if isinstance(w, Walked)):
            yield from _widths(w)
        for dtype in (getattr(v.aval, "dtype", None) for v in r.eqn.outvars):
            if dtype is not None and jnp.issubdtype(dtype, jnp.inexact):
                yield jnp.finfo(dtype).bits
