"""One-dimensional k-means: k numbers c that stand for n weights.

Minimise  D(c) = Σᵢ hᵢ (xᵢ − c_a(i))²,  a(i) = argmin_a |xᵢ − c_a|,  hᵢ >= 0 (a weight with hᵢ = 0
is not there).

Points. Few weights are sorted, many go into a fine histogram that keeps the mass and the exact mean
of each bin (see
    points.py, cells.py): the problem is one of points v of mass H in a row.
Start.  Panter and Dite (1951): the best quantiser has its levels at the quantiles of density^(1/3).
Over a group of
    cells that is  λ = V^(1/3),  V = Σ H (v − mean)²  its distortion; a lone outlier has V = 0 and
    takes no level.
Lloyd.  See lloyd.py; from the optimal start it also swaps.
Borders. From the optimal start, a dynamic programme moves all borders jointly until no joint move
helps (windows.py).
Few.    If x has no more than k distinct values, they are the codebook, to the bit: encoding twice
        is encoding once.
Zeros.  If at least 1/k of all mass is exactly 0 (weights that were pruned), the cluster that 0 is
in has its level at
    exactly 0, and the borders are the best under that rule. On the host the same holds for any
    other value of so much mass, if moving a level to it costs at most 0.5% of the distortion.

Other starts: linear over [min x, max x] (Han et al. 2016, arXiv:1510.00149), quantiles of the
density, random entries. The optimal start keeps within 1% of the exact dynamic programme. Of a
histogram (more than 2^14 weights under trace or 2^20 concrete ones) two weights in one bin are
never separated: modes narrower than a bin, 2^-15 of the range of a logarithm (cells.py), are one
point.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import streamed
from ..placement import (
    fold_chunks,
    may_be_sharded,
    on_host,
    put_like,
    sharding_on,
    spec_of,
    varying_like,
)
from . import points, windows
from .cells import BINS, Cells, Data, Scale, bins_for, cells_of, clean, in_units, scale_of, xp_of
from .lloyd import levels_of, lloyd, nearest_borders
from .windows import cumsum

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
    """The k levels, float32, ascending, that stand for x: an array, or several that share one
    codebook.

    weights: hᵢ, or a bool mask, shaped as x; what has weight 0, or is not finite, has no influence
    at all. Entries beyond the number of distinct weights repeat one; no weight at all gives zeros.
    """
    if init not in get_args(Init):
        raise ValueError(f"init={init!r} is not one of {', '.join(get_args(Init))}")
    if (init == "random") and key is None:
        raise ValueError('init="random" draws entries: pass key=jax.random.key(0)')
    xs = list(x) if isinstance(x, Sequence) else [x]
    hs = (
        [None] * len(xs)
        if weights is None
        else list(weights)
        if isinstance(weights, Sequence)
        else [weights]
    )
    draws = jax.random.uniform(key, (k,)) if init == "random" else None  # type: ignore[arg-type]
    if on_host(
        *xs, *(h for h in hs if h is not None), *(() if draws is None else (draws,)), limit=SMALL
    ):
        return put_like(_fit_host(xs, hs, k, init, draws, iterations), xs[0])
    sharded = any(map(may_be_sharded, xs + hs))
    return _fit_compiled(xs, hs, draws, k, init, iterations, sharded)


@partial(jax.jit, static_argnames=("k", "init", "iterations", "sharded"))
def _fit_compiled(
    xs: Any, hs: Any, draws: Any, k: int, init: Init, iterations: int, sharded: bool
) -> jax.Array:
    data = Data(xs, hs, chunked=not sharded)
    scale = scale_of(data)
    size = sum(x.size for x in xs)
    if sharded or size > points.MOST or size == 0:
        cells = cells_of(data, scale, bins_for(xs))
        start = partial(_panter_dite, cells, scale)
    else:
        pairs = [clean(x, h) for x, h in zip(xs, hs)]
        x = jnp.concatenate([x.reshape(-1) for x, _ in pairs])
        h = jnp.concatenate([jnp.broadcast_to(h, x.shape).reshape(-1) for x, h in pairs])
        values, mass = points.points_compiled(in_units(x, scale.s), h)
        cells = points.as_cells(values, mass)
        start = partial(_start_of_points, values, mass)
    zero = jnp.where(
        scale.zeros * k >= jnp.sum(cells.mass), cells.index(jnp.zeros((), jnp.float32)), -1
    )
    ends = in_units(scale.low, scale.s), in_units(scale.high, scale.s)
    c = _levels(cells, start, ends, zero, k, init, draws, iterations) * scale.s
    c = jnp.clip(c, scale.low, scale.high)
    few, values = _distinct(data, k, jnp.sum(cells.mass > 0, dtype=jnp.int32))
    return jnp.where(jnp.sum(cells.mass) > 0, jnp.where(few, values, c), 0.0)


def _fit_host(xs: Any, hs: Any, k: int, init: Init, draws: Any, iterations: int) -> np.ndarray:
    pairs = [clean(np.asarray(x), None if h is None else np.asarray(h)) for x, h in zip(xs, hs)]
    x = np.concatenate([x.reshape(-1) for x, _ in pairs])
    h = np.concatenate([np.broadcast_to(h, x.shape).reshape(-1) for x, h in pairs])
    values, mass = points.points_on_host(x, h)
    if values.size <= k:
        few = values.astype(np.float32)
        return np.pad(few, (0, k - few.size), "edge") if few.size else np.zeros(k, np.float32)
    merged = points.merged(values, mass)
    cells = points.as_cells(*merged)
    zeros = np.sum(mass[values == 0])
    zero = cells.index(np.zeros(())) if zeros * k >= np.sum(mass) else np.int32(-1)
    draws = None if draws is None else np.asarray(draws)
    ends = values[0], values[-1]
    c = _levels(cells, partial(_start_of_points, *merged), ends, zero, k, init, draws, iterations)
    return np.clip(_at_repeated(values, mass, c), *ends).astype(np.float32)


def _levels(
    cells: Cells,
    start: Callable,
    ends: Any,
    zero: Any,
    k: int,
    init: Init,
    draws: Any,
    iterations: int,
) -> Any:
    levels = _start(cells, start, ends, k, init, draws)
    borders = lloyd(cells, levels, iterations, init == "optimal")
    if init == "optimal" and xp_of(levels) is np and np.count_nonzero(cells.mass) <= windows.FEW:
        borders = windows.exact(cells.mass, cells.mean, k, zero)
    elif init == "optimal":
        borders = windows.refine(cells.mass, cells.mean, borders, zero)
    # Rounding may have left a point on the wrong side of a border half way between two levels.
    borders = nearest_borders(cells, levels_of(cells.mass, cells.mean, borders, zero))
    return levels_of(cells.mass, cells.mean, borders, zero)


def _at_repeated(values: np.ndarray, mass: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Levels moved to values that have 1/k of the mass, as long as all that costs at most 0.5% of
    the distortion.
    """
    repeated = np.flatnonzero(mass * c.size >= np.sum(mass))
    if not repeated.size:
        return c
    cluster = np.searchsorted(0.5 * (c[:-1] + c[1:]), values)
    weight = np.bincount(cluster, mass, c.size)
    distortion = np.sum(mass * (values - c[cluster]) ** 2)
    cost = weight[cluster[repeated]] * (values[repeated] - c[cluster[repeated]]) ** 2
    order = np.argsort(cost)
    cheap = repeated[order[np.cumsum(cost[order]) <= 0.005 * distortion]]
    c = c.copy()
    c[cluster[cheap]] = values[cheap]
    return c


# --- start
# ---------------------------------------------------------------------------------------


def _start(cells: Cells, optimal: Callable, ends: Any, k: int, init: Init, draws: Any) -> Any:
    xp = xp_of(cells.mass)
    if init == "linear":
        return xp.linspace(ends[0], ends[1], k, dtype=cells.mean.dtype)
    middles = (xp.arange(k, dtype=cells.mean.dtype) + 0.5) / k
    if init == "optimal":
        return optimal(middles)
    heaps = cumsum(cells.mass)
    i = xp.searchsorted(heaps, (middles if init == "density" else xp.sort(draws)) * heaps[-1])
    return cells.mean[xp.minimum(i, heaps.size - 1)]


def _start_of_points(values: Any, mass: Any, quantiles: Any) -> Any:
    xp = xp_of(values)
    along = points.spread(values, mass)
    return xp.interp(quantiles * along[-1], along, values)


def _panter_dite(cells: Cells, scale: Scale, quantiles: Any) -> Any:
    m = cells.mass.size
    mass = (cells.mass / jnp.maximum(jnp.sum(cells.mass), 1e-30)).reshape(-1, GROUP)
    v = cells.mean.reshape(-1, GROUP)
    total = jnp.sum(mass, 1, keepdims=True)
    mean = jnp.sum(mass * v, 1, keepdims=True) / jnp.maximum(total, 1e-30)
    V = jnp.sum(mass * (v - mean) ** 2, 1)
    # If every group is one point, V says nothing; a trace of the groups' widths then decides.
    edges = scale.value(jnp.arange(0, m + 1, GROUP, dtype=np.float32), m)
    density = (V + 1e-9 * total[:, 0] * (edges[1:] - edges[:-1]) ** 2) ** (1 / 3)
    ends = jnp.concatenate([jnp.zeros(1, density.dtype), jnp.cumsum(density)])
    position = jnp.interp(
        quantiles * ends[-1], ends, jnp.arange(0, m + 1, GROUP, dtype=density.dtype)
    )
    return scale.value(position.astype(np.float32), m)


# --- few values
# ---------------------------------------------------------------------------------------


def _distinct(data: Data, k: int, occupied: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(whether x has at most k distinct values, these values, the last repeated).

    Each is the least one above the one before: a pass over x each, made only if no more than k bins
    are occupied.
    """

    def above(least: Any, x: Any, h: Any, last: Any) -> Any:
        return jnp.minimum(least, jnp.min(jnp.where((h > 0) & (x > last), x, jnp.inf)))

    def step(carry: Any) -> Any:
        found, last, values = carry
        new = data.fold(partial(above, last=last), jnp.float32(jnp.inf))
        values = jnp.where((jnp.arange(k) >= found) & (new < jnp.inf), new, values)
        return found + 1, new, values

    start = (
        jnp.where(occupied <= k, 0, k + 2).astype(jnp.int32),
        jnp.float32(-jnp.inf),
        jnp.zeros(k, jnp.float32),
    )
    start = varying_like(start, occupied)
    found, last, values = lax.while_loop(
        lambda carry: (carry[0] <= k) & (carry[1] < jnp.inf), step, start
    )
    return (found <= k + 1) & (last == jnp.inf), values


# --- assignment
# ---------------------------------------------------------------------------------------


def assign(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """The index of the nearest entry of an ascending codebook (ties: the lower index; NaN: 0), in
    the least dtype.
    """
    dtype = np.dtype(
        np.uint8 if codebook.size <= 256 else np.uint16 if codebook.size <= 65536 else np.uint32
    )
    if on_host(x, codebook) or streamed.takes(x):
        ends, first = _boundaries(np.asarray(codebook))
        first = first.astype(dtype)

        def number(x):
            return np.nan_to_num(
                x.astype(np.float32, copy=False), nan=-np.inf, posinf=np.inf, neginf=-np.inf
            )

        found = streamed.mapped(
            lambda part: first[np.searchsorted(ends, number(part))], dtype, np.asarray(x)
        )
        return put_like(found, x)
    return _assign_compiled(x, codebook, dtype, may_be_sharded(x))


def _boundaries(c: Any) -> tuple[Any, Any]:
    """(the largest float nearer to or as near to each entry as to the next, the lowest index of
    each entry's value).
    """
    xp = xp_of(c)
    c = c.astype(np.float32)
    a = 0.5 * c[:-1]
    b = 0.5 * c[1:]
    half = a + b
    # Where rounding went up (two-sum), half itself is nearer to the upper entry.
    error = (a - (half - (half - a))) + (b - (half - a))
    ends = xp.where(error < 0, xp.nextafter(half, np.float32(-np.inf)), half)
    new = xp.concatenate(
        [xp.zeros(1, np.int32), xp.where(c[1:] > c[:-1], xp.arange(1, c.size, dtype=np.int32), 0)]
    )
    return ends, lax.cummax(new) if xp is jnp else np.maximum.accumulate(new)


@partial(jax.jit, static_argnames=("dtype", "sharded"))
def _assign_compiled(
    x: jax.Array, codebook: jax.Array, dtype: np.dtype, sharded: bool
) -> jax.Array:
    ends, first = _boundaries(codebook)
    first = first.astype(dtype)
    if codebook.size <= 32:
        x = x.astype(jnp.float32)
        jumps = first[1:] - first[:-1]
        found = (
            jnp.where(x > ends[j], jumps[j], jnp.zeros((), dtype)) for j in range(codebook.size - 1)
        )
        return sum(found, jnp.zeros_like(x, dtype))
    look_up = _table(codebook, ends, first)
    if sharded:
        return look_up(x)
    out = jnp.zeros(x.size, dtype)
    return fold_chunks(
        lambda y, i, part: lax.dynamic_update_slice(y, look_up(part), (i,)), out, x
    ).reshape(x.shape)


def _table(codebook: jax.Array, ends: jax.Array, first: jax.Array) -> Callable:
    """x -> first[#{ends < x}]: a table of how many lie in lower bins, then one compare for each in
    the fullest bin.
    """
    scale = scale_of(Data([codebook], [None], chunked=False))
    m = min(BINS, 64 << (codebook.size - 1).bit_length())
    counts = jnp.zeros(m, jnp.int32).at[scale.index(ends, m)].add(1)
    lower = jnp.cumsum(counts) - counts
    fullest = jnp.max(counts)
    ends = jnp.append(ends, jnp.float32(jnp.inf))

    def look_up(x: jax.Array) -> jax.Array:
        x = jnp.where(jnp.isnan(x), -jnp.inf, x.astype(jnp.float32))
        low = _take(lower, scale.index(x, m))
        low = lax.fori_loop(
            0, fullest, lambda _, low: low + (x > _take(ends, low)).astype(jnp.int32), low
        )
        return _take(first, low)

    return look_up


def _take(table: jax.Array, index: jax.Array) -> jax.Array:
    spec = spec_of(index)
    out = None if spec is None else sharding_on(index, *spec)
    return table.at[index].get(mode="promise_in_bounds", out_sharding=out)
