"""One-dimensional k-means: k numbers c that stand for n weights.

Minimise  D(c) = Σᵢ hᵢ (xᵢ − c_a(i))²,  a(i) = argmin_a |xᵢ − c_a|,  hᵢ >= 0 (a weight with hᵢ = 0 is not there).

Cells.  Sorting is not needed: a fine histogram keeps the mass H and the exact mean v of each bin (see cells.py).
Start.  Panter and Dite (1951): the best quantiser has its levels at the quantiles of density^(1/3). Over a group of
    cells that is  λ = V^(1/3),  V = Σ H (v − mean)²  its distortion; a lone outlier has V = 0 and takes no level.
Lloyd.  See lloyd.py; from the optimal start it also swaps.
Few.    If x has no more than k distinct values, they are the codebook, to the bit: encoding twice is encoding once.

Other starts: linear over [min x, max x] (Han et al. 2016, arXiv:1510.00149), quantiles of the density, random entries.
Not exact: two weights in one bin are never separated. Against the exact dynamic programme it loses well below 1%.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from . import streamed
from .cells import BINS, Cells, Data, Scale, bins_for, cells_of, clean, scale_of, xp_of
from .lloyd import cumsum, lloyd
from .placement import fold_chunks, may_be_sharded, on_host, put_like, spec_of

Init = Literal["optimal", "linear", "density", "random"]
Arrays = jax.Array | Sequence[jax.Array]

SMALL = 1 << 20  # below, NumPy has sorted before XLA has compiled the histogram
GROUP = 64  # cells a group of the start


def codebook(
    x: Arrays,
    k: int,
    *,
    weights: Any = None,
    init: Init = "optimal",
    key: jax.Array | None = None,
    iterations: int = 100,
) -> jax.Array:
    """The k levels, float32, ascending, that stand for x: an array, or several that share one codebook.

    weights: hᵢ, or a bool mask, shaped as x; what has weight 0, or is not finite, has no influence at all.
    Entries beyond the number of distinct weights repeat one; no weight at all gives zeros.
    """
    if init not in get_args(Init):
        raise ValueError(f"init={init!r} is not one of {', '.join(get_args(Init))}")
    if (init == "random") and key is None:
        raise ValueError('init="random" draws entries: pass key=jax.random.key(0)')
    xs = list(x) if isinstance(x, Sequence) else [x]
    hs = [None] * len(xs) if weights is None else list(weights) if isinstance(weights, Sequence) else [weights]
    draws = jax.random.uniform(key, (k,)) if init == "random" else None  # type: ignore[arg-type]
    if on_host(*xs, *(h for h in hs if h is not None), *(() if draws is None else (draws,)), limit=SMALL):
        return put_like(_fit_host(xs, hs, k, init, draws, iterations), xs[0])
    sharded = any(map(may_be_sharded, xs + hs))
    return _fit_compiled(xs, hs, draws, k, init, iterations, sharded)


@partial(jax.jit, static_argnames=("k", "init", "iterations", "sharded"))
def _fit_compiled(xs: Any, hs: Any, draws: Any, k: int, init: Init, iterations: int, sharded: bool) -> jax.Array:
    data = Data(xs, hs, chunked=not sharded)
    scale = scale_of(data)
    cells = cells_of(data, scale, bins_for(xs))
    c = _levels(cells, scale, k, init, draws, iterations)
    few, values = _distinct(data, k, jnp.sum(cells.mass > 0, dtype=jnp.int32))
    return jnp.where(jnp.sum(cells.mass) > 0, jnp.where(few, values, c), 0.0)


@np.errstate(over="ignore")  # of 1 + |x|/s: it saturates
def _fit_host(xs: Any, hs: Any, k: int, init: Init, draws: Any, iterations: int) -> np.ndarray:
    pairs = [clean(np.asarray(x), None if h is None else np.asarray(h)) for x, h in zip(xs, hs)]
    x, h = (np.concatenate([a.reshape(-1) for a in part]) for part in zip(*pairs))
    values = np.unique(x[h > 0])
    if values.size <= k:
        return np.pad(values, (0, k - values.size), "edge") if values.size else np.zeros(k, np.float32)
    data = Data([x], [h], chunked=False)
    scale = scale_of(data)
    cells = cells_of(data, scale, bins_for(xs))
    draws = None if draws is None else np.asarray(draws)
    return _levels(cells, scale, k, init, draws, iterations).astype(np.float32)


def _levels(cells: Cells, scale: Scale, k: int, init: Init, draws: Any, iterations: int) -> Any:
    c = lloyd(cells, _start(cells, scale, k, init, draws), iterations, init == "optimal")
    return xp_of(c).clip(c, scale.low, scale.high)  # a mean, rounded, may be an ulp beside all that it is the mean of


# --- start ------------------------------------------------------------------------------------------------------------


def _start(cells: Cells, scale: Scale, k: int, init: Init, draws: Any) -> Any:
    xp = xp_of(cells.mass)
    if init == "linear":
        return xp.linspace(scale.low, scale.high, k, dtype=np.float32)
    middles = (xp.arange(k, dtype=np.float32) + 0.5) / k
    if init == "optimal":
        return _panter_dite(cells, scale, middles)
    ends = cumsum(cells.mass)
    i = xp.searchsorted(ends, (middles if init == "density" else xp.sort(draws)) * ends[-1])
    return cells.mean[xp.minimum(i, ends.size - 1)]


def _panter_dite(cells: Cells, scale: Scale, quantiles: Any) -> Any:
    xp, m = xp_of(cells.mass), cells.mass.size
    mass = (cells.mass / xp.maximum(xp.sum(cells.mass), 1e-30)).reshape(-1, GROUP)
    v = (cells.mean / scale.s).reshape(-1, GROUP)
    total = xp.sum(mass, 1, keepdims=True)
    mean = xp.sum(mass * v, 1, keepdims=True) / xp.maximum(total, 1e-30)
    V = xp.sum(mass * (v - mean) ** 2, 1)
    # If every group is one point, V says nothing; a trace of the groups' widths then decides.
    edges = scale.value(xp.arange(0, m + 1, GROUP, dtype=np.float32), m) / scale.s
    density = (V + 1e-9 * total[:, 0] * (edges[1:] - edges[:-1]) ** 2) ** (1 / 3)
    ends = xp.concatenate([xp.zeros(1, density.dtype), xp.cumsum(density)])
    position = xp.interp(quantiles * ends[-1], ends, xp.arange(0, m + 1, GROUP, dtype=density.dtype))
    return scale.value(position.astype(np.float32), m)


# --- few values -----------------------------------------------------------------------------------------------------


def _distinct(data: Data, k: int, occupied: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(whether x has at most k distinct values, these values, the last repeated).

    Each is the least one above the one before: a pass over x each, made only if no more than k bins are occupied.
    """

    def above(least: Any, x: Any, h: Any, last: Any) -> Any:
        return jnp.minimum(least, jnp.min(jnp.where((h > 0) & (x > last), x, jnp.inf)))

    def step(carry: Any) -> Any:
        found, last, values = carry
        new = data.fold(partial(above, last=last), jnp.float32(jnp.inf))
        values = jnp.where((jnp.arange(k) >= found) & (new < jnp.inf), new, values)
        return found + 1, new, values

    start = (jnp.where(occupied <= k, 0, k + 2).astype(jnp.int32), jnp.float32(-jnp.inf), jnp.zeros(k, jnp.float32))
    found, last, values = lax.while_loop(lambda carry: (carry[0] <= k) & (carry[1] < jnp.inf), step, start)
    return (found <= k + 1) & (last == jnp.inf), values


# --- assignment -------------------------------------------------------------------------------------------------------


def assign(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """The index of the nearest entry of an ascending codebook (ties: the lower index; NaN: 0), in the least dtype."""
    dtype = np.dtype(np.uint8 if codebook.size <= 256 else np.uint16 if codebook.size <= 65536 else np.uint32)
    if on_host(x, codebook) or streamed.takes(x):
        ends, first = _boundaries(np.asarray(codebook))
        first = first.astype(dtype)
        number = lambda x: np.nan_to_num(x.astype(np.float32, copy=False), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        found = streamed.mapped(lambda part: first[np.searchsorted(ends, number(part))], dtype, np.asarray(x))
        return put_like(found, x)
    return _assign_compiled(x, codebook, dtype, may_be_sharded(x))


def _boundaries(c: Any) -> tuple[Any, Any]:
    """(the largest float nearer to or as near to each entry as to the next, the lowest index of each entry's value)."""
    xp = xp_of(c)
    c = c.astype(np.float32)
    a, b = 0.5 * c[:-1], 0.5 * c[1:]
    half = a + b
    # Where rounding went up (two-sum), half itself is nearer to the upper entry.
    error = (a - (half - (half - a))) + (b - (half - a))
    ends = xp.where(error < 0, xp.nextafter(half, np.float32(-np.inf)), half)
    new = xp.concatenate([xp.zeros(1, np.int32), xp.where(c[1:] > c[:-1], xp.arange(1, c.size, dtype=np.int32), 0)])
    return ends, lax.cummax(new) if xp is jnp else np.maximum.accumulate(new)


@partial(jax.jit, static_argnames=("dtype", "sharded"))
def _assign_compiled(x: jax.Array, codebook: jax.Array, dtype: np.dtype, sharded: bool) -> jax.Array:
    ends, first = _boundaries(codebook)
    first = first.astype(dtype)
    if codebook.size <= 32:
        x, jumps = x.astype(jnp.float32), first[1:] - first[:-1]
        found = (jnp.where(x > ends[j], jumps[j], jnp.zeros((), dtype)) for j in range(codebook.size - 1))
        return sum(found, jnp.zeros_like(x, dtype))
    look_up = _table(codebook, ends, first)
    if sharded:
        return look_up(x)
    out = jnp.zeros(x.size, dtype)
    return fold_chunks(lambda y, i, part: lax.dynamic_update_slice(y, look_up(part), (i,)), out, x).reshape(x.shape)


def _table(codebook: jax.Array, ends: jax.Array, first: jax.Array) -> Callable:
    """x -> first[#{ends < x}]: a table of how many lie in lower bins, then one compare for each in the fullest bin."""
    scale = scale_of(Data([codebook], [None], chunked=False))
    m = min(BINS, 64 << (codebook.size - 1).bit_length())
    counts = jnp.zeros(m, jnp.int32).at[scale.index(ends, m)].add(1)
    lower, fullest = jnp.cumsum(counts) - counts, jnp.max(counts)
    ends = jnp.append(ends, jnp.float32(jnp.inf))

    def look_up(x: jax.Array) -> jax.Array:
        x = jnp.where(jnp.isnan(x), -jnp.inf, x.astype(jnp.float32))
        low = _take(lower, scale.index(x, m))
        low = lax.fori_loop(0, fullest, lambda _, low: low + (x > _take(ends, low)).astype(jnp.int32), low)
        return _take(first, low)

    return look_up


def _take(table: jax.Array, index: jax.Array) -> jax.Array:
    spec = spec_of(index)
    out = None if spec is None else PartitionSpec(*spec)
    return table.at[index].get(mode="promise_in_bounds", out_sharding=out)
