"""The command line. Each command is a thin layer over a function of the library."""

import typer

from jaxprune.app.commands import compress, experiment, files

app = typer.Typer(
    help="Compress neural networks in JAX.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The entry point."""
    app()


for command in (compress.compress, files.inspect, files.restore, files.diff, files.verify, experiment.run):
    app.command()(command)
