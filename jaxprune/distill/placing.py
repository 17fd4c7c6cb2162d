"""Where arrays live on a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def on_mesh(tree: Any, sharding: NamedSharding | None) -> Any:
    """Leaves that know no mesh, copied to all of the sharding's devices, or to the device; others stay as they are."""
    if sharding is None:
        return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), tree)
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    placed = lambda x: isinstance(getattr(x, "sharding", None), NamedSharding)
    return jax.tree.map(lambda x: x if placed(x) else jax.device_put(x, everywhere), tree)


def spread(batch: Any, sharding: NamedSharding | None) -> Any:
    """A whole batch, laid out; each process sends the part that its devices hold.

    Raises:
      ValueError: a leaf whose axes do not divide.
    """
    return batch if sharding is None else jax.tree.map(lambda x: _spread(np.asarray(x), sharding), batch)


def _spread(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    spec = PartitionSpec(*sharding.spec[: x.ndim])
    here = NamedSharding(sharding.mesh, spec)
    try:
        here.shard_shape(x.shape)
    except ValueError as e:
        sizes = dict(sharding.mesh.shape)
        raise ValueError(
            f"a batch of shape {x.shape} does not divide by {spec} on the mesh {sizes}: choose another batch size, or "
            f"pad it and give a 'mask'"
        ) from e
    return jax.make_array_from_callback(x.shape, here, lambda index: x[index])
