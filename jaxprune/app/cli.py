"""The command line: `jaxprune compress | inspect | restore | diff | verify | run`."""

import typer

from jaxprune.app.commands import compress, experiment, files

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """The entry point."""
    app()


@app.callback()
def _group() -> None:
    """Compress neural networks in JAX."""


for command in (compress.compress, files.inspect, files.restore, files.diff, files.verify, experiment.run):
    app.command()(command)
