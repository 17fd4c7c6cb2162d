"""Where a script writes: below runs/ of the working folder, as `jaxprune run` does. Results in git
stay as they are.

python -m experiments.distillation.hinton           writes runs/distillation/hinton/results.json
cp -r runs/distillation/hinton experiments/distillation/results/         makes it the result that
    the pages cite
"""

from pathlib import Path
from typing import Any

from jaxprune.app.experiments.results import write_json

RUNS = Path("runs")


def run_file(group: str, name: str, file: str = "results.json") -> Path:
    """The file of an experiment's run; its folder is made.

    Args:
      group: the folder below experiments/, as "distillation".
      name: of the experiment.
      file: its name.
    """
    path = RUNS / group / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save_results(group: str, name: str, results: Any) -> Path:
    """Writes the results.json of a run, whole or not at all, and returns its path."""
    path = run_file(group, name)
    write_json(path, results)
    return path
