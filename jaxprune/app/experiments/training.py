"""Training a code: the gradient of loss ∘ materialize over the float leaves, with optax, for one
phase.

    free, fixed = partition(tree);   free ← free + optimizer(∂ loss(materialize(free, fixed)) / ∂
                                     free)

An epoch is one compiled loop where the model has dense layers only (on a CPU about ten times faster
than a step at a time), and a Python loop over one compiled step where it convolves (XLA:CPU runs a
convolution ten times slower inside a compiled loop). The order of the data comes from explicit keys
alone, so an epoch can be run again to the same bits.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from jaxprune.app.experiments.settings import (
    Distill,
    Phase,
    RatePenalty,
    Train,
    distill_of,
    penalty_of,
)
from jaxprune.app.recipe import recipe
from jaxprune.core.arrays import materialize
from jaxprune.core.compression import Compression
from jaxprune.core.trees.partition import combine, partition, value_and_grad
from jaxprune.distill.losses import masked_mean, soft_and_hard
from jaxprune.methods.schedules import cubic
from jaxprune.training.rate_penalty import rate_penalty
from jaxprune.training.updating import updated

Apply = Callable[[Any, Array], Array]


class Score(NamedTuple):
    """What an epoch is chosen by, on the validation split: accuracy, then the smaller loss."""

    accuracy: Any
    minus_loss: Any


class State(NamedTuple):
    """All that a phase carries from epoch to epoch, and all that a checkpoint holds.

    Attributes:
      tree: the code being trained.
      optimizer: optax's state.
      best: the tree the phase would give on now.
      score: of `best`.
    """

    tree: Any
    optimizer: Any
    best: Any
    score: Score


@dataclasses.dataclass(frozen=True)
class Program:
    """One phase, ready to run for any seed: its functions compile once.

    Attributes:
      compression: of the phase's rules.
      steps: optimizer steps an epoch.
      ramp: the step at which the schedule reaches its target; 0 for none.
      every: steps between updates on the ramp.
      select: "best" or "last".
      begin: (tree, key) -> State, before any training.
      epoch: (State, data, key, number of the epoch) -> State.
    """

    compression: Compression
    steps: int
    ramp: int
    every: int
    select: str
    begin: Callable[[Any, Array], State]
    epoch: Callable[..., State]


def program(apply: Apply, phase: Phase, train: Train, examples: int, convolves: bool) -> Program:
    """Builds a phase.

    Args:
      apply: (params, x) -> logits.
      phase: its rules and ramp.
      train: its settings, merged.
      examples: size of the training split.
      convolves: whether the model has a convolution.
    """
    batch = min(
        train.batch, examples
    )  # a phase without epochs may have a batch that no epoch could fill
    steps = examples // batch
    ramp = round(phase.ramp * phase.epochs * steps)
    rise = (lambda s: cubic(s, 0, ramp)) if ramp else None
    compression = recipe(phase.rule, schedule=rise)
    total = max(1, steps * phase.epochs)
    optimizer = _paying(make_optimizer(train, total), penalty_of(phase), total)
    update = jax.jit(lambda tree, step, key: compression.update(tree, step=step, key=key))
    compiled = train.inner == "scan" or (train.inner == "auto" and not convolves)
    advance = _advance(apply, optimizer, batch, compiled, _loss(distill_of(phase)))

    def begin(tree: Any, key: Array) -> State:
        tree = compression.init(tree, step=0, key=key) if phase.rule else tree
        return State(tree, optimizer.init(partition(tree)[0]), tree, _score(-np.inf, np.inf))

    def epoch(state: State, data: Any, key: Array, number: int) -> State:
        order = _shuffled(key, np.int32(number), examples)
        tree = state.tree
        opt = state.optimizer
        done = 0
        for stop, updates in segments(number, steps, ramp, phase.update_every):
            tree, opt = advance(tree, opt, data, order, done, stop)
            tree = update(tree, np.int32(number * steps + stop), key) if updates else tree
            done = stop
        return State(tree, opt, state.best, state.score)

    return Program(compression, steps, ramp, phase.update_every, train.select, begin, epoch)


def segments(number: int, steps: int, ramp: int, every: int) -> list[tuple[int, bool]]:
    """Where an epoch pauses: (step within the epoch, whether the codes are updated there).

    Updates come every `every` steps on the ramp, and at its end: the schedule always reaches its
    target.

    Example:
      >>> from jaxprune.app.experiments.training import segments
      >>> segments(0, 100, 130, 50), segments(1, 100, 130, 50)
      ([(50, True), (100, True)], [(30, True), (100, False)])
    """
    first = number * steps

    def due(t):
        return t == ramp or (t < ramp and t % every == 0)

    stops = [t for t in range(1, steps + 1) if due(first + t)]
    return [(t, True) for t in stops] + ([] if steps in stops else [(steps, False)])


def choose(program: Program, state: State, epochs_done: int, loss: float, accuracy: float) -> State:
    """The state with the epoch taken as best, if it is: up to the first one after the ramp, the
    newest is.
    """
    score = _score(accuracy, loss)
    on_the_way = (epochs_done - 1) * program.steps < program.ramp
    if (
        program.select == "last"
        or on_the_way
        or tuple(map(float, score)) >= tuple(map(float, state.score))
    ):
        return state._replace(best=state.tree, score=score)
    return state


def make_optimizer(train: Train, steps: int) -> optax.GradientTransformation:
    """The optimizer of a phase of so many steps."""
    rate: Any = train.learning_rate
    if train.schedule == "cosine":
        rate = optax.cosine_decay_schedule(train.learning_rate, steps)

    # Biases, codebooks and scales do not decay: pulling shared values to zero is not what a decay
    # of weights means.
    def decay(tree):
        return jax.tree.map(lambda x: x.ndim > 1, tree)

    if train.optimizer == "adam":

        def adamw():
            return optax.adamw(rate, weight_decay=train.weight_decay, mask=decay)

        return adamw() if train.weight_decay else optax.adam(rate)
    sgd = optax.sgd(rate, momentum=0.9)
    return (
        optax.chain(optax.add_decayed_weights(train.weight_decay, decay), sgd)
        if train.weight_decay
        else sgd
    )


def _paying(
    optimizer: optax.GradientTransformation, penalty: RatePenalty | None, steps: int
) -> Any:
    """The optimizer with a price on bits before it."""
    if penalty is None:
        return optimizer
    rise = optax.linear_schedule(0.0, penalty.strength, max(1, round(penalty.ramp * steps)))
    return optax.chain(
        rate_penalty(rise, width=penalty.width, value_bits=penalty.value_bits), optimizer
    )


def cross_entropy(logits: Array, y: Array) -> Array:
    """Mean cross-entropy over all labels, whatever their axes."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _loss(distill: Distill | None) -> Callable[..., Array]:
    """(logits, y) -> cross-entropy, or (logits, y, the teacher's logits) -> that of Hinton et
    al.
    """
    if distill is None:
        return cross_entropy
    soft = partial(soft_and_hard, alpha=distill.weight, temperature=distill.temperature)
    return lambda logits, y, teacher: masked_mean(soft(logits, teacher, labels=y))


def logits_of(apply: Apply, tree: Any, x: Array, batch: int = 1000) -> Array:
    """The outputs for all examples."""
    params = materialize(tree)
    run = jax.jit(apply)
    return jnp.concatenate([run(params, x[i : i + batch]) for i in range(0, len(x), batch)])


def evaluator(apply: Apply, batch: int = 1000) -> Callable[..., tuple[float, float]]:
    """(tree, (x, y)) -> mean loss and accuracy; x and y on the host."""
    solid = jax.jit(materialize)

    @jax.jit
    def sums(params: Any, x: Array, y: Array) -> tuple[Array, Array]:
        logits = apply(params, x)
        return cross_entropy(logits, y) * y.size, jnp.sum(jnp.argmax(logits, -1) == y)

    def evaluate(tree: Any, pair: tuple[Any, Any]) -> tuple[float, float]:
        params, (x, y) = solid(tree), pair
        parts = [sums(params, x[i : i + batch], y[i : i + batch]) for i in range(0, len(x), batch)]
        loss, right = (sum(float(p[j]) for p in parts) / y.size for j in (0, 1))
        return loss, right

    return evaluate


@partial(jax.jit, static_argnums=2)
def _shuffled(key: Array, number: Any, examples: int) -> Array:
    """The order of an epoch."""
    return jax.random.permutation(jax.random.fold_in(key, number), examples)


def _score(accuracy: float, loss: float) -> Score:
    return Score(np.float32(accuracy), np.float32(-loss))


def _advance(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    batch: int,
    compiled: bool,
    loss: Callable[..., Array],
) -> Callable[..., Any]:
    """(tree, optimizer state, data, order, start, stop) -> tree and state after the steps [start,
    stop).
    """
    slope = value_and_grad(lambda params, x, *y: loss(apply(params, x), *y))

    def step(
        i: Any, carry: tuple[Any, Any], fixed: Any, data: Any, order: Array
    ) -> tuple[Any, Any]:
        free, opt = carry
        chosen = lax.dynamic_slice_in_dim(order, i * batch, batch)
        _, grads = slope(
            combine(free, fixed), *(jnp.take(a, chosen, axis=0, mode="clip") for a in data)
        )
        return updated(optimizer, grads, opt, free)

    one = jax.jit(step)
    # The bounds are traced: segments of every length share one compilation.
    many = jax.jit(
        lambda start, stop, carry, *rest: lax.fori_loop(
            start, stop, lambda i, c: step(i, c, *rest), carry
        )
    )

    def advance(
        tree: Any, opt: Any, data: Any, order: Array, start: int, stop: int
    ) -> tuple[Any, Any]:
        free, fixed = partition(tree)
        carry = (free, opt)
        if compiled:
            carry = many(np.int32(start), np.int32(stop), carry, fixed, data, order)
        else:
            for i in range(start, stop):
                carry = one(np.int32(i), carry, fixed, data, order)
        return combine(carry[0], fixed), carry[1]

    return advance
