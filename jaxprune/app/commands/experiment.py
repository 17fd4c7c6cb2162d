"""`jaxprune run CONFIG.toml`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxprune.app.commands.common import Json, is_inside, plain_errors, print_json

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the config, as train.batch=32. Repeatable.",
    ),
]


def run(
    config: Annotated[Path, typer.Argument(help="The experiment: a TOML file.")],
    set: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; train nothing.")
    ] = False,
    runs: Annotated[Path, typer.Option(help="The folder of all run folders.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Run an experiment. A stopped run resumes from its last checkpoint; a finished one prints its
    results."""
    with plain_errors("stopped: the same command goes on from the last checkpoint"):
        from jaxprune.app.experiments.config import grid, load_config, run_name

        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        points = grid(load_config(config, set or []))
        for _, settings in points:
            _check_folder(runs / run_name(settings), config)
        reports = []
        for chosen, settings in points:
            if dry_run:
                reports.append(_plan(settings, runs, as_json))
            else:
                reports.append(_run(settings, runs, as_json, chosen))
        if as_json:
            print_json(reports[0] if len(reports) == 1 else reports)


def _check_folder(folder: Path, config: Path) -> None:
    """Refuses a run folder that holds the config: a run writes files there and removes its
    checkpoints."""
    if folder.is_dir() and is_inside(config, folder):
        raise ValueError(
            f"{config} lies in {folder}, where the run writes its results: move it, or give "
            f"another --runs"
        )


def _run(config: Any, runs: Path, quiet: bool, chosen: dict[str, Any]) -> dict[str, Any]:
    from jaxprune.app.commands.ending import say
    from jaxprune.app.experiments.experiment import run
    from jaxprune.app.experiments.tables import print_results
    from jaxprune.distill.signals import Signals

    with Signals(lambda: say("stopping after this epoch; Ctrl-C again ends at once")) as signals:
        results, folder = run(config, runs, signals)
    if not quiet:
        if chosen:
            print(", ".join(f"{k} = {v}" for k, v in chosen.items()))
        print_results(results, folder)
    return results


def _plan(config: Any, runs: Path, quiet: bool) -> list[dict[str, Any]]:
    from jaxprune.app.experiments.config import run_name
    from jaxprune.app.experiments.experiment import plan
    from jaxprune.app.experiments.tables import console, plan_table

    rows = plan(config, runs / run_name(config))
    if not quiet:
        screen = console()
        screen.print(plan_table(rows, screen.width))
        print(f"the run folder would be {runs / run_name(config)}")
    return rows
