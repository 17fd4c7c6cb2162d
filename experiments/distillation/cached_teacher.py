"""A cached teacher on MNIST: what it costs to write, and its step beside one of labels alone and
one with the teacher.

An MLP of 784-1200-1200-10 teaches one of 784-800-800-10. Its logits of the 60,000 images are
written once, as float16; then three students take turns, five steps each: from labels alone, from
labels and the cached logits (on the device, gathered by index within the step, or read from the
files at every step), and with the teacher in the step.

python -m experiments.distillation.cached_teacher [--out results.json]
"""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.benchmarks.common import at_most, race, ratio, report, shown
from experiments.data import Pair, mnist
from experiments.distillation.common import nobody
from experiments.models import mlp
from experiments.results import run_file

TEACHER = (784, 1200, 1200, 10)
STUDENT = (784, 800, 800, 10)
SOFT = jp.distill.match(jp.distill.losses.soft_targets)  # T = 4
ALONE = "labels alone"
CACHED = "cached logits"
READ = "cached logits, read at each step"
ONLINE = "teacher in the step"


class Sizes(NamedTuple):
    """How much is run.

    Attributes:
      teacher, student: widths of the layers.
      batch: examples a step.
      steps: of a student in its turn.
      rounds: turns of each.
    """

    teacher: Sequence[int] = TEACHER
    student: Sequence[int] = STUDENT
    batch: int = 128
    steps: int = 5
    rounds: int = 201


@contextlib.contextmanager
def bar(what: str, after: float = 2.0) -> Iterator[Callable[[int, int], None]]:
    """A `progress` for write_cache: a bar with the time left on stderr, once the work has taken
    some seconds.
    """
    from rich import progress as p
    from rich.console import Console

    columns = p.TextColumn(what), p.BarColumn(), p.MofNCompleteColumn(), p.TimeRemainingColumn()
    shown = p.Progress(*columns, console=Console(stderr=True), transient=True)
    task = shown.add_task(what, total=None)
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        shown.update(task, completed=done, total=total)
        if (
            time.monotonic() - began > after
            and shown.console.is_terminal
            and not shown.live.is_started
        ):
            shown.start()

    try:
        yield progress
    finally:
        shown.stop()


def taught(sizes: Sizes, data: Pair) -> Any:
    """A teacher's params: one epoch of labels."""
    model = mlp(sizes.teacher)
    n = len(data[0])
    d = jp.distill.distiller(jp.distill.plain(model.apply), [], optax.adam(1e-3), labels=1.0)
    arrays = {"x": jnp.asarray(data[0]), "y": jnp.asarray(data[1])}
    order = np.random.default_rng(0).permutation(n)
    state = d.init(model.init(jax.random.key(0)), arrays, nobody, key=jax.random.key(0))
    step = jax.jit(lambda s, a, i: d.step(s, part(a, i), nobody), donate_argnums=0)
    for i in range(0, n - sizes.batch + 1, sizes.batch):
        state, _ = step(state, arrays, order[i : i + sizes.batch])
    return state.params


def part(arrays: Any, indices: Any) -> Any:
    return jax.tree.map(lambda x: x[indices], arrays)


def written(
    folder: str, sizes: Sizes, params: Any, x: Any
) -> tuple[jp.distill.Cache, dict[str, float]]:
    """The cache, and what it took: seconds of every part, and bytes."""
    clock = time.perf_counter
    told = {}
    apply = jax.jit(mlp(sizes.teacher).apply)

    def logits_of(x):
        return apply(params, x)

    start = clock()
    name = jp.distill.fingerprint(params, f"mlp {list(sizes.teacher)}")
    told["fingerprint_s"] = clock() - start
    start = clock()
    with bar("teacher's logits") as progress:
        jp.distill.write_cache(folder, logits_of, x, fingerprint=name, progress=progress)
    told["write_s"] = clock() - start
    start = clock()
    jp.distill.write_cache(folder, logits_of, x, fingerprint=name)
    told["write_again_s"] = clock() - start
    start = clock()
    cache = jp.distill.Cache.open(folder, fingerprint=name)
    cache.whole()
    told["open_and_check_s"] = clock() - start
    start = clock()
    order = np.random.default_rng(1).permutation(len(x))
    for i in range(0, len(x), sizes.batch):
        cache.read(order[i : i + sizes.batch])
    told["read_an_epoch_s"] = clock() - start
    start = clock()
    for i in range(0, len(x), 1000):
        jax.block_until_ready(logits_of(x[i : i + 1000]))
    told["teacher_an_epoch_s"] = clock() - start
    files = [p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file()]
    return cache, {**told, "bytes": float(sum(files)), "files": float(len(files))}


def student(
    sizes: Sizes, terms: Sequence[Any], teacher: Any, arrays: Any, rows: Any = None
) -> Callable[[], Any]:
    """A call that makes some steps, always from where the last one ended."""
    model = mlp(sizes.student)
    draw = np.random.default_rng(2)
    d = jp.distill.distiller(jp.distill.plain(model.apply), terms, optax.adam(1e-3), labels=1.0)
    step = jax.jit(lambda s, a, i, t, more: d.step(s, {**part(a, i), **more}, t), donate_argnums=0)
    first = part(arrays, np.arange(sizes.batch)) | (
        {} if rows is None else rows(np.arange(sizes.batch))
    )
    at = [d.init(model.init(jax.random.key(1)), first, teacher, key=jax.random.key(2))]

    def run() -> Any:
        for _ in range(sizes.steps):
            i = draw.integers(0, len(arrays["x"]), sizes.batch)
            at[0], metrics = step(at[0], arrays, i, teacher, {} if rows is None else rows(i))
        return metrics

    return run


def contestants(
    sizes: Sizes, params: Any, cache: jp.distill.Cache, data: Pair
) -> dict[str, Callable[[], Any]]:
    """Steps of the same student."""
    arrays = {"x": jnp.asarray(data[0]), "y": jnp.asarray(data[1])}
    given = jp.distill.Precomputed()
    online = jp.distill.Online(jp.distill.plain(mlp(sizes.teacher).apply), params)
    return {
        ALONE: student(sizes, [], nobody, arrays),
        CACHED: student(sizes, [SOFT], given, {**arrays, "teacher": jnp.asarray(cache.whole())}),
        READ: student(sizes, [SOFT], given, arrays, lambda i: {"teacher": cache.read(i)}),
        ONLINE: student(sizes, [SOFT], online, arrays),
    }


def measured(sizes: Sizes, data: Pair) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the table, and every figure."""
    params = taught(sizes, data)
    with tempfile.TemporaryDirectory() as folder:
        cache, told = written(folder, sizes, params, data[0])
        times = race(contestants(sizes, params, cache, data), sizes.rounds)

    def over(name, clock):
        return ratio(times, name, ALONE, clock)

    rows = [
        shown("logits on disk, MB", told["bytes"] / 1e6),
        shown("written once, s", told["write_s"]),
        shown("opened and checked, s", told["open_and_check_s"]),
        shown("an epoch of rows read, s", told["read_an_epoch_s"]),
        shown("an epoch of the teacher, s", told["teacher_an_epoch_s"]),
        at_most("step: cached logits / labels alone, wall", over(CACHED, "wall_ms"), 1.05),
        at_most("step: cached logits / labels alone, CPU time", over(CACHED, "cpu_ms"), 1.05),
        shown("step: read at each step / labels alone, wall", over(READ, "wall_ms")),
        shown("step: teacher in the step / labels alone, wall", over(ONLINE, "wall_ms")),
        shown("step: teacher in the step / labels alone, CPU time", over(ONLINE, "cpu_ms")),
    ]
    return rows, {"sizes": sizes._asdict(), "cache": told, "steps": times}


def main() -> None:
    train, validation, _ = mnist()
    x, y = (np.concatenate(both) for both in zip(train, validation))
    rows, figures = measured(Sizes(), (x.reshape(len(x), -1), y))
    out = run_file("distillation", "cached_teacher")
    report("cached_teacher", "A cached teacher, MNIST", rows, figures, out=out)


if __name__ == "__main__":
    main()
