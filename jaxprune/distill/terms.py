"""Terms: what a student is asked to match, where in both networks, and with what weight.

    L(step) = Σ_terms w(step) · mean over pairs of layers, and over examples, of loss(P student,
    teacher)

A term names layers by regular expressions over tap paths and pairs them by what the expressions
capture, so that `match(loss, r"layer(\\d)", r"layer(\\d)")` ties layer 1 to layer 1. P is an
optional map of the student's features to the teacher's width, trained beside the student and
dropped in the end (FitNets, Romero et al. 2015, arXiv:1412.6550).
"""

import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jax import Array

from jaxprune.core.arguments import at_least_zero, whole
from jaxprune.core.words import compiled, nearest

OUTPUT = "output"


class Term(NamedTuple):
    """One thing to match; made by `match`.

    Attributes:
      loss: (student, teacher, mask=…) -> one value an example; or a `Stateful`.
      student, teacher: regular expressions over whole tap names; None for what the network returns.
      project: None, "auto", or something with `init` and `apply`, as `jp.distill.Projection` or a
        linen module.
      weight: a number, or an optax schedule of the step.
      name: of its metric.
      channel_axis: the axis that "auto" maps.
      settings: keywords of the loss; a function among them is a schedule of the step.
    """

    loss: Callable[..., Array]
    student: str | None
    teacher: str | None
    project: Any
    weight: Any
    name: str
    channel_axis: int
    settings: Mapping[str, Any]


class Pair(NamedTuple):
    """Two taps that a term compares."""

    student: str
    teacher: str


def match(
    loss: Callable[..., Array],
    student: str | None = None,
    teacher: str | None = None,
    *,
    project: Any = None,
    weight: Any = 1.0,
    name: str | None = None,
    channel_axis: int = -1,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Term:
    """A term: `loss` between the student's and the teacher's values.

    Args:
      loss: of `jp.distill.losses`, its settings bound with `functools.partial`; called with
        `mask=`, and where it requires them with `labels=` (the batch's "y") and `key=` (another one
        each step). Or a `Stateful` (`vid_loss`, `crd_loss`, `dino_loss` of `jp.distill`), which
        trains params or keeps a memory of its own.
      student: which taps of the student, by a regular expression for the whole name; None: what it
        returns.
      teacher: which taps of the teacher; as `student` if only that is given.
      project: None compares values as they are. "auto" maps the student's channels to the teacher's
        by a trained matrix where their number differs. Else an object with init(key, features) and
        apply(params, features).
      weight: a number >= 0, or an optax schedule.
      name: of the metric; the name of the loss by default.
      channel_axis: the channels of both, for "auto".
      settings: keywords of the loss that change with the step, by name: {"temperature": an optax
        schedule}.

    Returns:
      A `Term`.

    Raises:
      ValueError: a teacher's pattern without the student's; patterns with unequal numbers of
        groups; a negative weight; settings that the loss does not have, or lacks.

    Example:
      >>> import functools, jaxprune as jp
      >>> soft = jp.distill.match(functools.partial(jp.distill.losses.soft_targets,
      ...     temperature=4.0), weight=0.7)
      >>> hint = jp.distill.match(jp.distill.losses.hint, r"layer(\\d)/.*", r"block_(\\d)",
      ...     project="auto")
      >>> soft.name, hint.name
      ('soft_targets', 'hint')
    """
    teacher = student if teacher is None else teacher
    if student is None and teacher is not None:
        raise ValueError(
            f"match(teacher={teacher!r}): give student= too, the layers that shall match those"
        )
    sides = {"match(student)": student, "match(teacher)": teacher}
    groups = [
        compiled(side, pattern).groups for side, pattern in sides.items() if pattern is not None
    ]
    if len(set(groups)) > 1:
        raise ValueError(
            f"match({student!r}, {teacher!r}): {groups[0]} groups and {groups[1]}: pairs are made "
            f"of equal ones"
        )
    at_least_zero("match(weight={})", weight)
    channel_axis = whole("match(channel_axis={})", channel_axis, None)
    if not (
        project is None
        or project == "auto"
        or (hasattr(project, "init") and hasattr(project, "apply"))
    ):
        raise ValueError(
            f"match(project={project!r}): None, 'auto', or an object with init and apply"
        )
    named = getattr(getattr(loss, "func", loss), "__name__", getattr(loss, "name", "loss"))
    _check_settings(loss, settings, name or named)
    return Term(
        loss, student, teacher, project, weight, name or named, channel_axis, dict(settings)
    )


def as_terms(terms: Any) -> tuple[Term, ...]:
    """A term, a loss, or a sequence of them, as terms: a loss alone stands for `match(loss)`.

    Raises:
      ValueError: something else.
    """
    several = (
        list(terms) if isinstance(terms, list | tuple) and not isinstance(terms, Term) else [terms]
    )
    for term in several:
        if not isinstance(term, Term) and not callable(term) and not hasattr(term, "apply"):
            raise ValueError(
                f"a term is a {type(term).__name__}, {term!r}: give jp.distill.match(loss, …), or "
                f"a loss"
            )
    return tuple(term if isinstance(term, Term) else match(term) for term in several)


TOLD = ("mask", "labels", "key")


def required(loss: Any) -> set[str]:
    """The keywords that a loss must be given."""
    found = inspect.signature(loss).parameters.values()
    return {p.name for p in found if p.kind is p.KEYWORD_ONLY and p.default is p.empty}


def _check_settings(loss: Any, settings: Mapping[str, Any], name: str) -> None:
    """A keyword that the loss has not, or that it lacks, is an error here, not a TypeError in a
    trace.
    """
    known = {} if not settings else inspect.signature(getattr(loss, "apply", loss)).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    unknown = [] if takes_all else [s for s in settings if s not in known]
    if unknown:
        raise ValueError(
            f"{name} has no setting {unknown[0]!r}. The nearest: {nearest(unknown[0], known)}"
        )
    lacking = set() if hasattr(loss, "apply") else required(loss) - {*TOLD, *settings}
    if lacking:
        one = min(lacking)
        raise ValueError(
            f"{name} needs {one}: give functools.partial({name}, {one}=…), or "
            f"settings={{{one!r}: …}}"
        )


def pairs(term: Term, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> tuple[Pair, ...]:
    """The layers that a term compares, out of the taps there are.

    With groups in the patterns, those that capture the same; without, in order.

    Raises:
      ValueError: a pattern that matches nothing, or layers without a partner.

    Example:
      >>> import jaxprune as jp
      >>> from jaxprune.distill.terms import pairs
      >>> term = jp.distill.match(jp.distill.losses.hint, r"layer(\\d)", r"block(\\d)/out")
      >>> pairs(term, {"layer1": 0, "layer2": 0}, {"block2/out": 0, "stem": 0, "block1/out": 0})
      (Pair(student='layer1', teacher='block1/out'), Pair(student='layer2', teacher='block2/out'))
    """
    if term.student is None or term.teacher is None:
        return (Pair(OUTPUT, OUTPUT),)
    ours = _found(term, "student", student)
    theirs = _found(term, "teacher", teacher)
    if re.compile(term.student).groups == 0:
        if len(ours) != len(theirs):
            raise ValueError(
                f"{term.name}: {term.student!r} matches {len(ours)} layers of the student, "
                f"{[p for p, _ in ours]}, and {term.teacher!r} {len(theirs)} of the teacher, "
                f"{[p for p, _ in theirs]}: pair them by groups"
            )
        return tuple(Pair(a, b) for (a, _), (b, _) in zip(ours, theirs))
    return _by_groups(term, ours, theirs)


def _found(term: Term, side: str, taps: Mapping[str, Any]) -> list[tuple[str, tuple[Any, ...]]]:
    """Matching names and what they capture."""
    pattern = getattr(term, side)
    found = [(name, m.groups()) for name in taps if (m := re.fullmatch(pattern, name))]
    if not found:
        raise ValueError(
            f"{term.name}: {side}={pattern!r} matches no layer. The nearest: "
            f"{nearest(pattern, taps)}"
        )
    return found


def _by_groups(term: Term, ours: list[Any], theirs: list[Any]) -> tuple[Pair, ...]:
    named = []
    for side, found in (("student", ours), ("teacher", theirs)):
        keyed: dict[Any, str] = {}
        for name, groups in found:
            if groups in keyed:
                raise ValueError(
                    f"{term.name}: {keyed[groups]!r} and {name!r} of the {side} both capture "
                    f"{groups}"
                )
            keyed[groups] = name
        named.append(keyed)
    alone = [
        f"{names[key]!r}"
        for names, others in (named, named[::-1])
        for key in names
        if key not in others
    ]
    if alone:
        raise ValueError(
            f"{term.name}: no partner for {', '.join(alone)}: the captured groups must be equal"
        )
    return tuple(Pair(name, named[1][key]) for key, name in named[0].items())


def scheduled(weight: Any, step: Any) -> Any:
    """A weight on a step: itself, or what the schedule says."""
    return weight(step) if callable(weight) else weight
