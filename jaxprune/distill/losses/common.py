"""The arithmetic of the losses: masked means, and logarithms, roots and quotients whose gradients
stay finite.

Where a formula has no derivative (the norm of a zero row, the logarithm of an impossible class) the
branch that is not taken is computed on a harmless number: `where` alone would multiply an infinite
derivative by zero.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxprune.distill.losses.inputs import Labels, floats, kept, without_label
from jaxprune.numerics.placement import gathered
from jaxprune.numerics.precision import widen

FLOOR = math.log(
    np.finfo(np.float32).tiny
)  # −87.3: what a class costs that one side excludes and the other does not
NO_LABEL = (
    -math.inf
)  # the value of an example whose label is ignored; no loss on labels is ever that small
FLAT = (
    1e-6  # a row whose entries differ by less, beside their size, is constant: the rest is rounding
)


def masked_mean(values: Any, mask: Any = None) -> Array:
    """Σ values / n over the n examples that the mask keeps: the loss of the paper, from the values
    of a loss here.

    The sum is float32 and, under `jit`, goes over the whole batch however it is sharded. With
    nothing kept it is 0. A value of −∞ is that of an example without a label (−100): it is neither
    in the sum nor in n.

    Args:
      values: (*examples), of a loss.
      mask: the mask that the loss had, or None. One of more axes (of positions) keeps an example
        that has any.

    Returns:
      A scalar, float32.

    Raises:
      ValueError: a mask that is not boolean or whose leading axes are not those of the values.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.masked_mean(jnp.array([1.0, 3.0, 8.0]),
      ...     mask=jnp.array([True, True, False])))
      2.0
    """
    values = widen(floats("values", values))
    if mask is not None and jnp.ndim(mask) > values.ndim:
        mask = jnp.any(kept(mask, jnp.shape(mask)), axis=tuple(range(values.ndim, jnp.ndim(mask))))
    keep = kept(mask, values.shape) & (values != NO_LABEL)
    return jnp.sum(jnp.where(keep, values, 0)) / count(keep, None, values.dtype)


def finish(values: Array, keep: Array) -> Array:
    """The values of the kept examples, and zeros."""
    return jnp.where(keep, values, 0)


def finish_labelled(values: Array, labels: Labels) -> Array:
    """The values of the examples that have a label; −∞ where it is ignored, NaN where it is no
    class, else zeros.
    """
    values = jnp.where(labels.ignored, NO_LABEL, finish(values, labels.keep))
    return jnp.where(labels.wrong, jnp.nan, values)


def count(keep: Array, axis: int | tuple[int, ...] | None, dtype: Any) -> Array:
    """How many are kept, at least 1: a divisor."""
    return jnp.maximum(jnp.sum(keep, axis, dtype=dtype), 1)


def number(x: Any, like: Array) -> Array:
    """A number in the dtype of the loss."""
    return jnp.asarray(x, like.dtype)


def safe_sqrt(x: Array) -> Array:
    """√x for x >= 0; its derivative at 0 is 0."""
    some = x > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, x, 1)), jnp.where(jnp.isnan(x), x, 0))


def safe_divide(a: Array, b: Array) -> Array:
    """a / b, and 0 where b = 0."""
    some = b != 0
    return jnp.where(some, a / jnp.where(some, b, 1), 0)


def norm(x: Array) -> Array:
    """‖x‖ over the last axis."""
    return safe_sqrt(jnp.sum(jnp.square(x), -1))


def unit(x: Array) -> Array:
    """x / ‖x‖ over the last axis; a zero row stays zero. Neither huge nor tiny rows leave the range
    of a float.
    """
    size = lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True, initial=0))
    y = safe_divide(x, size)
    return safe_divide(y, norm(y)[..., None])


def centred(x: Array, keep: Array, axis: int | tuple[int, ...]) -> Array:
    """x − mean, over the kept entries of an axis, of norm 1; zero where x is constant."""
    x = jnp.where(keep, x, 0)
    n = jnp.maximum(jnp.sum(keep, axis, x.dtype, keepdims=True), 1)
    c = jnp.where(keep, x - jnp.sum(x, axis, keepdims=True) / n, 0)
    length = safe_sqrt(jnp.sum(jnp.square(c), axis, keepdims=True))
    flat = length <= FLAT * jnp.sqrt(lax.stop_gradient(jnp.sum(jnp.square(x), axis, keepdims=True)))
    return jnp.where(flat, 0, c / jnp.where(flat, 1, length))


def huber(x: Array) -> Array:
    """x²/2 up to |x| = 1, |x| − 1/2 beyond."""
    size = jnp.abs(x)
    return jnp.where(size <= 1, 0.5 * jnp.square(x), size - 0.5)


def dot(a: Array, b: Array) -> Array:
    """a bᵀ over the last axis, in full precision on every device."""
    return jnp.matmul(a, jnp.swapaxes(b, -1, -2), precision="highest")


def gram(x: Array) -> Array:
    """x xᵀ of (batch, features): row i, which stays where example i is, meets the whole global
    batch.
    """
    return dot(x, gathered(x))


def log_sum_exp(x: Array) -> Array:
    """log Σ exp(x) over the last axis; −inf, with derivative 0, where all entries are −inf."""
    none = silent(x)
    return jnp.where(none, -jnp.inf, jax.nn.logsumexp(jnp.where(none[..., None], 0, x), axis=-1))


def log_softmax(z: Array, temperature: Any) -> Array:
    """log softmax(z / T) over the last axis. An impossible class (−inf) stays −inf; so does a row
    of nothing else.
    """
    gone = z == -jnp.inf
    z = jnp.where(gone, -jnp.inf, jnp.where(gone, 0, z) / number(temperature, z))
    none = jnp.all(gone, -1, keepdims=True)
    return jnp.where(none, -jnp.inf, jax.nn.log_softmax(jnp.where(none, 0, z)))


def floored(log_p: Array) -> Array:
    """log p, where an impossible class counts as if it had the smallest float32 probability,
    e^−87.3.
    """
    return jnp.where(log_p == -jnp.inf, FLOOR, log_p)


def kl(log_p: Array, log_q: Array) -> Array:
    """KL(p ‖ q) over the last axis, of logarithms that are normalised.

    Σ p log(p/q) adds terms of the size of p and of both signs, and at a high temperature its
    rounding errors outgrow it. As Σq = Σp it is also Σ p (e^d − 1 − d) with d = log q − log p: no
    term is negative, and small ones keep their digits. What only q excludes costs `floored`; a row
    that excludes everything says nothing and costs 0.
    """
    possible = ~(log_p == -jnp.inf)
    p = jnp.exp(log_p)
    q = jnp.exp(log_q)
    d = jnp.where(possible, floored(log_q) - jnp.where(possible, log_p, 0), 0)
    near = jnp.abs(d) < 1
    small = jnp.where(near, d, 0)
    terms = jnp.where(possible, jnp.where(near, p * (jnp.expm1(small) - small), q - p - p * d), q)
    return jnp.where(silent(log_p) | silent(log_q), 0, jnp.sum(terms, -1))


def silent(log_p: Array) -> Array:
    """The rows that exclude every class."""
    return jnp.all(log_p == -jnp.inf, -1)


def cross_entropy(log_q: Array, label: Array) -> Array:
    """−log q of the label, given as booleans over the classes."""
    return -jnp.sum(jnp.where(label, floored(log_q), 0), -1)


def label_cost(logits: Array, labels: Array) -> Array:
    """−log q of integer labels: −∞ where one is ignored (−100); NaN for one out of range, so that
    no mean hides it.
    """
    log_q = floored(log_softmax(widen(logits), 1.0))
    classes = logits.shape[-1]
    index = jnp.where(labels < 0, classes, labels)[
        ..., None
    ]  # a negative index would count from the end
    cost = -jnp.take_along_axis(log_q, index, -1, mode="fill")[..., 0]
    return jnp.where(without_label(labels), NO_LABEL, cost)


def mean_where(x: Array, keep: Array, axes: Sequence[int]) -> Array:
    """The mean of x over axes, of what is kept."""
    return jnp.sum(jnp.where(keep, x, 0), tuple(axes)) / count(keep, tuple(axes), x.dtype)


def position_mean(values: Array, keep: Array) -> Array:
    """The mean over the kept positions of an example, (batch, *positions) -> (batch,)."""
    return mean_where(values, keep, range(1, keep.ndim))


def position_sum(values: Array, keep: Array) -> Array:
    """The sum over channels and the kept positions."""
    return jnp.sum(jnp.where(keep, jnp.sum(values, -1), 0), tuple(range(1, keep.ndim)))


def any_position(keep: Array) -> Array:
    """The examples of which anything is kept."""
    return jnp.any(keep, tuple(range(1, keep.ndim)))
