"""Pruning: Δ(Θ) = where(mask, w, 0), with the mask that loses least.

    minimise Σ_{i pruned} sᵢ   over masks with round(s·n) zeros           (sᵢ = |wᵢ|: Han et al. 2015, arXiv:1506.02626)
    w ← 0 where |w| < τ                                                  for a threshold

score -> allocate -> select: a score for every unit, a number of units that each leaf gives up, and the units with the
smallest scores go (ties: the lowest flat index is kept; NaN is the smallest score of all). What kind of units they are
is the pattern.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.core.arguments import finite, fraction
from jaxprune.core.arrays import Masked, count, materialize
from jaxprune.core.compression import Compression, call, keep
from jaxprune.core.hidden import zero_hidden
from jaxprune.core.leaves.companions import bias_of, norm_of, units_of
from jaxprune.core.leaves.layout import axes_of, check_layout
from jaxprune.core.leaves.where import Slot
from jaxprune.core.tree import look_up, rewrite, slots, walk
from jaxprune.core.words import compiled, nearest
from jaxprune.methods import allocate as allocations
from jaxprune.methods import patterns
from jaxprune.methods import scores as scores_by
from jaxprune.methods.patterns import Pattern
from jaxprune.numerics import select, streamed
from jaxprune.numerics.placement import put_like
from jaxprune.numerics.precision import widen


def prune(
    sparsity: Any = None,
    *,
    threshold: Any = None,
    pattern: Pattern | str | None = None,
    score: Any = None,
    allocate: Any = None,
    layout: Any = None,
    where: Any = None,
) -> Compression:
    """Sets weights to zero: a fraction, those below a threshold, or a pattern.

    Args:
      sparsity: fraction of the units to remove, in [0, 1): a number, a traced scalar, a schedule (step -> number;
        `update` then follows it), or a dict of path regex -> number for the leaves that it names.
      threshold: instead of a fraction: w ← 0 where |w| < threshold (or the score, or Σ|w| of a unit).
      pattern: `jp.patterns.n_m`, `block` or `channel`, or in words, as "2:4", "block 4x4", "channel"; single weights by
        default. N:M takes no sparsity. Names and biases tell which axes are inputs and outputs.
      score: a tree shaped like the params, or params -> tree (`jp.scores`), or its name: "magnitude" (|w|, the
        default), "random" (with `key=` given to init), "lamp", "fpgm", "saliency" and "movement" (with `grads=`). The
        smallest go.
      allocate: (params, scores, sparsity) -> tree of counts (`jp.allocate`), or its name: "uniform" (the default),
        "erk", "global", "lamp"; or a tree of counts.
      layout: which axes are the outputs, instead: "jax" (last), "torch" (first), or a dict of path regex -> axis.
      where: which leaves: a regular expression for whole paths, as "(.*/)?kernel", which passes over leaves without
        floats; a rule of `jp.where`; a tree of booleans. `jp.where.weights` by default.

    Returns:
      A `Compression` whose leaves are `Masked`. Exactly round(s·n) units go for a Python sparsity, within n·2⁻²⁴ for a
      traced one, which is clipped to [0, 1]; but no leaf loses its last unit, whatever the allocation. A pruned weight
      is +0.0 even if it was NaN or Inf. `update` never revives a weight.

    Raises:
      ValueError: for a sparsity outside [0, 1), scores that are NaN, a threshold that removes everything, a rule that
        matches nothing, an empty or integer leaf, a pattern that does not divide a leaf; each names path, shape, value
        and the fix.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"kernel": jnp.array([[0.1, -2.0], [3.0, -0.4]]), "bias": jnp.ones(2)}
      >>> sparse = jp.prune(0.5).init(params)
      >>> print(jp.materialize(sparse)["kernel"])
      [[ 0. -2.]
       [ 3.  0.]]
    """
    pattern = patterns.unstructured() if pattern is None else patterns.from_words(pattern)
    allocate = allocations.from_words(allocate)
    # Magnitudes need no array of their own: None stands for them.
    score = None if score == "magnitude" and isinstance(score, str) else scores_by.from_words("prune", score)
    _check_arguments(sparsity, threshold, pattern)
    check_layout(layout, "prune")
    rule = where
    follows = callable(sparsity) or threshold is not None

    def masks(chosen: list[Slot], tree: Any, step: Any, extra: dict[str, Any]) -> list[Any]:
        params = [materialize(s.value) for s in chosen]
        if layout is not None:
            extra = extra | {"layout": layout}
        scores = _scores(chosen, tree, score, extra | {"step": step})
        leaves = [Leaf(slot, x, s, _pattern_of(slot, pattern, layout)) for slot, x, s in zip(chosen, params, scores)]
        if pattern.select is not None:
            return [_selected(leaf) for leaf in leaves]
        if threshold is not None:
            return [_above(leaf, threshold) for leaf in leaves]
        counts = _counts(leaves, _at(sparsity, step), allocate)
        return [_largest(leaf, _not_all(leaf, remove)) for leaf, remove in zip(leaves, counts)]

    def run(tree: Any, step: Any, where: Any, extra: dict[str, Any]) -> Any:
        pruned: list[tuple[Slot, Any]] = []

        def encode(chosen: list[Slot]) -> list[Masked]:
            new = masks(chosen, tree, step, extra)
            pruned.extend(zip(chosen, new))
            return [_masked(s.value, m) for s, m in pruned]

        new = rewrite(encode, tree, rule if where is None else where, _whole)
        if threshold is not None:
            _refuse_empty(pruned, threshold)
        return _mask_companions(new, pruned, pattern, layout) if pattern.siblings else new

    def init(params: Any, *, step: Any = 0, where: Any = None, **extra: Any) -> Any:
        return run(params, step, where, extra)

    def update(tree: Any, *, step: Any, where: Any = None, **extra: Any) -> Any:
        return run(tree, step, where, extra)

    return Compression(init, update if follows else keep)


class Leaf(NamedTuple):
    """A weight that is being pruned.

    Attributes:
      slot: its place.
      x: the dense weight.
      score: shaped like x; None stands for the magnitude.
      pattern: the one for its axes.
    """

    slot: Slot
    x: Any
    score: Any
    pattern: Pattern

    def pooled(self) -> Any:
        """A score for each unit; single weights score by themselves, and then as magnitudes if there is no score."""
        try:
            return _pool(self.x, self.score, self.pattern)
        except ValueError as error:  # a pattern knows no path
            raise ValueError(f"{self.slot}: {error}") from None

    @property
    def num_units(self) -> int:
        """How many units there are, found without computing their scores."""
        return jax.eval_shape(lambda x, s: self._replace(x=x, score=s).pooled(), self.x, self.score).size


def _pattern_of(slot: Slot, pattern: Pattern, layout: Any) -> Pattern:
    """The pattern on the axes that are a leaf's inputs and outputs. Vectors and fields of codes have neither."""
    if pattern.at is None or not slot.open or slot.value.ndim < 2:
        return pattern
    return pattern.at(axes_of(slot.place, layout))


def _whole(code: Any) -> bool:
    """A mask goes over a whole code, unless its payload is several smaller weights (factors)."""
    return isinstance(code, Masked) or not code.payload


def _check_arguments(sparsity: Any, threshold: Any, pattern: Pattern) -> None:
    if isinstance(sparsity, dict):
        for rule in sparsity:
            compiled("sparsity", rule)
    given = [name for name, x in (("sparsity", sparsity), ("threshold", threshold)) if x is not None]
    if pattern.select is not None and given:
        raise ValueError(f"prune({given[0]}=…, pattern=n_m(…)): N:M fixes the sparsity by itself; give no {given[0]}")
    if pattern.select is None and len(given) != 1:
        raise ValueError(
            "prune takes one of sparsity=, threshold= and an N:M pattern, as prune(0.9) or prune(threshold=0.05)"
        )
    for value in sparsity.values() if isinstance(sparsity, dict) else [sparsity]:
        if value is not None and not callable(value):
            fraction("prune(sparsity={})", value)
    if threshold is not None:
        finite("prune(threshold={})", threshold)


def _at(sparsity: Any, step: Any) -> Any:
    if not callable(sparsity):
        return sparsity
    return fraction(f"the sparsity schedule gives {{}} at step {step}", sparsity(step))


# --- score ---


def _scores(chosen: list[Slot], tree: Any, score: Any, extra: dict[str, Any]) -> list[Any]:
    """A score for each chosen weight; None stands for its magnitude. What is pruned already scores lowest."""
    if score is None:
        return [None] * len(chosen)
    scores = call(score, materialize(tree), **extra) if callable(score) else score
    found = look_up(scores, chosen, "score")
    for slot, x in zip(chosen, found):
        _refuse_nan(slot, x)
    return [_below_all(slot.value.mask, x) if isinstance(slot.value, Masked) else x for slot, x in zip(chosen, found)]


def _below_all(mask: Any, score: Any) -> Any:
    """The score, under the mask lower than any other: a score of −inf of a weight that is there counts as finite."""
    if jnp.issubdtype(score.dtype, jnp.floating):
        score = jnp.maximum(score, jnp.finfo(score.dtype).min)
    return jnp.where(mask, score, -jnp.inf)


def _refuse_nan(slot: Slot, score: Any) -> None:
    """A score that is no number would be the highest or the lowest, as sorting has it."""
    if not isinstance(score, Tracer) and (bad := int(jnp.sum(jnp.isnan(score)))):
        raise ValueError(f"the score of {slot} has {bad} NaN: no order is known for these weights")


# --- allocate ---


def _counts(leaves: list[Leaf], sparsity: Any, allocate: Any) -> list[Any]:
    """How many units each leaf gives up."""
    if isinstance(sparsity, dict):
        return _by_path(leaves, sparsity)
    if allocate is not None and not callable(allocate):
        return look_up(allocate, [leaf.slot for leaf in leaves], "allocate", shapes=False)
    params = {leaf.slot.key: leaf.x for leaf in leaves}
    magnitudes = leaves[0].score is None and _single(leaves[0].pattern)
    units = None if magnitudes else {leaf.slot.key: leaf.pooled() for leaf in leaves}
    counts: Any = (allocate or allocations.uniform)(params, units, sparsity)
    return [counts[leaf.slot.key] for leaf in leaves]


def _not_all(leaf: Leaf, remove: Any) -> Any:
    """How many units go: a leaf's last unit stays, for without it the network is a constant."""
    most = max(0, leaf.num_units - 1)
    return jnp.minimum(remove, most) if isinstance(remove, Tracer | jax.Array) else min(int(remove), most)


def _by_path(leaves: list[Leaf], sparsity: dict[str, Any]) -> list[Any]:
    unused = dict(sparsity)
    counts = []
    for leaf in leaves:
        rule = next((r for r in sparsity if re.fullmatch(r, leaf.slot.path)), None)
        unused.pop(rule or "", None)
        counts.append(0 if rule is None else allocations.total(sparsity[rule], leaf.num_units))
    if unused:
        rule = next(iter(unused))
        raise ValueError(
            f"prune: the rule {rule!r} matches no path. Nearest: {nearest(rule, [leaf.slot.path for leaf in leaves])}"
        )
    return counts


def _single(pattern: Pattern) -> bool:
    return pattern.pool is patterns.alone


def _pool(x: Any, score: Any, pattern: Pattern) -> Any:
    if _single(pattern):
        return x if score is None else score
    return pattern.pool(jnp.abs(x) if score is None else score)


# --- select ---


def _selected(leaf: Leaf) -> Any:
    """The mask of a pattern that chooses by itself."""
    assert leaf.pattern.select is not None
    try:
        return leaf.pattern.select(leaf.x if leaf.score is None else leaf.score, leaf.score is None)
    except ValueError as error:
        raise ValueError(f"{leaf.slot}: {error}") from None


def _largest(leaf: Leaf, remove: Any) -> Any:
    _, x, score, pattern = leaf
    if _single(pattern) and score is None and streamed.takes(x) and not isinstance(remove, Tracer):
        return put_like(streamed.keep_largest(x, int(remove)), x)
    if _single(pattern):
        return select.keep_largest(x if score is None else score, remove, magnitude=score is None)
    return pattern.spread(select.keep_largest(leaf.pooled(), remove), x.shape)


def _above(leaf: Leaf, threshold: Any) -> Any:
    magnitudes = leaf.score is None and _single(leaf.pattern)
    units = jnp.abs(leaf.x) if magnitudes else leaf.pooled()
    return leaf.pattern.spread(widen(units) >= threshold, leaf.x.shape)


def _masked(value: Any, mask: Any) -> Masked:
    if isinstance(value, Masked):
        return zero_hidden(value.replace(mask=value.mask & mask))
    return zero_hidden(Masked(value, mask))


def _refuse_empty(pruned: list[tuple[Slot, Any]], threshold: Any) -> None:
    for slot, mask in pruned:
        if not isinstance(mask, Tracer) and not count(mask):
            largest = float(jnp.max(jnp.abs(materialize(slot.value))))
            raise ValueError(
                f"threshold={threshold} removes every weight of {slot}, whose largest |w| is {largest:.6g}: lower "
                "it, or exclude the leaf with `where`"
            )


# --- siblings ---


def _mask_companions(tree: Any, pruned: list[tuple[Slot, Any]], pattern: Pattern, layout: Any) -> Any:
    """A removed output takes its bias along, and its entries of the batch norm behind it (see `core.companions`)."""
    every = slots(tree, _whole)
    units: dict[str, Any] = {}
    for slot, mask in pruned:
        outputs = {axis % mask.ndim for axis in axes_of(slot.place, layout).units}
        pruned_axes = {axis % mask.ndim for axis in _pattern_of(slot, pattern, layout).axes}
        if not pruned_axes <= outputs:
            continue  # inputs have no bias
        kept_units = units_of(slot, mask, jnp.any, layout)
        bias = bias_of(slot, every, layout)
        for other in ([] if bias is None else [bias]) + norm_of(slot, every, layout):
            units[other.path] = kept_units.reshape(other.value.shape)

    def masked(slot: Slot) -> Any:
        return _masked(slot.value, units[slot.path]) if slot.path in units else slot.value

    return walk(masked, tree, _whole)
