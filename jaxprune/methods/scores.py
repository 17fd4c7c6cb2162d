"""How much a weight matters: params -> a tree of scores; the smallest go first.

    magnitude   |w|              Janowsky 1989; Han et al. 2015, arXiv:1506.02626
    random      u ~ U[0, 1)      the control every method must beat
    saliency    |w·g|            Mozer & Smolensky 1989; SNIP, arXiv:1810.02340; Taylor, arXiv:1611.06440
    fisher      ½ w²·E[g²]       OBD with the empirical Fisher: LeCun et al. 1990; Theis et al., arXiv:1801.05787
    obd         ½ w²·max(h, 0)   h = diag ∇²L by Hutchinson's probes: LeCun et al. 1990; Yao et al., arXiv:2006.00719
    movement    −Σₜ wₜ·gₜ        Sanh et al. 2020, arXiv:2005.07683
    lamp        w² / Σ_{v² >= w²} v²   over the leaf: Lee et al. 2021, arXiv:2010.07611
    wanda       |w|·√E[x²]       x: what w is multiplied with: Sun et al. 2023, arXiv:2306.11695
    fpgm        Σⱼ ‖Fᵢ − Fⱼ‖     filters far from all others stay: He et al. 2019, arXiv:1811.00250
    only        any of these, of some leaves: of scales of norms it is network slimming (Liu et al. 2017,
                arXiv:1708.06519)

A score is a plain function of dense params (and of keyword-only extras that `init` and `update` pass on), giving a tree
of float arrays shaped like the params; None where a leaf has no score. Scores never prune.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprune.core.arguments import whole
from jaxprune.core.compression import call
from jaxprune.core.leaves.layout import axes_of, check_layout
from jaxprune.core.leaves.paths import leaf_path, map_with_path
from jaxprune.core.leaves.where import Slot, Where, as_rule, is_float, leaf_slots, weights
from jaxprune.core.tree import combine, fold_path, no_match, partition
from jaxprune.core.words import choice
from jaxprune.numerics.affine import power_of_two, ratio
from jaxprune.numerics.precision import widen

Score = Callable[..., Any]
Word = Literal["magnitude", "random", "lamp", "fpgm"]


def _over(f: Callable[..., Any], *trees: Any) -> Any:
    """f on the float leaves, in float32 or wider; other leaves stay."""
    return jax.tree.map(lambda x, *xs: f(widen(x), *map(widen, xs)) if is_float(x) else x, *trees)


def magnitude(params: Any) -> Any:
    """|w|.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.magnitude(jnp.array([-3.0, 2.0])))
      [3. 2.]
    """
    return _over(jnp.abs, params)


def random(params: Any, *, key: jax.Array) -> Any:
    """Uniform noise from an explicit key, folded with each leaf's path: one more leaf changes no other's mask.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> tree = jp.prune(0.5, score=jp.scores.random).init({"w": jnp.ones((4, 4))}, key=jax.random.key(0))
      >>> int(tree["w"].mask.sum())
      8
    """

    def one(keys: Any, x: Any) -> Any:
        return jax.random.uniform(fold_path(key, leaf_path(keys)), x.shape) if is_float(x) else x

    return map_with_path(one, params)


def saliency(params: Any, *, grads: Any) -> Any:
    """|w·g|: the first-order change of the loss when w goes. `grads` are with respect to the dense params.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.saliency(jnp.array([1.0, 2.0]), grads=jnp.array([3.0, -1.0])))
      [3. 2.]
    """
    return _over(lambda w, g: jnp.abs(w * g), params, grads)


def fisher_from(grads: Any) -> Score:
    """½ w²·g²: the diagonal Fisher of one gradient, or of any tree whose squares average to it.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.fisher_from(jnp.array([1.0, 2.0]))(jnp.array([2.0, 1.0])))
      [2. 2.]
    """
    return lambda params: _over(lambda w, g: 0.5 * (w * g) ** 2, params, grads)  # w² alone may overflow


def fisher(loss: Callable[..., Any], params: Any, batches: Iterable[tuple[Any, ...]]) -> Any:
    """½ w²·F with F = E[g²], the empirical diagonal Fisher over batches.

    Args:
      loss: (params, *batch) -> scalar.
      params: dense params at which the gradients are taken.
      batches: tuples of the arguments after params. One example a batch gives the Fisher itself; larger batches average
        g first.

    Returns:
      A tree of scores, float32: pass it as `score=`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.fisher(lambda w, x: jnp.sum(w * x), jnp.ones(2), [(jnp.array([1.0, 2.0]),)]))
      [0.5 2. ]
    """
    mean = diagonal_fisher(loss, params, batches)
    return _over(lambda w, f: 0.5 * w**2 * f, params, mean)


def obd(
    loss: Callable[..., Any], params: Any, batches: Iterable[tuple[Any, ...]], *, key: jax.Array, probes: int = 1
) -> Any:
    """½ w²·max(h, 0) with h the diagonal of the Hessian: optimal brain damage.

    h = E[r ∘ ∇²L r] over signs r, exact with one probe where the Hessian is diagonal (Hutchinson 1989; Bekas et al.
    2007).

    Args:
      loss: (params, *batch) -> scalar.
      params: dense params at which the Hessian is taken.
      batches: tuples of the arguments after params.
      key: of the signs.
      probes: sign vectors a batch; the error falls as 1/√(probes · batches).

    Returns:
      A tree of scores, float32: pass it as `score=`.

    Raises:
      ValueError: no batches.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> loss = lambda w, x: jnp.sum(x * w**2)                       # h = 2 x
      >>> print(jp.scores.obd(loss, jnp.array([2.0, 1.0]), [(jnp.array([1.0, 3.0]),)], key=jax.random.key(0)))
      [4. 3.]
    """
    probes = whole("obd(probes={})", probes)
    free, fixed = partition(params)

    @jax.jit
    def probed(p: Any, key: jax.Array, *batch: Any) -> Any:
        leaves, tree = jax.tree.flatten(p)
        keys = jax.random.split(key, len(leaves))
        signs = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
        gradient = jax.grad(lambda p: loss(combine(p, fixed), *batch))
        bent = jax.jvp(gradient, (p,), (jax.tree.unflatten(tree, signs),))[1]
        return jax.tree.map(lambda h, r: (h * r).astype(jnp.float32), bent, jax.tree.unflatten(tree, signs))

    total, n = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), free), 0
    for batch in batches:
        for _ in range(probes):
            total = jax.tree.map(jnp.add, total, probed(free, jax.random.fold_in(key, n), *batch))
            n += 1
    if n == 0:
        raise ValueError("obd: there are no batches; it takes an iterable of tuples of the arguments after params")
    return _over(lambda w, h: 0.5 * w**2 * jnp.maximum(h / n, 0), params, combine(total, fixed))


def diagonal_fisher(loss: Callable[..., Any], params: Any, batches: Iterable[tuple[Any, ...]]) -> Any:
    """E[g²] over batches: the weights h of a weighted code, as `cluster(k, curvature=diagonal_fisher(…))`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.diagonal_fisher(lambda w, x: jnp.sum(w * x), jnp.ones(2), [(jnp.array([1.0, 2.0]),)]))
      [1. 4.]
    """
    free, fixed = partition(params)
    gradient = jax.jit(jax.grad(lambda p, *batch: loss(combine(p, fixed), *batch)))
    total, n = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), free), 0
    for batch in batches:
        total = jax.tree.map(lambda t, g: t + g.astype(jnp.float32) ** 2, total, gradient(free, *batch))
        n += 1
    if n == 0:
        raise ValueError("fisher: there are no batches; it takes an iterable of tuples of the arguments after params")
    return combine(jax.tree.map(lambda t: t / n, total), fixed)


def movement(params: Any, *, grads: Any, so_far: Any = None) -> Any:
    """−Σ w·g: weights that training moves towards zero score low. Carry the returned tree as `so_far`, then pass it as
    `score=`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w, g = jnp.array([1.0, 1.0]), jnp.array([0.5, -0.5])        # the first shrinks, the second grows
      >>> print(jp.scores.movement(w, grads=g, so_far=jp.scores.movement(w, grads=g)))
      [-1.  1.]
    """
    if so_far is None:
        return _over(lambda w, g: -w * g, params, grads)
    return _over(lambda w, g, s: s - w * g, params, grads, so_far)


def lamp(params: Any) -> Any:
    """w² / Σ v² over the v of its leaf with v² >= w²: 1 for the largest weight of every leaf, whatever its scale.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.lamp(jnp.array([3.0, -4.0, 0.0])))          # 9 / (9 + 16), 16 / 16
      [0.36 1.   0.  ]
    """

    def one(w: jax.Array) -> jax.Array:
        # Scores do not depend on the leaf's scale: over a power of two, squares neither overflow nor vanish.
        unit = power_of_two(jnp.max(jnp.abs(w), initial=0).reshape((1,) * w.ndim))
        square = jnp.square(ratio(w, unit)).reshape(-1)
        order = jnp.argsort(square)
        rest = jnp.cumsum(square[order][::-1])[::-1]
        return jnp.zeros_like(square).at[order].set(square[order] / jnp.where(rest > 0, rest, 1)).reshape(w.shape)

    return _over(one, params)


def wanda(norms: Any) -> Score:
    """|w|·√E[x²], with x what the weight is multiplied with; None where that is not known.

    Args:
      norms: √E[x²] of every weight, a tree like the params with None for leaves that multiply nothing: `jp.input_rms`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.wanda({"w": jnp.array([1.0, 10.0]), "b": None})({"w": jnp.array([-3.0, 2.0]), "b": 1.0}))
      {'b': None, 'w': Array([ 3., 20.], dtype=float32)}
    """
    one = lambda n, w: None if n is None else jnp.abs(widen(w)) * n
    return lambda params: jax.tree.map(one, norms, params, is_leaf=lambda n: n is None)


def fpgm(params: Any, *, axis: int | Literal["outputs"] = "outputs", layout: Any = None) -> Any:
    """Σⱼ ‖Fᵢ − Fⱼ‖ / √n for every weight of filter i: filters that the others can stand for have small ones.

    n is the number of weights of a filter, so the L2 norm of a filter's scores is its distance to all others.

    Args:
      params: dense params; `jp.where.weights` of them get a score, the others None.
      axis: that numbers the filters of a leaf. By default the outputs, as names and biases tell
        (docs/layers.md): the last axis of a `kernel` or `w`, the first of a `weight`.
      layout: which axes are the outputs, instead: "jax" (last), "torch" (first), or a dict of path regex -> axis;
        `prune` hands on its own.

    Raises:
      ValueError: for an axis that a leaf lacks, another layout.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([[0.0, 0.0, 3.0], [0.0, 0.0, 4.0]])            # filters (0, 0), (0, 0), (3, 4)
      >>> print(jnp.linalg.norm(jp.scores.fpgm({"w": w})["w"], axis=0))
      [ 5.  5. 10.]
    """
    if axis != "outputs":
        axis = whole("fpgm(axis={})", axis, None)
    check_layout(layout, "fpgm")

    def distances(slot: Slot) -> Any:
        w = slot.value
        if not is_float(w) or w.ndim < 2:
            return w
        filters = axes_of(slot.place, layout).outputs if axis == "outputs" else (axis,)
        if any(not -w.ndim <= a < w.ndim for a in filters):
            raise ValueError(f"fpgm(axis={axis}): an array of the shape {w.shape} has no such axis")
        return _filter_distances(widen(w), tuple(a % w.ndim for a in filters))

    def of_all(params: Any) -> Any:
        slots, treedef = leaf_slots(params)
        return jax.tree.unflatten(treedef, [distances(slot) for slot in slots])

    return only(weights, of_all)(params)


def _filter_distances(w: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The distance of each filter to all others over √n, shaped like w; filters are numbered by the axes together."""
    unit = power_of_two(jnp.max(jnp.abs(w), initial=0).reshape((1,) * w.ndim))
    shape = [n if axis in axes else 1 for axis, n in enumerate(w.shape)]
    filters = jnp.moveaxis(ratio(w, unit), axes, range(len(axes))).reshape(math.prod(shape), -1)

    def distance(one: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.square(filters - one).sum(1)).sum()

    distances = jax.lax.map(distance, filters) / filters.shape[1] ** 0.5
    return jnp.broadcast_to(distances.reshape(shape) * unit, w.shape)


def only(where: Where | str, score: "Score | str" = magnitude) -> Score:
    """A score of the leaves that a rule selects, None for all others.

    Args:
      where: a rule of `jp.where`, or a regular expression for whole paths.
      score: of them; a function of dense params, or a word of `from_words`.

    Raises:
      ValueError: the rule selects nothing.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> slimming = jp.scores.only("(.*/)?scale")
      >>> print(slimming({"kernel": jnp.ones((2, 2)), "scale": jnp.array([0.5, -2.0])}))
      {'kernel': None, 'scale': Array([0.5, 2. ], dtype=float32)}
    """

    rule = as_rule(where)
    score_of = from_words("only", score)
    if not callable(score_of):
        raise ValueError(f"only(score={score!r}): give a function of dense params, as jp.scores.magnitude, or its name")

    def chosen(params: Any, **extra: Any) -> Any:
        found = jax.tree.map(lambda chosen, s: s if chosen else None, rule(params), call(score_of, params, **extra))
        if not jax.tree.leaves(found):
            raise no_match(where, params)
        return found

    return chosen


BY_WORD: dict[str, Score] = {
    "magnitude": magnitude,
    "random": random,
    "lamp": lamp,
    "fpgm": fpgm,
    "saliency": saliency,
    "movement": movement,
}
"""The scores that need no data: what they do need, as a key, `init` and `update` are given."""

FROM_DATA = {
    "fisher": "jp.scores.fisher(loss, params, batches)",
    "obd": "jp.scores.obd(loss, params, batches, key=jax.random.key(0))",
    "wanda": "jp.scores.wanda(jp.input_rms(f, params, batches))",
    "fisher_from": "jp.scores.fisher_from(grads)",
}


def from_words(call: str, score: Any) -> Any:
    """The score that a word names, as recipes and `jp.prune` have it; functions, and trees of scores, as they are.

    Args:
      call: that takes the score, for the error.
      score: a word of `BY_WORD`, or anything else.

    Raises:
      ValueError: a word that names no score; one of a score that is made from data, with the call that makes it.

    Example:
      >>> import jaxprune as jp
      >>> jp.prune(0.5, score="fisher")
      Traceback (most recent call last):
      ValueError: prune(score='fisher'): it is made from data: give score=jp.scores.fisher(loss, params, batches)
    """
    if not isinstance(score, str):
        return score
    if score in FROM_DATA:
        raise ValueError(f"{call}(score={score!r}): it is made from data: give score={FROM_DATA[score]}")
    return BY_WORD[choice(f"{call}(score={{}})", score, BY_WORD)]
