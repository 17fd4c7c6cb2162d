"""How many weights each leaf gives up: (params, scores, sparsity) -> a tree of counts. An allocation never encodes.

    uniform   round(s·nᵢ) from every leaf
    erk       density of leaf i ∝ (Σ sides) / (Π sides), at most 1      Evci et al. 2020 (RigL), arXiv:1911.11134
    global_   the round(s·N) smallest of all leaves together
    lamp      the same with scores wᵢ² / Σ_{j : wⱼ² >= wᵢ²} wⱼ²          Lee et al. 2021, arXiv:2010.07611

Counts are Python ints for a Python sparsity, exactly round(s·N) in all; for a traced one int32 scalars, exact within
N·2⁻²⁴. `scores` holds one score a unit (a weight, a block, a channel), or is None for magnitude, which then costs no
array of its own.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.core.arguments import fraction
from jaxprune.core.words import choice
from jaxprune.numerics import select
from jaxprune.numerics.placement import gathered

Counts = Any
Word = Literal["uniform", "erk", "global", "lamp"]


def total(sparsity: Any, n: int) -> Any:
    """round(s·n): a Python int, or an int32 scalar for a traced sparsity."""
    fraction("allocate(sparsity={})", sparsity)
    if isinstance(sparsity, (int, float)):
        return round(sparsity * n)
    return jnp.clip(jnp.round(jnp.asarray(sparsity, jnp.float32) * n), 0, n).astype(jnp.int32)


def _sizes(params: Any, scores: Any) -> list[int]:
    return [x.size for x in jax.tree.leaves(params if scores is None else scores)]


def _like(params: Any, counts: list[Any]) -> Counts:
    return jax.tree.unflatten(jax.tree.structure(params), counts)


def uniform(params: Any, scores: Any, sparsity: Any) -> Counts:
    """The same fraction of every leaf.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.allocate.uniform({"a": jnp.ones(10), "b": jnp.ones(30)}, None, 0.5)
      {'a': 5, 'b': 15}
    """
    return _like(params, [total(sparsity, n) for n in _sizes(params, scores)])


def global_(params: Any, scores: Any, sparsity: Any) -> Counts:
    """The smallest scores of all leaves together: one threshold, found without joining the leaves.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> counts = jp.allocate.global_({"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}, None, 0.5)
      >>> int(counts["a"]), int(counts["b"])
      (2, 0)
    """
    leaves = jax.tree.leaves(params if scores is None else scores)
    remove = total(sparsity, sum(x.size for x in leaves))
    counts = select.split_global(leaves, remove, magnitude=scores is None)
    return _like(params, _ints(counts))


def erk(params: Any, scores: Any, sparsity: Any) -> Counts:
    """Erdős–Rényi kernel: leaves with fewer weights for their sides stay denser; leaves that would pass density 1 stay
    whole.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.allocate.erk({"wide": jnp.ones((100, 100)), "thin": jnp.ones((10, 10))}, None, 0.9)
      {'thin': 8, 'wide': 9082}
    """
    fraction("erk(sparsity={})", sparsity)
    n = np.array(_sizes(params, scores), np.float64)
    raw = np.array([sum(x.shape) / x.size for x in jax.tree.leaves(params)])
    xp: Any = np if isinstance(sparsity, (int, float)) else jnp
    kept = (1 - sparsity) * n.sum()
    full = np.zeros(n.size, bool)
    for _ in range(n.size):  # each round fills at least one leaf, or has found the solution
        slope = (kept - xp.sum(xp.where(full, n, 0))) / xp.maximum(xp.sum(xp.where(full, 0, raw * n)), 1e-30)
        full = full | (slope * raw >= 1)
    density = xp.where(full, 1.0, slope * raw)
    return _like(params, _round_together((1 - density) * n, xp))


def _round_together(x: Any, xp: Any) -> list[Any]:
    """Integers with the rounded total of x: differences of the rounded running sums."""
    ends = xp.round(xp.cumsum(x))
    counts = xp.diff(ends, prepend=xp.zeros(1, ends.dtype)).astype(xp.int32)
    return [int(c) for c in counts] if xp is np else list(counts)


def lamp(params: Any, scores: Any, sparsity: Any) -> Counts:
    """Layer-adaptive magnitudes: each score is divided by the sum of the squares that are at least as large in its
    leaf.

    The sum needs the leaf in order, so this allocation sorts each leaf (and gathers it, when it is sharded).

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"big": jnp.array([30.0, 40.0]), "small": jnp.array([3.0, 4.0, 5.0, 0.1])}
      >>> counts = jp.allocate.lamp(params, None, 0.5)         # the scale of a leaf does not matter
      >>> int(counts["big"]), int(counts["small"])
      (1, 2)
    """
    leaves = jax.tree.leaves(params if scores is None else scores)

    def adapt(x: jax.Array) -> jax.Array:
        square = jnp.sort(jnp.nan_to_num(gathered(x).astype(jnp.float32)).reshape(-1) ** 2)
        rest = jnp.cumsum(square[::-1])[::-1]
        return square / jnp.where(rest > 0, rest, 1)

    remove = total(sparsity, sum(x.size for x in leaves))
    return _like(params, _ints(select.split_global([adapt(x) for x in leaves], remove)))


BY_WORD: dict[str, Callable[..., Counts]] = {"uniform": uniform, "erk": erk, "global": global_, "lamp": lamp}


def from_words(allocate: Any) -> Any:
    """The allocation that a word names, as recipes and `jp.prune` have it; others, and trees of counts, as they are.

    Example:
      >>> import jaxprune as jp
      >>> jp.allocate.from_words("global") is jp.allocate.global_
      True
    """
    return BY_WORD[choice("prune(allocate={})", allocate, BY_WORD)] if isinstance(allocate, str) else allocate


def _ints(counts: Any) -> list[Any]:
    return [c if isinstance(c, Tracer) else int(c) for c in counts]
