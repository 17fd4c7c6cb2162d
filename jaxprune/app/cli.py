"""The command line: `jaxprune run CONFIG.toml` and `jaxprune inspect FILE`."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Compress neural networks in JAX.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as train.batch=32. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def main() -> None:
    """The entry point."""
    app()


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    set: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and train nothing.")] = False,
    runs: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Run an experiment. A killed run goes on where it stopped; a finished one prints its table again."""
    with _plain_errors():
        from jaxprune.app.config import grid, load_config

        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        todo = grid(load_config(config, set or []))
        shown = [_plan(c, runs, as_json) if dry_run else _run(c, runs, as_json, chosen) for chosen, c in todo]
        if as_json:
            print(json.dumps(shown[0] if len(shown) == 1 else shown, indent=2))


@app.command("inspect")
def look(
    file: Annotated[Path, typer.Argument(help="A compressed file.")],
    as_json: Json = False,
) -> None:
    """Show what a compressed file holds."""
    with _plain_errors():
        from jaxprune.storage.files import inspect

        found = inspect(file)
        print(json.dumps(found.to_dict(), indent=2) if as_json else found)


def _run(config: Any, runs: Path, quiet: bool, chosen: dict[str, Any]) -> dict[str, Any]:
    from jaxprune.app.experiment import run
    from jaxprune.app.tables import print_results

    results, folder = run(config, runs)
    if not quiet:
        if chosen:
            print(", ".join(f"{k} = {v}" for k, v in chosen.items()))
        print_results(results, folder)
    return results


def _plan(config: Any, runs: Path, quiet: bool) -> list[dict[str, Any]]:
    from jaxprune.app.config import run_name
    from jaxprune.app.experiment import plan
    from jaxprune.app.tables import console, plan_table

    rows = plan(config, runs / run_name(config))
    if not quiet:
        console().print(plan_table(rows))
        print(f"the run folder would be {runs / run_name(config)}")
    return rows


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """What the user can mend is one message and exit code 2; anything else keeps its traceback."""
    try:
        yield
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("stopped: the same command goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None
