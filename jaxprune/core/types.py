"""Names for what signatures take: trees of weights, keys, schedules, selections, batches.

A pytree has no type that a checker could hold, so these aliases say to the reader what a value is.
Arrays themselves are annotated with dtype and shape: `Float[Array, "inputs outputs"]`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from jax import Array
from jax.typing import ArrayLike

Params: TypeAlias = Any
"""A pytree of dense arrays: the weights of a network."""

Compressed: TypeAlias = Any
"""A pytree of compressed and dense arrays, as `Compression.init` gives it."""

PRNGKey: TypeAlias = Array
"""A key of `jax.random.key`."""

Schedule: TypeAlias = Callable[[ArrayLike], ArrayLike]
"""A number by step, as optax's schedules."""

WhereLike: TypeAlias = Any
"""A selection of leaves: a regular expression of whole paths, a rule of `jp.where`, a tree of
booleans, or a function that makes one of the params."""

Batch: TypeAlias = Any
"""A pytree of arrays whose leading axis counts examples."""
