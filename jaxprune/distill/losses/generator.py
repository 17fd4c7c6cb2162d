"""Losses that train a generator against a teacher, so that a student may learn without data.

    z_t           the teacher's logits on generated images, (*examples, classes);  p = softmax(z_t)
    features      what is inside the teacher, (batch, *positions, channels)

There is no student here: the one argument is what the teacher says. All of it is differentiated,
back to the images. One value an example, float32. Two formulas are of the whole batch: an example
then has its part, and `masked_mean` of the parts is the formula.

Sources: Chen et al. 2019 (DAFL), arXiv:1904.01186; Yin et al. 2020 (DeepInversion),
arXiv:1912.08795.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxprune.distill.losses import inputs
from jaxprune.distill.losses.common import (
    any_position,
    count,
    cross_entropy,
    finish,
    finish_labelled,
    floored,
    log_softmax,
    mean_where,
    number,
    position_mean,
    position_sum,
)
from jaxprune.numerics.precision import widen


def one_hot(teacher: Any, *, labels: Any = None, mask: Any = None) -> Array:
    """−log p_y, y = argmax z_t or the label asked for: the teacher shall be sure of the image.

    Args:
      teacher: z_t, (*examples, classes).
      labels: (*examples,) of integers, those that a class-conditional generator was given; None:
        the teacher's own top class, which is held constant. The label −100 leaves its example out
        (its value is −∞, which `masked_mean` passes over); under `jit` one that is no class gives
        NaN.
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: integers for logits; concrete labels out of range that the mask keeps; a mask of
        another shape.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> z = jnp.array([[2.0, 0.0], [0.0, 0.0]])
      >>> print(jp.distill.losses.one_hot(z).round(3),
      ...     jp.distill.losses.one_hot(z, labels=jnp.array([1, 1])).round(3))
      [0.127 0.693] [2.127 0.693]

    Source: Chen et al. 2019 (DAFL), arXiv:1904.01186; with labels, Yin et al. 2020,
    arXiv:1912.08795.
    """
    z, keep = _logits(teacher, mask)
    labels = jnp.argmax(lax.stop_gradient(z), -1) if labels is None else labels
    label = inputs.labelled(labels, z.shape, keep)
    return finish_labelled(cross_entropy(log_softmax(z, 1.0), label.hot), label)


def information_entropy(teacher: Any, *, mask: Any = None) -> Array:
    """Σ_c p_c log p̄_c, p̄ the mean of p over the batch: its mean is Σ p̄ log p̄, minus the entropy
    of the classes.

    At its least, −log C, the batch holds every class alike. The mean goes over the kept examples of
    the global batch.

    Args:
      teacher: z_t, (*examples, classes).
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32, <= 0.

    Raises:
      ValueError: integers for logits; a mask of another shape.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> # −log 2
      >>> print(jp.distill.losses.information_entropy(jnp.array([[99.0, 0.0],
      ...     [0.0, 99.0]])).round(3))
      [-0.693 -0.693]

    Source: Chen et al. 2019 (DAFL), arXiv:1904.01186. The authors' code has the logarithm to base
    10: its weight of 5 is 2.2 here.
    """
    z, keep = _logits(teacher, mask)
    log_p = log_softmax(z, 1.0)
    axes = tuple(range(z.ndim - 1))
    log_mean = _log_sum_exp(jnp.where(keep[..., None], log_p, -jnp.inf), axes) - jnp.log(
        count(keep, None, z.dtype)
    )
    return finish(jnp.sum(jnp.exp(log_p) * floored(log_mean), -1), keep)


def activation_magnitude(teacher: Any, *, channel_axis: int = -1, mask: Any = None) -> Array:
    """−(1/N) Σ |f| over the N positions and channels: real images excite the teacher's filters more
    than noise.

    Args:
      teacher: f, features of the teacher, (batch, *positions, channels).
      channel_axis, mask: as `hint`.

    Returns:
      (batch,), float32, <= 0.

    Raises:
      ValueError: features without a batch; a channel axis out of range; a mask of another shape or
        dtype.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.activation_magnitude(jnp.array([[1.0, -3.0], [0.0, 0.5]])))
      [-2.   -0.25]

    Source: Chen et al. 2019 (DAFL), arXiv:1904.01186: the norm ‖f‖₁, N times this; the authors'
    code takes the mean.
    """
    f, keep = _maps(teacher, mask, channel_axis)
    return finish(-position_mean(jnp.mean(jnp.abs(f), -1), keep), any_position(keep))


def batch_norm_matching(
    teacher: Any, *, mean: Any, var: Any, channel_axis: int = -1, mask: Any = None
) -> Array:
    """‖μ̂ − μ‖² + ‖σ̂² − σ²‖²: the batch's moments against those that a batch norm has stored of
    the real data.

        μ̂_c, σ̂²_c   mean and variance (of n, not n − 1) over the kept examples and positions of
                      the global batch
        d = μ̂ − μ,  e = σ̂² − σ²;     example i has (n / N) Σ_positions d·(f − μ) + e·((f − μ̂)² −
                                       σ²)

    with n examples and N positions in all. The mean of the parts is the formula; one part alone may
    be negative.

    Args:
      teacher: f, what goes INTO the teacher's batch norm, (batch, *positions, channels).
      mean, var: its running statistics, (channels,).
      channel_axis, mask: as `hint`.

    Returns:
      (batch,), float32.

    Raises:
      ValueError: as `activation_magnitude`; statistics of another width, or a concrete variance
        below 0.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> # mean 2, variance 1
      >>> f = jnp.array([[1.0], [3.0]])
      >>> values = jp.distill.losses.batch_norm_matching(f, mean=jnp.array([0.0]),
      ...     var=jnp.array([4.0]))
      >>> print(values, values.mean())                                              # 2² + 3²
      [11. 15.] 13.0

    Source: Yin et al. 2020, arXiv:1912.08795, which sums this over layers, and takes norms that are
    not squared.
    """
    f, keep = _maps(teacher, mask, channel_axis)
    if inputs.concrete(var) and (np.asarray(var) < 0).any():
        raise ValueError(f"var: its least is {np.asarray(var).min()}; a variance is >= 0")
    mean = _statistic("mean", mean, f)
    var = _statistic("var", var, f)
    axes = range(f.ndim - 1)
    kept = keep[..., None]
    off = jnp.where(kept, f - mean, 0)
    spread = jnp.where(kept, jnp.square(f - mean_where(f, kept, axes)) - var, 0)
    d = mean_where(off, kept, axes)
    e = mean_where(spread, kept, axes)
    share = count(any_position(keep), None, f.dtype) / count(keep, None, f.dtype)
    return finish(share * position_sum(d * off + e * spread, keep), any_position(keep))


def _logits(teacher: Any, mask: Any) -> tuple[Array, Array]:
    """(*examples, classes) and the mask (*examples)."""
    z = widen(inputs.floats("teacher", teacher))
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ValueError(f"teacher {z.shape}: give logits (*examples, classes)")
    keep = inputs.kept(mask, z.shape[:-1])
    return inputs.zeroed(z, keep), keep


def _maps(teacher: Any, mask: Any, channel_axis: int) -> tuple[Array, Array]:
    """(batch, *positions, channels) and what is kept, (batch, *positions)."""
    f = inputs.channels_last("teacher", widen(inputs.floats("teacher", teacher)), channel_axis)
    keep = inputs.kept(mask, f.shape[:-1], f.shape[:1])
    return inputs.zeroed(f, keep), keep


def _statistic(name: str, x: Any, like: Array) -> Array:
    x = inputs.floats(name, x).astype(like.dtype)
    if x.shape != like.shape[-1:]:
        raise ValueError(
            f"{name}: shape {x.shape}; the features have {like.shape[-1]} channels, one for each"
        )
    return x


def _log_sum_exp(x: Array, axes: tuple[int, ...]) -> Array:
    """log Σ exp(x) over the examples; −inf, with derivative 0, for a class that all exclude."""
    none = jnp.all(x == -jnp.inf, axes)
    return jnp.where(none, -jnp.inf, jax.nn.logsumexp(jnp.where(none, number(0, x), x), axis=axes))
