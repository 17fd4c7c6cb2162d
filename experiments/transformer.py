"""A causal transformer over characters or tokens, as a pair of functions.

    h ← E[x] + P;    h ← h + attention(norm(h)),  h ← h + MLP(norm(h)) in each block;    logits =
                                                  norm(h) Eᵀ

Pre-norm, learned positions P, the head tied to the embedding E (as GPT-2, Radford et al. 2019).
Every position says what comes next, so logits are (batch, length, vocabulary) and labels (batch,
length).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

import jaxprune as jp
from experiments.models import Model


def transformer(
    layers: int = 4, width: int = 128, heads: int = 4, vocabulary: int = 65, length: int = 128
) -> Model:
    """Blocks of attention and an MLP of four times the width; what a block gives is tapped as
    "block0", ….

    Args:
      layers: how many blocks.
      width: of the residual stream, a multiple of `heads`.
      heads: of attention.
      vocabulary: how many tokens; 65 characters in tiny shakespeare.
      length: the longest input; a shorter one uses the first positions.

    Raises:
      ValueError: a width that heads do not divide; at trace time, an input that is longer.
    """
    if width % heads:
        raise ValueError(
            f"transformer(width={width}, heads={heads}): the width is a multiple of the heads"
        )

    def init(key: Array) -> Any:
        keys = jax.random.split(key, layers + 2)

        def normal(k, *shape):
            return 0.02 * jax.random.normal(k, shape, jnp.float32)

        ends = {
            "embedding": normal(keys[0], vocabulary, width),
            "positions": normal(keys[1], length, width),
        }
        blocks = {f"block{i}": _block(keys[i + 2], width, 2 * layers) for i in range(layers)}
        return ends | blocks | {"norm": _norm_init(width)}

    def apply(params: Any, x: Array) -> Array:
        if x.shape[-1] > length:
            raise ValueError(
                f"an input of {x.shape[-1]} tokens: this transformer has {length} positions"
            )
        h = params["embedding"][x] + params["positions"][: x.shape[-1]]
        for i in range(layers):
            block = params[f"block{i}"]
            h = h + _attention(block, _norm(block["norm1"], h), heads)
            h = h + _dense(
                block["down"], jax.nn.gelu(_dense(block["up"], _norm(block["norm2"], h)))
            )
            h = jp.tap(h, f"block{i}")
        return _norm(params["norm"], h) @ params["embedding"].T

    return Model(init, apply, (length,))


def _block(key: Array, width: int, branches: int) -> Any:
    """Weights of variance 1 / fan-in; what is added to the stream has that over the number of
    branches.
    """
    keys = jax.random.split(key, 4)

    def dense(k: Array, n: int, m: int, scale: float = 1.0) -> dict[str, Array]:
        kernel = jax.random.normal(k, (n, m), jnp.float32) * math.sqrt(scale / n)
        return {"kernel": kernel, "bias": jnp.zeros(m, jnp.float32)}

    return {
        "norm1": _norm_init(width),
        "qkv": dense(keys[0], width, 3 * width),
        "out": dense(keys[1], width, width, 1 / branches),
        "norm2": _norm_init(width),
        "up": dense(keys[2], width, 4 * width),
        "down": dense(keys[3], 4 * width, width, 1 / branches),
    }


def _norm_init(width: int) -> Any:
    return {"scale": jnp.ones(width, jnp.float32), "bias": jnp.zeros(width, jnp.float32)}


def _norm(layer: Any, x: Array) -> Array:
    """Layer norm over the width."""
    centred = x - x.mean(-1, keepdims=True)
    unit = centred * lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + 1e-5)
    return unit * layer["scale"] + layer["bias"]


def _dense(layer: Any, x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"]


def _attention(block: Any, x: Array, heads: int) -> Array:
    """softmax(q kᵀ / √d) v of each head, over the positions up to one's own."""
    n, width = x.shape[-2:]

    def split(a):
        return jnp.moveaxis(a.reshape(*a.shape[:-1], heads, width // heads), -2, -3)

    q, k, v = (split(a) for a in jnp.split(_dense(block["qkv"], x), 3, -1))
    scores = q @ jnp.swapaxes(k, -1, -2) / math.sqrt(width // heads)
    seen = jnp.tril(jnp.ones((n, n), bool))
    mixed = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)) @ v
    return _dense(block["out"], jnp.moveaxis(mixed, -3, -2).reshape(x.shape))
