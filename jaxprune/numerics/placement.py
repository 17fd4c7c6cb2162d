"""Where an array lies decides how it may be read.

host      few entries, concrete, on one CPU device: NumPy has the answer before XLA has compiled
chunked   one device: a loop over runs of CHUNK entries, so that no temporary has the size of the
          array
whole     perhaps sharded: elementwise work and reductions in the array's own shape, which stay
          where the data is;
          to flatten, slice or scatter a sharded array gathers it
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

CHUNK = (
    1 << 18
)  # entries a step: what is computed from a chunk is still in the cache when it is used
HOST = 1 << 24


def may_be_sharded(x: Any) -> bool:
    """A concrete array knows; a traced one may be sharded as soon as there is a second device."""
    if isinstance(x, Tracer):
        return jax.device_count() > 1
    return isinstance(x, jax.Array) and len(x.sharding.device_set) > 1


def on_host(*xs: Any, limit: int = HOST) -> bool:
    """Whether all of `xs` are concrete, lie on one CPU device each, and have fewer than `limit`
    entries together.
    """

    def here(x: Any) -> bool:
        return not isinstance(x, jax.Array) or all(
            d.platform == "cpu" for d in x.sharding.device_set
        )

    if any(isinstance(x, Tracer) or may_be_sharded(x) for x in xs):
        return False
    return all(map(here, xs)) and sum(np.size(x) for x in xs) < limit


def put_like(y: Any, x: Any) -> jax.Array:
    """A host result goes where `x` lies, and is pinned there only if x is."""
    return jax.device_put(y, x.sharding if isinstance(x, jax.Array) and x.committed else None)


def varying_like(tree: Any, *xs: Any) -> Any:
    """The tree, its arrays typed as varying over the mesh axes that some of `xs` vary over.

    Inside `jax.shard_map`, what a loop starts with has to vary as what it makes of the data does.
    """
    axes = frozenset().union(*(_varying_axes(x) for x in jax.tree.leaves(xs)))

    def cast(y: Any) -> Any:
        more = tuple(sorted(axes - _varying_axes(y)))
        return lax.pcast(y, more, to="varying") if more else y

    return jax.tree.map(cast, tree) if axes else tree


def _varying_axes(x: Any) -> frozenset[Any]:
    if not isinstance(x, Tracer):
        return frozenset()
    kind = jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)  # JAX before 0.10 has `vma` in its place
    return getattr(kind, "vma", frozenset()) if manual is None else manual.varying


def fold_chunks(f: Callable, carry: Any, *xs: jax.Array) -> Any:
    """carry <- f(carry, start, *chunks) over runs of CHUNK entries of the flattened arrays `xs`, in
    order.
    """
    flat = [x.reshape(-1) for x in xs]
    n = flat[0].size
    whole = n // CHUNK * CHUNK

    def step(i: jax.Array, carry: Any) -> Any:
        return f(carry, i * CHUNK, *(lax.dynamic_slice(x, (i * CHUNK,), (CHUNK,)) for x in flat))

    carry = varying_like(carry, carry, flat)
    if whole:
        carry = lax.fori_loop(0, whole // CHUNK, step, carry)
    return f(carry, jnp.int32(whole), *(x[whole:] for x in flat)) if n > whole else carry


def not_finite(x: Any, mask: Any = None) -> int:
    """How many entries of a concrete array are NaN or infinite, of those that a mask keeps."""
    if not on_host(x, *(() if mask is None else (mask,)), limit=2 * x.size + 1):
        bad = ~jnp.isfinite(x) if mask is None else ~jnp.isfinite(x) & mask
        return int(jnp.sum(bad))
    flat = np.asarray(x).reshape(-1)
    kept = None if mask is None else np.asarray(mask).reshape(-1)
    bad = 0
    for i in range(0, flat.size, CHUNK):
        part = flat[i : i + CHUNK] if kept is None else flat[i : i + CHUNK][kept[i : i + CHUNK]]
        bad += part.size - int(np.count_nonzero(np.isfinite(part)))
    return bad


# On a mesh of Explicit axes a reshape that splits or merges must be told where its result lies.


def spec_of(x: Any) -> tuple[Any, ...] | None:
    """How each axis of x is sharded over Explicit mesh axes; None where there are none, or the
    compiler decides.
    """
    spec = jax.typeof(x).sharding.spec if isinstance(x, jax.Array) else ()
    return (*spec, *(None,) * (x.ndim - len(spec))) if any(s is not None for s in spec) else None


def sharding_on(x: Any, *axes: Any) -> NamedSharding:
    """The sharding of x's mesh by these mesh axes. It names the mesh, so that no `jax.set_mesh` is
    needed around it.
    """
    sharding = jax.typeof(x).sharding if isinstance(x, Tracer) else x.sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))


def split_axes(x: Any, inner: Mapping[int, int]) -> Any:
    """Axes a of size s become (s / inner[a], inner[a]), sharded as before where the devices divide
    s / inner[a].
    """
    spec = spec_of(x)
    shape = [
        part
        for a, s in enumerate(x.shape)
        for part in ((s // inner[a], inner[a]) if a in inner else (s,))
    ]
    if spec is None:
        return x.reshape(shape)
    mesh = jax.typeof(x).sharding.mesh.shape
    ways = [prod(mesh[n] for n in ((s,) if isinstance(s, str) else s or ())) for s in spec]
    fits = [s if x.shape[a] // inner.get(a, 1) % ways[a] == 0 else None for a, s in enumerate(spec)]
    parts = (part for a, s in enumerate(fits) for part in ((s, None) if a in inner else (s,)))
    return lax.reshape(x, shape, out_sharding=sharding_on(x, *parts))


def merge_axes(x: Any, shape: Sequence[int], spec: tuple[Any, ...] | None) -> Any:
    """The reshape back: to `shape`, sharded by `spec` (of `spec_of`)."""
    return (
        x.reshape(shape)
        if spec is None
        else lax.reshape(x, shape, out_sharding=sharding_on(x, *spec))
    )


def gathered(x: Any) -> Any:
    """x on every device of its Explicit mesh: for what sorts or flattens a whole leaf, and says
    so.
    """
    spec = spec_of(x)
    return x if spec is None else jax.sharding.reshard(x, sharding_on(x, *(None,) * x.ndim))


def placed_like(y: Any, x: Any) -> Any:
    """y, of x's shape, where an Explicit mesh has x."""
    spec = spec_of(x)
    return y if spec is None else jax.sharding.reshard(y, sharding_on(x, *spec))
