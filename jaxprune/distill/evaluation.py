"""How a student does on data it does not learn from: what `fit` chooses and stops by."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxprune.core.arguments import whole
from jaxprune.core.arrays import materialize
from jaxprune.distill.losses.common import label_cost
from jaxprune.distill.losses.inputs import without_label
from jaxprune.distill.networks import Network
from jaxprune.distill.teachers.teachers import Precomputed, bound
from jaxprune.distill.terms import OUTPUT


class Evaluator:
    """state -> {"loss", "accuracy"} on a split: mean cross-entropy, and the share of labels that
    come first.

    Args:
      network: the student; give the one of evaluation, without dropout.
      data: {"x": …, "y": integer labels, …}, −100 where there is none; a teacher of cached outputs
        finds them here too.
      batch: examples at once.
      view: (params, step=…) -> dense params, as in `distiller`.

    Raises:
      ValueError: first axes that differ, or no examples.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, types
      >>> net = jp.distill.plain(lambda w, x: x @ w)
      >>> evaluate = jp.distill.Evaluator(net, {"x": jnp.eye(3), "y": jnp.array([0, 1, 1])})
      >>> state = types.SimpleNamespace(params=9 * jnp.eye(3), model_state={})
      >>> {name: round(x, 2) for name, x in evaluate(state).items()}
      {'loss': 3.0, 'accuracy': 0.67}
    """

    def __init__(
        self,
        network: Network,
        data: Mapping[str, Any],
        batch: int = 1000,
        view: Callable[..., Any] | None = None,
    ) -> None:
        lengths = {name: len(x) for name, x in data.items()}
        if "x" not in data or "y" not in data or len(set(lengths.values())) > 1 or not lengths["x"]:
            raise ValueError(
                f"Evaluator: the data has {lengths}; it needs 'x' and 'y' with equal first axes"
            )
        self._data = dict(data)
        self._batch = whole("Evaluator(batch={})", batch)
        self._view = None if view is None or view is materialize else jax.jit(view)
        self._student = jax.jit(partial(_sums_of, network))
        self._teacher = jax.jit(lambda teacher, part: _sums(teacher(part, None)[OUTPUT], part["y"]))

    def __call__(self, state: Any) -> dict[str, float]:
        """Of the student."""
        params = (
            materialize(state.params)
            if self._view is None
            else self._view(state.params, step=state.step)
        )
        return self._over(lambda part: self._student(params, state.model_state, part))

    def teacher(self, teacher: Any, state: Any) -> dict[str, float] | None:
        """Of a teacher, as `fit` asks once to warn of a bad one; None if this split does not tell
        its logits.
        """
        teacher = bound(teacher, state)
        if isinstance(teacher, Precomputed) and teacher.field not in self._data:
            return None
        first = {k: x[:1] for k, x in self._data.items()}
        told = jax.eval_shape(lambda t, part: t(part, None), teacher, first).get(OUTPUT)
        if not hasattr(told, "shape") or told.shape[:-1] != first["y"].shape:
            return None
        return self._over(lambda part: self._teacher(teacher, part))

    def _over(self, sums: Callable[[Any], Any]) -> dict[str, float]:
        n = len(self._data["x"])
        parts = [
            {k: x[i : i + self._batch] for k, x in self._data.items()}
            for i in range(0, n, self._batch)
        ]
        total = np.sum([np.asarray(jax.device_get(sums(part)), np.float64) for part in parts], 0)
        labels = max(total[2], 1)  # a split without a label has nothing to get wrong
        return {"loss": float(total[0] / labels), "accuracy": float(total[1] / labels)}


def _sums_of(network: Network, params: Any, state: Any, part: Any) -> tuple[Array, Array, Array]:
    return _sums(network.apply(params, state, part["x"], None)[0], part["y"])


def _sums(logits: Array, y: Array) -> tuple[Array, Array, Array]:
    """The sum of the cross-entropies, the number of right answers, and the number of labels."""
    counts = ~without_label(y)
    cost = jnp.where(counts, label_cost(logits, y), 0)
    return jnp.sum(cost), jnp.sum(jnp.argmax(logits, -1) == y), jnp.sum(counts)
