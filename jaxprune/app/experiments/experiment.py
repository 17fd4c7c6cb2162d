"""An experiment: phases over (apply, params, data), each of which compresses the tree it gets and
trains the code.

    params -> phase 1 -> tree -> phase 2 -> … -> a file -> the tree loaded from it, whose accuracy
    is the one reported

The validation split chooses epochs; the test split reports and never chooses. A run lives in
`runs/<name>-<hash>`: its config, checkpoints while it works, then the compressed models, plots and,
last, results.json, which marks it finished.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from jaxprune.app.experiments import results as out
from jaxprune.app.experiments.checkpoints import Checkpoints
from jaxprune.app.experiments.config import Config, dense_phases, run_name, seeds_of, to_dict
from jaxprune.app.experiments.lab import Lab, make_lab
from jaxprune.app.experiments.phases import phase_key, run_phase, seed_key
from jaxprune.app.progress import Progress
from jaxprune.app.recipe import describe
from jaxprune.app.recipes.rules import to_toml
from jaxprune.core.arrays import materialize
from jaxprune.distill.signals import Signals
from jaxprune.jaxprs.flops import flops, sparse_flops
from jaxprune.methods import allocate
from jaxprune.methods.prune import prune
from jaxprune.report.deep_compression import deep_compression_bits
from jaxprune.storage.files import load, save


class Trees(NamedTuple):
    """What the plots of weights are drawn from: the dense params, and the tree loaded from the
    file.
    """

    dense: Any
    final: Any


def run(config: Config, runs: Path, signals: Signals | None = None) -> tuple[dict[str, Any], Path]:
    """Runs a config, or goes on where a killed run stopped, or reads the results of a finished one.

    Args:
      config: without a sweep.
      runs: the folder of run folders.
      signals: that the run obeys after an epoch, when its checkpoint is written.

    Returns:
      The results (docs/results.md) and the run's folder.

    Raises:
      ValueError: what cannot run, before its first step; a results.json that is none.
      Stopped: a signal came.
    """
    folder = runs / run_name(config)
    finished = folder / "results.json"
    if finished.exists():
        return out.read_results(finished), folder
    total = len(seeds_of(config)) * sum(p.epochs for p in config.phase)
    with Progress(total) as progress:
        lab = make_lab(config, folder, progress, signals)
        out.write_json(folder / "config.json", to_dict(config))
        done = [_run_seed(lab, i, seed) for i, seed in enumerate(seeds_of(config))]
    results = _gather(lab, [figures for figures, _ in done])
    _draw(results, done[0][1], folder)
    out.write_json(finished, results)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return results, folder


def plan(config: Config, folder: Path) -> list[dict[str, Any]]:
    """What --dry-run shows: each phase with its rules' leaves and the sizes it would give, from
    untrained weights.
    """
    lab = make_lab(config, folder, Progress(0))
    seed = seeds_of(config)[0]
    tree = lab.model.init(seed_key(seed))
    rows = []
    for i, (phase, prog) in enumerate(zip(config.phase, lab.programs)):
        matches = describe(phase.rule, tree)
        key = phase_key(seed, i)
        tree = prog.begin(tree, key).tree
        # The schedule's target is known without training: one update at the ramp's end.
        tree = prog.compression.update(tree, step=prog.ramp, key=key) if prog.ramp else tree
        size = out.sizes(tree)
        rules = [
            {"rule": to_toml([m.rule]).splitlines()[1:], "leaves": list(m.paths)} for m in matches
        ]
        row = {
            "name": phase.name,
            "epochs": phase.epochs,
            "steps": phase.epochs * prog.steps,
            "rules": rules,
        }
        rows.append(row | {"bytes": size, "ratio": size["dense"] / size["stored"]})
    return rows


def _run_seed(lab: Lab, index: int, seed: int) -> tuple[dict[str, Any], Trees]:
    """All phases for one seed, then the file."""
    tree = lab.model.init(seed_key(seed))
    dense = tree
    records = []
    store = Checkpoints(lab.folder / "checkpoints" / f"seed-{seed}")
    try:
        for i in range(len(lab.programs)):
            tree, record = run_phase(lab, store, i, seed, tree, dense)
            records.append(record)
            dense = tree if i < dense_phases(lab.config) else dense
    finally:
        store.close()
    return _finish(lab, index, seed, records, Trees(dense, tree))


def _finish(
    lab: Lab, index: int, seed: int, phases: list[Any], trees: Trees
) -> tuple[dict[str, Any], Trees]:
    """Writes the file, reads it back, and reports what was read."""
    name = "model.jpz" if index == 0 else f"model-{seed}.jpz"
    path = lab.folder / name
    save(
        path,
        trees.final,
        metadata={"name": lab.config.name, "seed": seed, "recipe": _recipe(lab.config)},
    )
    final = load(path)
    figures = {
        "seed": seed,
        "file": name,
        "phases": phases,
        "dense": lab.figures(trees.dense),
        "final": _of_file(lab, path, final),
        "flops": _flops(lab, trees.dense, final),
        "deep_compression": _deep_compression(final),
    }
    kept = figures["final"]["density"]
    figures["baselines"] = (
        _baselines(lab, trees.dense, kept, seed) if lab.config.baselines and kept < 1 else {}
    )
    return figures, Trees(trees.dense, final)


def _of_file(lab: Lab, path: Path, tree: Any) -> dict[str, Any]:
    """The figures of a loaded tree, `stored` being the size of its file."""
    found = lab.figures(tree)
    stored = path.stat().st_size
    changed = {
        "bytes": found["bytes"] | {"stored": stored},
        "ratio": found["bytes"]["dense"] / stored,
    }
    return found | changed | {"leaves": out.leaf_figures(tree)}


def _flops(lab: Lab, dense: Any, final: Any) -> dict[str, int]:
    """Of one example: all of them, and without the products with a zero weight."""
    x = jax.ShapeDtypeStruct((1, *lab.model.example), lab.data.train[0].dtype)
    return {
        "dense": flops(lab.model.apply, dense, x),
        "final": sparse_flops(lab.model.apply, final, x),
    }


def _deep_compression(tree: Any) -> dict[str, float] | None:
    """Ratios as Han et al. count them; None for codes that the paper has not."""
    try:
        found = deep_compression_bits(tree)
    except ValueError:
        return None
    dense = 8 * out.sizes(tree)["dense"]
    return {"fixed": dense / found.fixed, "huffman": dense / found.huffman}


def _recipe(config: Config) -> dict[str, str]:
    """The rules of each phase, to travel with the file."""
    return {phase.name: to_toml(phase.rule) for phase in config.phase if phase.rule}


def _baselines(lab: Lab, dense: Any, kept: float, seed: int) -> dict[str, Any]:
    """The dense network pruned in one shot to the same density, without retraining: what a method
    must beat.
    """
    noise = np.random.default_rng(seed)
    trees = {
        "magnitude": prune(1 - kept, allocate=allocate.global_).init(dense),
        "random": prune(
            1 - kept, score=jax.tree.map(lambda x: noise.random(x.shape, np.float32), dense)
        ).init(dense),
    }
    return {name: {"test": lab.score(tree, lab.data.test)} for name, tree in trees.items()}


def _gather(lab: Lab, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"schema": out.SCHEMA, "name": lab.config.name, "config": to_dict(lab.config)}
    data = {"sha256": out.data_sha256(lab.data), "examples": [len(x) for x, _ in lab.data]}
    return about | out.summarise(seeds) | out.environment() | {"data": data, "seeds": seeds}


def _draw(results: dict[str, Any], trees: Trees, folder: Path) -> None:
    from jaxprune.app.experiments import figures

    dense = materialize(trees.dense)
    final = materialize(trees.final)
    draw: dict[str, Callable[[BinaryIO], None]] = {
        "weights.png": lambda file: figures.weights(file, dense, final),
        "accuracy.png": lambda file: figures.accuracy(file, results),
        "layers.png": lambda file: figures.layers(file, results),
    }
    for name, make in draw.items():
        out.write_whole(folder / name, make)
