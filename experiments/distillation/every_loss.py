"""Every classical loss on one task: what each adds to the labels.

MNIST with 5,000 labelled images. The student is a thin `strided` network, trained for a few epochs;
the teacher has four times its channels and learned from all 55,000. Each loss is added to the
labels' cross-entropy with one weight, chosen from powers of ten by the validation errors of a seed
that is not reported (ties: by validation loss). Steps, learning rate and batches are the same for
all. Where there is no such teacher, students learn from the student of labels alone ("previous"),
from each other ("peers"), or from their own moving average ("views").

python -m experiments.distillation.every_loss [--resume FILE]
python -m experiments.distillation.every_loss --write               # the table of
    docs/distillation.md
"""

import argparse
import json
import pathlib
import time
from typing import Any

from experiments.data import mnist
from experiments.distillation.arms import Arm, arms
from experiments.distillation.common import HERE, paired, plus_minus, remembered, save, summary
from experiments.distillation.every_loss_task import Task

SETTINGS: dict[str, Any] = {
    "seeds": [0, 1, 2, 3, 4],
    "tuning_seed": 10,
    "powers": [-2, -1, 0, 1, 2],
    "images": 5000,
    "epochs": 10,
    "batch": 64,
    "learning_rate": 2e-3,
    "student": {"channels": [4, 8], "hidden": 32},
    "teacher": {"channels": [16, 32], "hidden": 128},
    "teacher_epochs": 6,
}
PAGE = HERE.parents[1] / "docs" / "distillation.md"
RESULTS = HERE / "results" / "every_loss" / "results.json"
BEGIN = "<!-- every loss: begin -->"
END = "<!-- every loss: end -->"


def chosen(task: Task, learn: Any, arm: Arm, settings: Any) -> tuple[float, list[Any]]:
    """The weight with the fewest errors on the validation split, and what every weight gave
    there.
    """
    grid = [arm.weight * 10.0**power for power in settings["powers"]]
    tried = [[weight, *task.score(learn(weight, settings["tuning_seed"]))] for weight in grid]
    return min(tried, key=lambda found: found[1:])[0], tried


def result(task: Task, arm: Arm, settings: Any) -> dict[str, Any]:
    """Test errors of one loss over the seeds, with its weight."""
    clock = time.perf_counter()
    learn = task.learner(arm)
    weight, tried = chosen(task, learn, arm, settings)
    errors = [task.wrong(learn(weight, seed)) for seed in settings["seeds"]]
    how = {"layers": arm.layers or "logits", "how": arm.how, "weight": weight, "tried": tried}
    return how | {"errors": summary(errors), "s": time.perf_counter() - clock}


def measured(
    settings: Any, data: Any, only: Any = None, path: pathlib.Path | None = None
) -> dict[str, Any]:
    """Every loss, or some by name. What a killed run had finished is taken from `path`."""
    clock = time.perf_counter()
    task = Task(data, settings)

    def alone():
        return [task.wrong(task.alone(seed)) for seed in settings["seeds"]]

    labels = remembered(path, "labels", alone)
    found: dict[str, Any] = {
        "teacher_errors": task.errors,
        "steps": task.steps,
        "labels": summary(labels),
        "losses": {},
    }
    for name, arm in arms(settings["images"], task.margin).items():
        if only is None or name in only:
            row = remembered(path, name, lambda arm=arm: result(task, arm, settings))
            found["losses"][name] = row | {"fewer": paired(row["errors"]["values"], labels)}
            print(
                f"{name:24} {row['weight']:<8g} {plus_minus(row['errors'])}  {row['s']:.0f} s",
                flush=True,
            )
    return found | {"wall_s": time.perf_counter() - clock}


def table(found: Any) -> str:
    """The table of the page, of results."""
    lines = [
        "| loss | between | weight | errors | fewer than labels alone, 95% interval |",
        "|---|---|---|---|---|",
    ]
    lines.append(f"| labels alone | | | {plus_minus(found['labels'])} | |")
    for name, row in found["losses"].items():
        low, high = row["fewer"]["interval"]
        between = row["layers"].replace("|", r"\|") + (
            "" if row["how"] == "teacher" else f", {row['how']}"
        )
        fewer = f"{row['fewer']['mean']:.1f} ({low:.0f} to {high:.0f})"
        lines.append(
            f"| `{name}` | {between} | {row['weight']:g} | {plus_minus(row['errors'])} | {fewer} |"
        )
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    found = json.loads(RESULTS.read_text())["results"]
    return f"{before}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--write",
        action="store_true",
        help="put the table of the results that are there into the page",
    )
    parser.add_argument(
        "--resume",
        type=pathlib.Path,
        help="a file for finished losses, taken over on the next start",
    )
    args = parser.parse_args()
    if args.write:
        PAGE.write_text(page(PAGE.read_text()))
        return
    found = measured(SETTINGS, mnist(), path=args.resume)
    print(save("every_loss", SETTINGS, found))
    print(table(found))


if __name__ == "__main__":
    main()
