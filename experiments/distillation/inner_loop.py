"""What a compiled loop saves where steps are small, and what `fit` costs over the bare step.

A small MLP (64-32-10, batch 32, cached logits): steps a second of fit(inner="scan") against
fit(inner="python"), with the loss and its terms as metrics, and with all metrics (the KL at
temperature 1, agreement). An MLP of 784-800-800-10 (batch 128): fit against a Python loop over the
bare jitted step that gathers the same batches. Times are taken between two writes of metrics, so
compilation is not among them; contestants take turns. Then the two loops alone, without the rest of
`fit`, at several sizes, and what the compiled step is made of (`inner_loop_parts`).

python -m experiments.distillation.inner_loop [--rounds N]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.benchmarks.common import at_least, at_most, shown
from experiments.distillation.common import save, show
from experiments.distillation.inner_loop_parts import at_sizes, attempts
from experiments.models import mlp


class Sizes(NamedTuple):
    """How much is run.

    Attributes:
      small, large: widths of the layers.
      batch: of each.
      examples: of random data.
      steps: a turn of each.
      rounds: turns.
      table: widths and batches at which the loops alone are compared.
      chunk: steps of such a loop.
      turns: of each of them.
    """

    small: tuple[int, ...] = (64, 32, 10)
    large: tuple[int, ...] = (784, 800, 800, 10)
    batch: tuple[int, int] = (32, 128)
    examples: int = 4096
    steps: tuple[int, int] = (4000, 100)
    rounds: int = 15
    table: tuple[tuple[tuple[int, ...], int], ...] = (
        ((4, 4, 2), 1),
        ((8, 8, 4), 4),
        ((16, 16, 4), 8),
        ((32, 16, 10), 16),
        ((64, 32, 10), 1),
        ((64, 32, 10), 8),
        ((64, 32, 10), 32),
        ((64, 32, 10), 128),
    )
    chunk: int = 500
    turns: int = 15


class Clock:
    """A writer that knows when it was called."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.steps: list[int] = []

    def write_scalars(self, step: int, scalars: Any) -> None:
        """Notes the moment."""
        self.times.append(time.perf_counter())
        self.steps.append(step)

    @property
    def seconds_a_step(self) -> float:
        """Between the first and the last call."""
        return (self.times[-1] - self.times[0]) / (self.steps[-1] - self.steps[0])


class Bench:
    """One student on random data with cached logits."""

    def __init__(self, widths: tuple[int, ...], batch: int, examples: int, compare: bool) -> None:
        rng = np.random.default_rng(0)
        model = mlp(widths)
        x = rng.normal(size=(examples, widths[0])).astype(np.float32)
        self.data = {"x": x, "teacher": rng.normal(size=(examples, widths[-1])).astype(np.float32)}
        self.source = jp.distill.Shuffled(self.data, batch)
        terms = [jp.distill.match(jp.distill.losses.soft_targets)]
        self.d = jp.distill.distiller(
            jp.distill.plain(model.apply), terms, optax.adam(1e-3), compare=compare
        )
        first = {name: v[:1] for name, v in self.data.items()}
        self.state = self.d.init(
            model.init(jax.random.key(0)), first, jp.distill.Precomputed(), key=jax.random.key(1)
        )

    def fit(self, steps: int, inner: Any, inner_steps: int) -> float:
        """Seconds a step."""
        clock = Clock()
        given = jp.distill.Precomputed()
        more = {"inner": inner, "inner_steps": inner_steps, "writer": clock, "progress": False}
        jp.distill.fit(self.d, self.state, self.source, given, steps=steps + inner_steps, **more)
        return clock.seconds_a_step

    def bare(self) -> Callable[[int], float]:
        """A Python loop over the jitted step, for so many steps: seconds a step."""
        given = jp.distill.Precomputed()
        data = jax.tree.map(jnp.asarray, self.data)

        def take(data, i):
            return {name: v[i] for name, v in data.items()}

        step = jax.jit(lambda s, data, i: self.d.step(s, take(data, i), given), donate_argnums=0)
        at = [jax.tree.map(jnp.copy, self.state)]
        rows = [self.source.indices(i) for i in range(self.source.steps)]
        at[0], _ = step(at[0], data, rows[0])

        def run(steps: int) -> float:
            jax.block_until_ready(at[0].step)
            start = time.perf_counter()
            for i in range(steps):
                at[0], metrics = step(at[0], data, rows[i % len(rows)])
            jax.block_until_ready((at[0], metrics))
            return (time.perf_counter() - start) / steps

        return run


def measured(sizes: Sizes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the table and every time."""
    small, told = (
        Bench(sizes.small, sizes.batch[0], sizes.examples, compare) for compare in (False, True)
    )
    large = Bench(sizes.large, sizes.batch[1], sizes.examples, True)
    tiny = small.bare()
    big = large.bare()
    n, m = sizes.steps
    contestants: dict[str, Callable[[], float]] = {
        "small, scan": lambda: small.fit(n, "scan", max(1, n // 8)),
        "small, python": lambda: small.fit(n // 4, "python", max(1, n // 32)),
        "small, bare step": lambda: tiny(n // 4),
        "small, all metrics, scan": lambda: told.fit(n, "scan", max(1, n // 8)),
        "small, all metrics, python": lambda: told.fit(n // 4, "python", max(1, n // 32)),
        "large, fit": lambda: large.fit(m, "auto", max(1, m // 5)),
        "large, bare step": lambda: big(m),
    }
    rounds = []
    for i in range(sizes.rounds):
        names = list(contestants)
        turn = names[i % len(names) :] + names[: i % len(names)]
        rounds.append({name: contestants[name]() for name in turn})

    def over(a, b):
        return float(np.median([r[a] / r[b] for r in rounds]))

    rows = [
        at_least(
            "small MLP: steps/s of scan over those of the Python loop",
            over("small, python", "small, scan"),
            5.0,
        ),
        at_least(
            "small MLP: steps/s of scan over the bare step",
            over("small, bare step", "small, scan"),
            5.0,
        ),
        shown(
            "small MLP with all metrics: scan over the Python loop",
            over("small, all metrics, python", "small, all metrics, scan"),
        ),
        at_most(
            "784-800-800-10: time of fit over the bare step",
            over("large, fit", "large, bare step"),
            1.03,
        ),
    ]
    medians = {name: 1e3 * float(np.median([r[name] for r in rounds])) for name in contestants}
    rest = sizes.examples, sizes.chunk, sizes.turns
    alone = {
        "sizes": at_sizes(sizes.table, *rest),
        "attempts": attempts(sizes.small, sizes.batch[0], *rest),
    }
    return rows, {"milliseconds_a_step": medians, "rounds_s": rounds, **alone}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=Sizes().rounds)
    sizes = Sizes()._replace(rounds=parser.parse_args().rounds)
    rows, figures = measured(sizes)
    path = save("inner_loop", sizes._asdict(), {"rows": rows, **figures})
    told = [
        (r["what"], f"{r['measured']:.3f}", r["goal"], {True: "yes", False: "NO"}.get(r["met"], ""))
        for r in rows
    ]
    show("The inner loop", ["what", "measured", "goal", ""], told)

    def times(r):
        return [f"{r[f'{other} over scan']:.1f}" for other in ("python", "bare")]

    ratios = [("-".join(map(str, r["layers"])), r["batch"], *times(r)) for r in figures["sizes"]]
    show(
        "Steps/s of the compiled loop, times those of",
        ["layers", "batch", "Python loop", "bare step"],
        ratios,
    )
    tried = [
        (n, f"{r['of it']:.2f}", f"{r['python over']:.1f}") for n, r in figures["attempts"].items()
    ]
    show("The compiled step of 64-32-10", ["how", "time", "Python loop over it"], tried)
    print(path)


if __name__ == "__main__":
    main()
