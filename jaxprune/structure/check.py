"""Whether the small function computes what the large one does with zeros in place of what was cut."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core.where import is_float, leaf_path
from jaxprune.structure.plan import Plan


def relative_error(f: Callable[..., Any], g: Callable[..., Any], plan: Plan, tree: Any, args: tuple[Any, ...]) -> float:
    """max |g(cut) − f(mask)| / max |f(mask)| of the worst output, in float64 where that is enabled.

    Args:
      f: the large function.
      g: the small one.
      plan: what is kept.
      tree: params of f.
      args: further arguments; where only shapes are given, normal noise and zeros stand in.

    Returns:
      The error; NaN at other places is infinite.
    """
    wide = lambda x: x.astype(jnp.float64) if jax.config.read("jax_enable_x64") and is_float(x) else x
    tree, args = jax.tree.map(wide, tree), jax.tree.map(lambda x: wide(_concrete(x)), args)
    large = jax.jit(lambda params: f(params, *args))(plan.mask(tree))
    small = jax.jit(lambda params: g(params, *args))(plan.cut(tree))
    outs = jax.tree_util.tree_flatten_with_path(large)[0]
    return max([0.0, *(_error(leaf_path(keys), a, b, plan) for (keys, a), b in zip(outs, jax.tree.leaves(small)))])


def _error(path: str, large: Any, small: Any, plan: Plan) -> float:
    if large.shape != small.shape:
        large = plan.cut_one(large, plan.named(path) or path)  # a new value of a param
    if not large.size or not jnp.issubdtype(large.dtype, jnp.number):
        return 0.0
    a, b = (np.asarray(x).astype(np.complex128) for x in (large, small))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    difference = np.where(same, 0, np.abs(np.where(same, 0, a) - np.where(same, 0, b)))
    scale = np.nanmax(np.where(np.isfinite(a), np.abs(a), 0))
    worst = float(difference.max() / max(scale, np.finfo(np.float64).tiny)) if difference.any() else 0.0
    return worst if np.isfinite(worst) else float("inf")


def _concrete(x: Any) -> Any:
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x
    noise = jnp.issubdtype(x.dtype, jnp.floating)
    return jax.random.normal(jax.random.key(0), x.shape, x.dtype) if noise else jnp.zeros(x.shape, x.dtype)


def tolerance(dtypes: Any) -> float:
    """The largest error that rounding alone explains, for results in the widest of these dtypes."""
    if jax.config.read("jax_enable_x64"):
        return 1e-9
    bits = max((jnp.finfo(d).bits for d in dtypes if jnp.issubdtype(d, jnp.floating)), default=32)
    return 1e-4 if bits >= 32 else 0.1
