"""What to look at while a student learns; nothing here is trained."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxprune.distill.losses import inputs
from jaxprune.distill.losses.common import (
    NO_LABEL,
    floored,
    log_softmax,
    masked_mean,
    number,
    silent,
)
from jaxprune.distill.losses.decoupled import TopK
from jaxprune.distill.losses.soft import forward_kl
from jaxprune.distill.terms import OUTPUT

COMPARED = ("kl", "agreement", "accuracy", "teacher_accuracy")


def disagreement(teacher_logits: Any, student_logits: Any, temperature: Any = 1.0) -> Array:
    """(p / q)^(1/T), normalised: the distribution of what the student has still to learn.

        d_c = (p_c / q_c)^(1/T) / Σ_k (p_k / q_k)^(1/T) = softmax((z_t − z_s) / T)_c

    p and q are the teacher's and the student's probabilities. It is uniform where they agree, and
    its mass lies on the classes that the student thinks too little of: multiplied to the student's
    own q (at T = 1) it gives the teacher. Its entropy, beside log C, or its largest entry, is a
    metric to follow.

    Args:
      teacher_logits, student_logits: (*examples, classes). A class that the teacher excludes (−inf)
        gets 0.
      temperature: T > 0; a high one flattens it.

    Returns:
      (*examples, classes), float32; each row sums to 1. A row of which one side excludes everything
      is all zeros.

    Raises:
      ValueError: shapes that differ; a temperature <= 0.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> teacher, student = jnp.log(jnp.array([[0.6, 0.3, 0.1]])), jnp.log(jnp.array([[0.2, 0.3,
      ...     0.5]]))
      >>> print(jp.distill.disagreement(teacher, student, 1.0).round(2))            # 3 : 1 : 0.2
      [[0.71 0.24 0.05]]
    """
    inputs.positive("temperature", temperature)
    student, teacher, _ = inputs.logits(student_logits, teacher_logits, None)
    log_p = log_softmax(teacher, 1.0)
    log_q = log_softmax(student, 1.0)
    gone = log_p == -jnp.inf
    ratio = jnp.where(
        gone, -jnp.inf, (jnp.where(gone, 0, log_p) - floored(log_q)) / number(temperature, log_p)
    )
    nothing = (silent(log_p) | silent(log_q))[..., None]
    return jnp.where(nothing, 0, jax.nn.softmax(jnp.where(nothing, 0, ratio)))


def compared(
    said: Mapping[str, Any], seen: Mapping[str, Any], batch: Mapping[str, Any]
) -> dict[str, Array]:
    """What a step's metrics say of the outputs, without a gradient; each where it can be told.

    Args:
      said, seen: the student's and the teacher's values by name.
      batch: with labels, maybe.

    Returns:
      "agreement" of the top classes, and "kl" of the outputs at temperature 1, where the teacher
      gives logits of the same shape; of a stored `TopK`, which has another temperature, only the
      best class is known. "accuracy" and "teacher_accuracy", where the batch has integer labels.
    """
    s = jax.lax.stop_gradient(said[OUTPUT])
    t = seen.get(OUTPUT)
    mask = batch.get("mask")
    y = batch.get("y")
    examples = getattr(s, "shape", ())[:-1]
    ours, theirs = (_top(x) for x in (s, t))
    told = theirs is not None and theirs.shape == examples
    found = {"agreement": _equal(ours, theirs, mask)} if told else {}
    if getattr(t, "shape", None) == getattr(s, "shape", ()):
        found["kl"] = masked_mean(forward_kl(s, t, mask=mask), mask)
    if y is not None and examples == y.shape and jnp.issubdtype(y.dtype, jnp.integer):
        found["accuracy"] = _accuracy(ours, y, mask)
        found |= {"teacher_accuracy": _accuracy(theirs, y, mask)} if told else {}
    return found


def _top(logits: Any) -> Any:
    """The best class; of a stored `TopK` too, whose best stands first."""
    if isinstance(logits, TopK):
        return logits.indices[..., 0]
    return jnp.argmax(logits, -1) if hasattr(logits, "shape") and logits.ndim else None


def _equal(a: Any, b: Any, mask: Any) -> Array:
    return masked_mean((a == jnp.asarray(b, a.dtype)).astype(jnp.float32), mask)


def _accuracy(top: Any, labels: Array, mask: Any) -> Array:
    """The share of right answers among the examples that have a label."""
    right = (top == jnp.asarray(labels, top.dtype)).astype(jnp.float32)
    return masked_mean(jnp.where(inputs.without_label(labels), NO_LABEL, right), mask)
