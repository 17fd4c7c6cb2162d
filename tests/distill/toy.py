"""A small network, its teacher and a thousand points, for the tests of the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.distill import losses

RNG = np.random.default_rng(7)
X = RNG.normal(size=(96, 4)).astype(np.float32)
KEY = jax.random.key(5)


def mlp(params, x):
    return jp.tap(jnp.tanh(x @ params["a"]), "hidden") @ params["b"]


def params(width, seed):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(4, width)).astype(np.float32),
        "b": rng.normal(size=(width, 3)).astype(np.float32),
    }


NET = jp.distill.plain(mlp)
TEACHER = jp.distill.Online(NET, params(8, 2))
Y = np.asarray(mlp(TEACHER.params, X)).argmax(1).astype(np.int32)
DATA = {"x": X, "y": Y}


def conv(p, x):
    """The same network by a 1×1 convolution: what a CPU does not like in a compiled loop."""
    maps = jax.lax.conv_general_dilated(
        x[:, None, None],
        p["a"][None, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jnp.tanh(maps[:, 0, 0]) @ p["b"]


def distiller(net=NET, optimizer=None, terms=None, **kw):
    terms = [jp.distill.match(losses.soft_targets)] if terms is None else terms
    return jp.distill.distiller(
        net, terms, optax.adam(0.02) if optimizer is None else optimizer, **{"labels": 0.5, **kw}
    )


def start(d, teacher=TEACHER, data=DATA, seed=3):
    batch = {name: x[:16] for name, x in data.items()}
    return d.init(params(5, seed), batch, teacher, key=KEY)


def same(a, b):
    """Equal to the bit, keys too."""

    def plain(x):
        return np.asarray(
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        plain(x).dtype == plain(y).dtype and plain(x).tobytes() == plain(y).tobytes()
        for x, y in pairs
    )
