"""Where arrays live on a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxprune.core.arguments import whole


def on_mesh(tree: Any, sharding: NamedSharding | None) -> Any:
    """Leaves that know no mesh, copied to all of the sharding's devices, or to the device; others
    stay as they are.
    """
    if sharding is None:
        return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), tree)
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())

    def placed(x):
        return isinstance(getattr(x, "sharding", None), NamedSharding)

    return jax.tree.map(lambda x: x if placed(x) else _copied(x, everywhere), tree)


def fsdp(tree: Any, mesh: Mesh, axis: str, *, least: int = 2**14) -> Any:
    """Params spread over the devices, one part each (FSDP; ZeRO-3, Rajbhandari et al. 2020,
    arXiv:1910.02054).

    Of each leaf the longest axis that the devices divide is laid along the mesh; what has none, or
    fewer elements than `least`, is copied to all. A state that starts from such params keeps its
    moments and gradients likewise; XLA gathers a layer's weights where they are used.

    Args:
      tree: params, or a tree of compressed arrays.
      mesh: whose `axis` is of type Auto.
      axis: of the mesh, the batch's too.
      least: elements of a leaf that is worth spreading.

    Raises:
      ValueError: a mesh without this axis.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> params = jp.distill.fsdp({"w": jnp.ones((8, 64)), "b": jnp.ones(64)}, mesh, "data",
      ...     least=512)
      >>> tuple(params["w"].sharding.spec), tuple(params["b"].sharding.spec)
      ((None, 'data'), ())
    """
    if axis not in mesh.shape:
        raise ValueError(f"fsdp: the mesh has {dict(mesh.shape)}, and no axis {axis!r}")

    least = whole("fsdp(least={})", least, 0)

    def one(x: Any) -> jax.Array:
        fit = (
            [k for k, n in enumerate(x.shape) if n and n % mesh.shape[axis] == 0]
            if x.size >= least
            else []
        )
        k = max(fit, key=lambda k: x.shape[k], default=None)
        spec = PartitionSpec() if k is None else PartitionSpec(*[None] * k, axis)
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)


def places(state: Any) -> Any:
    """Where each array lies, for `jax.jit(out_shardings=)`, so that it stays there; None where its
    type says it.
    """
    return jax.tree.map(_place, state)


def _place(x: Any) -> NamedSharding | None:
    place = getattr(x, "sharding", None)
    if not isinstance(place, NamedSharding) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return None
    return place if all(kind == AxisType.Auto for kind in place.mesh.axis_types) else None


def _copied(x: Any, everywhere: NamedSharding) -> jax.Array:
    """On all devices. `device_put` takes what one process has to its own devices only."""
    if jax.process_count() == 1:
        return jax.device_put(x, everywhere)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            _copied(jax.random.key_data(x), everywhere), impl=jax.random.key_impl(x)
        )
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])


def spread(batch: Any, sharding: NamedSharding | None) -> Any:
    """A whole batch, laid out; each process sends the part that its devices hold.

    Raises:
      ValueError: a leaf whose axes do not divide.
    """
    return (
        batch
        if sharding is None
        else jax.tree.map(lambda x: _spread(np.asarray(x), sharding), batch)
    )


def _spread(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    spec = PartitionSpec(*sharding.spec[: x.ndim])
    here = NamedSharding(sharding.mesh, spec)
    try:
        here.shard_shape(x.shape)
    except ValueError as e:
        sizes = dict(sharding.mesh.shape)
        raise ValueError(
            f"a batch of shape {x.shape} does not divide by {spec} on the mesh {sizes}: choose "
            "another batch size, or pad it and give a 'mask'"
        ) from e
    return jax.make_array_from_callback(x.shape, here, lambda index: x[index])
