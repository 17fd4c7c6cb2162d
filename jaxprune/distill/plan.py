"""What `fit` is told to do, and when; and what it says when the loss is no number any more."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxprune.core.arguments import whole
from jaxprune.core.words import choice


class Diverged(ValueError):
    """A loss is not finite.

    Attributes:
      step: the first such step, counted from 0.
      terms: what is not finite there; ("loss",) if only the sum is not; ("update",) if the losses
        are, and the step's update has left a NaN in the state.
    """

    def __init__(self, step: int, terms: dict[str, float], kept: str) -> None:
        self.step = step
        self.terms = tuple(terms)
        hint = "" if "update" in terms else "; a label out of range gives NaN"
        said = ", ".join(f"{name!r} is {value}" for name, value in terms.items())
        super().__init__(f"step {step}: {said}. {kept}{hint}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The arguments of `fit` that are numbers and choices."""

    steps: int
    evaluate: Callable[[Any], Mapping[str, float]] | None
    evaluate_every: int | None
    monitor: str
    mode: str
    patience: int | None
    checkpoint_every: int | None
    inner: Any
    inner_steps: int

    def checked(self) -> "Plan":
        """Itself with the defaults, or an error."""
        numbers = {}
        for name in ("steps", "evaluate_every", "checkpoint_every", "inner_steps", "patience"):
            value = getattr(self, name)
            numbers[name] = (
                value if value is None and name != "steps" else whole(f"fit({name}={{}})", value)
            )
        plan = dataclasses.replace(self, **numbers)
        every = plan.evaluate_every or max(1, plan.steps // 10)
        plan = dataclasses.replace(
            plan, evaluate_every=every, checkpoint_every=plan.checkpoint_every or every
        )
        choice("fit(mode={})", self.mode, ("max", "min"))
        if self.patience is not None and self.evaluate is None:
            raise ValueError(
                "fit(patience=…): give evaluate=, a function of the state on a validation split"
            )
        return plan

    def next_stop(self, step: int) -> int:
        """Where the chunk that starts at a step ends: at the next multiple of anything, whatever
        came before.
        """
        every = (
            self.inner_steps,
            self.evaluate_every or self.steps,
            self.checkpoint_every or self.steps,
        )
        return min(self.steps, *((step // n + 1) * n for n in every))

    def due(self, step: int, every: Any) -> bool:
        """Whether something that is done every so often is done after this step."""
        return step % every == 0 or step == self.steps
