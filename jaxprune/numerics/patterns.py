"""Which weights stand and fall together: N of every M, blocks, whole units.

    N:M      of every run of M along an axis the N largest stay (2:4, Mishra et al. 2021,
             arXiv:2104.08378)
    blocks   a score a block of the last axes: the sum of its weights' scores
    units    a score a slice of one axis, or of several: the same sum over all other axes

`pool_…` sums scores, `spread_…` is its transpose on masks. Axes that are split or merged stay where
a mesh has them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .placement import merge_axes, on_host, put_like, spec_of, split_axes
from .select import key_dtype, key_of


def n_m(score: jax.Array, n: int, m: int, axis: int, *, magnitude: bool = False) -> jax.Array:
    """A bool mask that keeps the n largest of every run of m along `axis` (ties: the lower index;
    NaN smallest).

    The rank of an entry is the number of others in its run that beat it: m - 1 compares an entry,
    no sort.
    """
    if not 0 <= n <= m or score.shape[axis] % m:
        raise ValueError(
            f"{n}:{m} needs 0 <= n <= m and an axis that {m} divides, not axis {axis} of "
            f"{score.shape}"
        )
    host = on_host(score)
    x: Any = np.asarray(score) if host else score
    mask = (_n_m if host else _n_m_compiled)(x, n, m, axis % score.ndim, magnitude)
    return put_like(mask, score) if host else mask


def _n_m(x: Any, n: int, m: int, axis: int, magnitude: bool) -> Any:
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    runs = split_axes(key_of(x, magnitude, key_dtype([x])), {axis: m})
    key = [runs[(slice(None),) * (axis + 1) + (j,)] for j in range(m)]

    def rank(j: int) -> Any:
        beaten = [key[i] >= key[j] if i < j else key[i] > key[j] for i in range(m) if i != j]
        return sum((b.astype(np.uint8) for b in beaten), xp.zeros_like(key[j], np.uint8))

    return merge_axes(xp.stack([rank(j) < n for j in range(m)], axis + 1), x.shape, spec_of(x))


_n_m_compiled = partial(jax.jit, static_argnums=(1, 2, 3, 4))(_n_m)


def pool_blocks(score: jax.Array, block: Sequence[int]) -> jax.Array:
    """Sum of `score` over every block of the last len(block) axes, in float32."""
    lead = score.ndim - len(block)
    if lead < 0 or any(s % b for s, b in zip(score.shape[lead:], block)):
        raise ValueError(
            f"blocks {tuple(block)} do not tile the last axes of {score.shape}: choose divisors, "
            f"or pad"
        )
    tiles = split_axes(score, {lead + i: b for i, b in enumerate(block)})
    return jnp.sum(tiles, tuple(lead + 2 * i + 1 for i in range(len(block))), dtype=jnp.float32)


def spread_blocks(mask: jax.Array, block: Sequence[int]) -> jax.Array:
    """The transpose of `pool_blocks`: every entry of `mask` repeated over its block."""
    lead = mask.ndim - len(block)
    shape = mask.shape[:lead] + tuple(s * b for s, b in zip(mask.shape[lead:], block))
    inside = tuple(lead + 2 * i + 1 for i in range(len(block)))
    tiles = jnp.expand_dims(mask, inside)
    repeats = dict(zip(inside, block))
    tiles = jnp.broadcast_to(tiles, [repeats.get(a, s) for a, s in enumerate(tiles.shape)])
    return merge_axes(tiles, shape, spec_of(mask))


def pool_units(score: jax.Array, axis: int | Sequence[int]) -> jax.Array:
    """Sum of `score` over all axes but those of `axis`, in float32: one number a unit."""
    own = _axes(axis, score.ndim)
    return jnp.sum(score, tuple(a for a in range(score.ndim) if a not in own), dtype=jnp.float32)


def spread_units(mask: jax.Array, axis: int | Sequence[int], shape: Sequence[int]) -> jax.Array:
    """The transpose of `pool_units`: every entry of `mask` over its slice of an array of
    `shape`.
    """
    return lax.broadcast_in_dim(mask, tuple(shape), _axes(axis, len(shape)))


def _axes(axis: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One axis or several, counted from the start, ascending."""
    several = (axis,) if isinstance(axis, int) else axis
    return tuple(sorted(a % rank for a in several))
