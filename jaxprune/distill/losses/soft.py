"""Losses on logits: the student's distribution against the teacher's.

    z_s, z_t      logits (*examples, classes); an example is an image, or one token of a text
    p = softmax(z_t / T),  q = softmax(z_s / T)

Every loss gives one value an example, shape (*examples,), in float32; `masked_mean` makes the loss
of the paper of them. A class of −inf is impossible: where both sides exclude it, it drops out;
where only one does, and the divergence would be infinite, it costs as if its probability were the
smallest float32, so that values and gradients stay finite. No loss stops gradients: hold the
teacher fixed with `jax.lax.stop_gradient(teacher)` if it depends on what you train.

Sources: Hinton, Vinyals & Dean 2015, arXiv:1503.02531; Ba & Caruana 2014, arXiv:1312.6184; Agarwal
et al. 2024 (GKD), arXiv:2306.13649.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxprune.distill.losses import inputs
from jaxprune.distill.losses.common import (
    cross_entropy,
    finish,
    finish_labelled,
    kl,
    log_softmax,
    log_sum_exp,
    mean_where,
    number,
    silent,
)


def soft_targets(student: Any, teacher: Any, *, temperature: Any = 4.0, mask: Any = None) -> Array:
    """T² KL(p ‖ q): the teacher's soft targets, summed over classes.

        T² Σ_c p_c (log p_c − log q_c),    p = softmax(z_t / T),  q = softmax(z_s / T)

    T² keeps the size of the gradient, T (q − p), as T grows; for T → ∞ it tends to (z_s − z_t) / C
    of centred logits.

    Args:
      student: z_s, (*examples, classes), any float dtype.
      teacher: z_t, the same shape.
      temperature: T > 0; a number, or a traced scalar from a schedule.
      mask: (*examples,) of booleans; the others count nothing, whatever they hold.

    Returns:
      (*examples,), float32 (float64 for float64 logits).

    Raises:
      ValueError: shapes that differ, a temperature <= 0, a mask of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> student, teacher = jnp.array([[0.0, 0.0], [3.0, 1.0]]), jnp.array([[2.0, 0.0],
      ...     [2.0, 0.0]])
      >>> print([f"{v:.3f}" for v in jp.distill.losses.soft_targets(student, teacher,
      ...     temperature=2.0)])
      ['0.444', '0.000']

    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531. PyTorch's `kl_div(reduction="mean")`
    divides by the classes too; torchdistill drops T² when it is given no labels; TextBrewer and TRL
    have no T².
    """
    s, t, keep = _prepared(student, teacher, temperature, mask)
    return finish(
        _squared(temperature, s) * kl(log_softmax(t, temperature), log_softmax(s, temperature)),
        keep,
    )


def soft_and_hard(
    student: Any,
    teacher: Any,
    *,
    labels: Any,
    alpha: Any = 0.9,
    temperature: Any = 4.0,
    mask: Any = None,
) -> Array:
    """α T² KL(p ‖ q) + (1 − α) CE(y, softmax(z_s)): soft targets and the true label, at temperature
    1.

    Args:
      student, teacher: logits (*examples, classes).
      labels: (*examples,) of integers in 0 … classes − 1. The label −100 leaves its example out
        (its value is −∞, which `masked_mean` passes over); under `jit` one that is no class gives
        NaN.
      alpha: the weight of the soft targets, 0 to 1; a number or a traced scalar.
      temperature: T > 0.
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: as `soft_targets`; an alpha out of [0, 1]; concrete labels out of range that the
        mask keeps.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> z = jnp.array([[1.0, 1.0]])
      >>> # log 2, half of it
      >>> print(jp.distill.losses.soft_and_hard(z, z, labels=jnp.array([1]), alpha=0.5).round(4))
      [0.3466]

    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531. The alpha of torchdistill weighs the
    labels.
    """
    inputs.fraction("alpha", alpha)
    s, t, keep = _prepared(student, teacher, temperature, mask)
    label = inputs.labelled(labels, s.shape, keep)
    soft = _squared(temperature, s) * kl(log_softmax(t, temperature), log_softmax(s, temperature))
    a = number(alpha, s)
    hard = cross_entropy(log_softmax(s, 1.0), label.hot)
    return finish_labelled(a * soft + (1 - a) * hard, label)


def logit_mse(student: Any, teacher: Any, *, mask: Any = None) -> Array:
    """(1/C) Σ_c (z_s − z_t)²: the logits themselves, over the classes that neither side excludes.

    Args:
      student, teacher: logits (*examples, classes).
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: shapes that differ, a mask of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.distill.losses.logit_mse(jnp.array([[1.0, 4.0]]), jnp.array([[1.0, 2.0]])))
      [2.]

    Source: Ba & Caruana 2014, arXiv:1312.6184, whose loss is C/2 times this; `soft_targets` at a
    high temperature is 1/2 of it for centred logits.
    """
    s, t, keep = inputs.logits(student, teacher, mask)
    possible = ~((s == -jnp.inf) | (t == -jnp.inf))
    gap = jnp.where(possible, s, 0) - jnp.where(possible, t, 0)
    return finish(mean_where(jnp.square(gap), possible, (-1,)), keep)


def forward_kl(student: Any, teacher: Any, *, temperature: Any = 1.0, mask: Any = None) -> Array:
    """KL(p ‖ q), without T²: what language models are distilled with. It covers every mode of the
    teacher.

    Args, returns and errors are those of `soft_targets`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[2.0, 0.0]])
      >>> print(f"{jp.distill.losses.forward_kl(student, teacher)[0]:.3f}")
      0.328

    Source: Agarwal et al. 2024, arXiv:2306.13649.
    """
    s, t, keep = _prepared(student, teacher, temperature, mask)
    return finish(kl(log_softmax(t, temperature), log_softmax(s, temperature)), keep)


def reverse_kl(student: Any, teacher: Any, *, temperature: Any = 1.0, mask: Any = None) -> Array:
    """KL(q ‖ p) = Σ_c q_c (log q_c − log p_c), without T²: it seeks a mode of the teacher.

    Args, returns and errors are those of `soft_targets`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[2.0, 0.0]])
      >>> print(f"{jp.distill.losses.reverse_kl(student, teacher)[0]:.3f}")
      0.434

    Source: Gu et al. 2024 (MiniLLM), arXiv:2306.08543; Agarwal et al. 2024, arXiv:2306.13649.
    """
    s, t, keep = _prepared(student, teacher, temperature, mask)
    return finish(kl(log_softmax(s, temperature), log_softmax(t, temperature)), keep)


def jsd(
    student: Any, teacher: Any, *, beta: Any = 0.5, temperature: Any = 1.0, mask: Any = None
) -> Array:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = β p + (1 − β) q: the generalised Jensen–Shannon
    divergence.

    It is bounded, by log 2 at β = 1/2. Near its ends it is β KL(p ‖ q) and (1 − β) KL(q ‖ p), so at
    β = 0 and β = 1 exactly, where the formula is 0, it is defined as those two divergences without
    their factor, as in TRL.

    Args:
      student, teacher: logits (*examples, classes).
      beta: β in [0, 1]: the share of the teacher in the mixture. 0 is `forward_kl`, 1 is
        `reverse_kl`.
      temperature: T > 0; there is no T².
      mask: (*examples,) of booleans.

    Returns:
      (*examples,), float32.

    Raises:
      ValueError: as `soft_targets`; a beta out of [0, 1].

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> far = jnp.array([[50.0, -50.0]])
      >>> # disjoint: log 2
      >>> print(jp.distill.losses.jsd(far, -far).round(4))
      [0.6931]

    Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649. EasyDeL mixes β q + (1 − β) p and swaps the
    ends.
    """
    inputs.fraction("beta", beta)
    s, t, keep = _prepared(student, teacher, temperature, mask)
    log_p = log_softmax(t, temperature)
    log_q = log_softmax(s, temperature)
    ends = (lambda: kl(log_p, log_q), lambda: _mixed(log_p, log_q, beta), lambda: kl(log_q, log_p))
    if inputs.concrete(beta):
        return finish(ends[0 if beta == 0 else 2 if beta == 1 else 1](), keep)
    return finish(lax.switch(jnp.where(beta == 0, 0, jnp.where(beta == 1, 2, 1)), ends), keep)


def _mixed(log_p: Array, log_q: Array, beta: Any) -> Array:
    """The divergence strictly between its ends."""
    b = number(beta, log_p)
    log_m = log_sum_exp(jnp.stack([jnp.log(b) + log_p, jnp.log1p(-b) + log_q], -1))
    values = b * kl(log_p, log_m) + (1 - b) * kl(log_q, log_m)
    return jnp.where(
        silent(log_p) | silent(log_q), 0, values
    )  # the mixture of one side is no distribution


def _prepared(
    student: Any, teacher: Any, temperature: Any, mask: Any
) -> tuple[Array, Array, Array]:
    inputs.positive("temperature", temperature)
    return inputs.logits(student, teacher, mask)


def _squared(temperature: Any, like: Array) -> Array:
    return jnp.square(number(temperature, like))
