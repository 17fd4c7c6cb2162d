"""What the compiled loop gains at which size, and what its step of a small MLP is made of.

Here the two inner loops are timed without the rest of `fit`: K steps and the metrics on the host.
Each is compiled once, all take turns, and a figure is the median of the ratios within a round. The
attempts at a faster compiled step are loops whose batches come otherwise: each gathered by itself,
with bounds checks and without, all K before the first step, or none at all; and one whose step also
tells "kl" and "agreement".
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxprune as jp
from experiments.models import mlp
from jaxprune.distill.inner import chunk_runner

Chunk = Callable[[Any], Any]
GIVEN = jp.distill.Precomputed()


class Student:
    """One student of random data with cached logits, all on the device.

    Args:
      widths: of its layers.
      batch: examples a step.
      examples: of random data.
      steps: K.
    """

    def __init__(self, widths: Sequence[int], batch: int, examples: int, steps: int) -> None:
        rng = np.random.default_rng(0)
        self._model = mlp(widths)

        def draw(width):
            return rng.normal(size=(examples, width)).astype(np.float32)

        data = {"x": draw(widths[0]), "teacher": draw(widths[-1])}
        source = jp.distill.Shuffled(data, batch)
        self.take = source.taken
        self.data = jax.tree.map(jnp.asarray, data)
        self.rows = [source.indices(i) for i in range(steps)]

    def start(self, compare: bool = False) -> tuple[Any, Any]:
        """The step, and a state to begin with."""
        soft = jp.distill.match(jp.distill.losses.soft_targets)
        net = jp.distill.plain(self._model.apply)
        d = jp.distill.distiller(net, [soft], optax.adam(1e-3), compare=compare)
        first = self.take(self.rows[0], self.data)
        key = jax.random.key(0)
        return d.step, d.init(self._model.init(key), first, GIVEN, key=key)

    def loop(self, kind: Any, compare: bool = False) -> "Timed":
        """An inner loop of `fit`."""
        step, state = self.start(compare)
        return self._run(kind, step, self.take, state, self.data, GIVEN)

    def one_by_one(self, take: Any = None) -> "Timed":
        """The compiled loop, of which each step takes its own batch."""
        step, state = self.start()

        def one(state, row, data):
            return step(state, (take or self.take)(row, data), GIVEN)

        return self._run("scan", one, lambda row, _: row, state, {}, self.data)

    def _run(self, kind: Any, step: Any, take: Any, state: Any, *rest: Any) -> "Timed":
        run, _ = chunk_runner(step, take, kind, len(self.rows), state, self.rows[0], *rest)
        return Timed(lambda state: run(state, self.rows, *rest), state, len(self.rows))

    def beforehand(self) -> "Timed":
        """A compiled loop over batches that are all gathered before the first step."""
        step, state = self.start()

        def many(state: Any, rows: Any, data: Any) -> Any:
            return lax.scan(lambda s, batch: step(s, batch, GIVEN), state, self.take(rows, data))

        run = jax.jit(many, donate_argnums=0)
        rows = np.stack(self.rows)
        return Timed(lambda state: run(state, rows, self.data), state, len(rows))

    def bare(self) -> "Timed":
        """A Python loop over the jitted step, which leaves its metrics on the device."""
        step, state = self.start()
        one = jax.jit(lambda s, i, data: step(s, self.take(i, data), GIVEN), donate_argnums=0)

        def run(state: Any) -> Any:
            metrics = {}
            for row in self.rows:
                state, metrics = one(state, row, self.data)
            return state, metrics

        return Timed(run, state, len(self.rows))


class Timed:
    """Seconds a step of a loop that goes on with its own state; compiled when it is made."""

    def __init__(self, run: Chunk, state: Any, steps: int) -> None:
        self._run = run
        self._state = state
        self._steps = steps
        self()

    def __call__(self) -> float:
        start = time.perf_counter()
        self._state, metrics = self._run(self._state)
        jax.device_get(metrics)
        jax.block_until_ready(self._state.step)
        return (time.perf_counter() - start) / self._steps


def rounds_of(
    contestants: Mapping[str, Callable[[], float]], rounds: int
) -> list[dict[str, float]]:
    """Each in turn, so many times, beginning with another one each time."""
    names = list(contestants)
    turns = [names[i % len(names) :] + names[: i % len(names)] for i in range(rounds)]
    return [{name: contestants[name]() for name in turn} for turn in turns]


def ratio(rounds: Sequence[Mapping[str, float]], a: str, b: str) -> float:
    """The median of a / b within a round."""
    return float(np.median([r[a] / r[b] for r in rounds]))


Sized = tuple[Sequence[int], int]


def at_sizes(
    sizes: Sequence[Sized], examples: int, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """For each network and batch: milliseconds a step of both loops and of the bare step, and what
    the first saves.
    """
    found = []
    for widths, batch in sizes:
        student = Student(widths, batch, examples, steps)
        loops = {
            "scan": student.loop("scan"),
            "python": student.loop("python"),
            "bare": student.bare(),
        }
        times = rounds_of(loops, rounds)
        medians = {name: 1e3 * float(np.median([r[name] for r in times])) for name in loops}
        over = {f"{name} over scan": ratio(times, name, "scan") for name in ("python", "bare")}
        found.append({"layers": list(widths), "batch": batch, "milliseconds": medians, **over})
    return found


def attempts(
    widths: Sequence[int], batch: int, examples: int, steps: int, rounds: int
) -> dict[str, Any]:
    """What each attempt takes, of the compiled step as it is, and what the Python loop takes of the
    attempt.
    """
    student = Student(widths, batch, examples, steps)
    fixed = student.take(student.rows[0], student.data)

    def unchecked(row, data):
        return {k: x.at[row].get(mode="promise_in_bounds") for k, x in data.items()}

    loops = {
        "as it is": student.loop("scan"),
        "with comparisons among the metrics": student.loop("scan", compare=True),
        "each batch gathered by itself": student.one_by_one(),
        "by itself, without bounds checks": student.one_by_one(unchecked),
        "all batches gathered beforehand": student.beforehand(),
        "one fixed batch, no gather": student.one_by_one(lambda row, data: fixed),
        "python": student.loop("python"),
    }
    times = rounds_of(loops, rounds)

    def about(name):
        return {
            "of it": ratio(times, name, "as it is"),
            "python over": ratio(times, "python", name),
        }

    return {name: about(name) for name in loops}
