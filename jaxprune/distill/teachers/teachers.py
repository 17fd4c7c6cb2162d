"""Teachers: anything that can be asked `teacher(batch, key) -> {name: value}`, and is a pytree.

    Online      a network beside the student, in the same jit
    Precomputed       outputs that came with the batch
    Ensemble    several teachers, or one network with stacked params
    Itself      the student as it is now
    EMA    the moving average of the student

"output" names what the network returns; other names are taps. The last two need the training state:
a teacher that has a method `bind(state)` is replaced by what that gives before it is asked. The
previous generation (born-again networks) is an `Online` with the params of the last `fit`.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxprune.core.arrays import materialize
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.core.trees.partition import combine, partition
from jaxprune.distill.networks import Network, outputs
from jaxprune.distill.terms import OUTPUT
from jaxprune.numerics.precision import widen


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "state"],
    meta_fields=["network", "where", "warn"],
)
@dataclasses.dataclass(frozen=True)
class Online:
    """A teacher that runs beside the student, in the same jit: an argument of the step, outside its
    gradient.

    Attributes:
      network: static.
      params: dense or compressed; with whatever sharding they have.
      state: of the network; it never changes.
      where: which taps to bring; `step` asks for those of its terms.
      warn: whether to warn of a forward pass that changes the state: batch statistics or dropout in
        train mode, whose outputs depend on the other examples of the batch, or on chance.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> teacher = jp.distill.Online(jp.distill.plain(lambda w, x: x @ w), jnp.ones((3, 2)))
      >>> teacher({"x": jnp.ones((1, 3))}, None)
      {'output': Array([[3., 3.]], dtype=float32)}
    """

    network: Network
    params: Any
    state: Any = dataclasses.field(default_factory=dict)
    where: str | None = None
    warn: bool = True

    def __call__(self, batch: Mapping[str, Any], key: Array | None) -> dict[str, Any]:
        params = materialize(self.params)
        values, state = outputs(self.network, params, self.state, batch["x"], key, self.where)
        if self.warn:
            warn_of_train_mode(self.state, state)
        return values


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["field"])
@dataclasses.dataclass(frozen=True)
class Precomputed:
    """A teacher whose outputs came with the batch: logits that were computed once, as of a `Cache`.

    Attributes:
      field: of the batch; it holds an array of logits, or a `losses.TopK`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.distill.Precomputed()({"x": jnp.ones((1, 3)), "teacher": jnp.zeros((1, 2))}, None)
      {'output': Array([[0., 0.]], dtype=float32)}
    """

    field: str = "teacher"

    def __call__(self, batch: Mapping[str, Any], key: Array | None) -> dict[str, Any]:
        if self.field not in batch:
            raise ValueError(
                f"the batch has no {self.field!r}, which holds the teacher's outputs; it has "
                f"{list(batch)}"
            )
        return {OUTPUT: batch[self.field]}


@partial(
    jax.tree_util.register_dataclass, data_fields=["teachers"], meta_fields=["mean", "stacked"]
)
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several teachers at once, whose outputs are averaged.

        mean="logits": z = (1/n) Σ z_i, whose softmax is the geometric mean of theirs
        mean="probabilities": z = log (1/n) Σ softmax(z_i)

    Hinton et al. 2015 (arXiv:1503.02531) allow either; the second keeps the temperature's meaning
    only at T = 1.

    Attributes:
      teachers: a sequence; or, with `stacked`, one teacher whose leaves have a leading axis of
        members, which run as one batched program (`jax.vmap`).
      mean: of what.
      stacked: how `teachers` is given.

    Taps of member i are named "i/tap"; when stacked, they keep their names and gain a leading axis.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> one = lambda w: jp.distill.Online(jp.distill.plain(lambda w, x: x @ w), w)
      >>> both = jp.distill.Ensemble((one(jnp.ones((3, 2))), one(3 * jnp.ones((3, 2)))))
      >>> both({"x": jnp.ones((1, 3))}, None)
      {'output': Array([[6., 6.]], dtype=float32)}
      >>> stack = jp.distill.Ensemble(one(jnp.stack([jnp.ones((3, 2)), 3 * jnp.ones((3, 2))])),
      ...     stacked=True)
      >>> stack({"x": jnp.ones((1, 3))}, None)
      {'output': Array([[6., 6.]], dtype=float32)}
    """

    teachers: Any
    mean: str = "logits"
    stacked: bool = False

    def __post_init__(self) -> None:
        if self.mean not in ("logits", "probabilities"):
            raise ValueError(f"Ensemble(mean={self.mean!r}): 'logits' or 'probabilities'")
        if not self.stacked and isinstance(self.teachers, tuple | list) and not self.teachers:
            raise ValueError("Ensemble(()): give one teacher at least")

    def __call__(self, batch: Mapping[str, Any], key: Array | None) -> dict[str, Any]:
        if self.stacked:
            said = jax.vmap(lambda t: t(batch, key))(self.teachers)
            return said | {OUTPUT: self._averaged(said[OUTPUT])}
        keys = (
            [None] * len(self.teachers)
            if key is None
            else list(jax.random.split(key, len(self.teachers)))
        )
        each = [t(batch, k) for t, k in zip(self.teachers, keys)]
        shapes = {x[OUTPUT].shape for x in each}
        if len(shapes) > 1:
            raise ValueError(
                f"the teachers' outputs have the shapes {sorted(shapes)}: an ensemble needs equal "
                f"ones"
            )
        taps = {
            f"{i}/{name}": v for i, x in enumerate(each) for name, v in x.items() if name != OUTPUT
        }
        return {OUTPUT: self._averaged(jnp.stack([x[OUTPUT] for x in each])), **taps}

    def asking(self, where: str) -> "Ensemble":
        """With the taps that are wanted; members of a list are asked without the number before
        their names.
        """
        if self.stacked:
            return dataclasses.replace(self, teachers=asking(self.teachers, where))
        return dataclasses.replace(self, teachers=tuple(asking(t, r".*") for t in self.teachers))

    def _averaged(self, logits: Array) -> Array:
        if self.mean == "logits":
            return jnp.mean(widen(logits), 0)
        return jax.nn.logsumexp(jax.nn.log_softmax(widen(logits)), 0) - jnp.log(float(len(logits)))


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["network"])
@dataclasses.dataclass(frozen=True)
class Itself:
    """The student as its own teacher, at this step's params: with another key (dropout), or between
    its own layers.

    Attributes:
      network: the student's, or one that reads the same params otherwise (without dropout, say).

    Source: for layers, Zhang et al. 2019, arXiv:1905.08094.
    """

    network: Network

    def bind(self, state: Any) -> Online:
        """The teacher of this step."""
        return Online(
            self.network, state.params, state.model_state, warn=False
        )  # the student is in train mode


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["network"])
@dataclasses.dataclass(frozen=True)
class EMA:
    """The exponential moving average of the student: `distiller(…, ema=m)` keeps it in
    `state.aux["ema"]`.

        θ̄ ← m θ̄ + (1 − m) θ          after each step; θ̄ starts as θ

    Attributes:
      network: as for `Itself`.

    Source: mean teacher, Tarvainen & Valpola 2017, arXiv:1703.01780.
    """

    network: Network

    def bind(self, state: Any) -> Online:
        """The teacher of this step."""
        return Online(
            self.network, ema_params(state), state.model_state, warn=False
        )  # as the student


def ema_params(state: Any) -> Any:
    """The moving average of a state's params, as params: dense or compressed as they are.

    Raises:
      ValueError: a state without one.
    """
    if "ema" not in state.aux:
        raise ValueError(
            "this state has no moving average: build the loop with distiller(…, ema=0.999)"
        )
    return combine(state.aux["ema"], partition(state.params)[1])


def warn_of_train_mode(before: Any, after: Any) -> None:
    """Warns, once for a place in the user's code, of a teacher whose forward pass changes its
    state.

    What a pass leaves alone comes back as the same array, or the same tracer.
    """
    old = dict(flatten_with_path(before)[0])
    new = flatten_with_path(after)[0]
    changed = [leaf_path(keys) for keys, value in new if old.get(keys) is not value]
    if changed:
        warnings.warn(
            f"the teacher changes its state in a forward pass ({', '.join(changed[:3])}), as a "
            "model in train mode does: its outputs depend on the other examples of a batch, or on "
            "chance. Call model.eval() before jp.distill.nnx(model), or give jp.distill.linen the "
            "keyword of evaluation; Online(…, warn=False) if it shall be so",
            UserWarning,
            stacklevel=3,
        )


def asking(teacher: Any, where: str | None) -> Any:
    """The teacher, told which taps are wanted if it can be."""
    if where is None:
        return teacher
    if hasattr(teacher, "asking"):
        return teacher.asking(where)
    if dataclasses.is_dataclass(teacher) and hasattr(teacher, "where"):
        return dataclasses.replace(teacher, where=where)  # type: ignore[type-var]
    return teacher


def bound(teacher: Any, state: Any) -> Any:
    """The teacher of this step."""
    return teacher.bind(state) if hasattr(teacher, "bind") else teacher
