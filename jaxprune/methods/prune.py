"""Pruning: Δ(Θ) = where(mask, w, 0), with the mask that loses least.

    minimise Σ_{i pruned} sᵢ     over masks with round(s·n) zeros; sᵢ = |wᵢ|: Han et al. 2015,
                                 arXiv:1506.02626
    w ← 0 where |w| < τ          for a threshold

Four beats, one after another:

    score      a number for every weight                                   pruning/scored.py
    allocate   how many units each leaf gives up                           pruning/counts.py
    select     the units with the smallest scores get a False in a mask    pruning/masks.py
    encode     the weights under the mask, as `Masked`                     here

What kind of units they are is the pattern. Ties: the lowest flat index is kept. NaN is the smallest
score of all.
"""

from typing import Any, Literal, TypeAlias

from jax.typing import ArrayLike

from jaxprune.core.arguments import finite, fraction
from jaxprune.core.arrays import Masked, materialize
from jaxprune.core.compression import Compression, keep
from jaxprune.core.leaves.layout import check_layout
from jaxprune.core.trees.selection import select
from jaxprune.core.types import Compressed, Params, Schedule, WhereLike
from jaxprune.core.words import compiled
from jaxprune.methods import allocate as allocations
from jaxprune.methods import patterns
from jaxprune.methods import scores as scores_by
from jaxprune.methods.patterns import Pattern
from jaxprune.methods.pruning.companions import mask_companions
from jaxprune.methods.pruning.counts import num_removed
from jaxprune.methods.pruning.leaves import PrunedLeaf, pattern_at
from jaxprune.methods.pruning.masks import (
    check_not_empty,
    masked,
    masks_above,
    masks_by_count,
    masks_by_pattern,
)
from jaxprune.methods.pruning.scored import leaf_scores

Sparsity: TypeAlias = ArrayLike | Schedule | dict[str, ArrayLike]
"""A fraction of the units to remove, its schedule, or fractions by path."""


def prune(
    sparsity: Sparsity | None = None,
    *,
    threshold: ArrayLike | None = None,
    pattern: Pattern | str | None = None,
    score: Any = None,
    allocate: Any = None,
    layout: Any = None,
    where: WhereLike = None,
) -> Compression:
    """Sets weights to zero: a fraction, those below a threshold, or a pattern.

    Args:
      sparsity: fraction of the units to remove, in [0, 1): a number, a traced scalar, a schedule
        (step -> number; `update` then follows it), or a dict of path regex -> number for the leaves
        that it names.
      threshold: instead of a fraction: w ← 0 where |w| < threshold (or the score, or Σ|w| of a
        unit).
      pattern: `jp.patterns.n_m`, `block` or `channel`, or in words, as "2:4", "block 4x4",
        "channel"; single weights by default. N:M takes no sparsity. Names and biases tell which
        axes are inputs and outputs.
      score: a tree shaped like the params, or params -> tree (`jp.scores`), or its name:
        "magnitude" (|w|, the default), "random" (with `key=` given to init), "lamp", "fpgm",
        "saliency" and "movement" (with `grads=`). The smallest go.
      allocate: (params, scores, sparsity) -> tree of counts (`jp.allocate`), or its name: "uniform"
        (the default), "erk", "global", "lamp"; or a tree of counts.
      layout: which axes are the outputs, instead: "jax" (last), "torch" (first), or a dict of path
        regex -> axis.
      where: which leaves: a regular expression for whole paths, as "(.*/)?kernel", which passes
        over leaves without floats; a rule of `jp.where`; a tree of booleans, or a function that
        makes one. `jp.where.weights` by default.

    Returns:
      A `Compression` whose leaves are `Masked`. Exactly round(s·n) units go for a Python sparsity,
      within n·2⁻²⁴ for a traced one, which is clipped to [0, 1]; but no leaf loses its last unit,
      whatever the allocation. A pruned weight is +0.0 even if it was NaN or Inf. `update` never
      revives a weight.

    Raises:
      ValueError: for a sparsity outside [0, 1), scores that are NaN, a threshold that removes
        everything, a rule that matches nothing, an empty or integer leaf, a pattern that does not
        divide a leaf; each names path, shape, value and the fix.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"kernel": jnp.array([[0.1, -2.0], [3.0, -0.4]]), "bias": jnp.ones(2)}
      >>> sparse = jp.prune(0.5).init(params)
      >>> print(jp.materialize(sparse)["kernel"])
      [[ 0. -2.]
       [ 3.  0.]]
    """
    units = patterns.unstructured() if pattern is None else patterns.from_words(pattern)
    allocation = allocations.from_words(allocate)
    is_magnitude = isinstance(score, str) and score == "magnitude"
    # A magnitude needs no array of its own: None stands for it.
    score_of = None if is_magnitude else scores_by.from_words("prune", score)
    way = _check_arguments(sparsity, threshold, units)
    check_layout(layout, "prune")
    default = where

    def masks_of(leaves: list[PrunedLeaf], step: ArrayLike) -> list[Any]:
        if way == "pattern":
            return masks_by_pattern(leaves)
        if way == "threshold":
            return masks_above(leaves, threshold)
        counts = num_removed(leaves, _sparsity_at(sparsity, step), allocation)
        return masks_by_count(leaves, counts)

    def pruned(
        tree: Params, step: ArrayLike, where: WhereLike, extra: dict[str, Any]
    ) -> Compressed:
        selection = select(default if where is None else where, tree, is_slot=_is_slot)
        params = [materialize(slot.value) for slot in selection.slots]
        extra = (
            {**extra, "step": step} if layout is None else {**extra, "step": step, "layout": layout}
        )
        scores = leaf_scores(score_of, selection.slots, tree, extra)
        leaves = [
            PrunedLeaf(slot, weights, weight_scores, pattern_at(slot, units, layout))
            for slot, weights, weight_scores in zip(selection.slots, params, scores)
        ]
        masks = masks_of(leaves, step)
        codes = [masked(slot.value, mask) for slot, mask in zip(selection.slots, masks)]
        new = selection.replaced(codes)
        if way == "threshold":
            check_not_empty(leaves, masks, threshold)
        return mask_companions(new, leaves, masks, layout, _is_slot) if units.siblings else new

    def init(
        params: Params, *, step: ArrayLike = 0, where: WhereLike = None, **extra: Any
    ) -> Compressed:
        return pruned(params, step, where, extra)

    def update(
        tree: Compressed, *, step: ArrayLike, where: WhereLike = None, **extra: Any
    ) -> Compressed:
        return pruned(tree, step, where, extra)

    follows_training = callable(sparsity) or threshold is not None
    return Compression(init, update if follows_training else keep)


def _is_slot(code: Any) -> bool:
    """A mask goes over a whole code, unless its payload is several smaller weights (factors)."""
    return isinstance(code, Masked) or not code.payload


Way = Literal["fraction", "threshold", "pattern"]
"""What says how many units go."""


def _check_arguments(sparsity: Any, threshold: Any, pattern: Pattern) -> Way:
    """What says how many units go, if exactly one argument does."""
    if isinstance(sparsity, dict):
        for regex in sparsity:
            compiled("sparsity", regex)
    arguments = {"sparsity": sparsity, "threshold": threshold}
    budgets = [name for name, value in arguments.items() if value is not None]
    if pattern.select is not None and budgets:
        raise ValueError(
            f"prune({budgets[0]}=…, pattern=n_m(…)): N:M fixes the sparsity by itself; "
            f"give no {budgets[0]}"
        )
    if pattern.select is None and len(budgets) != 1:
        raise ValueError(
            "prune takes one of sparsity=, threshold= and an N:M pattern, "
            "as prune(0.9) or prune(threshold=0.05)"
        )
    for value in sparsity.values() if isinstance(sparsity, dict) else [sparsity]:
        if value is not None and not callable(value):
            fraction("prune(sparsity={})", value)
    if threshold is not None:
        finite("prune(threshold={})", threshold)
    if pattern.select is not None:
        return "pattern"
    return "fraction" if threshold is None else "threshold"


def _sparsity_at(sparsity: Any, step: ArrayLike) -> Any:
    """The sparsity of a step: a number, or numbers by path."""
    if not callable(sparsity):
        return sparsity
    return fraction(f"the sparsity schedule gives {{}} at step {step}", sparsity(step))
