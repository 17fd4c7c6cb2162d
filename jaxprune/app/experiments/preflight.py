"""What of a run can be known before its first step, checked: batches against examples, and each
phase's rules against the leaves that it will find.

The tree is followed through the phases by its shapes alone (`jax.eval_shape`). A rule whose code
depends on the weights (a threshold, an energy, a similarity, a step) has no shapes to follow: from
there on, only paths are checked.
"""

from typing import Any

import jax

from jaxprune.app.experiments.config import Config, settings_of
from jaxprune.app.experiments.training import Program
from jaxprune.app.files.compression_plan import depends_on_weights
from jaxprune.app.recipe import describe


def check_batches(config: Config, examples: int) -> None:
    """Whether every phase that trains can fill a batch.

    Raises:
      ValueError: a batch larger than the training split.
    """
    for phase in config.phase:
        batch = settings_of(config, phase).batch
        if phase.epochs and batch > examples:
            raise ValueError(
                f"phase {phase.name!r}: batch = {batch}, and the training split has {examples} "
                f"examples: set train.batch to {examples} at most"
            )


def check_rules(config: Config, programs: tuple[Program, ...], params: Any) -> None:
    """Whether every rule of every phase finds leaves that it can work on.

    Args:
      config: of the run.
      programs: one a phase.
      params: shapes and dtypes of the model's params.

    Raises:
      ValueError: the phase, and what its rule cannot do.
    """
    tree = params
    known = True
    for phase, program in zip(config.phase, programs):
        if not phase.rule:
            continue
        try:
            describe(phase.rule, tree)
            known = known and not any(map(depends_on_weights, phase.rule))
            if known:
                tree = jax.eval_shape(program.begin, tree, jax.random.key(0)).tree
        except ValueError as e:
            raise ValueError(f"phase {phase.name!r}: {e}") from None
