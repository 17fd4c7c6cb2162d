"""Losses of schemes in which the teacher is a peer, a former self, or an average of selves.

The teacher is held constant here, as in the papers: these losses stop its gradient. Shapes, masks
and impossible classes are as in `soft.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxprune.distill.losses import inputs
from jaxprune.distill.losses.common import (
    count,
    cross_entropy,
    finish,
    finish_labelled,
    floored,
    kl,
    log_softmax,
    number,
)
from jaxprune.numerics.precision import widen


def deep_mutual(student: Any, teacher: Any, *, temperature: Any = 1.0, mask: Any = None) -> Array:
    """(1/K) Σ_k KL(p_k ‖ q) over K peers that learn at the same time (DML).

    Add the cross-entropy of the labels; every peer has the same loss, with the others as its
    teachers.

    Args:
      student: logits (*examples, classes).
      teacher: the peers' logits, stacked: (K, *examples, classes).
      temperature: T > 0; there is no T².
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: peers of another shape, or none; a temperature <= 0.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> z = jnp.array([[0.0, 0.0]])
      >>> peers = jnp.array([[[0.0, 0.0]], [[2.0, 0.0]]])
      >>> print(jp.distill.losses.deep_mutual(z, peers).round(3))
      [0.164]

    Source: Zhang et al. 2018, arXiv:1706.00384.
    """
    inputs.positive("temperature", temperature)
    s, t = inputs.both(student, teacher)
    if s.ndim == 0 or t.shape[1:] != s.shape or t.ndim != s.ndim + 1 or not t.shape[0]:
        raise ValueError(
            f"student {s.shape} and teacher {t.shape}: stack the peers' logits on a first axis, "
            f"{('K', *s.shape)}"
        )
    keep = inputs.kept(mask, s.shape[:-1])
    t = jnp.where(keep[..., None], lax.stop_gradient(t), 0)
    log_q = log_softmax(inputs.zeroed(s, keep), temperature)
    return finish(
        jnp.mean(kl(log_softmax(t, temperature), jnp.broadcast_to(log_q, t.shape)), 0), keep
    )


def born_again(student: Any, teacher: Any, *, labels: Any = None, mask: Any = None) -> Array:
    """KL(p ‖ q) at temperature 1, plus CE(y, q) where labels are given: a student of the teacher's
    own kind (BAN).

    Each generation teaches the next, and their ensemble is the result.

    Args:
      student, teacher: logits (*examples, classes).
      labels: (*examples,) of integers, or None. The label −100 leaves its example out (its value is
        −∞, which `masked_mean` passes over); under `jit` one that is no class gives NaN.
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: as `soft_targets`; concrete labels out of range that the mask keeps.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> z = jnp.array([[0.0, 0.0]])
      >>> print(jp.distill.losses.born_again(z, z, labels=jnp.array([1])).round(3))
      [0.693]

    Source: Furlanello et al. 2018, arXiv:1805.04770, which writes the cross-entropy of p: the
    entropy of p more.
    """
    s, t, keep = inputs.logits(student, teacher, mask)
    log_q = log_softmax(s, 1.0)
    values = kl(log_softmax(lax.stop_gradient(t), 1.0), log_q)
    if labels is None:
        return finish(values, keep)
    label = inputs.labelled(labels, s.shape, keep)
    return finish_labelled(values + cross_entropy(log_q, label.hot), label)


def born_again_confidence(student: Any, teacher: Any, *, labels: Any, mask: Any = None) -> Array:
    """n w_i / Σ_j w_j · CE(y_i, q_i), w = max_c p_c: the labels, weighed by the teacher's
    confidence (CWTM).

    The control that asks whether soft targets are more than weights. The sum goes over the kept
    examples of the global batch, so the masked mean is the weighted mean of the paper.

    Args and errors are those of `born_again`, with labels.

    Returns:
      (*examples,), float32.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> z, y = jnp.zeros((2, 2)), jnp.array([0, 1])
      >>> # weights 1 and 1/2
      >>> sure = jnp.array([[99.0, 0.0], [0.0, 0.0]])
      >>> print(jp.distill.losses.born_again_confidence(z, sure, labels=y).round(3))
      [0.924 0.462]

    Source: Furlanello et al. 2018, arXiv:1805.04770.
    """
    s, t, keep = inputs.logits(student, teacher, mask)
    label = inputs.labelled(labels, s.shape, keep)
    weight = jnp.where(label.keep, jnp.exp(jnp.max(log_softmax(lax.stop_gradient(t), 1.0), -1)), 0)
    total = jnp.sum(weight)
    share = weight * count(label.keep, None, s.dtype) / jnp.where(total > 0, total, 1)
    return finish_labelled(share * cross_entropy(log_softmax(s, 1.0), label.hot), label)


def born_again_permuted(student: Any, teacher: Any, *, key: Array, mask: Any = None) -> Array:
    """KL(π(p) ‖ q), π a random permutation of all classes but the teacher's first, anew for each
    example (DKPP).

    The control that asks whether it matters which of the other classes the teacher thinks of.

    Args:
      student, teacher: logits (*examples, classes).
      key: a PRNG key, another one each step.
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: as `soft_targets`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> # nothing to permute
      >>> z = jnp.array([[3.0, 1.0, 1.0]])
      >>> print(jp.distill.losses.born_again_permuted(z, z, key=jax.random.key(0)))
      [0.]

    Source: Furlanello et al. 2018, arXiv:1805.04770.
    """
    s, t, keep = inputs.logits(student, teacher, mask)
    log_p = _permuted(log_softmax(lax.stop_gradient(t), 1.0), key)
    return finish(kl(log_p, log_softmax(s, 1.0)), keep)


def _permuted(log_p: Array, key: Array) -> Array:
    """Each row with its largest entry in place and the others shuffled."""
    first = jnp.argmax(log_p, -1, keepdims=True)
    classes = jnp.arange(log_p.shape[-1], dtype=first.dtype)
    noise = jax.random.uniform(key, log_p.shape, log_p.dtype)
    order = jnp.argsort(jnp.where(classes == first, 2, noise), -1).astype(
        first.dtype
    )  # the others, then the first
    place = jnp.where(
        classes == first, classes.size - 1, jnp.where(classes > first, classes - 1, classes)
    )
    return jnp.take_along_axis(log_p, jnp.take_along_axis(order, place, -1), -1)


def dino(
    student: Any,
    teacher: Any,
    *,
    centre: Any,
    student_temperature: Any = 0.1,
    teacher_temperature: Any = 0.04,
    mask: Any = None,
) -> Array:
    """The mean over pairs of views v ≠ w of −Σ_c p_c(v) log q_c(w): self-distillation with no
    labels (DINO).

        p = softmax((z_t − centre) / T_t): sharpened, and centred       q = softmax(z_s / T_s)

    Args:
      student: logits (views, *examples, classes), of all crops; the first ones are the teacher's
        views, in its order.
      teacher: logits (fewer or as many views, *examples, classes), of the moving average of the
        student.
      centre: (classes,), from `dino_centre`; start with zeros.
      student_temperature: T_s > 0.
      teacher_temperature: T_t > 0; the paper warms it up from 0.04 to 0.07.
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32. It is a cross-entropy: its least value is the entropy of p.

    Raises:
      ValueError: views, examples or classes that do not fit; one view on each side, which leaves no
        pair; a temperature <= 0.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> views = jnp.array([[[0.0, 1.0]], [[1.0, 0.0]]])
      >>> print(jp.distill.losses.dino(views, views, centre=jnp.zeros(2)).round(3))
      [10.]

    Source: Caron et al. 2021, arXiv:2104.14294.
    """
    inputs.positive("student_temperature", student_temperature)
    inputs.positive("teacher_temperature", teacher_temperature)
    s, t = inputs.both(student, teacher)
    if (
        s.ndim < 2
        or s.shape[1:] != t.shape[1:]
        or not 1 <= t.shape[0] <= s.shape[0]
        or s.shape[0] < 2
    ):
        raise ValueError(
            f"student {s.shape} and teacher {t.shape}: give (views, *examples, classes), two or "
            "more views of the student, the first of which are the teacher's"
        )
    c = _centre(centre, s)
    keep = inputs.kept(mask, s.shape[1:-1])
    s, t = (jnp.where(keep[..., None], x, 0) for x in (s, lax.stop_gradient(t)))
    log_p = log_softmax(t - c, teacher_temperature)
    log_q = log_softmax(s, student_temperature)
    p = jnp.exp(log_p)
    cost = jnp.where(log_p[:, None] == -jnp.inf, 0, -floored(log_q))
    pairs = jnp.sum(p[:, None] * cost, -1)
    different = ~jnp.eye(t.shape[0], s.shape[0], dtype=bool).reshape(
        t.shape[0], s.shape[0], *(1,) * keep.ndim
    )
    return finish(
        jnp.sum(jnp.where(different, pairs, 0), (0, 1)) / (t.shape[0] * (s.shape[0] - 1)), keep
    )


def dino_centre(centre: Any, teacher: Any, *, momentum: float = 0.9, mask: Any = None) -> Array:
    """m · centre + (1 − m) · mean of the teacher's logits over its views and the kept examples of
    the global batch.

    Args:
      centre: (classes,).
      teacher: logits (views, *examples, classes).
      momentum: m in [0, 1].
      mask: (*examples,) of booleans; with nothing kept the centre stays.

    Returns:
      (classes,), float32, that no gradient reaches.

    Raises:
      ValueError: a centre of another shape, a momentum out of [0, 1].

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.dino_centre(jnp.zeros(2), jnp.array([[[1.0, 3.0]], [[3.0, 5.0]]]),
      ...     momentum=0.5))
      [1. 2.]

    Source: Caron et al. 2021, arXiv:2104.14294, equation (4). Its code updates after the loss, with
    an all-reduce.
    """
    inputs.fraction("momentum", momentum)
    t = widen(inputs.floats("teacher", teacher))
    if t.ndim < 2:
        raise ValueError(f"teacher: shape {t.shape}; give (views, *examples, classes)")
    c = _centre(centre, t)
    keep = inputs.kept(mask, t.shape[1:-1])
    examples = tuple(range(t.ndim - 1))
    total = jnp.sum(jnp.where(keep[..., None], t, 0), examples)
    mean = total / (t.shape[0] * count(keep, None, t.dtype))
    m = number(momentum, t)
    return lax.stop_gradient(jnp.where(jnp.any(keep), m * c + (1 - m) * mean, c))


def _centre(centre: Any, logits: Array) -> Array:
    c = inputs.floats("centre", centre).astype(logits.dtype)
    if c.shape != logits.shape[-1:]:
        raise ValueError(
            f"centre: shape {c.shape}; for logits {logits.shape} give {logits.shape[-1:]}"
        )
    return c
