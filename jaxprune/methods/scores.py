"""How much a weight matters: params -> a tree of scores; the smallest go first.

    magnitude   |w|              Janowsky 1989; Han et al. 2015, arXiv:1506.02626
    random      u ~ U[0, 1)      the control every method must beat
    saliency    |w·g|            Mozer & Smolensky 1989; SNIP, arXiv:1810.02340; Taylor, arXiv:1611.06440
    fisher      ½ w²·E[g²]       OBD with the empirical Fisher: LeCun et al. 1990; Theis et al., arXiv:1801.05787
    movement    −Σₜ wₜ·gₜ        Sanh et al. 2020, arXiv:2005.07683

A score is a plain function of dense params (and of keyword-only extras that `init` and `update` pass on), giving a tree
of float arrays shaped like the params. Scores never prune.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.core.tree import combine, fold_path, partition
from jaxprune.core.where import is_float, leaf_path
from jaxprune.numerics.precision import widen

Score = Callable[..., Any]


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

    return jax.tree_util.tree_map_with_path(one, params)


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
    return lambda params: _over(lambda w, g: 0.5 * w**2 * g**2, params, grads)


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


def diagonal_fisher(loss: Callable[..., Any], params: Any, batches: Iterable[tuple[Any, ...]]) -> Any:
    """E[g²] over batches: the weights h of a weighted code, as `cluster(k, score=diagonal_fisher(…))`.

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
