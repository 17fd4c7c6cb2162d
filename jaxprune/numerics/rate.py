"""Entropy-coded uniform quantisation: w ≈ q·Δ with one step Δ, and whole q that are cheap to code.

A level k = |q| costs ℓ_k = −log2(n_k / n) bits, and a sign bit if it is not 0; n_k of the n weights
of a leaf have it, pruned ones having level 0. A weight a = |w|/Δ takes the cheaper of its two
neighbours,

    minimise (a − k)² Δ² + λ ℓ_k   over k ∈ {⌊a⌋, ⌈a⌉},   λ = c Δ²,

so the border of k and k + 1 is  b_k = k + ½ + (c/2)(ℓ_{k+1} − ℓ_k), kept in [k, k + 1]. Levels and
lengths depend on one another: start from plain rounding (c = 0), and repeat. Where the step is fine
against the density of w, noise is D = Δ²/12 and rate h − log2 Δ, so −dD/dR = (ln 4 / 12) Δ²: the
slope c = SLOPE (Gish and Pierce 1968; rate-distortion optimised quantisation as in video coders,
and in DeepCABAC: Wiedemann et al. 2019, arXiv:1905.08318).

A target (noise or bits) does not fix Δ and c: a finer step with a larger c may cost less, above all
once pruned, when no weight lies below the threshold τ and steps with τ/Δ just above k + ½ leave no
level half used. So `search` tries steps, and for each the c that meets the target. It reads sorted
magnitudes and their prefix sums, so a trial costs O(levels · log n) and no pass over the weights.
On the host, in float64.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from .clusters.cells import sums, xp_of
from .placement import on_host, put_like, sharding_on, spec_of
from .precision import wide, widen

TOP = 2**15 - 1  # levels are int16
SLOPE = math.log(4) / 12
ROUNDS = 3
STEPS = 2.0 ** (np.arange(1, -16, -1) / 32)  # tried, as parts of the step that plain rounding needs


def lengths(counts: Any) -> Any:
    """ℓ_k from n_k (half a weight more each, so that an empty level has a length), along the last
    axis.
    """
    xp = xp_of(counts)
    n = counts.astype(np.float64 if xp is np else np.float32) + np.float32(0.5)
    return (
        xp.log2(xp.sum(n, -1, keepdims=True))
        - xp.log2(n)
        + (np.arange(counts.shape[-1]) > 0).astype(n.dtype)
    )


def borders(counts: Any, c: Any) -> Any:
    """b_k for k = 0 … K − 2."""
    xp = xp_of(counts)
    bits = lengths(counts)
    k = np.arange(counts.shape[-1] - 1, dtype=np.float32)
    return k + xp.clip(0.5 + c / 2 * (bits[..., 1:] - bits[..., :-1]), 0.0, 1.0)


def place(a: Any, border: Any, tolerance: float) -> Any:
    """The levels of magnitudes a >= 0: ⌊a⌋ up to the border, ⌈a⌉ above; what is whole within the
    tolerance stays.
    """
    xp = xp_of(a)
    low = xp.minimum(xp.floor(a), np.float32(TOP - 1))
    near = xp.round(a)
    up = a > _look_up(border, low.astype(np.int32)).astype(a.dtype)
    level = xp.where(abs(a - near) <= tolerance * a, near, low + up.astype(a.dtype))
    return xp.minimum(level, np.float32(TOP)).astype(np.int32)


def _look_up(table: Any, index: Any) -> Any:
    if not isinstance(index, jax.Array):
        return table[np.minimum(index, table.size - 1)]
    spec = spec_of(index)
    return table.at[index].get(
        mode="clip", out_sharding=None if spec is None else sharding_on(index, *spec)
    )


def magnitudes(w: Any, step: Any) -> Any:
    """a = |w|/Δ, at most TOP; NaN counts as 0."""
    xp = xp_of(w)
    size = abs(w.astype(np.float32) if w.dtype.itemsize < 4 else w)
    size = xp.where(xp.isnan(size), size.dtype.type(0), size)
    return xp.minimum(
        size * (4 / step) * size.dtype.type(0.25), size.dtype.type(TOP)
    )  # 1/Δ may be flushed to 0


def finest_step(dtype: Any) -> float:
    """The least Δ for weights of a dtype: below twice the smallest normal float, XLA would decode
    q·Δ to 0.
    """
    return 2 * float(jnp.finfo(wide(dtype)).tiny)


def signed(level: Any, w: Any) -> Any:
    xp = xp_of(level)
    return xp.where(w < 0, -level, level).astype(np.int16)


def tolerance(dtype: Any) -> float:
    """How far q·Δ, rounded to the dtype, may come out from q when it is divided by Δ again:
    relative to q.
    """
    return 2 * float(jnp.finfo(dtype).eps)


def quantize(w: Any, step: Any, keep: Any = None) -> jax.Array:
    """q of one leaf for a given step, with c = SLOPE; 0 where `keep` is False. Too large a level
    saturates at ±TOP.

    >>> quantize(jnp.array([0.1, -0.52, 0.26, 0.0]), 0.25).tolist()
    [0, -2, 1, 0]
    """
    host = on_host(w, step, *(() if keep is None else (keep,)))
    xp = np if host else jnp
    x = widen(xp.asarray(w))
    x = x if keep is None else xp.where(xp.asarray(keep), x, x.dtype.type(0))
    a = magnitudes(x, xp.asarray(step, x.dtype))
    level = xp.round(a).astype(np.int32)
    for _ in range(ROUNDS):
        counts = sums(level, xp.ones_like(level), TOP + 1)
        level = place(a, borders(counts, SLOPE), tolerance(w.dtype))
    q = signed(level, x)
    return put_like(q, w) if host else q


# --- a target
# ---------------------------------------------------------------------------------------


class Sorted(NamedTuple):
    """Leaves prepared for trials: their weights above 0 and below, each side's magnitudes in order.

    Attributes:
      sides: 2 L arrays of magnitudes: of leaf 0 the positive, the negative, of leaf 1 …
      sums: prefix sums of all sides, one after another, with a 0 in front.
      zeros: `[L]`: how many weights are 0 or pruned.
      power: Σ w².
    """

    sides: Sequence[NDArray]
    sums: NDArray
    zeros: NDArray
    power: float

    @property
    def top(self) -> float:
        """The largest magnitude; 0 if all weights are 0."""
        return float(max((v[-1] for v in self.sides if v.size), default=0.0))


def ordered(leaves: Sequence[NDArray]) -> Sorted:
    """Sorts leaves, in which pruned weights are 0: 12 bytes a weight."""
    rows = [np.sort(w, axis=None) for w in leaves]
    split = [(v[np.searchsorted(v, 0, "right") :], -v[: np.searchsorted(v, 0)][::-1]) for v in rows]
    sides = [v for pair in split for v in pair]
    total = np.cumsum(np.concatenate([np.zeros(1), *sides], dtype=np.float64))
    power = sum(float(np.sum(np.square(v, dtype=np.float64))) for v in sides)
    return Sorted(
        sides, total, np.array([v.size - p.size - n.size for v, (p, n) in zip(rows, split)]), power
    )


class Trial(NamedTuple):
    """What a step and a c give, over all leaves: Σ (w − qΔ)², the entropy of each leaf's q in bits,
    and its borders.
    """

    noise: float
    bits: float
    step: float
    border: NDArray


def trial(data: Sorted, step: float, c: float, near: NDArray | None = None) -> Trial:
    """The trial of a step and a c; `near`: the borders of another c, from which one round will
    do.
    """
    plain = np.tile(np.arange(int(data.top / step) + 1) + 0.5, (len(data.zeros), 1))
    border = plain if near is None else near
    counts, noise = _tally(data, border, step)
    for _ in range(0 if not c else ROUNDS if near is None else 1):
        border = borders(_levels(counts, data), c)
        counts, noise = _tally(data, border, step)
    n = np.concatenate(
        [_levels(counts, data)[:, :1], counts[:, 0, 1:], counts[:, 1, 1:]], 1
    ).astype(np.float64)
    bits = np.sum(n * (np.log2(np.maximum(n.sum(1, keepdims=True), 1)) - np.log2(np.maximum(n, 1))))
    return Trial(noise, float(bits), step, border)


def _tally(data: Sorted, border: NDArray, step: float) -> tuple[NDArray, float]:
    """Counts by leaf, side and level, and the noise Σ w² − 2Δ Σ k |w| + Δ² Σ k²."""
    size = np.array([[v.size] for v in data.sides])
    ends = [np.searchsorted(v, border[i // 2] * step, "right") for i, v in enumerate(data.sides)]
    ends = np.concatenate([0 * size, ends, size], 1)
    n = np.diff(ends)
    k = np.arange(border.shape[1] + 1)
    one = np.diff(data.sums[ends + (np.cumsum(size) - size[:, 0])[:, None]])
    noise = data.power - 2 * step * np.sum(one @ k) + step * step * np.sum(n @ (k * k))
    return n.reshape(len(data.zeros), 2, -1), max(float(noise), 0.0)


def _levels(counts: NDArray, data: Sorted) -> NDArray:
    """Counts of |q| by leaf, those that are 0 included."""
    n = counts.sum(1)
    n[:, 0] += data.zeros
    return n


def search(
    data: Sorted, *, noise: float = math.inf, bits: float = math.inf, top: int = TOP
) -> Trial | None:
    """The trial with the fewest bits within `noise`, or with the least noise within `bits`; None if
    there is none.

    A bisection finds the step of plain rounding that just meets the target. Around it STEPS are
    tried, and then the neighbours of the best, each with the c in [0, 1] that just meets it. No
    level is above `top`.
    """
    finest = max(data.top / top, finest_step(data.sides[0].dtype))
    coarsest = min(3 * data.top, 2.0**127)

    def meets(t):
        return t.noise <= noise and t.bits <= bits

    quiet = noise < math.inf  # then small steps and a small c meet the target, else large ones do
    cost = (lambda t: t.bits) if quiet else (lambda t: t.noise)
    ends = (finest, coarsest) if quiet else (coarsest, finest)
    plain = _edge(
        lambda x, _: trial(data, math.exp(x), 0.0), meets, math.log(ends[0]), math.log(ends[1]), 24
    )
    found = [] if plain is None else [plain]

    def attempt(step: float) -> None:
        def one(c, near):
            return trial(data, step, c, None if near is None else near.border)

        t = _edge(one, meets, float(not quiet), float(quiet), 10) if step >= finest else None
        found.extend([] if t is None else [t])

    for part in STEPS if found else ():
        attempt(found[0].step * part)
    for turn in (64, 128, 256) if found else ():
        best = min(found, key=cost).step
        attempt(best * 2 ** (1 / turn))
        attempt(best * 2 ** (-1 / turn))
    return min(found, key=cost, default=None)


def _edge(f: Any, meets: Any, good: float, bad: float, turns: int) -> Any:
    """The last f(x) that meets, going from good to bad; None if f(good) does not."""
    best = near = f(good, None)
    if not meets(best):
        return None
    for _ in range(turns):
        middle = (good + bad) / 2
        near = f(middle, near)
        if meets(near):
            good = middle
            best = near
        else:
            bad = middle
    return best
