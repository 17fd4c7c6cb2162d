"""What removed units add, folded into the next bias: b ← b + Σ_{i cut} aᵢ Wᵢ.

A unit whose own weights are zeroed still sends out aᵢ = f(0): 0 for relu, 1/2 for a sigmoid.
Cutting it takes Σ aᵢ Wᵢ from what reads it, the same for every example, so a bias can give it back
("fold"). With aᵢ = E[aᵢ] of the unit as it is, on the examples, this keeps the mean of what is read
("mean": bias compensation; ThiNet, arXiv:1707.06342, and others fit more than the mean). The mean
of a maximum is not the maximum of means, nor is a padded border like the rest: with "mean" what a
bias does not take over goes on through all equations, relu and pooling too, to the next bias.

The large function is evaluated on the examples. Each value carries the gap to what the small one
has in its place:

    a product over what is cut    opens a gap, its sum over what is cut
    x + y, c·x, reshapes, …       what is linear hands it on
    x + b, x − b, b a weight      closes it: the bias takes it over, and the small value is the
                                  large one
    all else                      loses it; the place is named
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.structure.apply.check import beside, concrete
from jaxprune.structure.apply.evaluate import MOVES, Evaluation, Source, Value, bind, given, sources
from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.apply.plan import Plan
from jaxprune.structure.axes.expressions import Axis, names
from jaxprune.structure.axes.groups import Groups
from jaxprune.structure.axes.masks import Uneven
from jaxprune.structure.axes.places import place
from jaxprune.structure.axes.walk import Record
from jaxprune.structure.axes.zeros import summed

ADDS = names("add add_any sub")
ADDITIVE = MOVES | ADDS | names("neg reduce_sum concatenate stack unstack copy_p")
SCALED = names("mul dot_general conv_general_dilated")
PRODUCTS = names("dot_general conv_general_dilated")


class Folds(NamedTuple):
    """What was folded.

    Attributes:
      biases: path -> (largest |change|, how far from constant what it replaces is, relative to
        that).
      lost: places where no bias follows.
      error: of the small function to the large one whose removed units are constant ("fold" only),
        relative.
    """

    biases: dict[str, tuple[float, float]]
    lost: tuple[str, ...]
    error: float | None = None

    @property
    def exact(self) -> bool:
        """Whether nothing was lost, and all that was folded is constant but for rounding."""
        return not self.lost and all(odd < 1e-5 for _, odd in self.biases.values())

    def __str__(self) -> str:
        lines = [
            f"  folded into {p}: {size:.1e}, constant to {odd:.0e}"
            for p, (size, odd) in self.biases.items()
        ]
        lines += [f"  not folded, no bias follows: {name}" for name in self.lost]
        lines = lines or ["  nothing was folded: what was cut is 0"]
        if self.error is not None:
            lines.append(
                f"  differs from f with constants in place of the units by {self.error:.1e}, "
                f"relative"
            )
        return "\n".join(lines)


def folded(
    found: Groups,
    narrow: Narrow,
    plan: Plan,
    tree: Any,
    args: Any,
    kind: str,
    small: Callable[..., Any],
) -> tuple[Any, Folds]:
    """The params with biases that stand for what is cut, and what was folded.

    Args:
      found: of `axes`; the first function is evaluated.
      narrow: what is kept of its variables.
      plan: the same, of the params.
      tree: the params.
      args: examples.
      kind: "fold" or "mean".
      small: the function on what is left.

    Raises:
      ValueError: another kind; units that differ along what they come with.
    """
    if kind not in ("fold", "mean"):
        raise ValueError(f"approximate={kind!r}: give True, False, 'fold' or 'mean'")
    if any(isinstance(there, Uneven) for there in narrow.keep.values()):
        raise ValueError(
            f"approximate={kind!r} is for units that are cut alike everywhere: leave out "
            f"uneven=True"
        )
    args = jax.tree.map(concrete, args)
    leaves = {path: jnp.asarray(x) for path, x in zip(found.shapes, jax.tree.leaves(tree))}
    values = given(plan.mask(tree) if kind == "fold" else tree, list(leaves), args)

    def evaluated(allowed: set[str] | None = None) -> tuple[_Gaps, list[Value]]:
        run = _Gaps(narrow, leaves, kind == "fold", allowed)
        return run, run.run(found.programs[0], values)

    run, outs = evaluated() if kind == "fold" else _nearest(evaluated)
    for v in outs:
        run.keep_out(v, "an output of the function")
    made, biases = _mended(leaves, run)
    made = jax.tree.unflatten(jax.tree.structure(tree), made)
    lost = [
        f"{path} is also used {run.other[path]}"
        for path, b in run.biases.items()
        if path in run.other and b.some
    ]
    if kind == "mean":
        return made, Folds(biases, (*run.lost, *lost))
    large = jax.tree.unflatten(found.traced[0].tree, [v.x for v in outs])
    return made, Folds(
        biases, (*run.lost, *lost), beside(large, small(plan.cut(made), *args), plan).error
    )


def _nearest(evaluated: Callable[..., Any]) -> Any:
    """Of runs in which the last biases take means over, all, half of them, … one, none: the nearest
    to the outputs.

    A layer whose mean is restored but whose variance is not may serve the next one worse than
    without. The last bias alone always brings the outputs nearer on the examples, so what is chosen
    is never worse than leaving units out.
    """
    runs = [evaluated()]
    paths = [path for path, bias in runs[0][0].biases.items() if bias.some]
    count = len(paths)
    while count:
        count //= 2
        runs.append(evaluated(set(paths[len(paths) - count :])))

    def distance(run: Any) -> float:
        return sum(float(jnp.square(jnp.abs(v.gap)).sum()) for v in run[1] if v.gap is not None)

    return min(runs, key=distance)


def _mended(
    leaves: dict[str, Any], run: "_Gaps"
) -> tuple[list[Any], dict[str, tuple[float, float]]]:
    """The leaves with what they take over, and (largest change, how far from constant) of those
    that do.
    """
    made = dict(leaves)
    biases = {}
    for path, bias in run.biases.items():
        if path not in run.other and bias.some:
            change, odd = bias.mean()
            biases[path] = float(np.abs(change).max()), odd
            made[path] = (leaves[path] + change.reshape(leaves[path].shape)).astype(
                leaves[path].dtype
            )
    return list(made.values()), biases


class _Bias:
    """The gaps that a bias closes: their sum, number, least and largest for each of its
    elements.
    """

    def __init__(self, n: int):
        self.sum = np.zeros(n)
        self.count = np.zeros(n)
        self.some = False
        self.low = np.full(n, np.inf)
        self.high = np.full(n, -np.inf)

    def add(self, at: np.ndarray, gap: np.ndarray) -> None:
        gap = np.asarray(gap, np.float64)
        self.some = self.some or bool(gap.any())
        for total, step, x in ((self.sum, np.add, gap), (self.count, np.add, np.ones_like(gap))):
            step.at(total, at, x)
        np.minimum.at(self.low, at, gap)
        np.maximum.at(self.high, at, gap)

    def mean(self) -> tuple[np.ndarray, float]:
        """The mean gap, and the largest distance from it over the largest of it."""
        met = self.count > 0
        mean = np.where(met, self.sum / np.maximum(self.count, 1), 0)
        odd = np.where(met, np.maximum(self.high - mean, mean - self.low), 0)
        return mean, float(
            odd.max(initial=0) / max(np.abs(mean).max(initial=0), np.finfo(float).tiny)
        )


class _Gaps(Evaluation):
    """Evaluates the large function, with gaps.

    Attributes:
      whole: leaves before they were masked, by path; None if they are not.
      biases: path -> what is added to, or taken from, something else.
      other: path -> how else a leaf is used.
      lost: places where a gap is lost.
      exactly: whether gaps go through all equations ("mean"), and not only through linear ones.
      allowed: the leaves that may take over; None: all.
    """

    def __init__(
        self, narrow: Narrow, leaves: dict[str, Any], masked: bool, allowed: set[str] | None = None
    ):
        self.narrow = narrow
        self.whole = leaves if masked else None
        self.sizes = {path: x.size for path, x in leaves.items()}
        self.biases: dict[str, _Bias] = {}
        self.other: dict[str, str] = {}
        self.lost: dict[str, None] = {}
        self.exactly = not masked
        self.allowed = allowed

    def equation(self, r: Record, ins: list[Value]) -> list[Value]:
        name = r.eqn.primitive.name
        if any(not self.narrow.mask(e).all() for e in summed(r)):
            return [self._opened(r, ins)]
        if name in ADDS and sum(v.source is not None for v in ins) == 1:
            return [self._closed(r, ins)]
        outs = bind(r, [v.x for v in ins])
        gaps = (
            self._differences(r, ins, outs) if self.exactly else self._handed_on(r, ins, len(outs))
        )
        gaps = [None if gap is None else _unless_zero(gap, x) for gap, x in zip(gaps, outs)]
        if name not in MOVES:
            for v in ins:
                self.keep_out(v._replace(gap=None), f"by {place(r.eqn)}")
        return [Value(x, s, gap) for x, s, gap in zip(outs, sources(r, ins, len(outs)), gaps)]

    def keep_out(self, v: Value, what: str) -> None:
        """A leaf that is used in another way is no bias; a gap that gets there is lost."""
        if v.source is not None:
            self.other.setdefault(v.source.path, what)
        if v.gap is not None and not self.exactly:
            self.lost[what] = None

    def _differences(self, r: Record, ins: list[Value], outs: list[Any]) -> list[Any]:
        """Gaps of the results of any equation: it is evaluated on the small values as well."""
        if all(v.gap is None for v in ins):
            return [None] * len(outs)
        small = bind(r, [_small(v) for v in ins])
        floats = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in outs]
        return [x - y if is_float else None for x, y, is_float in zip(outs, small, floats)]

    def _handed_on(self, r: Record, ins: list[Value], n: int) -> list[Any]:
        """Gaps of the results of what is linear in all operands that have one."""
        name = r.eqn.primitive.name
        open_ = [v.gap is not None for v in ins]
        if not any(open_):
            return [None] * n
        if name in ADDITIVE:
            return bind(r, [jnp.zeros_like(v.x) if v.gap is None else v.gap for v in ins])
        if (name in SCALED and sum(open_) == 1) or (name == "div" and not open_[1]):
            return bind(r, [v.x if v.gap is None else v.gap for v in ins])
        self.lost[place(r.eqn)] = None
        return [None] * n

    def _opened(self, r: Record, ins: list[Value]) -> Value:
        """A sum over what is cut: the part of it that is, and the gap that comes in with the part
        that stays.
        """
        for v in ins:
            self.keep_out(v._replace(gap=None), f"by {place(r.eqn)}")
        k = _weight(r, ins)
        axes = list(enumerate(r.ins[k]))
        over = [(i, e) for i, e in axes if i in _summed_axes(r, k)]
        whole = jnp.asarray(ins[k].x)
        source = ins[k].source
        if self.whole is not None and source is not None and r.eqn.primitive.name in PRODUCTS:
            whole = self.whole[source.path].reshape(-1)[source.at].astype(whole.dtype)
            whole = jnp.where(self._stays([a for a in axes if a not in over], whole.ndim), whole, 0)
        stays = self._stays(over, whole.ndim)

        def values(x, gaps=False):
            return [x if i == k else _small(v) if gaps else v.x for i, v in enumerate(ins)]

        large = bind(r, values(whole))[0]
        if all(v.gap is None for v in ins):
            gap = bind(r, values(jnp.where(stays, 0, whole)))[0]
        else:
            small = whole if ins[k].gap is None else whole - ins[k].gap
            gap = large - bind(r, values(jnp.where(stays, small, 0), True))[0]
        return Value(large, None, _unless_zero(gap, large))

    def _stays(self, axes: list[tuple[int, Axis]], rank: int) -> np.ndarray:
        """Which elements of an array stay when these axes are cut; broadcastable."""
        found = np.ones((1,) * rank, bool)
        for i, e in axes:
            found = found & self.narrow.mask(e).reshape([-1 if k == i else 1 for k in range(rank)])
        return found

    def _closed(self, r: Record, ins: list[Value]) -> Value:
        """Something and a weight: a bias, which takes the gap over; its mean where it varies, and
        the rest goes on.
        """
        [out] = bind(r, [v.x for v in ins])
        k = 0 if ins[0].source is not None else 1
        bias = ins[k]
        other = ins[1 - k]
        source = bias.source or Source("", np.zeros(0, int))
        if self.allowed is not None and source.path not in self.allowed:
            [gap] = self._differences(r, ins, [out])
            return Value(out, None, gap)
        sign = -1 if r.eqn.primitive.name == "sub" else 1
        gap = jnp.zeros((), out.dtype) if other.gap is None else sign * other.gap
        spread = np.broadcast_to(source.at, out.shape)
        n = self.sizes[source.path]
        taken_over = _Bias(n)
        taken_over.add(spread, np.broadcast_to(np.asarray(gap), out.shape))
        self.biases.setdefault(source.path, _Bias(n)).add(
            spread, np.broadcast_to(np.asarray(gap), out.shape)
        )
        if not self.exactly or other.gap is None:
            return Value(out)
        rest = other.gap - sign * jnp.asarray(taken_over.mean()[0][spread], out.dtype)
        return Value(
            out, None, _unless_zero(rest if r.eqn.primitive.name != "sub" or k == 1 else -rest, out)
        )


def _small(v: Value) -> Any:
    return v.x if v.gap is None else v.x - v.gap


def _weight(r: Record, ins: list[Value]) -> int:
    """The operand that is a weight as it is; the last but for products of two values."""
    if r.eqn.primitive.name != "dot_general":
        return len(ins) - 1
    return 0 if ins[1].source is None else 1


def _summed_axes(r: Record, k: int) -> tuple[int, ...]:
    """The axes of an operand that an equation sums over; of a convolution, of the kernel."""
    p = r.eqn.params
    if r.eqn.primitive.name == "dot_general":
        return p["dimension_numbers"][0][k]
    return (
        p["axes"] if r.eqn.primitive.name == "reduce_sum" else (p["dimension_numbers"].rhs_spec[1],)
    )


def _unless_zero(gap: Any, large: Any) -> Any:
    """The gap, or None where it is 0 but for rounding."""
    if gap is None or not gap.size or not jnp.issubdtype(gap.dtype, jnp.inexact):
        return None
    least = 16 * jnp.finfo(gap.dtype).eps * jnp.abs(large).max()
    return None if jnp.abs(gap).max() <= least else gap
