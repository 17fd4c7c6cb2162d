"""One phase of one seed: compress, train, checkpoint, measure; a killed one goes on from its newest
checkpoint.

    begin -> (epoch -> evaluate -> choose -> checkpoint)* -> the chosen tree and its record

The record is what results.json tells of the phase. It is written just before the checkpoint beside
it: it may know more epochs than the checkpoint, which cuts them, and never fewer.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax

from jaxprune.app.experiments import results as out
from jaxprune.app.experiments.checkpoints import Checkpoints
from jaxprune.app.experiments.config import settings_of
from jaxprune.app.experiments.lab import Lab
from jaxprune.app.experiments.settings import Phase
from jaxprune.app.experiments.training import Program, State, choose, logits_of


@dataclasses.dataclass
class Running:
    """A phase under way.

    Attributes:
      state: after `epoch` epochs.
      record: of results.json.
      key: of the phase and the seed.
      data: x and y, and the outputs of the dense network where the phase learns from them.
      earlier: seconds it took before it was killed.
    """

    lab: Lab
    store: Checkpoints
    index: int
    seed: int
    key: Any
    data: tuple[Any, ...]
    state: State
    record: dict[str, Any]
    epoch: int = 0
    earlier: float = 0.0
    started: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def phase(self) -> Phase:
        """Its config."""
        return self.lab.config.phase[self.index]

    @property
    def program(self) -> Program:
        """Its compiled functions."""
        return self.lab.programs[self.index]


def run_phase(
    lab: Lab, store: Checkpoints, index: int, seed: int, tree: Any, dense: Any
) -> tuple[Any, dict[str, Any]]:
    """Runs a phase on a tree; `dense` is the network that it may learn from.

    Returns:
      The tree it gives on, and its record.
    """
    key = phase_key(seed, index)
    state = lab.programs[index].begin(tree, key)
    now = _resume(Running(lab, store, index, seed, key, _data(lab, index, dense), state, {}))
    while now.epoch < now.phase.epochs:
        _train_one_epoch(now)
        is_due = now.epoch % settings_of(lab.config, now.phase).checkpoint_every == 0
        if now.epoch < now.phase.epochs and (is_due or lab.stop_requested()):
            _checkpoint(now)
        if now.epoch < now.phase.epochs:
            lab.obey_signals()
    chosen = now.state.best if now.phase.epochs else now.state.tree
    if now.record["after"] is None:
        now.record["after"] = lab.figures(chosen)
        _checkpoint(now)
    found = now.record["after"]
    told = f"test accuracy {found['test']['accuracy']:.2%}, {found['ratio']:.1f}x smaller"
    lab.progress.line(f"seed {seed}  {now.phase.name}: {told}")
    lab.obey_signals()
    return chosen, now.record


def _data(lab: Lab, index: int, dense: Any) -> tuple[Any, ...]:
    train = tuple(lab.data.train)
    if lab.config.phase[index].distill is None:
        return train
    return (*train, logits_of(lab.model.apply, dense, train[0]))


def seed_key(seed: int) -> Any:
    """Of a seed: it draws the params."""
    return jax.random.key(seed)


def phase_key(seed: int, index: int) -> Any:
    """Of a phase, by its place."""
    return jax.random.fold_in(seed_key(seed), 1 + index)


def _resume(now: Running) -> Running:
    """The phase as its checkpoint left it, or as it begins."""
    found = now.store.restore(now.index, now.state)
    if found is None:
        return _begin(now)
    now.epoch, now.state = found
    now.record = out.read_json(_notes(now))
    now.record["epochs"] = now.record["epochs"][: now.epoch]
    now.earlier = now.record["seconds"]
    now.lab.progress.skip(now.epoch)
    return now


def _begin(now: Running) -> Running:
    trains = now.phase.epochs > 0
    before = now.lab.figures(now.state.tree) if trains else None
    now.record = {
        "name": now.phase.name,
        "seconds": 0.0,
        "before": before,
        "after": None,
        "epochs": [],
    }
    if trains and not now.program.ramp:
        # The code before training is a candidate too: a phase that tunes never gives on what
        # validates worse.
        now.state = choose(
            now.program, now.state, 0, *now.lab.evaluate(now.state.tree, now.lab.data.validation)
        )
    return now


def _train_one_epoch(now: Running) -> None:
    state = now.program.epoch(now.state, now.data, now.key, now.epoch)
    loss, accuracy = now.lab.evaluate(state.tree, now.lab.data.validation)
    if not math.isfinite(loss):
        raise ValueError(
            f"seed {now.seed}, phase {now.phase.name!r}, epoch {now.epoch + 1}: the validation "
            f"loss is {loss}. Lower learning_rate, or look at what the phase does to the weights; "
            "the last checkpoint is from before"
        )
    now.epoch += 1
    now.state = choose(now.program, state, now.epoch, loss, accuracy)
    now.record["epochs"].append({"epoch": now.epoch, "loss": loss, "accuracy": accuracy})
    now.lab.progress.epoch(now.seed, now.phase.name, now.epoch, now.phase.epochs, loss, accuracy)


def _checkpoint(now: Running) -> None:
    now.record["seconds"] = now.earlier + time.perf_counter() - now.started
    out.write_json(_notes(now), now.record)
    now.store.save(now.index, now.epoch, now.state)


def _notes(now: Running) -> Path:
    return now.store.folder / f"phase-{now.index}.json"
