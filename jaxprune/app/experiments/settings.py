"""What a config says of a phase, and of training in general: frozen structs."""

from typing import Literal

from jaxprune.app.recipes.rules import Rule
from jaxprune.app.recipes.strict import Settings

Optimizer = Literal["adam", "sgd"]
Decay = Literal["constant", "cosine"]
Select = Literal["best", "last"]


class Train(Settings, frozen=True):
    """How a phase trains.

    Attributes:
      seed: where `seeds` is not given, the one seed.
      batch: examples a step.
      optimizer: "adam" (AdamW with weight decay) or "sgd" (momentum 0.9).
      learning_rate: at the start of a phase; the optimizer starts afresh in each.
      weight_decay: of arrays with two axes or more.
      schedule: of the learning rate; "cosine" falls to 0 over the phase.
      select: which epoch a phase gives on: the "best" on the validation split (after the ramp), or
        the "last".
      inner: the loop over steps: "scan" compiles an epoch, "loop" a step; "auto" loops where there
        is a convolution, which XLA:CPU runs about ten times slower inside a compiled loop.
      checkpoint_every: epochs between checkpoints.
    """

    seed: int = 0
    batch: int = 64
    optimizer: Optimizer = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Decay = "constant"
    select: Select = "best"
    inner: Literal["auto", "scan", "loop"] = "auto"
    checkpoint_every: int = 10


class RatePenalty(Settings, frozen=True):
    """`jp.rate_penalty` on the kernels, as `rate_penalty = 5e-7` or a table; its strength rises
    over part of the phase.

    Attributes:
      strength, width, value_bits: of `jp.rate_penalty`.
      ramp: the fraction of the phase over which the strength rises from 0.
    """

    strength: float
    width: float = 0.02
    value_bits: float = 6.0
    ramp: float = 0.3


class Distill(Settings, frozen=True):
    """Learning from the dense network, `distill = 4.0` (the temperature) or a table; Hinton et al.,
    arXiv:1503.02531.

    Attributes:
      temperature: T, which softens both networks' outputs.
      weight: α of (1 − α) CE(labels) + α T² KL(teacher at T ‖ student at T).
    """

    temperature: float
    weight: float = 0.7


class Phase(Settings, frozen=True):
    """One phase: compress by its rules, then train the code.

    Attributes:
      name: unique in the config.
      epochs: 0 compresses and trains nothing.
      ramp: fraction of the phase over which the cubic schedule raises the sparsity; 0 prunes at
        once.
      update_every: steps between two updates of the masks on the ramp.
      rate_penalty: what the loss pays for bits; of leaves that are not compressed yet.
      distill: learn from the network as it was before the first rule or rate_penalty too.
      rule: the rules; none for a phase that only trains.
      batch, optimizer, learning_rate, weight_decay, schedule, select: instead of those in [train].
    """

    name: str
    epochs: int
    ramp: float = 0.0
    update_every: int = 50
    rate_penalty: float | RatePenalty | None = None
    distill: float | Distill | None = None
    rule: tuple[Rule, ...] = ()
    batch: int | None = None
    optimizer: Optimizer | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: Decay | None = None
    select: Select | None = None


def penalty_of(phase: Phase) -> RatePenalty | None:
    """What a phase pays for bits; None if nothing."""
    given = phase.rate_penalty
    return RatePenalty(given) if isinstance(given, float | int) else given


def distill_of(phase: Phase) -> Distill | None:
    """How a phase learns from the dense network; None if it does not."""
    given = phase.distill
    return Distill(given) if isinstance(given, float | int) else given
