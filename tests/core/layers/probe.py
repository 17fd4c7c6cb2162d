"""One layer of a framework, the right answers for its leaves, and a measurement of them that knows
nothing of names.

A NaN goes through every sum, product and nonlinearity. So with NaN in all weights of one output
unit exactly one feature of what the layer returns is NaN; with NaN in one input, or in one place of
a window, all are.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core.leaves.layout import axes_of
from jaxprune.core.leaves.names import why_no_weight
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.core.where import leaf_slots


class Weight(NamedTuple):
    """The right answer for one leaf that the default selection takes.

    Attributes:
      outputs: the axes that number the outputs, counted from the end.
      stacked: the axes that number layers or positions with weights of their own.
      hand: why a NaN cannot show it, where the answer is from the layer's definition; "" where it
        is measured.
    """

    outputs: tuple[int, ...] = (-1,)
    stacked: tuple[int, ...] = ()
    hand: str = ""


class Built(NamedTuple):
    """A layer with its parameters.

    Attributes:
      params: the tree as the framework gives it.
      apply: params -> the outputs; their last axes are the features.
    """

    params: Any
    apply: Callable[[Any], Any]


class Layer(NamedTuple):
    """A row of the table.

    Attributes:
      name: the class, and what matters of its arguments.
      build: makes it.
      weights: path -> the right answer, for every leaf that is taken; all other leaves are left
        alone.
      features: how many of the last axes of the output number its features; for a stack they begin
        with it.
    """

    name: str
    build: Callable[[], Built]
    weights: Mapping[str, Weight]
    features: int = 1


def filled(shapes: Any) -> Any:
    """Ones for the floats of a tree of shapes, 0 for its integers."""

    def fill(x: Any) -> Any:
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.asarray(
            np.ones(x.shape, x.dtype)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else np.zeros(x.shape, x.dtype)
        )

    return jax.tree.map(fill, shapes)


def computed(params: Any) -> dict[str, tuple[str, Any]]:
    """path -> (why the default selection leaves a leaf alone or "", the axes that the library
    reads)."""
    answers = {}
    for slot in leaf_slots(params)[0]:
        if hasattr(slot.value, "dtype"):
            answers[slot.path] = why_no_weight(slot.place), axes_of(slot.place)
    return answers


def spoiled(layer: Layer, built: Built, path: str, unit: Mapping[int, int]) -> np.ndarray:
    """Which features are NaN when one unit's weights are."""
    flat, treedef = flatten_with_path(built.params)
    leaves = [leaf for _, leaf in flat]
    at = next(i for i, (keys, _) in enumerate(flat) if leaf_path(keys) == path)
    index = tuple(unit.get(axis - leaves[at].ndim, slice(None)) for axis in range(leaves[at].ndim))
    weights = np.array(leaves[at])
    weights[index] = np.nan
    leaves[at] = jnp.asarray(weights)
    out = np.isnan(np.asarray(built.apply(jax.tree.unflatten(treedef, leaves))))
    return out.any(axis=tuple(range(out.ndim - layer.features))).reshape(-1)
