"""Contrastive representation distillation (CRD): the student's view of an example must find the
teacher's among many.

    a = ŝ · t̂ / T − log Z − log(K / N)          the score of a pair, against K noise draws out of N
                                                 examples
    L_i = softplus(−a_i,i) + Σ_{k in negatives} softplus(a_i,k)

once with the student's view against remembered teacher views, and once the other way round. The
banks hold one vector an example of the training set and are state: `crd` reads them, `crd_update`
returns the next ones.

Source: Tian, Krishnan & Isola 2020, arXiv:1910.10699, equation (18).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxprune.core import arguments
from jaxprune.distill.losses import inputs
from jaxprune.distill.losses.common import count, finish, number, unit
from jaxprune.numerics.placement import gathered, sharding_on, spec_of


class CRDBank(NamedTuple):
    """The memory of `crd`.

    Attributes:
      student, teacher: (examples of the training set, features), rows of norm 1 once seen.
      log_z_student, log_z_teacher: log of the normalising constants Z of the scores of each side's
        anchors.
      ready: whether the constants are set; the first `crd_update` sets them from its batch.
    """

    student: Any
    teacher: Any
    log_z_student: Any
    log_z_teacher: Any
    ready: Any


def crd_init(key: Array, examples: int, features: int) -> CRDBank:
    """A bank of uniform noise in ±√(3 / features): rows of norm about 1.

    Args:
      key: a PRNG key.
      examples: N, how many examples the training set has.
      features: of the projections that `crd` compares.

    Returns:
      A `CRDBank`, float32: keep it in the training state, and save it with it.

    Example:
      >>> import jax, jaxprune as jp
      >>> bank = jp.distill.losses.crd_init(jax.random.key(0), 50_000, 128)
      >>> bank.student.shape, bool(bank.ready)
      ((50000, 128), False)
    """
    examples = arguments.whole("examples={}", examples)
    features = arguments.whole("features={}", features)
    edge = math.sqrt(3 / features)

    def draw(k):
        return jax.random.uniform(k, (examples, features), jnp.float32, -edge, edge)

    first, second = jax.random.split(key)

    # Two zeros: a state that holds one array twice cannot be donated.
    def zero():
        return jnp.zeros((), jnp.float32)

    return CRDBank(draw(first), draw(second), zero(), zero(), jnp.zeros((), bool))


def crd_negatives(key: Array, indices: Any, *, count: int, examples: int) -> Array:
    """(batch, count) of indices of the training set, uniform over all examples but the row's own.

    Args:
      key: a PRNG key, another one each step.
      indices: (batch,) of integers, which examples the batch holds.
      count: K, how many a row (the paper: 16384).
      examples: N.

    Returns:
      (batch, count), int32. To draw from other classes only, give `crd` indices of your own.

    Raises:
      ValueError: fewer than two examples; indices that are not (batch,) of integers.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> negatives = jp.distill.losses.crd_negatives(jax.random.key(0), jnp.array([0, 1]),
      ...     count=100, examples=3)
      >>> sorted(set(negatives[0].tolist())), sorted(set(negatives[1].tolist()))
      ([1, 2], [0, 2])
    """
    own = jnp.asarray(indices)
    count = arguments.whole("count={}", count)
    examples = arguments.whole("examples={}", examples)
    if examples < 2 or own.ndim != 1 or not jnp.issubdtype(own.dtype, jnp.integer):
        raise ValueError(
            f"indices: shape {own.shape}, dtype {own.dtype}, of {examples} examples; give (batch,) "
            "of integers, and two examples or more"
        )
    steps = jax.random.randint(key, (own.shape[0], count), 1, examples, jnp.int32)
    return (own.astype(jnp.int32)[:, None] + steps) % examples


def crd(
    student: Any,
    teacher: Any,
    *,
    bank: CRDBank,
    indices: Any,
    negatives: Any,
    temperature: Any = 0.07,
    mask: Any = None,
) -> Array:
    """The loss above, both ways, with the banks held constant.

    Args:
      student, teacher: (batch, features), each through its trained projection; they are normalised
        here.
      bank: of `crd_init` or `crd_update`. While its constants are not set, those of this batch are
        used.
      indices: (batch,) of integers: which example of the training set each row is. They come from
        the data loader.
      negatives: (batch, K) of integers.
      temperature: T > 0.
      mask: (batch,) of booleans.

    Returns:
      (batch,), float32: a sum over the K negatives.

    Raises:
      ValueError: shapes that do not fit the bank, concrete indices outside it, a temperature <= 0.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> L, key, i = jp.distill.losses, jax.random.key(0), jnp.arange(4)
      >>> bank, negatives = L.crd_init(key, 8, 16), L.crd_negatives(key, i, count=5, examples=8)
      >>> x = jax.random.normal(key, (4, 16))
      >>> for _ in range(20):
      ...     bank = L.crd_update(bank, x, x, indices=i, negatives=negatives)
      >>> alike, strange = (L.crd(s, x, bank=bank, indices=i,
      ...     negatives=negatives).sum() for s in (x, -x))
      >>> bool(alike < strange)
      True

    Source: Tian, Krishnan & Isola 2020, arXiv:1910.10699. RepDistiller computes probabilities and
    adds 1e-7 to them; the logistic form here is the same without the overflow of exp(1 / T).
    """
    s, t, keep, own, others = _checked(
        student, teacher, bank, indices, negatives, temperature, mask
    )
    noise = math.log(others.shape[1] / bank.student.shape[0]) if others.shape[1] else 0.0
    total = 0
    for anchor, memory, stored in (
        (s, bank.teacher, bank.log_z_student),
        (t, bank.student, bank.log_z_teacher),
    ):
        scores = _scores(anchor, memory, own, others, temperature)
        log_z = jnp.where(bank.ready, number(stored, scores), _log_z(scores, keep, len(memory)))
        a = scores - lax.stop_gradient(log_z) - noise
        total = total + jax.nn.softplus(-a[:, 0]) + jnp.sum(jax.nn.softplus(a[:, 1:]), -1)
    return finish(total, keep)


def crd_update(
    bank: CRDBank,
    student: Any,
    teacher: Any,
    *,
    indices: Any,
    negatives: Any,
    temperature: Any = 0.07,
    momentum: float = 0.5,
    mask: Any = None,
) -> CRDBank:
    """The bank after a batch: row <- normalised(m · row + (1 − m) · view), and, the first time, the
    constants Z.

        Z = N · mean exp(score) over this batch's positives and negatives, on the bank as it was

    Args:
      bank: as it was when `crd` read it; the other arguments are those of that call.
      momentum: m in [0, 1].
      mask: masked examples are not remembered.

    Returns:
      A `CRDBank` that no gradient reaches. An index that stands twice in a batch keeps one of its
      two views.

    Raises:
      ValueError: as `crd`; a momentum out of [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> L, key, i = jp.distill.losses, jax.random.key(0), jnp.array([2])
      >>> bank = L.crd_update(L.crd_init(key, 4, 2), jnp.array([[3.0, 4.0]]),
      ...     jnp.array([[0.0, 1.0]]), indices=i,
      ...                     negatives=jnp.array([[0, 1]]), momentum=0.0)
      >>> print(bank.student[2], bank.teacher[2], bank.ready)
      [0.6 0.8] [0. 1.] True
    """
    inputs.fraction("momentum", momentum)
    s, t, keep, own, others = _checked(
        student, teacher, bank, indices, negatives, temperature, mask
    )
    s, t, bank = lax.stop_gradient((s, t, bank))
    z_student = _log_z(_scores(s, bank.teacher, own, others, temperature), keep, len(bank.teacher))
    z_teacher = _log_z(_scores(t, bank.student, own, others, temperature), keep, len(bank.student))
    first = ~bank.ready & jnp.any(keep)
    return CRDBank(
        _remember(bank.student, s, own, keep, momentum),
        _remember(bank.teacher, t, own, keep, momentum),
        jnp.where(first, number(z_student, bank.log_z_student), bank.log_z_student),
        jnp.where(first, number(z_teacher, bank.log_z_teacher), bank.log_z_teacher),
        bank.ready | first,
    )


def _scores(anchor: Array, memory: Array, own: Array, others: Array, temperature: Any) -> Array:
    """(batch, 1 + K): â · memory / T, the positive first."""
    chosen = jnp.concatenate([own[:, None], others], -1)
    rows = lax.stop_gradient(_take(memory, chosen)).astype(anchor.dtype)
    return jnp.einsum("bkd,bd->bk", rows, unit(anchor), precision="highest") / number(
        temperature, anchor
    )


def _take(memory: Array, chosen: Array) -> Array:
    """Rows of the bank, where the examples that ask for them are."""
    spec = spec_of(chosen)
    if spec is None:
        return gathered(memory)[chosen]
    return gathered(memory).at[chosen].get(out_sharding=sharding_on(chosen, *spec, None))


def _log_z(scores: Array, keep: Array, examples: int) -> Array:
    """log of N · mean exp(score) over the kept rows."""
    top = lax.stop_gradient(jnp.max(jnp.where(keep[:, None], scores, -jnp.inf)))
    top = jnp.where(top == -jnp.inf, 0, top)
    total = jnp.sum(jnp.where(keep[:, None], jnp.exp(jnp.where(keep[:, None], scores - top, 0)), 0))
    mean = total / (count(keep, None, scores.dtype) * scores.shape[1])
    return top + jnp.log(jnp.where(mean > 0, mean, 1)) + math.log(examples)


def _remember(memory: Array, views: Array, own: Array, keep: Array, momentum: float) -> Array:
    views = gathered(unit(views))
    own = gathered(own)
    keep = gathered(keep)
    new = unit(
        momentum * gathered(memory)[own].astype(views.dtype) + (1 - momentum) * views
    ).astype(memory.dtype)
    nowhere = jnp.where(keep, own, memory.shape[0])  # an index past the end is dropped
    spec = spec_of(memory)
    put = gathered(memory).at[nowhere].set(new, mode="drop")
    return put if spec is None else jax.sharding.reshard(put, sharding_on(memory, *spec))


def _checked(
    student: Any,
    teacher: Any,
    bank: CRDBank,
    indices: Any,
    negatives: Any,
    temperature: Any,
    mask: Any,
):
    inputs.positive("temperature", temperature)
    s, t, keep = inputs.vectors(student, teacher, mask)
    own = jnp.asarray(indices)
    others = jnp.asarray(negatives)
    shape = jnp.shape(bank.student)
    if s.ndim != 2 or shape[1:] != s.shape[1:] or jnp.shape(bank.teacher) != shape:
        raise ValueError(
            f"student {s.shape}, bank {shape} and {jnp.shape(bank.teacher)}: give (batch, "
            f"features) with the features "
            f"of the bank: crd_init(key, examples, {s.shape[-1] if s.ndim else 1})"
        )
    if own.shape != s.shape[:1] or others.ndim != 2 or others.shape[0] != s.shape[0]:
        raise ValueError(
            f"indices {own.shape}, negatives {others.shape}: give {s.shape[:1]} and ({s.shape[0]}, "
            f"K)"
        )
    for name, x in (("indices", own), ("negatives", others)):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"{name}: shape {x.shape}, dtype {x.dtype}; give integers below {shape[0]}"
            )
        outside = (x < 0) | (x >= shape[0])
        if inputs.concrete(outside) and bool(outside.any()):
            raise ValueError(
                f"{name}: {int(x[outside][0])} is not a row of the bank, which has {shape[0]} "
                f"examples"
            )
    return s, t, keep, own, others
