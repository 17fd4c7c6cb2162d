"""A dynamic programme in windows: from good borders of clusters to borders that are as good as the
best.

One-dimensional k-means is a choice of k − 1 borders in a sorted row of points. The full dynamic
programme tries every point for every border, O(k m²). Here each border j may move to P places
between its neighbours,

    D_j(q) = min over p in window j of  D_{j−1}(p) + SSE(p, q),      q in window j + 1,

so that one pass, O(k P²), finds the best of all P^(k−1) joint moves. Windows reach as far as the
two neighbours: a cluster that is split at one end of the row and two that are merged at the other
are one move. Three kinds of windows take turns (sixteenths of the clusters beside a border; powers
of two of points; the nearest points), until none helps. Against the exact programme less than 0.3%
was lost in every sample tried (see tests/numerics/test_kmeans.py).

SSE(p, q) = Q − S²/H with H = Σ h, S = Σ h (v − c), Q = Σ h (v − c)². All sums are about the mean c
of a cluster nearby: float32 holds them, where sums about 0 would lose the difference. The same text
runs on jax and on numpy arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..placement import varying_like
from .cells import sums, xp_of

REACH = 24
STEPS = np.arange(-REACH, REACH + 1, dtype=np.int32)
POWERS = np.where(STEPS == 0, 0, np.sign(STEPS) * 2 ** np.maximum(np.abs(STEPS) - 1, 0)).astype(
    np.int32
)
KINDS = 3  # of windows
FEW = 512  # points for which the host runs the full dynamic programme


class Sums(NamedTuple):
    """H, S and Q of runs of points, about some number."""

    mass: Any
    first: Any
    second: Any

    def about(self, shift: Any) -> "Sums":
        """The same about a number that is less by `shift`."""
        second = self.second + 2 * self.first * shift + self.mass * shift**2
        return Sums(self.mass, self.first + self.mass * shift, second)


def cumsum(x: Any) -> Any:
    """Along the last axis, of a multiple of 256 entries, on two levels: jnp.cumsum takes twice the
    time.
    """
    xp = xp_of(x)
    inner = xp.cumsum(x.reshape(*x.shape[:-1], -1, 256), -1)
    ends = inner[..., -1]
    return (inner + (xp.cumsum(ends, -1) - ends)[..., None]).reshape(x.shape)


def loop(condition: Callable, body: Callable, carry: Any, xp: Any) -> Any:
    """`lax.while_loop`, or Python's."""
    if xp is jnp:
        return lax.while_loop(condition, body, varying_like(carry, carry))
    while condition(carry):
        carry = body(carry)
    return carry


def _scan(step: Callable, carry: Any, xs: Any, xp: Any, reverse: bool = False) -> Any:
    """`lax.scan` over arrays of one length, or Python's loop."""
    if xp is jnp:
        return lax.scan(step, varying_like(carry, carry, xs), xs, reverse=reverse)
    rows = list(zip(*xs))
    outputs = []
    for row in reversed(rows) if reverse else rows:
        carry, output = step(carry, row)
        outputs.append(output)
    outputs = outputs[::-1] if reverse else outputs
    return carry, np.stack(outputs)


def refine(mass: Any, v: Any, borders: Any, zero: Any) -> Any:
    """Better borders b (b_0 = 0 <= b_1 <= … <= b_k = m): cluster j is the points b_j … b_(j+1) − 1.

    Args:
      mass, v: `[m]`, m a multiple of 256: points ascending.
      borders: `Int32[k + 1]` to start from.
      zero: the point whose cluster has its level at exactly 0, or −1 if there is none.
    """
    xp = xp_of(mass)
    k = borders.size - 1
    limit = KINDS * (REACH + k)  # a pass moves every border by a cluster at most

    def condition(carry: Any) -> Any:
        turn, unchanged, _ = carry
        return (turn < limit) & (unchanged < KINDS)

    def body(carry: Any) -> Any:
        turn, unchanged, b = carry
        new = _pass(mass, v, b, zero, turn % KINDS)
        same = xp.all(new == b)
        return turn + 1, xp.where(same, unchanged + 1, 0), new

    start = np.int32(0) if xp is np else jnp.int32(0)
    return loop(condition, body, (start, start, borders.astype(np.int32)), xp)[2]


def exact(mass: np.ndarray, v: np.ndarray, k: int, zero: int) -> np.ndarray:
    """The best borders of few points, in float64: D_j(q) = min over all p of D_{j−1}(p) + SSE(p,
    q), O(k m²).
    """
    m = mass.size
    points = np.count_nonzero(mass)
    mass = mass[:points]
    v = v[:points]
    v = v - np.average(v, weights=mass) if zero < 0 else v
    prefix = np.pad(np.cumsum(np.stack([mass, mass * v, mass * v * v]), 1), ((0, 0), (1, 0)))
    run = Sums(*(prefix[:, None] - prefix[:, :, None]))
    start = np.arange(points + 1)[:, None]
    end = np.arange(points + 1)
    error = run.second - run.first**2 / np.where(run.mass > 0, run.mass, 1.0)
    error = np.where((start <= zero) & (zero < end), run.second, error)
    error = np.where(end > start, np.maximum(error, 0.0), np.where(end == start, 0.0, np.inf))
    best = error[0]
    choices = []
    for _ in range(k - 1):
        total = best[:, None] + error
        choices.append(total.argmin(0))
        best = total[choices[-1], end]
    borders = [points]
    for choice in reversed(choices):
        borders.insert(0, choice[borders[0]])
    return np.array([0, *borders[:-1], m], np.int32)


def centres(mass: Any, v: Any, borders: Any) -> tuple[Any, Any]:
    """(cluster of each point, mean of each cluster), the means summed about a point of the
    cluster.
    """
    xp = xp_of(mass)
    k = borders.size - 1
    m = mass.size
    cluster = xp.searchsorted(borders[1:-1], xp.arange(m, dtype=np.int32), side="right").astype(
        np.int32
    )
    near = v[xp.clip((borders[:-1] + borders[1:]) // 2, 0, m - 1)]
    weight = sums(cluster, mass, k)
    offset = sums(cluster, mass * (v - near[cluster]), k)
    return cluster, near + xp.where(weight > 0, offset / xp.where(weight > 0, weight, 1.0), 0.0)


def _pass(mass: Any, v: Any, b: Any, zero: Any, kind: Any) -> Any:
    """The best borders in the windows of a kind; b if they are no better."""
    xp = xp_of(mass)
    m = mass.size
    cluster, c = centres(mass, v, b)
    gap = v - c[cluster]
    prefix = xp.pad(cumsum(xp.stack([mass, mass * gap, mass * gap * gap])), ((0, 0), (1, 0)))
    places = _places(b, m, kind)

    # What lies between each border and each of its places, about the mean of the cluster that the
    # place is in.
    moved = Sums(*(prefix[:, places] - prefix[:, b][..., None]))
    left = xp.concatenate([c[:1], c])
    right = xp.concatenate([c, c[-1:]])
    about = xp.where(places < b[:, None], left[:, None], right[:, None])
    # The same about the mean of the cluster whose lower, and whose upper, border it is.
    lower = Sums(*(part[:-1] for part in moved)).about(about[:-1] - c[:, None])
    upper = Sums(*(part[1:] for part in moved)).about(about[1:] - c[:, None])
    here = Sums(*(prefix[:, b[1:]] - prefix[:, b[:-1]]))

    def extend(best: Any, row: Any) -> Any:
        """D_{j+1} from D_j, and the lower border that each upper border takes."""
        here, lower, upper, centre, starts, ends = row
        run = Sums(*(h - low[:, None] + up[None] for h, low, up in zip(here, lower, upper)))
        starts = starts[:, None]
        ends = ends[None]
        error = run.second - run.first**2 / xp.where(run.mass > 0, run.mass, 1.0)
        error = xp.where((starts <= zero) & (zero < ends), run.about(centre).second, error)
        error = xp.where(
            ends > starts, xp.maximum(error, 0.0), xp.where(ends == starts, 0.0, np.inf)
        )
        total = best[:, None] + error
        choice = xp.argmin(total, 0)
        return total[choice, STEPS + REACH], choice

    rows = (xp.stack(here, 1), xp.stack(lower, 1), xp.stack(upper, 1), c, places[:-1], places[1:])
    # b_0 is 0 wherever it is put: one start is enough.
    start = xp.where(STEPS == 0, 0.0, np.inf).astype(mass.dtype)
    best, choices = _scan(extend, start, rows, xp)

    def back(at: Any, row: Any) -> Any:
        choice, starts = row
        return choice[at], starts[choice[at]]

    _, starts = _scan(back, xp.asarray(REACH), (choices, places[:-1]), xp, reverse=True)
    new = xp.append(starts, m).astype(np.int32)
    contains = (b[:-1] <= zero) & (zero < b[1:])
    errors = xp.where(contains, here.about(c).second, here.second)
    now = xp.sum(errors)
    # Rounding alone must not move borders to and fro.
    return xp.where(best[REACH] < now * (1 - 32 * np.finfo(mass.dtype).eps), new, b)


def _places(b: Any, m: int, kind: Any) -> Any:
    """`Int32[k + 1, 2 REACH + 1]`: where each border may go; the middle one is where it is."""
    xp = xp_of(b)
    least = xp.concatenate([b[:1], b[:-1]])[:, None]
    most = xp.concatenate([b[1:], b[-1:]])[:, None]
    b = b[:, None]
    sixteenths = xp.where(STEPS < 0, (b - least) * STEPS // REACH, (most - b) * STEPS // REACH)
    offset = xp.where(kind == 0, sixteenths, xp.where(kind == 1, STEPS, POWERS))
    places = xp.clip(b + offset, least, most)
    ends = xp.arange(b.shape[0])[:, None]
    return xp.where(ends == 0, 0, xp.where(ends == b.shape[0] - 1, m, places)).astype(np.int32)
