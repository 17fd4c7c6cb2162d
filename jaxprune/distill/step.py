"""One step of distillation: a pure function of (state, batch, teacher), for a loop of one's own.

    state = init(params, batch, teacher, key=key)
    state, metrics = step(state, batch, teacher)          # jax.jit(step, donate_argnums=0)

    loss = labels(step) · CE(student, y) + Σ_terms weight(step) · value

The student's params may be compressed arrays: then their code is trained, as `jp.value_and_grad`
does it. The teacher is a pytree beside the state, so that it is never donated, keeps its sharding,
and may change from step to step.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxprune.core.arguments import at_least_zero, ratio
from jaxprune.core.arrays import materialize
from jaxprune.core.trees.partition import combine, partition
from jaxprune.distill.diagnostics import COMPARED, compared
from jaxprune.distill.guesses import check_batch, check_teacher, checked_network
from jaxprune.distill.losses.common import label_cost, masked_mean
from jaxprune.distill.matching import Context, evaluate, init_projections
from jaxprune.distill.networks import Network, either, outputs
from jaxprune.distill.teachers.teachers import asking, bound
from jaxprune.distill.terms import OUTPUT, Pair, Term, as_terms, pairs, scheduled
from jaxprune.numerics.precision import widen
from jaxprune.training.updating import updated


class State(NamedTuple):
    """Everything that a step changes: one pytree.

    Attributes:
      params: the student's, dense or compressed.
      projections: term -> tap -> {"project": params of a map, "loss": params of a loss}.
      model_state: the student's batch statistics and their like.
      opt_state: of the optimizer, which sees {"student": …, "projections": …}.
      aux: {"memories": term -> tap -> what a loss remembers} and, with `ema`, {"ema": the average
        of the code's float leaves}.
      step: int32.
      key: never changes; what is drawn in a step depends on it and on the step.
    """

    params: Any
    projections: dict[str, dict[str, Any]]
    model_state: Any
    opt_state: Any
    aux: dict[str, Any]
    step: Array
    key: Array


class Distiller(NamedTuple):
    """Made by `distiller`.

    Attributes:
      init: (params, batch, teacher, *, key, model_state={}) -> State; runs nothing but the init of
        projections.
      step: (state, batch, teacher) -> (state, metrics).
    """

    init: Callable[..., State]
    step: Callable[..., tuple[State, dict[str, Array]]]


def distiller(
    student: Network,
    terms: Any,
    optimizer: Any,
    *,
    labels: Any = 0.0,
    view: Callable[..., Any] | None = None,
    ema: float | None = None,
    dtype: Any = None,
    compare: bool = True,
) -> Distiller:
    """The init and the step of a distillation.

    Donating a state donates the params that it was made of: copy them first if they are needed
    again.

    A batch is a mapping with "x", "y" (integer labels, where `labels` is not 0), and maybe "mask"
    (which examples count). Metrics are float32 scalars: "loss", "labels", each term's name (without
    its weight), and, where the teacher gives outputs, "kl" (of the outputs at temperature 1; not of
    a `losses.TopK`) and "agreement" (equal top classes); with integer labels, "accuracy" and
    "teacher_accuracy".

    Gradients are accumulated over n batches by `optax.MultiSteps(optimizer, n)`; the step counts
    batches.

    Args:
      student: a network, whose `apply` gives logits.
      terms: of `match`, or losses, each taken as `match(loss)`; their names differ.
      optimizer: an optax transform of {"student": the code's float leaves, "projections": …};
        `optax.multi_transform` gives the projections a learning rate of their own.
      labels: α, the weight of the labels' cross-entropy: a number or an optax schedule.
      view: (params, step=…) -> dense params, as `jp.straight_through(compression)`, whose schedules
        follow the step; `jp.materialize` by default.
      ema: m, the momentum of an average of the student in `state.aux["ema"]`; see `EMA`,
        `ema_params`.
      dtype: what the student computes in, as bfloat16; params, their gradient and all losses stay
        as they are. Give the teacher's params in the dtype it shall run in.
      compare: whether metrics hold "kl", "agreement" and the accuracies. They cost about as much as
        one more loss of the outputs: nothing beside a network of some size, a quarter of a compiled
          step of 64-32-10.

    Returns:
      A `Distiller`.

    Raises:
      ValueError: nothing to learn from; two terms of one name; a pattern without layers, at `init`;
        a teacher without the layers or a batch without the labels that are asked for, at trace
        time.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp, optax
      >>> net, x = jp.distill.plain(lambda w, x: x @ w), jnp.eye(3)
      >>> teacher = jp.distill.Online(net, jnp.diag(jnp.array([3.0, 2.0, 1.0])))
      >>> d = jp.distill.distiller(net, [jp.distill.match(jp.distill.losses.logit_mse)],
      ...     optax.sgd(1.0))
      >>> state = d.init(jnp.zeros((3, 3)), {"x": x}, teacher, key=jax.random.key(0))
      >>> step = jax.jit(d.step, donate_argnums=0)
      >>> for _ in range(100):
      ...     state, metrics = step(state, {"x": x}, teacher)
      >>> bool(metrics["loss"] < 1e-3), int(state.step)
      (True, 100)
    """
    student = checked_network(student)
    terms = as_terms(terms)
    _check(terms, labels, ema)
    seen_as = _in_dtype(view, dtype)
    ours, theirs = (either(getattr(t, side) for t in terms) for side in ("student", "teacher"))

    def taught(teacher: Any, state: State, batch: Any, key: Any) -> dict[str, Any]:
        return jax.lax.stop_gradient(asking(bound(teacher, state), theirs)(batch, key))

    def said(params: Any, state: State, batch: Any, key: Any) -> tuple[dict[str, Any], Any]:
        dense = seen_as(params, state.step)
        x = _cast(batch["x"], dtype)
        found, after = outputs(student, dense, state.model_state, x, key, ours)
        return found, jax.tree.map(lambda new, old: new.astype(old.dtype), after, state.model_state)

    def init(
        params: Any, batch: Any, teacher: Any, *, key: Array, model_state: Any = None
    ) -> State:
        check_batch(batch)
        check_teacher(teacher)
        aux = (
            {"memories": {}}
            if ema is None
            else {"memories": {}, "ema": jax.tree.map(jnp.copy, partition(params)[0])}
        )
        # A key of the state's own: donating the state must not take the caller's key away.
        own = jax.random.fold_in(key, 1)
        zero = jnp.zeros((), jnp.int32)
        state = State(params, {}, {} if model_state is None else model_state, None, aux, zero, own)

        def run(st):
            return (said(st.params, st, batch, key)[0], taught(teacher, st, batch, key))

        s, t = jax.eval_shape(run, state)
        draw = jax.random.split(jax.random.fold_in(key, 0), max(1, len(terms)))
        made = {
            x.name: init_projections(x, pairs(x, s, t), s, t, draw[i]) for i, x in enumerate(terms)
        }
        trained = {name: pair[0] for name, pair in made.items()}
        opt_state = optimizer.init({"student": partition(params)[0], "projections": trained})
        memories = {name: pair[1] for name, pair in made.items()}
        return state._replace(
            projections=trained, opt_state=opt_state, aux=aux | {"memories": memories}
        )

    def loss(
        free: Any, fixed: Any, state: State, batch: Any, seen: Any, key: Any
    ) -> tuple[Array, Any]:
        found, model_state = said(combine(free["student"], fixed), state, batch, key)
        context = Context(batch, key, batch.get("mask"), state.step)
        values = {}
        memories = {}
        total = jnp.zeros(())
        for t in terms:
            values[t.name], memories[t.name] = _value(
                t, found, seen, free["projections"], state, context
            )
            total += scheduled(t.weight, state.step) * values[t.name]
        if not _is_zero(labels):
            values["labels"] = _cross_entropy(found[OUTPUT], batch)
            total += scheduled(labels, state.step) * values["labels"]
        values |= {"loss": total} | (compared(found, seen, batch) if compare else {})
        return total, (values, model_state, memories)

    def step(state: State, batch: Any, teacher: Any) -> tuple[State, dict[str, Array]]:
        check_batch(batch)
        now = jax.random.fold_in(state.key, state.step)
        key, teacher_key = jax.random.split(now)
        seen = taught(teacher, state, batch, teacher_key)
        free, fixed = partition(state.params)
        trained = {"student": free, "projections": state.projections}
        (_, (metrics, model_state, memories)), grads = jax.value_and_grad(loss, has_aux=True)(
            trained, fixed, state, batch, seen, key
        )
        trained, opt_state = updated(optimizer, grads, state.opt_state, trained)
        params = combine(trained["student"], fixed)
        aux = {"memories": memories} | _averages(ema, state.aux, trained["student"])
        new = State(
            params, trained["projections"], model_state, opt_state, aux, state.step + 1, state.key
        )
        return new, {name: widen(x) for name, x in metrics.items()}

    return Distiller(init, step)


def _in_dtype(view: Callable[..., Any] | None, dtype: Any) -> Callable[[Any, Any], Any]:
    if view is None or view is materialize:

        def dense(params, step):
            return materialize(params)

    else:

        def dense(params, step):
            return view(params, step=step)

    return lambda params, step: jax.tree.map(lambda w: _cast(w, dtype), dense(params, step))


def _cast(x: Any, dtype: Any) -> Any:
    def is_float(a):
        return jnp.issubdtype(jnp.result_type(a), jnp.floating)

    return (
        x
        if dtype is None
        else jax.tree.map(lambda a: jnp.asarray(a, dtype) if is_float(a) else a, x)
    )


def _averages(ema: float | None, aux: dict[str, Any], free: Any) -> dict[str, Any]:
    """θ̄ ← m θ̄ + (1 − m) θ, in float32."""
    if ema is None:
        return {}

    def mean(old, new):
        return (ema * widen(old) + (1 - ema) * widen(new)).astype(old.dtype)

    return {"ema": jax.tree.map(mean, aux["ema"], free)}


def _check(terms: tuple[Term, ...], labels: Any, ema: float | None) -> None:
    names = [t.name for t in terms]
    twice = sorted({n for n in names if names.count(n) > 1 or n in ("loss", "labels", *COMPARED)})
    if twice:
        raise ValueError(f"two metrics of one name, {twice}: give match(name=…) names that differ")
    at_least_zero("distiller(labels={})", labels)
    if ema is not None and ratio("distiller(ema={})", ema) == 1:
        raise ValueError(f"distiller(ema={ema}): the momentum of an average lies in [0, 1)")
    if not terms and _is_zero(labels):
        raise ValueError("nothing to learn from: give terms, or labels=1.0")


def _is_zero(weight: Any) -> bool:
    return not callable(weight) and weight == 0


def _value(
    term: Term, said: Any, seen: Any, trained: Any, state: State, context: Context
) -> tuple[Array, Any]:
    found: tuple[Pair, ...] = pairs(term, said, seen)
    missing = [p.teacher for p in found if p.teacher not in seen]
    if missing:
        raise ValueError(f"{term.name}: the teacher gives no {missing[0]!r}; it gives {list(seen)}")
    return evaluate(
        term, found, said, seen, trained[term.name], state.aux["memories"][term.name], context
    )


def _cross_entropy(logits: Array, batch: Mapping[str, Any]) -> Array:
    if "y" not in batch:
        raise ValueError(f"labels have a weight, and the batch has no 'y'; it has {list(batch)}")
    y = batch["y"]
    if y.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels of shape {y.shape} for logits of shape {logits.shape}: give one a row of "
            f"logits"
        )
    return masked_mean(label_cost(logits, y), batch.get("mask"))
