"""Data-free distillation: a generator is trained against the teacher, and the student learns from
what it makes.

    z ~ N(0, I),   y ~ U{0 … C − 1},   x = G(z, y),   t = T(x)

    L_G = w₁ · one-hot(t, y) + w₂ · information entropy(t) + w₃ · activation(T's features of x)
          + w₄ · Σ_layers batch-norm matching(T's layer, its stored moments) − w₅ · JS(T(x), S(x))

One step moves G along −∇L_G, through the frozen T, and then the student by one step of its
`Distiller` on the same x, held constant. The labels make G class-conditional; without them y =
argmax t. The last part lets G look for what the student S does not know yet: without it, G soon
makes only what both are sure of, and S learns no more.

Sources: Chen et al. 2019 (DAFL), arXiv:1904.01186; Yin et al. 2020 (DeepInversion),
arXiv:1912.08795.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxprune.core.arguments import whole
from jaxprune.core.arrays import materialize
from jaxprune.distill.generators import Wanted, ask, check_teacher, check_weights, judge
from jaxprune.distill.networks import Network
from jaxprune.distill.step import Distiller, State
from jaxprune.distill.terms import OUTPUT
from jaxprune.numerics.precision import widen
from jaxprune.training.updating import updated


class DataFreeState(NamedTuple):
    """Everything that a step changes: one pytree.

    Attributes:
      student: of the distiller.
      generator: its params.
      generator_state: its batch statistics and their like.
      generator_opt: of the generator's optimizer.
      step: int32.
      key: latents, labels and the generator's dropout are drawn from it.
    """

    student: State
    generator: Any
    generator_state: Any
    generator_opt: Any
    step: Array
    key: Array


class DataFree(NamedTuple):
    """Made by `data_free`.

    Attributes:
      init: (params, x, teacher, *, key, generator_params, generator_state={}, model_state={}) ->
        DataFreeState. x is what the student takes, an array or a `jax.ShapeDtypeStruct` whose batch
        may be of any size, to be compared with what the generator makes; or None.
      step: (state, batch, teacher) -> (state, metrics), as that of a `Distiller`; the batch is not
        looked at.
    """

    init: Callable[..., DataFreeState]
    step: Callable[..., tuple[DataFreeState, dict[str, Array]]]


def data_free(
    distiller: Distiller,
    generator: Network,
    optimizer: Any,
    *,
    classes: int,
    latent: int,
    batch: int,
    conditional: bool = True,
    one_hot: Any = 1.0,
    entropy: Any = 5.0,
    features: str | None = None,
    activation: Any = 0.1,
    statistics: Mapping[str, tuple[Any, Any]] | None = None,
    batch_norm: Any = 1.0,
    student: Network | None = None,
    competition: Any = 1.0,
    channel_axis: int = -1,
) -> DataFree:
    """The init and the step of a distillation without data.

    The student sees {"x": images, "y": labels} of the generator before its update, as in the
    authors' code. Metrics are the student's, and "generator/loss", "generator/one_hot",
    "generator/entropy", "generator/activation", "generator/batch_norm", "generator/competition"
    (without their weights; the last three where they are asked for).

    The teacher is any that reads "x" alone; `jp.distill.Online` brings the taps that are asked for.
    It should run as at inference, its batch norms on their stored moments. Donating a state donates
    the params that it was made of.

    Args:
      distiller: the student's, of `jp.distill.distiller`.
      generator: apply(params, state, x, key) -> (images, state). x is (batch, latent + classes),
        float32: z, and the label as a one-hot vector; without `conditional` (batch, latent), z
          alone.
      optimizer: an optax transform, of the generator's params.
      classes: C, of the teacher's logits.
      latent: the length of z.
      batch: how many images a step makes.
      conditional: whether labels are drawn; else the teacher's top class is the label.
      one_hot, entropy, activation, batch_norm, competition: w₁ to w₅, numbers >= 0 or optax
        schedules of the step.
      features: which taps of the teacher the activation loss reads, by a regular expression for the
        whole name; their mean counts.
      statistics: the tap that goes into a batch norm -> (mean, variance), which the norm has
        stored, (channels,) each.
      student: the distiller's network, for the competition; None: there is none. It is given dense
        params; where the distiller has a `view`, it applies it.
      channel_axis: of the taps.

    Returns:
      A `DataFree`.

    Raises:
      ValueError: sizes below 1, negative weights; at trace time, a teacher whose classes are
        others, or which does not take what the generator makes; taps that it has not; statistics of
        another width.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp, optax
      >>> linear, key = jp.distill.plain(lambda w, x: x @ w), jax.random.key(0)
      >>> # images of three pixels, three classes
      >>> teacher = jp.distill.Online(linear, 2 * jnp.eye(3))
      >>> d = jp.distill.distiller(linear, [jp.distill.match(jp.distill.losses.logit_mse)],
      ...     optax.sgd(0.1))
      >>> free = jp.distill.data_free(d, linear, optax.sgd(0.1), classes=3, latent=2, batch=64)
      >>> w = jax.random.normal(key, (5, 3))
      >>> state = free.init(jnp.zeros((3, 3)), None, teacher, key=key, generator_params=w)
      >>> step = jax.jit(free.step, donate_argnums=0)
      >>> for _ in range(200):
      ...     state, metrics = step(state, {}, teacher)
      >>> # the teacher's weights, without data
      >>> print(state.student.params.round(1) + 0)
      [[2. 0. 0.]
       [0. 2. 0.]
       [0. 0. 2.]]

    Source: Chen et al. 2019, arXiv:1904.01186, whose generator is not class-conditional; Yin et al.
    2020, arXiv:1912.08795 (the competition too), who optimise the images themselves.
    """
    classes = whole("data_free(classes={})", classes)
    latent = whole("data_free(latent={})", latent)
    batch = whole("data_free(batch={})", batch)
    channel_axis = whole("data_free(channel_axis={})", channel_axis, None)
    weights = (one_hot, entropy, activation, batch_norm, competition)
    wanted = Wanted(*weights, features, dict(statistics or {}), channel_axis)
    check_weights(wanted)
    game = _Game(
        distiller, generator, optimizer, student, wanted, classes, latent, batch, conditional
    )
    return DataFree(game.init, game.step)


@dataclasses.dataclass(frozen=True)
class _Game:
    """The arguments of `data_free`, and what is done with them."""

    distiller: Distiller
    generator: Network
    optimizer: Any
    student: Network | None
    wanted: Wanted
    classes: int
    latent: int
    batch: int
    conditional: bool

    def init(
        self,
        params: Any,
        x: Any,
        teacher: Any,
        *,
        key: Array,
        generator_params: Any,
        generator_state: Any = None,
        model_state: Any = None,
    ) -> DataFreeState:
        """The state before the first step; what does not fit is told."""
        generator_state = {} if generator_state is None else generator_state
        rival = (params, {} if model_state is None else model_state)
        made = jax.eval_shape(
            self._rehearsed, generator_params, generator_state, rival, teacher, key
        )
        if x is not None and x.shape[1:] != made["x"].shape[1:]:
            raise ValueError(
                f"the student takes images {x.shape[1:]}; the generator makes {made['x'].shape[1:]}"
            )
        blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), made)
        own = jax.random.split(
            key
        )  # keys of the state's own: donating it must not take the caller's away
        learner = self.distiller.init(params, blank, teacher, key=own[0], model_state=model_state)
        opt_state = self.optimizer.init(generator_params)
        return DataFreeState(
            learner, generator_params, generator_state, opt_state, jnp.zeros((), jnp.int32), own[1]
        )

    def step(
        self, state: DataFreeState, batch: Any, teacher: Any
    ) -> tuple[DataFreeState, dict[str, Array]]:
        """One step of the generator, then one of the student."""
        now = jax.random.fold_in(state.key, state.step)
        teacher = lax.stop_gradient(teacher)
        rival = None if self.student is None else (state.student.params, state.student.model_state)
        grads, (values, images, model_state) = jax.grad(self._loss, has_aux=True)(
            state.generator, state.generator_state, rival, state.step, teacher, now
        )
        params, opt_state = updated(self.optimizer, grads, state.generator_opt, state.generator)
        learned, metrics = self.distiller.step(state.student, lax.stop_gradient(images), teacher)
        new = DataFreeState(learned, params, model_state, opt_state, state.step + 1, state.key)
        return new, metrics | {f"generator/{name}": widen(value) for name, value in values.items()}

    def _loss(
        self, params: Any, model_state: Any, rival: Any, step: Any, teacher: Any, key: Any
    ) -> tuple[Array, tuple[dict[str, Array], dict[str, Array], Any]]:
        """L_G; its parts, the images with their labels, and the generator's next state."""
        mine, theirs, its = jax.random.split(key, 3)
        x, y, model_state = self._images(params, model_state, mine)
        seen = ask(teacher, x, theirs, self.wanted)
        said = (
            None
            if self.student is None
            else self.student.apply(materialize(rival[0]), rival[1], x, its)[0]
        )
        total, values = judge(seen, said, y, self.wanted, step)
        y = jnp.argmax(seen[OUTPUT], -1).astype(jnp.int32) if y is None else y
        return total, ({"loss": total, **values}, {"x": x, "y": y}, model_state)

    def _images(self, params: Any, model_state: Any, key: Any) -> tuple[Array, Array | None, Any]:
        """Images, the labels that they were asked for with, and the generator's next state."""
        z_key, y_key, dropout = jax.random.split(key, 3)
        z = jax.random.normal(z_key, (self.batch, self.latent), jnp.float32)
        y = None
        if self.conditional:
            y = jax.random.randint(y_key, (self.batch,), 0, self.classes, jnp.int32)
            z = jnp.concatenate([z, jax.nn.one_hot(y, self.classes, dtype=z.dtype)], -1)
        x, model_state = self.generator.apply(params, model_state, z, dropout)
        _check_images(x, z)
        return x, y, model_state

    def _rehearsed(
        self, params: Any, model_state: Any, rival: Any, teacher: Any, key: Any
    ) -> dict[str, Array]:
        """The images of a step, by `eval_shape`."""
        check_teacher(
            teacher, self._images(params, model_state, key)[0], key, self.wanted, self.classes
        )
        return self._loss(params, model_state, rival, jnp.zeros((), jnp.int32), teacher, key)[1][1]


def _check_images(x: Any, z: Array) -> None:
    shape = getattr(x, "shape", ())
    dtype = getattr(x, "dtype", type(x).__name__)
    if len(shape) < 2 or shape[0] != len(z) or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"of {z.shape} the generator makes {dtype} {shape}; it must make float images "
            f"({len(z)}, …)"
        )
