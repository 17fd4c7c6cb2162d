"""On 8 devices a compression gives what it gives on one, where the weights lie, and gathers none of them."""

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


@pytest.mark.parametrize("spec", [P("x", None), P(None, "x")], ids=str)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)
@pytest.mark.parametrize("method", [m for m in METHODS if m.traced], ids=lambda m: m.name)
def test_sharded_equals_unsharded(method, kind, spec):
    w = normal((64, 64), 3)
    alone = jp.materialize(jax.jit(method.compression.init)({"kernel": w}))["kernel"]
    devices = mesh(kind)
    with jax.set_mesh(devices):
        sharded = jax.device_put(w, NamedSharding(devices, spec))
        f = jax.jit(lambda x: jp.materialize(method.compression.init({"kernel": x}))["kernel"])
        compiled = f.lower(sharded).compile()
        out = f(sharded)
    np.testing.assert_allclose(np.asarray(out), np.asarray(alone), rtol=2e-6, atol=2e-5 if method.inexact else 1e-7)
    if not method.gathers:
        assert out.sharding.is_equivalent_to(sharded.sharding, 2)
        assert gathered(compiled.as_text()) < w.size, "the program gathers the weight"


def gathered(hlo: str) -> int:
    """The largest number of elements that an all-gather of the program makes."""
    sizes = [
        np.prod([int(n) for n in dims.split(",") if n]) for dims in re.findall(r"\w+\[([\d,]*)\][^=]* all-gather", hlo)
    ]
    return int(max(sizes, default=0))
