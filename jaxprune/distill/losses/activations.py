"""Losses on feature maps that model the teacher's activations: how well they can be told, and which
side of 0 they lie.

Shapes, sizes and masks are as in `features.py`. Activation boundaries and the margin ReLU are sums
over the neurons of an example, as in the papers and in every library; VID is a mean.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm as normal

from jaxprune.core import arguments
from jaxprune.distill.losses import inputs
from jaxprune.distill.losses.common import (
    any_position,
    finish,
    position_mean,
    position_sum,
    safe_divide,
)


def vid(
    student: Any,
    teacher: Any,
    *,
    raw_variance: Any,
    eps: float = 1e-5,
    channel_axis: int = -1,
    mask: Any = None,
) -> Array:
    """(1/N) Σ ½ ((t − μ)² / σ_c² + log σ_c²): minus a Gaussian's log likelihood of the teacher
    (VID).

    σ_c² = softplus(raw_c) + ε, one a channel, is trained with the student: it settles at the mean
    squared error of its channel, and so weighs channels by how well they can be told. Constants are
    dropped: the value may be negative.

    Args:
      student: μ, the student's features through a trained regressor, (batch, *positions, channels).
      teacher: t, with the same channels.
      raw_variance: (channels,), a parameter: start it with `vid_raw_variance` and give it to the
        optimiser.
      eps: ε, the least variance.
      channel_axis, mask: as `hint`.

    Returns:
      (batch,), float32.

    Raises:
      ValueError: as `hint`; a raw variance of another shape.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> raw = jp.distill.losses.vid_raw_variance(3, variance=1.0)
      >>> print(jp.distill.losses.vid(jnp.zeros((1, 2, 2, 3)), jnp.ones((1, 2, 2, 3)),
      ...     raw_variance=raw).round(3))
      [0.5]

    Source: Ahn et al. 2019, arXiv:1904.05835. mdistiller holds the variances in a plain list, so
    its optimiser never sees them and they stay at their first value.
    """
    s, t, keep = inputs.maps(student, teacher, mask, channel_axis, same_channels=True)
    inputs.positive("eps", eps)
    raw = _per_channel("raw_variance", raw_variance, s)
    variance = jnp.logaddexp(raw, 0) + eps
    values = 0.5 * jnp.mean(jnp.square(t - s) / variance + jnp.log(variance), -1)
    return finish(position_mean(values, keep), any_position(keep))


def vid_raw_variance(channels: int, *, variance: float = 5.0, eps: float = 1e-5) -> Array:
    """The raw parameter of `vid` at which every variance is `variance`: log(exp(variance − ε) − 1).

    Args:
      channels: of the teacher's map.
      variance: the first variance, above eps.
      eps: as in `vid`.

    Returns:
      (channels,), float32.

    Raises:
      ValueError: a variance that is not above eps.

    Example:
      >>> import jaxprune as jp
      >>> print(jp.distill.losses.vid_raw_variance(2).round(2))
      [4.99 4.99]
    """
    channels = arguments.whole("channels={}", channels)
    inputs.positive("variance", variance)
    inputs.positive("eps", eps)
    if not variance > eps:
        raise ValueError(
            f"variance={variance}, eps={eps}: the variance is above eps, and eps above 0"
        )
    x = variance - eps
    return jnp.full(channels, x + np.log(-np.expm1(-x)), jnp.float32)


def activation_boundary(
    student: Any, teacher: Any, *, margin: float = 1.0, channel_axis: int = -1, mask: Any = None
) -> Array:
    """Σ over neurons: which side of 0 a neuron is on, with a margin μ (AB).

        (s + μ)²  where t <= 0 and s > −μ        (s − μ)²  where t > 0 and s <= μ        0 elsewhere

    Args:
      student, teacher: what goes INTO the activation function, (batch, *positions, channels), of
        the same channels.
      margin: μ > 0.
      channel_axis, mask: as `hint`.

    Returns:
      (batch,), float32: a sum over the neurons, not a mean.

    Raises:
      ValueError: as `hint`; a margin <= 0.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.activation_boundary(jnp.array([[0.5, 2.0, -0.5]]),
      ...     jnp.array([[-1.0, 3.0, 0.1]])))
      [4.5]

    Source: Heo et al. 2019, arXiv:1811.03233. RepDistiller multiplies by 3/1000, and by 2^(i − L +
    1) at layer i of L.
    """
    inputs.positive("margin", margin)
    s, t, keep = inputs.maps(student, teacher, mask, channel_axis, same_channels=True)
    side = jnp.where(t > 0, 1, -1)
    short = jnp.maximum(margin - side * s, 0)
    return finish(position_sum(jnp.square(short), keep), any_position(keep))


def overhaul(
    student: Any, teacher: Any, *, margin: Any, channel_axis: int = -1, mask: Any = None
) -> Array:
    """Σ over neurons of the partial L2 distance to the margin ReLU of the teacher (OFD).

        r = max(t, m_c)        0 where s <= r <= 0, else (s − r)²

    Where the teacher is at or below 0 the student may lie lower, as the ReLU that follows hides it.

    Args:
      student: through a trained regressor, before the ReLU, (batch, *positions, channels).
      teacher: before its ReLU, with the same channels.
      margin: m, (channels,), negative: see `overhaul_margin`.
      channel_axis, mask: as `hint`.

    Returns:
      (batch,), float32: a sum over the neurons, not a mean.

    Raises:
      ValueError: as `hint`; margins of another shape, or concrete ones above 0.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> s, t = jnp.array([[-3.0, 1.0, 2.0]]), jnp.array([[-5.0, -5.0, 4.0]])
      >>> # 0 + (1 + 1)² + (2 − 4)²
      >>> print(jp.distill.losses.overhaul(s, t, margin=-jnp.ones(3)))
      [8.]

    Source: Heo et al. 2019, arXiv:1904.01866. Libraries write the same as three cases; they divide
    by 2^(L − i − 1) at layer i of L and weigh it by 1/1000.
    """
    s, t, keep = inputs.maps(student, teacher, mask, channel_axis, same_channels=True)
    m = _per_channel("margin", margin, s)
    if inputs.concrete(margin) and (np.asarray(margin) > 0).any():
        raise ValueError(
            f"margin: its largest is {np.asarray(margin).max()}; margins are <= 0: see "
            f"overhaul_margin"
        )
    r = jnp.maximum(t, m)
    hidden = (s <= r) & (r <= 0)
    return finish(position_sum(jnp.square(jnp.where(hidden, 0, s - r)), keep), any_position(keep))


def overhaul_margin(mean: Any, std: Any) -> Array:
    """E[x | x < 0] for x ~ N(mean, std²): the margin of a channel, from the teacher's batch norm
    before the ReLU.

        m = mean − std · φ(mean/std) / Φ(−mean/std), and −3 std where Φ(−mean/std) <= 0.001

    Args:
      mean: the batch norm's bias β, (channels,).
      std: its scale γ, (channels,); its sign does not matter.

    Returns:
      (channels,), float32, <= 0. A channel of std 0 has min(mean, 0).

    Raises:
      ValueError: shapes that differ.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print([f"{m:.3f}" for m in jp.distill.losses.overhaul_margin(jnp.array([0.0, 9.0]),
      ...     jnp.ones(2))])
      ['-0.798', '-3.000']

    Source: Heo et al. 2019, arXiv:1904.01866; −3 std is from its code.
    """
    mean, std = inputs.both(mean, std)
    if mean.shape != std.shape:
        raise ValueError(
            f"mean {mean.shape} and std {std.shape}: shapes differ; give one of each a channel"
        )
    std = jnp.abs(std)
    ratio = safe_divide(mean, std)
    below = normal.logcdf(-ratio)
    m = mean - std * jnp.exp(normal.logpdf(ratio) - below)
    m = jnp.where(below > jnp.log(0.001), m, -3 * std)
    return jnp.where(std == 0, jnp.minimum(mean, 0), m)


def _per_channel(name: str, x: Any, like: Array) -> Array:
    x = inputs.floats(name, x).astype(like.dtype)
    if x.shape != like.shape[-1:]:
        raise ValueError(
            f"{name}: shape {x.shape}; the maps have {like.shape[-1]} channels, give "
            f"{like.shape[-1:]}"
        )
    return x
