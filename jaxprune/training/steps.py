"""What transforms that count their steps share: a state, and the value of a schedule."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from jaxprune.core.types import Params, Schedule


class StepState(NamedTuple):
    """Steps taken."""

    count: Int[Array, ""]


def first_step() -> StepState:
    """The state before any step."""
    return StepState(jnp.zeros((), jnp.int32))


def next_step(state: StepState) -> StepState:
    """The state after one more step; the count stops at the largest int32."""
    import optax

    return StepState(jnp.asarray(optax.safe_increment(state.count)))


def value_at(schedule: float | Schedule, state: StepState) -> Any:
    """A number, or what a schedule gives for the steps taken."""
    return schedule(state.count) if callable(schedule) else schedule


def check_params(call: str, params: Params) -> None:
    """Refuses an update without params; `call` is the transform's name."""
    if params is None:
        raise ValueError(f"{call} needs the params: tx.update(grads, state, params)")
