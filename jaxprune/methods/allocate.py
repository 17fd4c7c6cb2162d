"""How many weights each leaf gives up: (params, scores, sparsity) -> a tree of counts.

    uniform   round(s·nᵢ) from every leaf
    erk       density of leaf i ∝ (Σ sides) / (Π sides) <= 1   Evci et al. 2020, arXiv:1911.11134
    global_   the round(s·N) smallest of all leaves together
    lamp      the same of wᵢ² / Σ_{j : wⱼ² >= wᵢ²} wⱼ²         Lee et al. 2021, arXiv:2010.07611

An allocation never encodes. Counts are Python ints for a Python sparsity, exactly round(s·N) in
all; for a traced one int32 scalars, exact within N·2⁻²⁴. `scores` holds one score a unit (a weight,
a block, a channel), or is None for magnitudes, which then cost no array.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxprune.core.arguments import fraction
from jaxprune.core.types import Params
from jaxprune.core.words import choice
from jaxprune.numerics import select
from jaxprune.numerics.placement import gathered

Counts: TypeAlias = Any
"""A tree like the params with a number for each leaf: how many of its units go."""

UnitScores: TypeAlias = Any
"""A tree like the params with a score for each unit, or None for magnitudes of single weights."""

Word = Literal["uniform", "erk", "global", "lamp"]
"""The names of allocations, which Python and recipes share."""


def total(sparsity: ArrayLike, n: int) -> Any:
    """round(s·n): a Python int, or an int32 scalar for a traced sparsity."""
    fraction("allocate(sparsity={})", sparsity)
    if isinstance(sparsity, int | float):
        return round(sparsity * n)
    rounded = jnp.round(jnp.asarray(sparsity, jnp.float32) * n)
    return jnp.clip(rounded, 0, n).astype(jnp.int32)


def _leaves(params: Params, scores: UnitScores) -> list[Array]:
    """What the units of each leaf are ranked by."""
    return jax.tree.leaves(params if scores is None else scores)


def _like(params: Params, counts: list[Any]) -> Counts:
    return jax.tree.unflatten(jax.tree.structure(params), counts)


def uniform(params: Params, scores: UnitScores, sparsity: ArrayLike) -> Counts:
    """The same fraction of every leaf.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.allocate.uniform({"a": jnp.ones(10), "b": jnp.ones(30)}, None, 0.5)
      {'a': 5, 'b': 15}
    """
    return _like(params, [total(sparsity, x.size) for x in _leaves(params, scores)])


def global_(params: Params, scores: UnitScores, sparsity: ArrayLike) -> Counts:
    """The smallest scores of all leaves together: one threshold, found without joining the leaves.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}
      >>> counts = jp.allocate.global_(params, None, 0.5)
      >>> int(counts["a"]), int(counts["b"])
      (2, 0)
    """
    leaves = _leaves(params, scores)
    num_removed = total(sparsity, sum(x.size for x in leaves))
    counts = select.split_global(leaves, num_removed, magnitude=scores is None)
    return _like(params, _concrete_ints(counts))


def erk(params: Params, scores: UnitScores, sparsity: ArrayLike) -> Counts:
    """Erdős–Rényi kernel: leaves with fewer weights for their sides stay denser, up to density 1.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.allocate.erk({"wide": jnp.ones((100, 100)), "thin": jnp.ones((10, 10))}, None, 0.9)
      {'thin': 8, 'wide': 9082}
    """
    fraction("erk(sparsity={})", sparsity)
    is_python = isinstance(sparsity, int | float)
    xp: Any = np if is_python else jnp
    sizes = np.array([x.size for x in _leaves(params, scores)], np.float64)
    raw_density = np.array([sum(x.shape) / x.size for x in jax.tree.leaves(params)])
    num_kept = (1 - sparsity) * sizes.sum()
    is_full = np.zeros(sizes.size, bool)
    slope = num_kept  # density of a leaf that is not full, over its raw density
    for _ in range(sizes.size):  # each round fills at least one leaf, or has found the solution
        kept_elsewhere = num_kept - xp.sum(xp.where(is_full, sizes, 0))
        raw_elsewhere = xp.sum(xp.where(is_full, 0, raw_density * sizes))
        slope = kept_elsewhere / xp.maximum(raw_elsewhere, 1e-30)
        is_full = is_full | (slope * raw_density >= 1)
    density = xp.where(is_full, 1.0, slope * raw_density)
    return _like(params, _round_together((1 - density) * sizes, xp))


def _round_together(x: Any, xp: Any) -> list[Any]:
    """Integers with the rounded total of x: differences of the rounded running sums."""
    ends = xp.round(xp.cumsum(x))
    counts = xp.diff(ends, prepend=xp.zeros(1, ends.dtype)).astype(xp.int32)
    return [int(count) for count in counts] if xp is np else list(counts)


def lamp(params: Params, scores: UnitScores, sparsity: ArrayLike) -> Counts:
    """Layer-adaptive magnitudes: w² over the sum of the squares in its leaf that are as large.

    The sum needs the leaf in order, so this allocation sorts each leaf (and gathers it, when it is
    sharded).

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"big": jnp.array([30.0, 40.0]), "small": jnp.array([3.0, 4.0, 5.0, 0.1])}
      >>> counts = jp.allocate.lamp(params, None, 0.5)         # the scale of a leaf does not matter
      >>> int(counts["big"]), int(counts["small"])
      (1, 2)
    """
    leaves = _leaves(params, scores)
    num_removed = total(sparsity, sum(x.size for x in leaves))
    adapted = [_lamp_scores(x) for x in leaves]
    return _like(params, _concrete_ints(select.split_global(adapted, num_removed)))


def _lamp_scores(x: Float[Array, "..."]) -> Float[Array, " n"]:
    """x² / Σ y² over the y of the leaf with y² >= x², in ascending order."""
    squares = jnp.sort(jnp.nan_to_num(gathered(x).astype(jnp.float32)).reshape(-1) ** 2)
    at_least_as_large = jnp.cumsum(squares[::-1])[::-1]
    return squares / jnp.where(at_least_as_large > 0, at_least_as_large, 1)


BY_WORD: dict[str, Callable[..., Counts]] = {
    "uniform": uniform,
    "erk": erk,
    "global": global_,
    "lamp": lamp,
}


def from_words(allocate: Any) -> Any:
    """The allocation that a word names; functions and trees of counts as they are.

    Example:
      >>> import jaxprune as jp
      >>> jp.allocate.from_words("global") is jp.allocate.global_
      True
    """
    if not isinstance(allocate, str):
        return allocate
    return BY_WORD[choice("prune(allocate={})", allocate, BY_WORD)]


def _concrete_ints(counts: Any) -> list[Any]:
    """Counts as Python ints where they are known."""
    return [count if isinstance(count, Tracer) else int(count) for count in counts]
