"""Every distillation loss, one row each: the laws run over this table."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxprune as jp
from tests.reference import distill_losses as reference

L = jp.distill.losses
quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)  # it compiles in half the time
BATCH = 8
CLASSES = 5


class Loss(NamedTuple):
    """A loss and what the laws may ask of it.

    Attributes:
      name: of the row.
      f: (student, teacher, *, mask, **rows) -> values.
      reference: the same in NumPy, without a mask.
      student, teacher: float32 arrays, or pairs of them.
      rows: more arguments, with one row an example.
      relational: an example's value depends on the others.
      zero: it is 0 where student and teacher are equal; None where the two cannot be.
      axes: where the examples stand in the student and in the teacher.
      held: no gradient reaches the teacher, by the paper.
      slope: the reference has the same derivative (False where the loss holds a statistic
        constant).
    """

    name: str
    f: Callable[..., Any]
    reference: Callable[..., Any]
    student: Any
    teacher: Any
    rows: dict[str, Any]
    relational: bool = False
    zero: bool | None = True
    axes: tuple[int, int] = (0, 0)
    held: bool = False
    slope: bool = True


def normal(seed, *shape, scale=1.0):
    return np.float32(scale) * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def row(
    name,
    f,
    ref,
    student,
    teacher,
    /,
    relational=False,
    zero=True,
    axes=(0, 0),
    held=False,
    slope=True,
    rows=None,
    **kw,
):
    """The keyword arguments go to the loss and to its reference."""
    return Loss(
        name,
        partial(f, **kw),
        partial(ref, **kw),
        student,
        teacher,
        rows or {},
        relational,
        zero,
        axes,
        held,
        slope,
    )


def alone(f):
    """A loss of the teacher alone, as one of a pair: what a generator is trained by stands where a
    student would.
    """
    return lambda teacher, _, *, mask=None, **kw: f(teacher, mask=mask, **kw)


z_s = normal(0, BATCH, CLASSES, scale=2)
z_t = normal(1, BATCH, CLASSES, scale=2)
m_s = normal(2, BATCH, 4, 3, 6)
m_t = normal(3, BATCH, 4, 3, 6)
small = normal(4, BATCH, 2, 3, 6)
wide = normal(5, BATCH, 4, 3, 7)
e_s = normal(6, BATCH, 6)
e_t = normal(7, BATCH, 2, 4)
labels = {"labels": np.array([0, 4, 2, 2, 1, 3, 0, 4])}
draws = {
    "indices": np.array([3, 1, 4, 15, 9, 2, 6, 5]),
    "negatives": np.random.default_rng(8).integers(0, 16, (BATCH, 7)),
}
bank = L.crd_init(jax.random.key(0), 16, 6)._replace(
    log_z_student=np.float32(np.log(30.0)),
    log_z_teacher=np.float32(np.log(50.0)),
    ready=np.array(True),
)


def crd_reference(s, t, indices, negatives):
    banks = np.asarray(bank.student, np.float64), np.asarray(bank.teacher, np.float64)
    return reference.crd(s, t, indices, negatives, *banks, 30.0, 50.0)


LOSSES = [
    row("soft_targets", L.soft_targets, reference.soft_targets, z_s, z_t, temperature=3.0),
    row(
        "soft_and_hard",
        L.soft_and_hard,
        reference.soft_and_hard,
        z_s,
        z_t,
        zero=False,
        rows=labels,
        alpha=0.7,
        temperature=3.0,
    ),
    row("logit_mse", L.logit_mse, reference.logit_mse, z_s, z_t),
    row("forward_kl", L.forward_kl, reference.forward_kl, z_s, z_t, temperature=2.0),
    row("reverse_kl", L.reverse_kl, reference.reverse_kl, z_s, z_t, temperature=2.0),
    row("jsd", L.jsd, reference.jsd, z_s, z_t, beta=0.3, temperature=2.0),
    row("dkd", L.dkd, reference.dkd, z_s, z_t, rows=labels, alpha=1.5, beta=8.0, temperature=3.0),
    row(
        "standardised_targets",
        L.standardised_targets,
        reference.standardised_targets,
        z_s,
        z_t,
        temperature=2.0,
    ),
    row("top_k", L.top_k, reference.top_k, z_s, z_t, k=2, temperature=2.0),
    row(
        "dist",
        L.dist,
        reference.dist,
        z_s,
        z_t,
        relational=True,
        inter=2.0,
        intra=0.7,
        temperature=1.5,
    ),
    row("hint", L.hint, reference.hint, m_s, m_t),
    row("hint pooled", L.hint, reference.hint_pooled, small, m_t, zero=None),
    row("attention_transfer", L.attention_transfer, reference.attention_code, m_s, wide, zero=None),
    row(
        "attention_transfer paper",
        partial(L.attention_transfer, form="paper", p=3),
        reference.attention_paper,
        m_s,
        m_t,
    ),
    row("hidden_mse", L.hidden_mse, reference.hint, e_s, e_s[::-1]),
    row("hidden_cosine", L.hidden_cosine, reference.hidden_cosine, e_s, e_s[::-1]),
    row("nst", L.nst, reference.nst, m_s, wide, zero=None, kernel="polynomial"),
    row("nst linear", L.nst, reference.nst, m_s, m_t, kernel="linear"),
    row("nst gaussian", L.nst, reference.nst, m_s, m_t, slope=False, kernel="gaussian"),
    row("fsp", L.fsp, reference.fsp, (m_s, small), (m_t, wide[:, :, :, :6])),
    row("vid", L.vid, reference.vid, m_s, m_t, zero=False, raw_variance=normal(9, 6)),
    row(
        "activation_boundary",
        L.activation_boundary,
        reference.activation_boundary,
        m_s,
        m_t,
        zero=False,
        margin=1.0,
    ),
    row(
        "overhaul", L.overhaul, reference.overhaul, m_s, m_t, zero=False, margin=-abs(normal(10, 6))
    ),
    row(
        "similarity_preserving",
        L.similarity_preserving,
        reference.similarity_preserving,
        e_s,
        e_t,
        relational=True,
    ),
    row("rkd_distance", L.rkd_distance, reference.rkd_distance, e_s, e_t, relational=True),
    row("rkd_angle", L.rkd_angle, reference.rkd_angle, e_s, e_t, relational=True),
    row("pkt", L.pkt, reference.pkt, e_s, e_t, relational=True),
    row(
        "correlation_congruence",
        L.correlation_congruence,
        reference.correlation_congruence,
        e_s,
        e_t,
        relational=True,
        gamma=0.3,
        order=3,
    ),
    row(
        "correlation_congruence bilinear",
        L.correlation_congruence,
        reference.correlation_congruence,
        e_s,
        e_t,
        relational=True,
        kernel="bilinear",
    ),
    Loss("crd", partial(L.crd, bank=bank), crd_reference, e_s, e_s[::-1], draws, zero=False),
    row(
        "deep_mutual",
        L.deep_mutual,
        reference.deep_mutual,
        z_s,
        normal(11, 3, BATCH, CLASSES),
        zero=None,
        axes=(0, 1),
        held=True,
        temperature=2.0,
    ),
    row(
        "born_again",
        L.born_again,
        reference.born_again,
        z_s,
        z_t,
        zero=False,
        held=True,
        rows=labels,
    ),
    row(
        "born_again_confidence",
        L.born_again_confidence,
        reference.born_again_confidence,
        z_s,
        z_t,
        zero=False,
        held=True,
        relational=True,
        rows=labels,
    ),
    row(
        "dino",
        L.dino,
        reference.dino,
        normal(12, 4, BATCH, CLASSES),
        normal(13, 2, BATCH, CLASSES),
        zero=None,
        axes=(1, 1),
        held=True,
        centre=normal(14, CLASSES),
        student_temperature=0.5,
        teacher_temperature=0.3,
    ),
    row("one_hot", alone(L.one_hot), reference.one_hot, z_s, z_t, zero=None),
    row("one_hot labels", alone(L.one_hot), reference.one_hot, z_s, z_t, zero=None, rows=labels),
    row(
        "information_entropy",
        alone(L.information_entropy),
        reference.information_entropy,
        z_s,
        z_t,
        True,
        None,
    ),
    row(
        "activation_magnitude",
        alone(L.activation_magnitude),
        reference.activation_magnitude,
        m_s,
        m_t,
        zero=None,
    ),
    row(
        "batch_norm_matching",
        alone(L.batch_norm_matching),
        reference.batch_norm_matching,
        m_s,
        m_t,
        relational=True,
        zero=None,
        mean=normal(15, 6),
        var=abs(normal(16, 6)),
    ),
]
UNLISTED = {  # what is no loss with a reference of its own, and where it is tested
    "born_again_permuted": "schemes",
    "masked_mean": "laws",
    "standardise": "soft",
    "top_k_teacher": "soft",
    "TopK": "soft",
    "vid_raw_variance": "features",
    "overhaul_margin": "features",
    "CRDBank": "relations",
    "crd_init": "relations",
    "crd_negatives": "relations",
    "crd_update": "relations",
    "dino_centre": "schemes",
}


def close(a, b, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)
