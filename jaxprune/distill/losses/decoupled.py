"""Losses on logits that take the soft targets apart: by class, by scale, by rank, by what was
stored of them.

Shapes, masks and impossible classes are as in `soft.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxprune.core import arguments
from jaxprune.distill.losses import inputs
from jaxprune.distill.losses.common import (
    centred,
    count,
    finish,
    finish_labelled,
    kl,
    log_softmax,
    log_sum_exp,
    number,
)
from jaxprune.numerics.precision import widen


def dkd(
    student: Any,
    teacher: Any,
    *,
    labels: Any,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Any = 4.0,
    mask: Any = None,
) -> Array:
    """T² (α TCKD + β NCKD): decoupled knowledge distillation.

        TCKD = KL((p_y, 1 − p_y) ‖ (q_y, 1 − q_y))           how hard the example is
        NCKD = KL(p | not y ‖ q | not y)                     the other classes among themselves

    With α = 1 and β = 1 − p_y it is `soft_targets`, which therefore silences the other classes
    where the teacher is sure. Probabilities of "not y" are sums over the other classes, never 1 −
    p_y.

    Args:
      student, teacher: logits (*examples, classes), at least two classes.
      labels: (*examples,) of integers. The label −100 leaves its example out (its value is −∞,
        which `masked_mean` passes over); under `jit` one that is no class gives NaN.
      alpha: α, the weight of the target class.
      beta: β, the weight of the others: any number (the paper uses 0.5 to 10).
      temperature: T > 0.
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: as `soft_targets`; fewer than two classes; concrete labels out of range that the
        mask keeps.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> student, teacher, y = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[3.0, 1.0,
      ...     0.0]]), jnp.array([0])
      >>> print(f"{jp.distill.losses.dkd(student, teacher, labels=y, temperature=1.0)[0]:.4f}")
      1.0536

    Source: Zhao et al. 2022, arXiv:2203.08679. mdistiller subtracts 1000 from the target's logit
    instead of leaving it out, and takes log(1 − p) of rounded probabilities; its warm-up over
    epochs is a schedule of the term's weight.
    """
    arguments.at_least_zero("alpha={}", alpha, schedule=False)
    arguments.at_least_zero("beta={}", beta, schedule=False)
    inputs.positive("temperature", temperature)
    s, t, keep = inputs.logits(student, teacher, mask, fewest=2)
    label = inputs.labelled(labels, s.shape, keep)
    target = kl(
        _two(log_softmax(t, temperature), label.hot), _two(log_softmax(s, temperature), label.hot)
    )

    def other_classes(z: Array) -> Array:
        return log_softmax(jnp.where(label.hot, -jnp.inf, z), temperature)

    parts = number(alpha, s) * target + number(beta, s) * kl(other_classes(t), other_classes(s))
    return finish_labelled(jnp.square(number(temperature, s)) * parts, label)


def _two(log_p: Array, label: Array) -> Array:
    """log (p_y, 1 − p_y)."""
    target = jnp.sum(jnp.where(label, log_p, 0), -1)
    return jnp.stack([target, log_sum_exp(jnp.where(label, -jnp.inf, log_p))], -1)


def standardise(logits: Any) -> Array:
    """(z − mean) / std of each row, over its possible classes: what logit standardisation feeds to
    any logit loss.

    Args:
      logits: (*examples, classes). Impossible classes (−inf) stay so; a constant row becomes zeros.

    Returns:
      The same shape, float32. Invariant to z -> a z + b, a > 0.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.standardise(jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3))
      [[-1.  1.]
       [-1.  1.]]

    Source: Sun et al. 2024, arXiv:2403.01427. The authors' code divides by the std with n − 1, plus
    1e-7.
    """
    z = widen(inputs.floats("logits", logits))
    possible = ~(z == -jnp.inf)
    size = jnp.sqrt(count(possible, -1, z.dtype))[..., None]
    return jnp.where(possible, centred(z, possible, -1) * size, -jnp.inf)


def standardised_targets(
    student: Any, teacher: Any, *, temperature: Any = 2.0, mask: Any = None
) -> Array:
    """T² KL(softmax(Z(z_t) / T) ‖ softmax(Z(z_s) / T)), Z = `standardise`: only the shape of the
    logits is taught.

    For DKD with standardised logits call `dkd(standardise(s), standardise(t), labels=…)`.

    Args, returns and errors are those of `soft_targets`; the temperature is the paper's base
    temperature.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> z = jnp.array([[1.0, 2.0, 4.0]])
      >>> print(abs(jp.distill.losses.standardised_targets(3 * z - 7, z)) < 1e-6)
      [ True]

    Source: Sun et al. 2024, arXiv:2403.01427, which weighs it by 9 at T = 2.
    """
    inputs.positive("temperature", temperature)
    s, t, keep = inputs.logits(student, teacher, mask)
    log_p, log_q = (log_softmax(standardise(z), temperature) for z in (t, s))
    return finish(jnp.square(number(temperature, s)) * kl(log_p, log_q), keep)


class TopK(NamedTuple):
    """The k most probable classes of a teacher and the mass of all others, at one temperature.

    Attributes:
      log_probs: (*examples, k), log p of those classes.
      indices: (*examples, k), which classes.
      log_tail: (*examples,), log of the probability of all other classes together.
    """

    log_probs: Any
    indices: Any
    log_tail: Any


def top_k_teacher(teacher: Any, k: int, *, temperature: Any = 1.0) -> TopK:
    """What to keep of a teacher over a large vocabulary: k log-probabilities, their classes, and
    the tail's.

    Args:
      teacher: logits (*examples, classes).
      k: how many classes, 1 to all.
      temperature: T > 0, of the loss that will read it: the tail of one temperature does not give
        that of another.

    Returns:
      A `TopK`, float32 and int32.

    Raises:
      ValueError: a k that is not in 1 … classes; a temperature <= 0.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> kept = jp.distill.losses.top_k_teacher(jnp.log(jnp.array([[0.1, 0.6, 0.3]])), 1)
      >>> prob, tail = jnp.exp(kept.log_probs[0, 0]), jnp.exp(kept.log_tail[0])
      >>> print(f"{kept.indices[0, 0]} {prob:.2f} {tail:.2f}")
      1 0.60 0.40
    """
    inputs.positive("temperature", temperature)
    z = widen(inputs.floats("teacher", teacher))
    k = arguments.whole("k={}", k)
    if z.ndim == 0 or k > z.shape[-1]:
        raise ValueError(
            f"k={k}: teacher has shape {z.shape}; give an integer from 1 to its number of classes"
        )
    log_p = log_softmax(z, temperature)
    values, indices = lax.top_k(log_p, k)
    return TopK(
        values, indices, log_sum_exp(jnp.where(_marked(indices, z.shape[-1]), -jnp.inf, log_p))
    )


def top_k(
    student: Any, teacher: Any, *, k: int | None = None, temperature: Any = 1.0, mask: Any = None
) -> Array:
    """T² KL over k + 1 buckets: the teacher's k most probable classes, and one tail for all the
    others.

        T² [Σ_{c in K} p_c log(p_c / q_c) + p_tail log(p_tail / q_tail)]

    It is never more than `soft_targets`, grows with k and equals it at k = classes. The tail is
    what keeps the student from moving its mass where the teacher's was not stored.

    Args:
      student: logits (*examples, classes).
      teacher: logits of the same shape, with k=; or a stored `TopK` (its k, its temperature).
      k: how many classes of the logits to use; not with a `TopK`.
      temperature: T > 0; that at which a `TopK` was made.
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: as `soft_targets`; a k that is missing, out of range or given twice; a `TopK` of
        other shapes, or with concrete classes that the student does not have.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> teacher = jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.1]]))
      >>> # two right ratios, wrong mass
      >>> student = jnp.log(jnp.array([[0.05, 0.03, 0.01, 0.91]]))
      >>> print(f"{jp.distill.losses.top_k(student, teacher, k=2)[0]:.4f}")
      1.5369

    Source: stored sparse teachers with their missing mass, as in DistilKit. tunix and MaxText
    renormalise over the k classes instead: the student above then has loss 0 and gradient 0.
    """
    inputs.positive("temperature", temperature)
    if not isinstance(teacher, TopK):
        s, t, keep = inputs.logits(student, teacher, mask)
        stored = top_k_teacher(t, k if k is not None else 0, temperature=temperature)
    else:
        s, stored, keep = _stored(student, teacher, k, mask)
    log_q = log_softmax(s, temperature)
    there = jnp.take_along_axis(log_q, stored.indices, -1)
    tail = log_sum_exp(jnp.where(_marked(stored.indices, s.shape[-1]), -jnp.inf, log_q))

    def buckets(head, rest):
        return jnp.concatenate([head, rest[..., None]], -1)

    divergence = kl(buckets(stored.log_probs, stored.log_tail), buckets(there, tail))
    return finish(jnp.square(number(temperature, s)) * divergence, keep)


def _stored(student: Any, teacher: TopK, k: int | None, mask: Any) -> tuple[Array, TopK, Array]:
    """A stored teacher, checked; zeros where the mask leaves out."""
    s = widen(inputs.floats("student", student))
    keep = inputs.kept(mask, s.shape[:-1])
    log_probs, tail = (
        inputs.floats("teacher", x).astype(s.dtype) for x in (teacher.log_probs, teacher.log_tail)
    )
    indices = jnp.asarray(teacher.indices)
    if k is not None:
        raise ValueError(
            f"k={k}: the teacher is a TopK of {log_probs.shape[-1]} classes already; leave k out"
        )
    if (
        log_probs.shape[:-1] != s.shape[:-1]
        or indices.shape != log_probs.shape
        or tail.shape != s.shape[:-1]
    ):
        raise ValueError(
            f"teacher: log_probs {log_probs.shape}, indices {indices.shape}, log_tail "
            f"{tail.shape}; for a student of "
            f"{s.shape} give {(*s.shape[:-1], 'k')}, the same, and {s.shape[:-1]}"
        )
    wrong = ((indices < 0) | (indices >= s.shape[-1])) & keep[..., None]
    if inputs.concrete(wrong) and bool(wrong.any()):
        raise ValueError(
            f"teacher: indices reach beyond the {s.shape[-1]} classes of the student {s.shape}"
        )
    s, log_probs, indices = (inputs.zeroed(x, keep) for x in (s, log_probs, indices))
    return s, TopK(log_probs, indices, finish(tail, keep)), keep


def _marked(indices: Array, classes: int) -> Array:
    """(*examples, classes) of booleans: True at the indices (*examples, k)."""

    def mark(i):
        return jnp.zeros(classes, bool).at[i].set(True)

    for _ in indices.shape[:-1]:
        mark = jax.vmap(mark)
    return mark(indices)


def dist(
    student: Any,
    teacher: Any,
    *,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: Any = 1.0,
    mask: Any = None,
) -> Array:
    """T² (β (1 − ρ of each row) + γ (1 − ρ of each column)): match relations, not values (DIST).

        inter   1 − ρ(p_i, q_i)                       over the classes of one example
        intra   (1/C) Σ_c (1 − ρ(p_·c, q_·c))         over all kept examples of the global batch,
                                                      for one class

    ρ is Pearson's correlation. As 1 − ρ is half the squared distance of the two centred vectors of
    norm 1, the value of an example holds its share of it, and the masked mean is the loss of the
    paper. A constant row or column costs 1/2, and nothing if it is constant on both sides; the
    paper's code gives 1.

    Args:
      student, teacher: logits (*examples, classes); all leading axes are one batch.
      inter: β, the weight of the relation between classes.
      intra: γ, the weight of the relation between examples.
      temperature: T > 0.
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: as `soft_targets`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> z = jnp.array([[1.0, 2.0, 4.0], [0.0, 3.0, 2.0]])
      >>> print(jp.distill.losses.dist(z + 5, z).round(4) + 0)
      [0. 0.]

    Source: Huang et al. 2022, arXiv:2205.10536. T² is from its code.
    """
    arguments.at_least_zero("inter={}", inter, schedule=False)
    arguments.at_least_zero("intra={}", intra, schedule=False)
    inputs.positive("temperature", temperature)
    s, t, keep = inputs.logits(student, teacher, mask)
    q = jnp.exp(log_softmax(s, temperature))
    p = jnp.exp(log_softmax(t, temperature))
    examples = tuple(range(keep.ndim))
    everyone = jnp.ones_like(q, bool)
    rows = jnp.sum(jnp.square(centred(q, everyone, -1) - centred(p, everyone, -1)), -1) / 2

    def column(x):
        return centred(x, keep[..., None], examples)

    columns = jnp.mean(jnp.square(column(q) - column(p)), -1) * count(keep, None, s.dtype) / 2
    parts = number(inter, s) * rows + number(intra, s) * columns
    return finish(jnp.square(number(temperature, s)) * parts, keep)
