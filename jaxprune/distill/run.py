"""A run of `fit`: chunks of steps, and between them evaluations, checkpoints, metrics and
signals.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.distill.checkpoints import Checkpoints, structure
from jaxprune.distill.diagnostics import COMPARED
from jaxprune.distill.feeding import Feeder, feeder
from jaxprune.distill.inner import chunk_runner
from jaxprune.distill.placing import on_mesh
from jaxprune.distill.plan import Diverged, Plan
from jaxprune.distill.progress import Progress
from jaxprune.distill.signals import Signals
from jaxprune.distill.teachers.fingerprints import fingerprint
from jaxprune.distill.writers import Jsonl
from jaxprune.jaxprs.flops import flops


class Run:
    """See `fit`."""

    def __init__(
        self,
        plan: Plan,
        distiller: Any,
        state: Any,
        batches: Any,
        teacher: Any,
        folder: Any,
        writer: Any,
        sharding: Any,
        shown: bool,
    ) -> None:
        self.plan = plan
        self._folder = None if folder is None else Path(folder)
        state, self._teacher = on_mesh((jax.tree.map(jnp.copy, state), teacher), sharding)
        self.state = state
        self.best = _kept(state)
        self.best_step = int(state.step)
        self.score = math.nan
        self.evaluations = []
        self._without = 0
        self._writer = (
            Jsonl(self._folder / "metrics.jsonl") if writer is None and self._folder else writer
        )
        self._store = None
        if self._folder:
            identity = {"student": structure(state), "teacher": _identity(teacher)}
            self._store = Checkpoints(self._folder / "checkpoints", identity)
        try:
            self._begin(distiller.step, batches, sharding, shown)
        except BaseException:
            self._close()
            raise

    def _begin(self, step: Any, batches: Any, sharding: Any, shown: bool) -> None:
        """Finds the place to go on from, and compiles."""
        plan = self.plan
        place = self._restored()
        self.inner = plan.inner
        self.flops: dict[str, int | None] = {"step": None, "teacher": None}
        if self.step < plan.steps:
            self._build(step, batches, sharding, place)
        counts = ", ".join(f"{name} {n:.3g}" for name, n in self.flops.items() if n is not None)
        note = f"{self.inner} loop; operations: {counts}"
        self.progress = Progress(plan.steps, self.step, shown and jax.process_index() == 0, note)
        self._signal = Signals()
        self._theirs: float | None = None
        self._ready: list[Any] = []

    def _build(self, step: Any, batches: Any, sharding: Any, place: Any) -> None:
        self._feeder: Feeder = feeder(batches, sharding, self.step, place)
        row = self._feeder.row(self.step)
        feed = self._feeder
        args = self.state, row, feed.data, self._teacher
        self._chunk, self.inner = chunk_runner(
            step, feed.take, self.plan.inner, self.plan.inner_steps, *args
        )
        batch = jax.eval_shape(feed.take, row, feed.data)
        self.flops["step"] = _counted(step, self.state, batch, self._teacher)
        if not hasattr(self._teacher, "bind"):
            self.flops["teacher"] = _counted(lambda t, b: t(b, None), self._teacher, batch)

    def __enter__(self) -> "Run":
        self._signal.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.close()
        self._close()
        self._signal.__exit__(*error)

    def _close(self) -> None:
        if self._store:
            self._store.close()

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.step)

    def until_done(self) -> str:
        """Runs, and says why it ended."""
        step = self.step
        while step < self.plan.steps and not self._out_of_patience():
            step = self._advance(step)
        if not self.evaluations:
            self.best = _kept(self.state)
            self.best_step = step
        return "patience" if self._out_of_patience() else "steps"

    def _advance(self, step: int) -> int:
        """One chunk, and what follows it."""
        stop = self.plan.next_stop(step)
        rows = self._ready or self._rows(step)
        self.state, metrics = self._chunk(self.state, rows, self._feeder.data, self._teacher)
        # While the device works: reading its metrics waits for it.
        self._ready = self._rows(stop) if self._feeder.ahead and stop < self.plan.steps else []
        self._look(step, {name: x[: stop - step] for name, x in jax.device_get(metrics).items()})
        judged = self.plan.due(stop, self.plan.evaluate_every)
        if (
            judged
            or self.plan.due(stop, self.plan.checkpoint_every)
            or self._signal.came is not None
        ):
            self._refuse_spoilt(stop)
        if self.plan.evaluate and judged:
            self._evaluate(stop)
        ended = self._out_of_patience()
        if self._store and (
            self.plan.due(stop, self.plan.checkpoint_every)
            or ended
            or self._signal.came is not None
        ):
            self._save(stop)
        self._signal.obey()
        return stop

    def _rows(self, step: int) -> list[Any]:
        return [self._feeder.row(i) for i in range(step, self.plan.next_stop(step))]

    def _look(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """At the metrics of a chunk that began at `step`."""
        bad = ~np.isfinite(metrics["loss"])
        if bad.any():
            i = int(np.argmax(bad))
            there = {
                name: float(x[i]) for name, x in metrics.items() if name not in ("loss", *COMPARED)
            }
            terms = {name: x for name, x in there.items() if not math.isfinite(x)}
            raise Diverged(
                step + i, terms or {"loss": float(metrics["loss"][i])}, self._last_resort()
            )
        n = len(metrics["loss"])
        means = {name: float(np.mean(x, dtype=np.float64)) for name, x in metrics.items()}
        if self._writer and jax.process_index() == 0:
            self._writer.write_scalars(step + n, means)
        self.progress.advance(step + n, means)

    def _refuse_spoilt(self, step: int) -> None:
        """What the last update broke is told now: its loss would be told after it had become the
        only checkpoint.
        """
        if bool(_spoilt(self.state)):
            raise Diverged(step - 1, {"update": math.nan}, self._last_resort())

    def _last_resort(self) -> str:
        return (
            f"The last checkpoint, in {self._folder}, is from before"
            if self._store
            else "No folder, no checkpoint"
        )

    def _evaluate(self, step: int) -> None:
        assert self.plan.evaluate
        found = {name: float(x) for name, x in self.plan.evaluate(self.state).items()}
        if self.plan.monitor not in found:
            raise ValueError(f"fit(monitor={self.plan.monitor!r}): evaluate gives {list(found)}")
        self.evaluations.append({"step": step, **found})
        if self._writer and jax.process_index() == 0:
            self._writer.write_scalars(step, {f"validation/{name}": x for name, x in found.items()})
        score = found[self.plan.monitor]
        if math.isnan(self.score) or self._better(score, self.score):
            self.best = _kept(self.state)
            self.best_step = step
            self.score = score
            self._without = 0
        else:
            self._without += 1
        self._compare(score)

    def _compare(self, score: float) -> None:
        """Warns once of a teacher that does worse."""
        of_teacher = getattr(self.plan.evaluate, "teacher", None)
        if of_teacher is None or hasattr(
            self._teacher, "bind"
        ):  # a teacher made of the student is no better
            return
        unbeaten = math.inf if self.plan.mode == "max" else -math.inf
        theirs = self._theirs
        if theirs is None:
            found = of_teacher(self._teacher, self.state)
            theirs = unbeaten if found is None else float(found[self.plan.monitor])
        worse = self._better(score, theirs)
        if worse:
            warnings.warn(
                f"the teacher's {self.plan.monitor} is {theirs:.4g}, the student's {score:.4g}: a "
                "teacher worse than its student teaches its errors; train it longer, or give the "
                "labels more weight",
                stacklevel=6,
            )
        self._theirs = unbeaten if worse else theirs

    def _better(self, a: float, b: float) -> bool:
        return a > b if self.plan.mode == "max" else a < b

    def _out_of_patience(self) -> bool:
        return self.plan.patience is not None and self._without >= self.plan.patience

    def _save(self, step: int) -> None:
        assert self._store
        about = {
            "step": step,
            "best_step": self.best_step,
            "score": None if math.isnan(self.score) else self.score,
            "without": self._without,
            "evaluations": self.evaluations,
            "data": self._feeder.state(),
        }
        self._store.save(step, self.state, self.best, about)

    def _restored(self) -> Any:
        """Takes up the newest checkpoint; gives the data's place."""
        found = self._store.restore(self.state, self.best) if self._store else None
        if isinstance(self._writer, Jsonl) and jax.process_index() == 0:
            self._writer.rewind(found.about["step"] if found else self.step)
        if found is None:
            return None
        self.state, self.best, about = found
        self.best_step = about["best_step"]
        self._without = about["without"]
        self.evaluations = about["evaluations"]
        self.score = math.nan if about["score"] is None else about["score"]
        return about["data"]


def _counted(f: Any, *args: Any) -> int | None:
    try:
        return flops(f, *args)
    except ValueError:
        return None


@jax.jit
def _spoilt(state: Any) -> Any:
    """Whether a param is not finite, or anything is NaN; an optimizer's state may hold infinities
    of its own.
    """

    def of(tree):
        return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]

    bad = [~jnp.isfinite(x) for x in of(getattr(state, "student", state).params)] + [
        jnp.isnan(x) for x in of(state)
    ]
    return jnp.any(jnp.stack([jnp.any(x) for x in bad])) if bad else jnp.zeros((), bool)


def _kept(state: Any) -> Any:
    """A copy of what an evaluation sees: the step donates the rest."""
    inside = getattr(state, "student", state)
    return jax.tree.map(jnp.copy, {"params": inside.params, "model_state": inside.model_state})


def _identity(teacher: Any) -> str:
    leaves = jax.tree.leaves(teacher)
    return f"{type(teacher).__name__} {fingerprint(leaves)[:16] if leaves else 'without params'}"
