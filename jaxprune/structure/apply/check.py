"""Whether the small function computes what the large one does with zeros in place of what was
cut.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.core.where import is_float
from jaxprune.jaxprs.equations import of_arrays
from jaxprune.jaxprs.float64 import in_float64
from jaxprune.structure.apply.plan import Plan
from jaxprune.structure.axes.walk import Walked

FLOAT64_TOLERANCE = 1e-7
"""More than rounding in float64 even where a recurrence amplifies it ten million times; float32
itself rounds by it."""


class Found(NamedTuple):
    """What a check found.

    Attributes:
      error: max |g(cut) − f(mask)| / max |f(mask)| of the worst output, where f(mask) is finite.
      finite: whether f(mask) is finite wherever g(cut) is.
      float64: the error when both are computed in float64, Inf where they cannot be; None where
        that was not needed.
    """

    error: float
    finite: bool
    float64: float | None = None


def checked(
    f: Callable[..., Any],
    g: Callable[..., Any],
    plan: Plan,
    tree: Any,
    args: tuple[Any, ...],
    allowed: float,
) -> Found:
    """`compared`; where the error is larger than allowed, in float64 as well.

    Rounding grows in a recurrence, so the precision of f may not tell a wrong cut from a right one.
    In float64 a right one differs by far less.
    """
    found = compared(f, g, plan, tree, args)
    if found.error <= allowed:
        return found
    try:
        wide = compared(f, g, plan, tree, args, _call_in_float64)
    except (
        Exception
    ):  # what a backend raises for an equation that it cannot compute in float64 is its own
        return found._replace(float64=np.inf)
    return found._replace(float64=wide.error)


def _call(f: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> Any:
    """f(params, *args), compiled; all arrays are arguments, so a function may set NNX variables
    among them.
    """
    g, arrays = of_arrays(f, (numbers_as_arrays(params), *args), {})
    return jax.jit(g)(*arrays)


def _call_in_float64(f: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> Any:
    return in_float64(f)(numbers_as_arrays(params), *args)


def compared(
    f: Callable[..., Any],
    g: Callable[..., Any],
    plan: Plan,
    tree: Any,
    args: tuple[Any, ...],
    call: Callable[..., Any] = _call,
) -> Found:
    """The small function beside the large one with zeros, in float64 where that is enabled.

    Args:
      f: the large function.
      g: the small one.
      plan: what is kept.
      tree: params of f.
      args: further arguments; where only shapes are given, normal noise and zeros stand in.
      call: (function, params, args) -> its outputs.
    """

    def wide(x):
        return x.astype(jnp.float64) if jax.config.read("jax_enable_x64") and is_float(x) else x

    tree = jax.tree.map(wide, tree)
    args = jax.tree.map(lambda x: wide(concrete(x)), args)
    large = call(f, plan.mask(tree), args)
    small = call(g, plan.cut(tree), args)
    return beside(large, small, plan)


def numbers_as_arrays(params: Any) -> Any:
    """Params whose Python numbers are arrays: they may be changed, and are traced as all params
    are.
    """
    return jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.asarray(x), params)


def beside(large: Any, small: Any, plan: Plan) -> Found:
    """The outputs of the small function beside those of the large one."""
    outs = flatten_with_path(large)[0]
    return worst(
        [_one(leaf_path(keys), a, b, plan) for (keys, a), b in zip(outs, jax.tree.leaves(small))]
    )


def worst(found: Iterable[Found]) -> Found:
    """Of several."""
    found = list(found)
    wide = [x.float64 for x in found if x.float64 is not None]
    return Found(
        max([0.0, *(x.error for x in found)]), all(x.finite for x in found), max(wide, default=None)
    )


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
    """An array; normal noise or zeros for a shape."""
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x
    noise = jnp.issubdtype(x.dtype, jnp.floating)
    return (
        jax.random.normal(jax.random.key(0), x.shape, x.dtype)
        if noise
        else jnp.zeros(x.shape, x.dtype)
    )


def rounding(programs: Iterable[Walked]) -> float:
    """The largest error that rounding alone explains, by the narrowest floats that are computed
    with.
    """
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
