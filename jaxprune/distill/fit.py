"""`fit`: the loop on top of a step, with everything that a long run needs and nothing that the step
needs.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxprune.distill.inner import Inner
from jaxprune.distill.plan import Plan
from jaxprune.distill.run import Run
from jaxprune.distill.writers import Writer


class Fitted(NamedTuple):
    """What `fit` gives.

    Attributes:
      state: after the last step.
      best: the state's params and model state at the best evaluation; the last ones without
        `evaluate`.
      best_step: of that evaluation.
      score: of it: the monitored number; NaN without `evaluate`.
      evaluations: one {"step": …, name: number} each.
      stopped: "steps", or "patience".
      inner: the inner loop that ran, "python" or "scan".
      steps_per_second: of this call, compilation and evaluations included.
      flops: {"step": …, "teacher": …}, operations of one step and of the teacher's part in it; None
        where the program cannot be read.
    """

    state: Any
    best: Any
    best_step: int
    score: float
    evaluations: tuple[dict[str, float], ...]
    stopped: str
    inner: str
    steps_per_second: float
    flops: dict[str, int | None]


def fit(
    distiller: Any,
    state: Any,
    batches: Any,
    teacher: Any,
    *,
    steps: int,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    monitor: str = "accuracy",
    mode: str = "max",
    patience: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    inner: Inner = "auto",
    inner_steps: int = 50,
    writer: Writer | None = None,
    sharding: Any = None,
    progress: bool = True,
) -> Fitted:
    """Trains for so many steps, or until a validation split says that it is enough.

    With a folder it writes checkpoints there, and a later call with the same arguments goes on from
    the newest one, to the bits of a run that nothing interrupted: state, data order, keys, early
    stopping and metrics included. SIGTERM and Ctrl-C end the chunk of steps in hand, write a
    checkpoint and then do what they did before; a second one does so at once. SIGKILL loses what
    came after the last checkpoint.

    Args:
      distiller: of `jp.distill.distiller`, or anything with `step(state, batch, teacher) -> (state,
        metrics)`; the state has `step`, and the metrics scalars with a "loss".
      state: to begin with, of `distiller.init`. It is copied, never donated.
      batches: `Shuffled`, or any iterable of pytrees (docs/distillation.md).
      teacher: a pytree, given to every step.
      steps: where `state.step` shall end.
      evaluate: state -> {name: number} on data to choose by, as `Evaluator`.
      evaluate_every: steps between evaluations; default: a tenth of all, and always the last one.
      monitor, mode: which number is best when largest ("max") or smallest ("min").
      patience: evaluations without a better one before stopping.
      folder: of checkpoints and of metrics.jsonl.
      checkpoint_every: steps between checkpoints; default: at evaluations.
      inner: how steps run: "scan" compiles a loop over `inner_steps` of them, "python" calls a
        compiled step; "auto" is "python" where a convolution would run on a CPU, which XLA runs
        about ten times slower in a loop.
      inner_steps: between two looks at the metrics, which are written as means over them.
      writer: `Jsonl(folder / "metrics.jsonl")` by default, with a folder.
      sharding: of a batch's leaves, as NamedSharding(mesh, P("data")). Every process reads whole
        batches and sends its part. State and teacher, where they are on one device, are copied to
        all of the mesh.
      progress: on stderr, once it takes longer than two seconds.

    Returns:
      A `Fitted`.

    Raises:
      ValueError: batches that end, change their shape or do not divide by the mesh; labels out of
        range; a checkpoint of another student or teacher; a monitored number that `evaluate` does
        not give.
      Diverged: a loss that is not finite: which step, which term; the last checkpoint stays.
      OSError: a full disk; the last checkpoint stays.

    Warns:
      UserWarning: a teacher that does worse than the student, by the monitored number.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp, optax
      >>> net, x = jp.distill.plain(lambda w, x: x @ w), jnp.eye(3)
      >>> teacher = jp.distill.Online(net, jnp.diag(jnp.array([3.0, 2.0, 1.0])))
      >>> d = jp.distill.distiller(net, [jp.distill.match(jp.distill.losses.logit_mse)],
      ...     optax.sgd(1.0))
      >>> state = d.init(jnp.zeros((3, 3)), {"x": x}, teacher, key=jax.random.key(0))
      >>> fitted = jp.distill.fit(d, state, jp.distill.Shuffled({"x": x}, batch=3), teacher,
      ...     steps=100)
      >>> error = jnp.abs(fitted.state.params - teacher.params).max()
      >>> bool(error < 0.05), fitted.stopped, fitted.inner
      (True, 'steps', 'scan')
    """
    plan = Plan(
        steps,
        evaluate,
        evaluate_every,
        monitor,
        mode,
        patience,
        checkpoint_every,
        inner,
        inner_steps,
    )
    plan = plan.checked()
    # Arrays on Explicit axes ask for the mesh around them.
    mesh = contextlib.nullcontext() if sharding is None else jax.set_mesh(sharding.mesh)
    with (
        mesh,
        Run(plan, distiller, state, batches, teacher, folder, writer, sharding, progress) as run,
    ):
        stopped = run.until_done()
        return Fitted(
            state=run.state,
            best=run.best,
            best_step=run.best_step,
            score=run.score,
            evaluations=tuple(run.evaluations),
            stopped=stopped,
            inner=run.inner,
            steps_per_second=run.progress.speed,
            flops=run.flops,
        )
