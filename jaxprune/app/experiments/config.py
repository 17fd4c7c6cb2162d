"""The config of an experiment: TOML in, frozen structs out, and the name of its run.

    name = "digits"
    model = "experiments.models:digits_mlp"        a factory, of a linen or NNX module too; keywords
                                                   in [model_args]
    data = "experiments.data:digits"
    seeds = [0, 1, 2]                              one network each; tables show mean ± standard
                                                   deviation

    [train]                                        what every phase does unless it says otherwise
    batch = 64
    learning_rate = 1e-3

    [[phase]]
    name = "prune"
    epochs = 30
    ramp = 0.6                                     the part of the phase over which sparsity rises
    [[phase.rule]]                                 see jaxprune.app.recipe
    where = "(.*/)?kernel"
    prune = { sparsity = 0.95, allocate = "global" }

    [sweep]                                        a grid: one run for each choice
    "phase.prune.epochs" = [10, 30]

A run is named by the hash of those settings that differ from the defaults: a new setting renames no
old run.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from jaxprune.app.experiments.overrides import assign, toml_value
from jaxprune.app.experiments.settings import Phase, Train, distill_of, penalty_of
from jaxprune.app.recipe import check
from jaxprune.app.recipes.strict import Settings, convert, read_toml

SEEDS = (
    2**32
)  # jax.random.key keeps the last 32 bits of a seed: those of larger ones would be another seed's


class Config(Settings, frozen=True):
    """An experiment.

    Attributes:
      name: of the run folder.
      model, data: factories, as "package.module:function".
      model_args, data_args: their keywords.
      seeds: one network each.
      train: defaults of the phases.
      phase: in order.
      baselines: also prune the dense network in one shot, by magnitude and at random, to the final
        density.
      sweep: dotted key -> values; a grid of runs.
    """

    name: str
    model: str
    data: str
    phase: tuple[Phase, ...]
    model_args: dict[str, Any] = msgspec.field(default_factory=dict)
    data_args: dict[str, Any] = msgspec.field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    train: Train = Train()
    baselines: bool = True
    sweep: dict[str, Any] = msgspec.field(default_factory=dict)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A config from a TOML file.

    Args:
      path: of the file.
      overrides: "key=value" with dotted keys, as "train.batch=32" or "phase.prune.epochs=2"; values
        are TOML.

    Raises:
      ValueError: one line that names file, key and fix.
    """
    raw = read_toml(Path(path))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: it must be key=value, as train.learning_rate=1e-3")
        assign(raw, key.strip(), toml_value(value.strip()), f"--set {text}", Config)
    return make(raw, str(path))


def make(raw: dict[str, Any], source: str = "the config") -> Config:
    """A config from dicts, checked."""
    config = convert(raw, Config, source)
    try:
        _check(config)
    except ValueError as e:
        raise ValueError(f"{source}: {e}") from None
    return config


def grid(config: Config) -> list[tuple[dict[str, Any], Config]]:
    """The runs of a config: for each choice of the sweep what it sets, and the config with it
    set.
    """
    axes = _flat(config.sweep)
    runs = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values))
        raw = to_dict(config)
        raw.pop("sweep", None)
        for key, value in chosen.items():
            assign(raw, key, value, f"sweep.{key}", Config)
        runs.append((chosen, make(raw, "the sweep")))
    return runs


def to_dict(config: Config) -> dict[str, Any]:
    """The settings that differ from the defaults."""
    return msgspec.json.decode(msgspec.json.encode(config))


def run_name(config: Config) -> str:
    """`<name>-<hash>`, the hash of what differs from the defaults."""
    settings = {k: v for k, v in to_dict(config).items() if k != "name"}
    settings_json = msgspec.json.encode(settings, order="deterministic")
    return f"{config.name}-{hashlib.sha256(settings_json).hexdigest()[:10]}"


def settings_of(config: Config, phase: Phase) -> Train:
    """How a phase trains: its own settings before those of [train]."""
    own = {
        f: getattr(phase, f) for f in Train.__struct_fields__ if getattr(phase, f, None) is not None
    }
    return msgspec.structs.replace(config.train, **own)


def dense_phases(config: Config) -> int:
    """How many phases come before the first rule or price: they train the dense network."""
    return next(
        (i for i, p in enumerate(config.phase) if p.rule or p.rate_penalty), len(config.phase)
    )


def seeds_of(config: Config) -> tuple[int, ...]:
    """The seeds of the replicates."""
    return config.seeds or (config.train.seed,)


def _check(config: Config) -> None:
    for seed in seeds_of(config):
        if not 0 <= seed < SEEDS:
            raise ValueError(
                f"the seed {seed}: JAX makes keys of 32 bits; give seeds from 0 to {SEEDS - 1}"
            )
    if len(set(config.seeds)) < len(config.seeds):
        raise ValueError(
            f"seeds = {list(config.seeds)}: two are equal, and would be one network counted twice"
        )
    if config.seeds and config.train.seed:
        raise ValueError(
            "seeds and train.seed are both given: keep seeds = [...], or train.seed for one run"
        )
    if not config.phase:
        raise ValueError("it has no phase: add [[phase]] with name and epochs")
    if not re.fullmatch(r"[\w.-]+", config.name):
        raise ValueError(
            f"name = {config.name!r} names a folder: use letters, digits, '.', '_' and '-'"
        )
    names = [p.name for p in config.phase]
    for phase in config.phase:
        if names.count(phase.name) > 1:
            raise ValueError(
                f"two phases are named {phase.name!r}: --set and the tables tell them apart by name"
            )
        _check_phase(config, phase)
    for key, values in _flat(config.sweep).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"sweep.{key} = {values!r}: a sweep takes a list of values")


def _check_phase(config: Config, phase: Phase) -> None:
    train = settings_of(config, phase)
    where = f"phase {phase.name!r}"
    if phase.epochs < 0 or train.batch < 1 or phase.update_every < 1 or train.checkpoint_every < 1:
        raise ValueError(
            f"{where}: epochs must be >= 0; batch, update_every and checkpoint_every >= 1"
        )
    if not 0 <= phase.ramp <= 1:
        raise ValueError(f"{where}: ramp = {phase.ramp} is a fraction of the phase, in [0, 1]")
    if not (0 < train.learning_rate < math.inf and 0 <= train.weight_decay < math.inf):
        raise ValueError(
            f"{where}: learning_rate = {train.learning_rate} must be > 0 and finite, weight_decay "
            f"= {train.weight_decay} >= 0 and finite"
        )
    if phase.ramp and not (phase.epochs and any(rule.prune is not None for rule in phase.rule)):
        raise ValueError(f"{where}: ramp = {phase.ramp} needs epochs > 0 and a rule that prunes")
    penalty = penalty_of(phase)
    if penalty and not (
        0 <= penalty.strength < math.inf and 0 < penalty.width < math.inf and 0 <= penalty.ramp <= 1
    ):
        raise ValueError(
            f"{where}: rate_penalty needs a finite strength >= 0, width > 0, and ramp in [0, 1]"
        )
    _check_distill(config, phase, where)
    try:
        check(phase.rule)
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None


def _check_distill(config: Config, phase: Phase, where: str) -> None:
    found = distill_of(phase)
    if found is None:
        return
    if not (0 < found.temperature < math.inf and 0 <= found.weight <= 1):
        raise ValueError(f"{where}: distill needs a finite temperature > 0 and a weight in [0, 1]")
    if config.phase.index(phase) < max(1, dense_phases(config)):
        raise ValueError(
            f"{where}: distill learns from the dense network: put it after the phases that train "
            f"that"
        )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys: sweep.train.seed and sweep."train.seed" are the same."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
