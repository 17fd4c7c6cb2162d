"""On 8 devices a compression gives what it gives on one, where the weights lie, and gathers none of
them.
"""

import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import normal
from tests.methods_table import METHODS


def mesh(kind):
    return jax.make_mesh((8,), ("x",), axis_types=(kind,))


def encoded_and_decoded(compression, w):
    return jp.materialize(compression.init({"kernel": w}))["kernel"]


@functools.cache
def on_one_device(name):
    """What the method of this name makes of the weights; compiled once for all shardings."""
    compression = {method.name: method.compression for method in METHODS}[name]
    return np.asarray(jax.jit(lambda x: encoded_and_decoded(compression, x))(normal((64, 64), 3)))


@pytest.mark.parametrize("spec", [P("x", None), P(None, "x")], ids=str)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)
@pytest.mark.parametrize("method", [m for m in METHODS if m.traced], ids=lambda m: m.name)
def test_sharded_equals_unsharded(method, kind, spec):
    w = normal((64, 64), 3)
    devices = mesh(kind)
    with jax.set_mesh(devices):
        sharded = jax.device_put(w, NamedSharding(devices, spec))
        compiled = (
            jax.jit(lambda x: encoded_and_decoded(method.compression, x)).lower(sharded).compile()
        )
        out = compiled(sharded)
    tolerance = 2e-5 if method.inexact else 1e-7
    np.testing.assert_allclose(
        np.asarray(out), on_one_device(method.name), rtol=2e-6, atol=tolerance
    )
    if not method.gathers:
        assert out.sharding.is_equivalent_to(sharded.sharding, 2)
        assert gathered(compiled.as_text()) < w.size, "the program gathers the weight"


@pytest.mark.parametrize("method", [m for m in METHODS if m.traced], ids=lambda m: m.name)
def test_no_mesh_need_be_set(method):
    """`jax.make_mesh` gives Explicit axes, and most code has no `jax.set_mesh` around it. Inside
    and outside mix.
    """
    devices = mesh(AxisType.Explicit)
    w = jax.device_put(normal((64, 64), 3), NamedSharding(devices, P("x", None)))
    code = jax.jit(method.compression.init)({"kernel": w})
    dense = np.asarray(jp.materialize(code)["kernel"])
    tolerance = 2e-5 if method.inexact else 1e-7
    np.testing.assert_allclose(dense, on_one_device(method.name), rtol=2e-6, atol=tolerance)
    with jax.set_mesh(devices):
        inside = jax.jit(jp.materialize)(code)["kernel"]
    np.testing.assert_array_equal(np.asarray(inside), dense)


EAGER = {
    "4 bits": jp.quantize(bits=4),
    "groups": jp.quantize(group=8),
    "nf4": jp.quantize(kind="nf4"),
    "clusters": jp.cluster(4),
    "2:4": jp.prune(pattern=jp.patterns.n_m(2, 4)),
    "blocks": jp.prune(0.5, pattern=jp.patterns.block(4, 4)),
    "lamp": jp.prune(0.5, allocate=jp.allocate.lamp),
    "factors": jp.factorize(rank=4),
    "prototypes": jp.share(k=4),
    "one step": jp.entropy_quantize(step=0.1),
}


@pytest.mark.parametrize("name", EAGER)
def test_nor_is_jit_needed(name):
    w = normal((16, 24), 3)
    alone = jp.materialize(EAGER[name].init({"w": w}))["w"]
    sharded = jax.device_put(w, NamedSharding(mesh(AxisType.Explicit), P("x", None)))
    out = jp.materialize(EAGER[name].init({"w": sharded}))["w"]
    np.testing.assert_allclose(np.asarray(out), np.asarray(alone), rtol=2e-6, atol=2e-5)


IN_SHARDS = EAGER | {
    "pruned": jp.prune(0.5),
    "global": jp.prune(0.5, allocate=jp.allocate.global_),
    "8 bits": jp.quantize(),
    "blocks": jp.prune(0.5, pattern=jp.patterns.block(2, 4)),
    "few prototypes": jp.share(k=2),
}


@pytest.mark.parametrize("name", IN_SHARDS)
def test_inside_shard_map_each_device_compresses_its_own_part(name):
    """With `check_vma`, JAX's default, which wants loops to begin with values that vary as their
    results do.
    """
    w = normal((16, 64), 3)
    init = IN_SHARDS[name].init

    def dense(x):
        return jp.materialize(init({"w": x}))["w"]

    f = jax.shard_map(
        dense,
        mesh=mesh(AxisType.Auto),
        in_specs=P(None, "x"),
        out_specs=P(None, "x"),
        check_vma=True,
    )
    parts = jax.vmap(dense, in_axes=1, out_axes=1)(w.reshape(16, 8, 8))
    np.testing.assert_allclose(
        np.asarray(jax.jit(f)(w)), np.asarray(parts).reshape(16, 64), rtol=2e-6, atol=2e-5
    )


def gathered(hlo: str) -> int:
    """The largest number of elements that an all-gather of the program makes."""
    sizes = [
        np.prod([int(n) for n in dims.split(",") if n])
        for dims in re.findall(r"\w+\[([\d,]*)\][^=]* all-gather", hlo)
    ]
    return int(max(sizes, default=0))
