"""What people give first, where something else is wanted: one line that says what to write."""

from collections.abc import Mapping
from typing import Any

from jaxprune.distill.networks import Network


def checked_network(student: Any) -> Network:
    """The network itself.

    Raises:
      ValueError: something that has to be made into a network first, and how.
    """
    if isinstance(student, Network):
        return student
    if isinstance(getattr(student, "network", None), Network):
        raise ValueError(
            "the student is what jp.distill.nnx returns: give its first part, as net, params, "
            "state = …"
        )
    raise ValueError(f"the student is a {type(student).__name__}: give {_as_network(student)}")


def check_batch(batch: Any) -> None:
    """A batch is a mapping with "x".

    Raises:
      ValueError: what it is instead, and what to write.
    """
    if isinstance(batch, Mapping):
        if "x" not in batch:
            raise ValueError(f"the batch has no 'x', the inputs; it has {list(batch)}")
        return
    if isinstance(batch, tuple | list) and len(batch) == 2:
        raise ValueError(
            f"the batch is a {type(batch).__name__} of two: give {{'x': inputs, 'y': labels}}"
        )
    raise ValueError(
        f"the batch is a {type(batch).__name__}: give a dict, as {{'x': inputs, 'y': labels}}"
    )


def check_teacher(teacher: Any) -> None:
    """A teacher is called with a batch and a key.

    Raises:
      ValueError: what it is instead, and what to write.
    """
    if isinstance(teacher, Network):
        raise ValueError(
            "the teacher is a network without params: give jp.distill.Online(network, params, "
            "state)"
        )
    answers = callable(teacher) or hasattr(teacher, "bind")
    flax = _flax_kind(teacher)
    if flax or not answers:
        network = _as_network(teacher) if flax else "network"
        raise ValueError(
            f"the teacher is a {type(teacher).__name__}: give one of jp.distill.Online({network}, "
            "params), Precomputed, Ensemble, Itself, EMA"
        )


def _as_network(model: Any) -> str:
    """The call that makes a network of a model."""
    flax = _flax_kind(model)
    return (
        f"jp.distill.{flax}(model)"
        if flax
        else "jp.distill.plain(f), where f(params, x) gives logits"
    )


def _flax_kind(model: Any) -> str:
    """Which Flax a module is of, linen or nnx, or "". The names of its classes tell, so Flax need
    not be imported.
    """
    modules = [base.__module__ for base in type(model).__mro__]
    return next(
        (kind for kind in ("linen", "nnx") if any(m.startswith(f"flax.{kind}.") for m in modules)),
        "",
    )
