"""Losses on relations: how the examples of a batch lie to each other, in the student and in the
teacher.

    student, teacher      (batch, …), flattened to one vector an example; their widths may differ
    value                 (batch,), float32: the row of example i in the table of pairs

The masked mean of the values is the loss over the kept examples, as if the others were not in the
batch. Under `jit` the table is that of the global batch, so the loss does not depend on how many
devices share it; a mean of one table a device, as under data-parallel PyTorch, is another loss.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxprune.core import arguments
from jaxprune.distill.losses import inputs
from jaxprune.distill.losses.common import (
    count,
    dot,
    finish,
    gram,
    huber,
    kl,
    norm,
    safe_divide,
    unit,
)
from jaxprune.numerics.placement import gathered


def similarity_preserving(student: Any, teacher: Any, *, mask: Any = None) -> Array:
    """(1/n²) Σ_ij (Ĝ_s − Ĝ_t)²_ij, Ĝ = x xᵀ with rows of norm 1 (SP). The value of i is (1/n) Σ_j.

    Invariant to rotations of the features and to their scale.

    Args:
      student, teacher: (batch, …), any widths.
      mask: (batch,) of booleans.

    Returns:
      (batch,), float32.

    Raises:
      ValueError: batches that differ, no feature axis, a mask of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.similarity_preserving(jnp.eye(2), jnp.ones((2, 3))).round(3))
      [0.293 0.293]

    Source: Tung & Mori 2019, arXiv:1907.09682.
    """
    s, t, keep = inputs.rows(student, teacher, mask)
    gap = unit(gram(_scaled(s))) - unit(gram(_scaled(t)))
    return finish(jnp.sum(jnp.square(gap), -1) / count(keep, None, s.dtype), keep)


def rkd_distance(student: Any, teacher: Any, *, mask: Any = None) -> Array:
    """(1/n²) Σ_ij huber(d_ij / μ − d'_ij / μ'): relative distances (RKD-D). The value of i is (1/n)
    Σ_j.

    d_ij = ‖x_i − x_j‖ in the student and d' in the teacher; μ is the mean of d over pairs of
    different examples. Invariant to rotations, shifts and scale of the features.

    Args:
      student, teacher: (batch, …), any widths: the embeddings, pooled. All n² differences are taken
        as they are, so that equal rows have distance 0 exactly; the gradient takes n² · width
        numbers.
      mask: (batch,) of booleans.

    Returns:
      (batch,), float32.

    Raises:
      ValueError: as `similarity_preserving`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> line, bent = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0, 0.0], [3.0, 0.0],
      ...     [3.0, 3.0]])
      >>> print(jp.distill.losses.rkd_distance(line, bent).round(4))
      [0.0138 0.0055 0.0138]

    Source: Park et al. 2019, arXiv:1904.05068, which sums over pairs of different examples. Its
    code, and those of torchdistill and mdistiller, average over all n², as here; they average μ
    over the distances above 0.
    """
    s, t, keep = inputs.rows(student, teacher, mask)
    n = count(keep, None, s.dtype)
    pairs = _pairs(keep)

    def relative(d):
        return safe_divide(d, jnp.sum(d) / count(pairs, None, d.dtype))

    def distances(x):
        return jnp.where(pairs, norm(_differences(x)), 0)

    return finish(jnp.sum(huber(relative(distances(s)) - relative(distances(t))), -1) / n, keep)


def rkd_angle(student: Any, teacher: Any, *, mask: Any = None) -> Array:
    """(1/n³) Σ_ijk huber(cos ∠jik − cos ∠'jik): angles at i, between j and k (RKD-A). The value of
    i is (1/n²) Σ_jk.

    Invariant to rotations, shifts and scale of the features. A corner of equal examples has cosine
    0.

    Args:
      student, teacher: (batch, …), any widths: the embeddings, pooled; its gradient takes about 4
        n² · width numbers.
      mask: (batch,) of booleans.

    Returns:
      (batch,), float32.

    Raises:
      ValueError: as `similarity_preserving`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> line, bent = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0, 0.0], [3.0, 0.0],
      ...     [3.0, 3.0]])
      >>> print(jp.distill.losses.rkd_angle(line, bent).round(4))
      [0.0095 0.1111 0.0095]

    Source: Park et al. 2019, arXiv:1904.05068, which sums over triplets of different examples; its
    code averages over all n³, as here, and weighs RKD-D by 1 and RKD-A by 2 (mdistiller and
    RepDistiller by 25 and 50).
    """
    s, t, keep = inputs.rows(student, teacher, mask)
    pairs = _pairs(keep)[..., None]

    def corner(x):
        return unit(jnp.where(pairs, _differences(x), 0))

    def cosines(e):
        return dot(e, e)

    gap = huber(cosines(corner(s)) - cosines(corner(t)))
    return finish(jnp.sum(gap, (-2, -1)) / jnp.square(count(keep, None, s.dtype)), keep)


def pkt(student: Any, teacher: Any, *, mask: Any = None) -> Array:
    """(1/n²) Σ_ij p_ij log(p_ij / q_ij): probabilistic knowledge transfer. The value of i is (1/n)
    Σ_j.

    p_ij = k_ij / Σ_j k_ij with k_ij = (1 + cos(x_i, x_j)) / 2, over the teacher; q over the
    student. The pair of an example with itself counts. Invariant to rotations, and to the scale of
    each example.

    Args:
      student, teacher: (batch, …), any widths. A zero row has cosine 0 with all.
      mask: (batch,) of booleans.

    Returns:
      (batch,), float32.

    Raises:
      ValueError: as `similarity_preserving`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.pkt(jnp.eye(2), jnp.ones((2, 3))).round(4))
      [0.0294 0.0294]

    Source: Passalis & Tefas 2018, arXiv:1803.10837, which sums over pairs of different examples;
    its code takes the mean over all n², as here, and adds 1e-7 inside the logarithm.
    """
    s, t, keep = inputs.rows(student, teacher, mask)
    divergence = kl(_log_affinities(t, keep), _log_affinities(s, keep))
    return finish(divergence / count(keep, None, s.dtype), keep)


def _log_affinities(x: Array, keep: Array) -> Array:
    """log p_ij; −inf where j is left out or stands opposite to i."""
    k = jnp.where(gathered(keep), (1 + gram(unit(x))) / 2, 0)
    some = k > 0
    total = jnp.sum(jnp.where(some, k, 0), -1, keepdims=True)
    p = jnp.where(some, k, 1) / jnp.where(total > 0, total, 1)
    return jnp.where(some, jnp.log(p), jnp.where(jnp.isnan(k), k, -jnp.inf))


def correlation_congruence(
    student: Any,
    teacher: Any,
    *,
    kernel: str = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
    mask: Any = None,
) -> Array:
    """(1/n²) Σ_ij (k_ij − k'_ij)²: correlation congruence (CC). The value of i is (1/n) Σ_j.

        "bilinear"   k_ij = x_i · x_j
        "gaussian"   k_ij = e^−2γ Σ_{p=0…P} (2γ)^p / p! (x̂_i · x̂_j)^p  ≈ exp(−γ ‖x̂_i − x̂_j‖²),
            x̂ of norm 1

    Args:
      student, teacher: (batch, …), any widths; usually both through trained projections.
      kernel: "gaussian" or "bilinear".
      gamma: γ > 0 of the Gaussian.
      order: P, an integer >= 1, of its Taylor series.
      mask: (batch,) of booleans.

    Returns:
      (batch,), float32.

    Raises:
      ValueError: as `similarity_preserving`; another kernel; a gamma <= 0; an order below 1.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.correlation_congruence(jnp.eye(2), jnp.ones((2, 3)),
      ...     kernel="bilinear"))
      [6.5 6.5]

    Source: Peng et al. 2019, arXiv:1904.01802. The class of this name in RepDistiller is another
    loss, mean |Δ_i·Δ_i+1| of neighbours, and changes with the order of the batch; torchdistill
    takes the norm, not its square, and the Gaussian series of rows that do not have norm 1, for
    which it is no Gaussian.
    """
    inputs.choice("kernel", kernel, ("gaussian", "bilinear"))
    inputs.positive("gamma", gamma)
    order = arguments.whole("order={}", order)
    s, t, keep = inputs.rows(student, teacher, mask)
    if kernel == "bilinear":
        table = gram
    else:
        terms = [math.factorial(p) for p in range(order + 1)]

        def series(g):
            return sum((2 * gamma * g) ** p / f for p, f in enumerate(terms)) * jnp.exp(
                -2.0 * gamma
            )

        def table(x):
            return series(gram(unit(x)))

    gap = jnp.square(table(s) - table(t))  # a masked example is a zero row on both sides, and equal
    return finish(jnp.sum(gap, -1) / count(keep, None, s.dtype), keep)


def _pairs(keep: Array) -> Array:
    """(batch, batch) of booleans: both are kept, and they are not the same."""
    return keep[:, None] & gathered(keep)[None, :] & ~jnp.eye(keep.shape[0], dtype=bool)


def _differences(x: Array) -> Array:
    """x_j − x_i, (batch, batch, features): not from a Gram matrix, whose rounding tells equal rows
    apart.
    """
    return gathered(x)[None, :, :] - x[:, None, :]


def _scaled(x: Array) -> Array:
    """x over its largest entry: the squares of huge features stay finite, and nothing that follows
    sees the scale.
    """
    return safe_divide(x, lax.stop_gradient(jnp.max(jnp.abs(x), initial=0)))
