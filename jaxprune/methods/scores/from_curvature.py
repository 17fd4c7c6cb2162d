"""Optimal brain damage: ½ h w², the change of the loss to second order when w goes.

fisher   h = E[g²]               the empirical diagonal Fisher: Theis et al. 2018, arXiv:1801.05787
obd      h = max(diag ∇²L, 0)    LeCun, Denker & Solla 1990; the diagonal is E[r ∘ ∇²L r] over signs
                                 r (Hutchinson's probes; Yao et al. 2020, arXiv:2006.00719)
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.core.arguments import whole
from jaxprune.core.trees.partition import combine, partition
from jaxprune.core.types import Params, PRNGKey
from jaxprune.methods.scores.types import Score, Scores, map_floats

Loss = Callable[..., Any]
Batches = Iterable[tuple[Any, ...]]


def fisher_from(grads: Any) -> Score:
    """½ w²·g²: the diagonal Fisher of one gradient, or of any tree whose squares average to it.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.fisher_from(jnp.array([1.0, 2.0]))(jnp.array([2.0, 1.0])))
      [2. 2.]
    """

    def score(params: Params) -> Scores:
        return map_floats(lambda w, g: 0.5 * (w * g) ** 2, params, grads)  # w² alone may overflow

    return score


def fisher(loss: Loss, params: Params, batches: Batches) -> Scores:
    """½ w²·F with F = E[g²], the empirical diagonal Fisher over batches.

    Args:
      loss: (params, *batch) -> scalar.
      params: dense params at which the gradients are taken.
      batches: tuples of the arguments after params. One example a batch gives the Fisher itself;
        larger batches average g first.

    Returns:
      A tree of scores, float32: pass it as `score=`.

    Raises:
      ValueError: no batches.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> batches = [(jnp.array([1.0, 2.0]),)]
      >>> print(jp.scores.fisher(lambda w, x: jnp.sum(w * x), jnp.ones(2), batches))
      [0.5 2. ]
    """
    information = diagonal_fisher(loss, params, batches)
    return map_floats(lambda w, h: 0.5 * w**2 * h, params, information)


def diagonal_fisher(loss: Loss, params: Params, batches: Batches) -> Any:
    """E[g²] over batches: a curvature, as `cluster(k, curvature=diagonal_fisher(…))` takes it.

    Args:
      loss: (params, *batch) -> scalar.
      params: dense params at which the gradients are taken.
      batches: tuples of the arguments after params.

    Returns:
      A tree like the params, float32.

    Raises:
      ValueError: no batches.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> batches = [(jnp.array([1.0, 2.0]),)]
      >>> print(jp.scores.diagonal_fisher(lambda w, x: jnp.sum(w * x), jnp.ones(2), batches))
      [1. 4.]
    """
    free, fixed = partition(params)

    def loss_of_floats(free: Any, *batch: Any) -> Any:
        return loss(combine(free, fixed), *batch)

    gradient = jax.jit(jax.grad(loss_of_floats))
    total = _zeros_like(free)
    num_batches = 0
    for batch in batches:
        grads = gradient(free, *batch)
        total = jax.tree.map(lambda t, g: t + g.astype(jnp.float32) ** 2, total, grads)
        num_batches += 1
    _check_batches("fisher", num_batches)
    return combine(jax.tree.map(lambda t: t / num_batches, total), fixed)


def obd(loss: Loss, params: Params, batches: Batches, *, key: PRNGKey, probes: int = 1) -> Scores:
    """½ w²·max(h, 0) with h the diagonal of the Hessian: optimal brain damage.

    h = E[r ∘ ∇²L r] over signs r, exact with one probe where the Hessian is diagonal (Hutchinson
    1989; Bekas et al. 2007).

    Args:
      loss: (params, *batch) -> scalar.
      params: dense params at which the Hessian is taken.
      batches: tuples of the arguments after params.
      key: of the signs.
      probes: sign vectors a batch; the error falls as 1/√(probes · batches).

    Returns:
      A tree of scores, float32: pass it as `score=`.

    Raises:
      ValueError: no batches; probes that are no integer of at least 1.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> loss = lambda w, x: jnp.sum(x * w**2)                       # h = 2 x
      >>> batches = [(jnp.array([1.0, 3.0]),)]
      >>> print(jp.scores.obd(loss, jnp.array([2.0, 1.0]), batches, key=jax.random.key(0)))
      [4. 3.]
    """
    probes = whole("obd(probes={})", probes)
    free, fixed = partition(params)

    @jax.jit
    def probed_diagonal(free: Any, key: PRNGKey, *batch: Any) -> Any:
        signs = _random_signs(key, free)

        def loss_of_floats(free: Any) -> Any:
            return loss(combine(free, fixed), *batch)

        _, hessian_times_signs = jax.jvp(jax.grad(loss_of_floats), (free,), (signs,))
        return jax.tree.map(lambda h, r: (h * r).astype(jnp.float32), hessian_times_signs, signs)

    total = _zeros_like(free)
    num_probes = 0
    for batch in batches:
        for _ in range(probes):
            probe = probed_diagonal(free, jax.random.fold_in(key, num_probes), *batch)
            total = jax.tree.map(jnp.add, total, probe)
            num_probes += 1
    _check_batches("obd", num_probes)

    def score(w: Any, h: Any) -> Any:
        return 0.5 * w**2 * jnp.maximum(h / num_probes, 0)

    return map_floats(score, params, combine(total, fixed))


def _random_signs(key: PRNGKey, tree: Any) -> Any:
    """A tree of ±1, in the dtypes of the tree's leaves."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    signs = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(treedef, signs)


def _zeros_like(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)


def _check_batches(call: str, num_batches: int) -> None:
    if num_batches == 0:
        raise ValueError(
            f"{call}: there are no batches; it takes an iterable of tuples of the arguments "
            "after params"
        )
