"""Sparsity by step: any optax schedule works; this is the one of the field.

    s(t) = s_f + (s_i − s_f) (1 − (t − t₀) / (t₁ − t₀))³        for t₀ <= t <= t₁

Zhu & Gupta (2017), arXiv:1710.01878: many weights go early, while the network can still recover,
and few at the end.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxprune.core.arguments import fraction, positive, whole
from jaxprune.core.types import Schedule


def cubic(
    final: float, begin: int, end: int, *, initial: float = 0.0, power: float = 3
) -> Schedule:
    """The cubic sparsity schedule: `initial` up to step `begin`, exactly `final` from `end` on.

    Args:
      final: sparsity at the end, in [0, 1).
      begin: the last step at `initial`.
      end: the first step at `final`.
      initial: sparsity at the start, in [0, 1).
      power: 3 is Zhu & Gupta's.

    Returns:
      step -> sparsity, float32: an optax schedule.

    Example:
      >>> import jaxprune as jp
      >>> at = jp.schedules.cubic(0.8, begin=0, end=100)
      >>> [round(float(at(t)), 3) for t in (0, 50, 100, 1000)]
      [0.0, 0.7, 0.8, 0.8]
    """
    fraction("cubic(final={})", final)
    fraction("cubic(initial={})", initial)
    begin = whole("cubic(begin={})", begin, 0)
    end = whole("cubic(end={})", end, 0)
    positive("cubic(power={})", power)
    if end <= begin:
        raise ValueError(f"cubic(begin={begin}, end={end}): end must come after begin")

    def schedule(step: ArrayLike) -> Float[Array, "..."]:
        progress = jnp.clip((jnp.asarray(step, jnp.float32) - begin) / (end - begin), 0.0, 1.0)
        return final + (initial - final) * (1.0 - progress) ** power

    return schedule


def one_shot(final: float, at: int = 0) -> Schedule:
    """Nothing before step `at`, `final` from then on.

    Example:
      >>> import jaxprune as jp
      >>> [round(float(jp.schedules.one_shot(0.9, at=10)(t)), 3) for t in (9, 10)]
      [0.0, 0.9]
    """
    fraction("one_shot(final={})", final)
    at = whole("one_shot(at={})", at, 0)

    def schedule(step: ArrayLike) -> Float[Array, "..."]:
        is_due = jnp.asarray(step) >= at
        return jnp.where(is_due, jnp.float32(final), jnp.float32(0.0))

    return schedule
