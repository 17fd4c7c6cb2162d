"""What terms train and remember, and what they are worth on a batch.

A term may have a map of the student's features (trained, then dropped), and its loss may be
`Stateful`: with params that are trained beside it (VID's variances), or a memory that changes with
each step (CRD's bank, DINO's centre).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxprune.distill.losses.common import masked_mean
from jaxprune.distill.terms import Pair, Term, required, scheduled


class Projection(NamedTuple):
    """A trained map of features, as a pair of functions; a Flax linen module has the same two.

    Attributes:
      init: (key, features) -> params.
      apply: (params, features) -> features.
    """

    init: Callable[[Array, Any], Any]
    apply: Callable[[Any, Any], Array]


class Stateful(NamedTuple):
    """A loss with params or a memory of its own; give it to `match` as any other.

    Attributes:
      name: of its metric.
      init: (key, student, teacher) -> (params, memory), from the features' shapes and dtypes; {}
        for none.
      apply: (params, memory, student, teacher, *, batch, key, mask) -> (one value an example, the
        next memory). The params are trained with the student's projections; no gradient goes
        through the memory.
    """

    name: str
    init: Callable[[Array, Any, Any], tuple[Any, Any]]
    apply: Callable[..., tuple[Array, Any]]


class Context(NamedTuple):
    """What a loss may ask for besides features.

    Attributes:
      batch: the mapping that the step was given.
      key: of the step.
      mask: of the examples, or None.
      step: of the schedules.
    """

    batch: Mapping[str, Any]
    key: Array | None
    mask: Any
    step: Any = None


def init_projections(
    term: Term, found: tuple[Pair, ...], student: Any, teacher: Any, key: Array
) -> tuple[Any, Any]:
    """(params, memories) of a term, by the student's tap; no entry where none is needed.

    Params of a tap are {"project": of the map, "loss": of the loss}, each where there is one.

    Args:
      term: whose.
      found: of `pairs`.
      student, teacher: name -> shapes and dtypes, as `jp.tap_names` tells.
      key: draws them.

    Raises:
      ValueError: features that differ elsewhere than in their channels.
    """
    params: dict[str, Any] = {}
    memories: dict[str, Any] = {}
    for i, pair in enumerate(found):
        ours = student[pair.student]
        theirs = teacher[pair.teacher]
        one, two = jax.random.split(jax.random.fold_in(key, i))
        made: dict[str, Any] = {}
        if term.project is not None and (
            term.project != "auto" or _needed(term, pair, ours, theirs)
        ):
            project = _project(term, theirs)
            features = jnp.zeros(ours.shape, ours.dtype)
            made["project"] = project.init(one, features)
            ours = jax.eval_shape(project.apply, made["project"], features)
        if isinstance(term.loss, Stateful):
            made["loss"], memories[pair.student] = term.loss.init(two, ours, theirs)
        if made:
            params[pair.student] = made
    return params, memories


def _needed(term: Term, pair: Pair, ours: Any, theirs: Any) -> bool:
    """Whether only the channels differ, and do."""
    a = list(ours.shape)
    b = list(theirs.shape)
    if len(a) == len(b) and -len(a) <= term.channel_axis < len(a):
        c = a.pop(term.channel_axis)
        d = b.pop(term.channel_axis)
        if a == b:
            return c != d
    raise ValueError(
        f"{term.name}: {pair.student!r} is {ours.shape} and {pair.teacher!r} is {theirs.shape}: "
        f"project='auto' maps axis {term.channel_axis} only; give project= a module that makes the "
        "one shape of the other"
    )


def _project(term: Term, theirs: Any) -> Any:
    return (
        linear(theirs.shape[term.channel_axis], term.channel_axis)
        if term.project == "auto"
        else term.project
    )


def linear(width: int, axis: int = -1) -> Projection:
    """x -> x W along an axis: of a feature map's channels, a 1×1 convolution."""

    def init(key: Array, x: Any) -> Array:
        n = x.shape[axis]
        return jax.random.normal(key, (n, width), jnp.float32) / math.sqrt(n)

    def apply(w: Array, x: Array) -> Array:
        return jnp.moveaxis(jnp.moveaxis(x, axis, -1) @ w.astype(x.dtype), -1, axis)

    return Projection(init, apply)


def evaluate(
    term: Term,
    found: tuple[Pair, ...],
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    params: Mapping[str, Any],
    memories: Mapping[str, Any],
    context: Context,
) -> tuple[Array, dict[str, Any]]:
    """The term's value, without its weight, and its next memories.

    The value is the mean over pairs of the masked mean over examples: a scalar, float32.
    """
    values = []
    after = {}
    settings = {name: scheduled(value, context.step) for name, value in term.settings.items()}
    for i, pair in enumerate(found):
        ours = student[pair.student]
        theirs = jax.lax.stop_gradient(teacher[pair.teacher])
        own = params.get(pair.student, {})
        if "project" in own:
            ours = _project(term, theirs).apply(own["project"], ours)
        if isinstance(term.loss, Stateful):
            key = None if context.key is None else jax.random.fold_in(context.key, i)
            memory = jax.lax.stop_gradient(memories[pair.student])
            rest = {"batch": context.batch, "key": key, "mask": context.mask} | settings
            found_values, memory = term.loss.apply(own["loss"], memory, ours, theirs, **rest)
            after[pair.student] = jax.lax.stop_gradient(memory)
        else:
            told = _told(term, context, i)
            found_values = term.loss(ours, theirs, mask=context.mask, **told, **settings)
        values.append(masked_mean(found_values, context.mask))
    return jnp.stack(values).mean(), after


def _told(term: Term, context: Context, i: int) -> dict[str, Any]:
    """What a loss requires besides features: the batch's labels, a key of its own."""
    wanted = required(term.loss)
    if "labels" in wanted and "y" not in context.batch:
        raise ValueError(
            f"{term.name} asks for labels, and the batch has no 'y'; it has {list(context.batch)}"
        )
    labels = {"labels": context.batch["y"]} if "labels" in wanted else {}
    if "key" not in wanted or context.key is None:
        return labels
    return labels | {"key": jax.random.fold_in(context.key, i)}
