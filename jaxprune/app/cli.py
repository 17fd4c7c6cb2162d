"""The command line. Each command is a thin layer over a function of the library."""

from typing import Annotated

import typer

from jaxprune.app.commands import compress, experiment, files

app = typer.Typer(
    help="Compress checkpoints of neural networks, and run experiments.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        import jaxprune

        print(f"jaxprune {jaxprune.__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Compress checkpoints of neural networks, and run experiments."""


def main() -> None:
    """The entry point."""
    app()


COMMANDS = (
    compress.compress,
    files.inspect,
    files.restore,
    files.diff,
    files.verify,
    experiment.run,
)
for command in COMMANDS:
    app.command()(command)
