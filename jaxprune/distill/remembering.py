"""The losses that train or remember something, ready for `match`: VID's variances, CRD's bank,
DINO's centre.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxprune.core.arguments import positive, ratio, whole
from jaxprune.distill import losses
from jaxprune.distill.matching import Stateful, linear


def vid_loss(*, variance: float = 5.0, eps: float = 1e-5, channel_axis: int = -1) -> Stateful:
    """`losses.vid` with its variances among the trained params.

    Args:
      variance: at the start.
      eps: the least.
      channel_axis: of the features; give `match(project="auto")` where the widths differ.

    Returns:
      A `Stateful`.

    Example:
      >>> import jaxprune as jp
      >>> term = jp.distill.match(jp.distill.vid_loss(), r"layer(\\d)", r"layer(\\d)",
      ...     project="auto")
      >>> term.name
      'vid'
    """
    positive("vid_loss(variance={})", variance)
    positive("vid_loss(eps={})", eps)
    channel_axis = whole("vid_loss(channel_axis={})", channel_axis, None)

    def init(key: Array, student: Any, teacher: Any) -> tuple[Any, Any]:
        return losses.vid_raw_variance(teacher.shape[channel_axis], variance=variance, eps=eps), {}

    def apply(
        params: Any, memory: Any, s: Any, t: Any, *, batch: Any, key: Any, mask: Any
    ) -> tuple[Array, Any]:
        return losses.vid(
            s, t, raw_variance=params, eps=eps, channel_axis=channel_axis, mask=mask
        ), memory

    return Stateful("vid", init, apply)


def crd_loss(
    examples: int,
    *,
    features: int = 128,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    field: str = "index",
) -> Stateful:
    """`losses.crd` with its bank in the training state and a trained linear map on each side.

    Features of more than two axes are flattened, as in the paper's code. It is a sum over the
    negatives; the paper's weight is 0.8.

    Args:
      examples: of the training set; the bank takes 8 · examples · features bytes.
      features: of the space that is compared.
      negatives: drawn anew for each row and step, from the step's key.
      temperature, momentum: of `losses.crd` and `losses.crd_update`.
      field: of the batch, that tells which examples it holds.

    Returns:
      A `Stateful`.

    Raises:
      ValueError: a batch without the indices, at trace time.

    Example:
      >>> import jaxprune as jp
      >>> jp.distill.match(jp.distill.crd_loss(50_000), r"pool", weight=0.8).name
      'crd'
    """
    examples = whole("crd_loss(examples={})", examples, 2)
    features = whole("crd_loss(features={})", features)
    negatives = whole("crd_loss(negatives={})", negatives)
    positive("crd_loss(temperature={})", temperature)
    ratio("crd_loss(momentum={})", momentum)
    project = linear(features)

    def rows(x):
        return x.reshape(x.shape[0], -1)

    def init(key: Array, student: Any, teacher: Any) -> tuple[Any, Any]:
        a, b, c = jax.random.split(key, 3)

        def flat(x):
            return jax.eval_shape(rows, x)

        params = {
            "student": project.init(a, flat(student)),
            "teacher": project.init(b, flat(teacher)),
        }
        return params, losses.crd_init(c, examples, features)

    def apply(
        params: Any, memory: Any, s: Any, t: Any, *, batch: Any, key: Any, mask: Any
    ) -> tuple[Array, Any]:
        own = _indices(batch, field)
        others = losses.crd_negatives(key, own, count=negatives, examples=examples)
        s = project.apply(params["student"], rows(s))
        t = project.apply(params["teacher"], rows(t))
        rest = {"indices": own, "negatives": others, "temperature": temperature, "mask": mask}
        values = losses.crd(s, t, bank=memory, **rest)
        return values, losses.crd_update(memory, s, t, momentum=momentum, **rest)

    return Stateful("crd", init, apply)


def dino_loss(
    *, student_temperature: Any = 0.1, teacher_temperature: Any = 0.04, momentum: float = 0.9
) -> Stateful:
    """`losses.dino` with its centre in the training state; the teacher is usually `EMA`.

    Outputs have a leading axis of views on both sides, (views, batch, classes).

    Args:
      student_temperature, teacher_temperature: of `losses.dino`.
      momentum: of `losses.dino_centre`.

    Returns:
      A `Stateful`.

    Example:
      >>> import jaxprune as jp
      >>> jp.distill.match(jp.distill.dino_loss()).name
      'dino'
    """
    positive("dino_loss(student_temperature={})", student_temperature)
    positive("dino_loss(teacher_temperature={})", teacher_temperature)
    ratio("dino_loss(momentum={})", momentum)

    def init(key: Array, student: Any, teacher: Any) -> tuple[Any, Any]:
        return {}, jnp.zeros(teacher.shape[-1])

    def apply(
        params: Any, memory: Any, s: Any, t: Any, *, batch: Any, key: Any, mask: Any
    ) -> tuple[Array, Any]:
        heat = {
            "student_temperature": student_temperature,
            "teacher_temperature": teacher_temperature,
        }
        values = losses.dino(s, t, centre=memory, mask=mask, **heat)
        return values, losses.dino_centre(memory, t, momentum=momentum, mask=mask)

    return Stateful("dino", init, apply)


def _indices(batch: Mapping[str, Any], field: str) -> Any:
    if field not in batch:
        raise ValueError(
            f"crd asks which examples a batch holds, and it has no {field!r}; it has "
            f"{list(batch)}. `Shuffled(…, index={field!r})` adds it"
        )
    return batch[field]
