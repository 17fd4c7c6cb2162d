"""What a generator is trained by in data-free distillation: what the frozen teacher says of its
images.

    L_G = w₁ · one-hot(t, y) + w₂ · information entropy(t) + w₃ · mean over taps of activation(f)
          + w₄ · Σ_taps batch-norm matching(f, the moments stored there) − w₅ · JS(softmax t ‖
          softmax s)

t is what the teacher returns, f are its taps, s is what the student returns. What is wrong with a
teacher or with a name is told while tracing.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxprune.core.arguments import at_least_zero
from jaxprune.core.words import nearest
from jaxprune.distill.losses import generator as losses
from jaxprune.distill.losses.common import masked_mean
from jaxprune.distill.losses.soft import jsd
from jaxprune.distill.networks import either
from jaxprune.distill.teachers.teachers import asking
from jaxprune.distill.terms import OUTPUT, scheduled
from jaxprune.jaxprs.taps import tap_names

WEIGHTS = ("one_hot", "entropy", "activation", "batch_norm", "competition")


class Wanted(NamedTuple):
    """The parts of a generator's loss; each weight is a number or a schedule of the step.

    Attributes:
      one_hot, entropy, activation, batch_norm, competition: weights.
      features: which taps of the teacher the activation loss reads, or None.
      statistics: tap -> (mean, variance).
      channel_axis: of the taps.
    """

    one_hot: Any
    entropy: Any
    activation: Any
    batch_norm: Any
    competition: Any
    features: str | None
    statistics: dict[str, tuple[Any, Any]]
    channel_axis: int


def check_weights(wanted: Wanted) -> None:
    """Weights are finite and not negative."""
    for name in WEIGHTS:
        at_least_zero(f"data_free({name}={{}})", getattr(wanted, name))


def ask(teacher: Any, x: Array, key: Any, wanted: Wanted) -> dict[str, Any]:
    """{"output": what the teacher says of the images, and the taps that are wanted}."""
    where = either(_patterns(wanted).values())
    return asking(teacher, where)({"x": x}, key)


def judge(
    seen: Mapping[str, Any], said: Array | None, y: Array | None, wanted: Wanted, step: Any
) -> tuple[Array, dict[str, Array]]:
    """L_G, and its parts without their weights: scalars, float32.

    Args:
      seen: of `ask`.
      said: the student's logits, or None where it does not compete.
      y: the labels that were asked for, or None for the teacher's own.
      wanted: the parts.
      step: of the schedules.
    """
    logits = seen[OUTPUT]
    axis = wanted.channel_axis
    values = {"one_hot": masked_mean(losses.one_hot(logits, labels=y))}
    values["entropy"] = masked_mean(losses.information_entropy(logits))
    if wanted.features is not None:
        taps = jax.tree.leaves(
            [x for name, x in seen.items() if re.fullmatch(wanted.features, name)]
        )
        parts = [masked_mean(losses.activation_magnitude(x, channel_axis=axis)) for x in taps]
        values["activation"] = jnp.stack(parts).mean()
    if wanted.statistics:
        parts = [
            _matching(name, seen[name], *moments, axis)
            for name, moments in wanted.statistics.items()
        ]
        values["batch_norm"] = jnp.stack(parts).sum()
    if said is not None:
        values["competition"] = -masked_mean(jsd(said, logits, beta=0.5))
    total = jnp.zeros(())
    for name, value in values.items():
        total += scheduled(getattr(wanted, name), step) * value
    return total, values


def check_teacher(teacher: Any, x: Array, key: Any, wanted: Wanted, classes: int) -> None:
    """Refuses, while tracing, a teacher that cannot judge the images.

    Raises:
      ValueError: it does not take them; its classes are others; it has not the taps that are
        wanted.
    """
    try:
        seen = teacher({"x": x}, key)
    except Exception as e:  # whatever the network's library raises for a shape that does not fit
        raise ValueError(
            f"the teacher does not take what the generator makes, {x.dtype} {x.shape}: {e}"
        ) from e
    found = getattr(seen.get(OUTPUT), "shape", None)
    if found != (len(x), classes):
        raise ValueError(
            f"data_free(classes={classes}): of images {x.shape} the teacher makes {found}; it must "
            f"make logits ({len(x)}, {classes})"
        )
    patterns = _patterns(wanted)
    tapped = bool(patterns) and bool(tap_names(teacher, {"x": x}, key))
    there = jax.eval_shape(asking(teacher, ".*"), {"x": x}, key) if tapped else seen
    for what, pattern in patterns.items():
        if not any(re.fullmatch(pattern, name) for name in there):
            raise ValueError(
                f"data_free({what}): no tap of the teacher matches. The nearest: "
                f"{nearest(pattern, there)}"
            )


def _patterns(wanted: Wanted) -> dict[str, str]:
    """What asks for taps -> the pattern."""
    asked = {f"statistics={{{name!r}: …}}": re.escape(name) for name in wanted.statistics}
    return (
        asked
        if wanted.features is None
        else {f"features={wanted.features!r}": wanted.features, **asked}
    )


def _matching(name: str, f: Any, mean: Any, var: Any, channel_axis: int) -> Array:
    if isinstance(f, tuple):
        raise ValueError(
            f"statistics: {name!r} is met {len(f)} times; one value goes into one batch norm"
        )
    try:
        return masked_mean(
            losses.batch_norm_matching(f, mean=mean, var=var, channel_axis=channel_axis)
        )
    except ValueError as e:
        raise ValueError(f"statistics of {name!r}: {e}") from e
