"""Filter pruning by geometric median: filters that the others can stand for go first.

score of filter i    Σⱼ ‖Fᵢ − Fⱼ‖        He et al. 2019, arXiv:1811.00250
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxprune.core.arguments import whole
from jaxprune.core.leaves.layout import axes_of, check_layout
from jaxprune.core.types import Params
from jaxprune.core.where import Slot, is_float, leaf_slots, weights
from jaxprune.methods.scores.leaves import on_selected
from jaxprune.methods.scores.types import Scores
from jaxprune.numerics.affine import power_of_two, ratio
from jaxprune.numerics.precision import widen


def fpgm(
    params: Params, *, axis: int | Literal["outputs"] = "outputs", layout: Any = None
) -> Scores:
    """Σⱼ ‖Fᵢ − Fⱼ‖ / √n for every weight of filter i: small for filters that others can stand for.

    n is the number of weights of a filter, so the L2 norm of a filter's scores is its distance to
    all others.

    Args:
      params: dense params; `jp.where.weights` of them get a score, the others None.
      axis: that numbers the filters of a leaf. By default the outputs, as names and biases tell
        (docs/layers.md): the last axis of a `kernel` or `w`, the first of a `weight`.
      layout: which axes are the outputs, instead: "jax" (last), "torch" (first), or a dict of path
        regex -> axis; `prune` hands on its own.

    Raises:
      ValueError: for an axis that a leaf lacks, another layout.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([[0.0, 0.0, 3.0], [0.0, 0.0, 4.0]])    # filters (0, 0), (0, 0), (3, 4)
      >>> print(jnp.linalg.norm(jp.scores.fpgm({"w": w})["w"], axis=0))
      [ 5.  5. 10.]
    """
    if axis != "outputs":
        axis = whole("fpgm(axis={})", axis, None)
    check_layout(layout, "fpgm")

    def score_leaf(slot: Slot) -> Any:
        w = slot.value
        if not is_float(w) or w.ndim < 2:
            return w
        filter_axes = axes_of(slot.place, layout).outputs if axis == "outputs" else (axis,)
        if any(not -w.ndim <= a < w.ndim for a in filter_axes):
            raise ValueError(f"fpgm(axis={axis}): an array of the shape {w.shape} has no such axis")
        return _filter_distances(widen(w), tuple(a % w.ndim for a in filter_axes))

    def score_all(params: Params) -> Scores:
        slots, treedef = leaf_slots(params)
        return jax.tree.unflatten(treedef, [score_leaf(slot) for slot in slots])

    return on_selected(weights, score_all)(params)


def _filter_distances(w: Float[Array, "*shape"], axes: tuple[int, ...]) -> Float[Array, "*shape"]:
    """The distance of each filter to all others over √n; the axes number the filters together."""
    # Over a power of two, squares neither overflow nor vanish.
    unit = power_of_two(jnp.max(jnp.abs(w), initial=0).reshape((1,) * w.ndim))
    filter_shape = [n if axis in axes else 1 for axis, n in enumerate(w.shape)]
    num_filters = math.prod(filter_shape)
    filters = jnp.moveaxis(ratio(w, unit), axes, range(len(axes))).reshape(num_filters, -1)

    def distance_to_all(one_filter: Float[Array, " n"]) -> Float[Array, ""]:
        return jnp.sqrt(jnp.square(filters - one_filter).sum(1)).sum()

    distances = jax.lax.map(distance_to_all, filters) / filters.shape[1] ** 0.5
    return jnp.broadcast_to(distances.reshape(filter_shape) * unit, w.shape)
