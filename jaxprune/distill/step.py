"""One step of distillation: a pure function of (state, batch, teacher), for a loop of one's own.

    state = init(params, batch, teacher, key=key)
    state, metrics = step(state, batch, teacher)          # jax.jit(step, donate_argnums=0)

    loss = labels(step) · CE(student, y) + Σ_terms weight(step) · value

The student's params may be compressed arrays: then their code is trained, as `jp.value_and_grad` does it. The teacher
is a pytree beside the state, so that it is never donated, keeps its sharding, and may change from step to step.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxprune.core.arrays import materialize
from jaxprune.core.tree import combine, partition
from jaxprune.distill.losses.common import masked_mean
from jaxprune.distill.losses.decoupled import TopK
from jaxprune.distill.losses.soft import forward_kl
from jaxprune.distill.networks import Network, either, outputs
from jaxprune.distill.terms import OUTPUT, Pair, Term, evaluate, init_projections, pairs, scheduled
from jaxprune.numerics.precision import widen


class State(NamedTuple):
    """Everything that a step changes: one pytree.

    Attributes:
      params: the student's, dense or compressed.
      projections: term -> tap -> params of a projection.
      model_state: the student's batch statistics and their like.
      opt_state: of the optimizer, which sees {"student": …, "projections": …}.
      step: int32.
      key: split by the step; dropout and stochastic teachers draw from it.
    """

    params: Any
    projections: dict[str, dict[str, Any]]
    model_state: Any
    opt_state: Any
    step: Array
    key: Array


class Distiller(NamedTuple):
    """Made by `distiller`.

    Attributes:
      init: (params, batch, teacher, *, key, model_state={}) -> State; runs nothing but the init of projections.
      step: (state, batch, teacher) -> (state, metrics).
    """

    init: Callable[..., State]
    step: Callable[..., tuple[State, dict[str, Array]]]


def distiller(
    student: Network,
    terms: Sequence[Term],
    optimizer: Any,
    *,
    labels: Any = 0.0,
    view: Callable[[Any], Any] = materialize,
) -> Distiller:
    """The init and the step of a distillation.

    Donating a state donates the params that it was made of: copy them first if they are needed again.

    A batch is a mapping with "x", "y" (integer labels, where `labels` is not 0), and maybe "mask" (which examples
    count). Metrics are float32 scalars: "loss", "labels", each term's name (without its weight), and, where the teacher
    gives outputs, "kl" (of the outputs at temperature 1; not of a `losses.TopK`) and "agreement" (equal top classes).

    Args:
      student: a network, whose `apply` gives logits.
      terms: of `match`; their names differ.
      optimizer: an optax transform of {"student": the code's float leaves, "projections": …}; `optax.multi_transform`
        gives the projections a learning rate of their own.
      labels: α, the weight of the labels' cross-entropy: a number or an optax schedule.
      view: params -> dense params, as `jp.straight_through(compression)`.

    Returns:
      A `Distiller`.

    Raises:
      ValueError: nothing to learn from; two terms of one name; a pattern without layers, at `init`; a teacher without
        the layers or a batch without the labels that are asked for, at trace time.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp, optax
      >>> net, x = jp.distill.plain(lambda w, x: x @ w), jnp.eye(3)
      >>> teacher = jp.distill.Online(net, jnp.diag(jnp.array([3.0, 2.0, 1.0])))
      >>> d = jp.distill.distiller(net, [jp.distill.match(jp.distill.losses.logit_mse)], optax.sgd(1.0))
      >>> state = d.init(jnp.zeros((3, 3)), {"x": x}, teacher, key=jax.random.key(0))
      >>> step = jax.jit(d.step, donate_argnums=0)
      >>> for _ in range(100):
      ...     state, metrics = step(state, {"x": x}, teacher)
      >>> bool(metrics["loss"] < 1e-3), int(state.step)
      (True, 100)
    """
    terms = tuple(terms)
    _check(terms, labels)
    ours, theirs = (either(getattr(t, side) for t in terms) for side in ("student", "teacher"))

    def taught(teacher: Any, batch: Any, key: Any) -> dict[str, Any]:
        return jax.lax.stop_gradient(_asking(teacher, theirs)(batch, key))

    def init(params: Any, batch: Any, teacher: Any, *, key: Array, model_state: Any = None) -> State:
        model_state = {} if model_state is None else model_state
        run = lambda p, s, k: (outputs(student, view(p), s, batch["x"], k, ours)[0], taught(teacher, batch, k))
        s, t = jax.eval_shape(run, params, model_state, key)
        draw = jax.random.split(jax.random.fold_in(key, 0), max(1, len(terms)))
        made = {x.name: init_projections(x, pairs(x, s, t), s, t, draw[i]) for i, x in enumerate(terms)}
        opt_state = optimizer.init({"student": partition(params)[0], "projections": made})
        # A key of the state's own: donating the state must not take the caller's key away.
        return State(params, made, model_state, opt_state, jnp.zeros((), jnp.int32), jax.random.fold_in(key, 1))

    def loss(free: Any, fixed: Any, state: State, batch: Any, seen: Any, key: Any) -> tuple[Array, Any]:
        params = view(combine(free["student"], fixed))
        said, model_state = outputs(student, params, state.model_state, batch["x"], key, ours)
        values = {t.name: _value(t, said, seen, free["projections"], batch) for t in terms}
        total = jnp.zeros(())
        for t in terms:
            total += scheduled(t.weight, state.step) * values[t.name]
        if not _is_zero(labels):
            values["labels"] = _cross_entropy(said[OUTPUT], batch)
            total += scheduled(labels, state.step) * values["labels"]
        values |= {"loss": total} | _compared(said, seen, batch.get("mask"))
        return total, (values, model_state)

    def step(state: State, batch: Any, teacher: Any) -> tuple[State, dict[str, Array]]:
        now = jax.random.fold_in(state.key, state.step)
        key, teacher_key = jax.random.split(now)
        seen = taught(teacher, batch, teacher_key)
        free, fixed = partition(state.params)
        trained = {"student": free, "projections": state.projections}
        (_, (metrics, model_state)), grads = jax.value_and_grad(loss, has_aux=True)(
            trained, fixed, state, batch, seen, key
        )
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer steps
            updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = jax.tree.map(lambda w, u: (w + u).astype(w.dtype), trained, updates)
        params = combine(trained["student"], fixed)
        new = State(params, trained["projections"], model_state, opt_state, state.step + 1, state.key)
        return new, {name: widen(x) for name, x in metrics.items()}

    return Distiller(init, step)


def _check(terms: tuple[Term, ...], labels: Any) -> None:
    names = [t.name for t in terms]
    twice = sorted({n for n in names if names.count(n) > 1 or n in ("loss", "labels", "kl", "agreement")})
    if twice:
        raise ValueError(f"two metrics of one name, {twice}: give match(name=…) names that differ")
    if not callable(labels) and not (labels >= 0 and math.isfinite(labels)):
        raise ValueError(f"labels={labels}: a weight is a finite number >= 0, or a schedule")
    if not terms and _is_zero(labels):
        raise ValueError("nothing to learn from: give terms, or labels=1.0")


def _is_zero(weight: Any) -> bool:
    return not callable(weight) and weight == 0


def _asking(teacher: Any, where: str | None) -> Any:
    """The teacher, told which taps are wanted if it can be."""
    if where is not None and dataclasses.is_dataclass(teacher) and hasattr(teacher, "where"):
        return dataclasses.replace(teacher, where=where)  # type: ignore[type-var]
    return teacher


def _value(term: Term, said: Any, seen: Any, projections: Any, batch: Any) -> Array:
    found: tuple[Pair, ...] = pairs(term, said, seen)
    missing = [p.teacher for p in found if p.teacher not in seen]
    if missing:
        raise ValueError(f"{term.name}: the teacher gives no {missing[0]!r}; it gives {list(seen)}")
    return evaluate(term, found, said, seen, projections[term.name], batch.get("mask"))


def _cross_entropy(logits: Array, batch: Mapping[str, Any]) -> Array:
    if "y" not in batch:
        raise ValueError(f"labels have a weight, and the batch has no 'y'; it has {list(batch)}")
    y = batch["y"]
    if y.shape != logits.shape[:-1]:
        raise ValueError(f"labels of shape {y.shape} for logits of shape {logits.shape}: give one a row of logits")
    log_p = jax.nn.log_softmax(widen(logits))
    return masked_mean(-jnp.take_along_axis(log_p, y[..., None], -1, mode="fill")[..., 0], batch.get("mask"))


def _compared(said: Any, seen: Any, mask: Any) -> dict[str, Array]:
    """How near the outputs are; of a stored `TopK`, which has another temperature, only the best class is known."""
    if isinstance(seen.get(OUTPUT), TopK):
        best, ours = seen[OUTPUT].indices[..., 0], jnp.argmax(said[OUTPUT], -1)
        if ours.shape != best.shape:
            return {}
        return {"agreement": masked_mean((ours.astype(best.dtype) == best).astype(jnp.float32), mask)}
    if OUTPUT not in seen or seen[OUTPUT].shape != said[OUTPUT].shape:
        return {}
    s, t = jax.lax.stop_gradient(said[OUTPUT]), seen[OUTPUT]
    same = widen((jnp.argmax(s, -1) == jnp.argmax(t, -1)).astype(jnp.float32))
    return {"kl": masked_mean(forward_kl(s, t, mask=mask), mask), "agreement": masked_mean(same, mask)}
