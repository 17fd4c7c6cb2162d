"""The decoder of `numerics.rans` in JAX: the same streams, decoded where the weights are to be.

A loop over the steps, all N lanes at once. NumPy hands the words that come back to the lanes by
their places (`nonzero`); here each lane finds its own, without a scatter: lanes go in groups of 32,
the lanes of a group that need a word are the bits of one integer m, and lane i of group g reads
word

    taken + Σ_{h < g} popcount(m_h) + popcount(m_g mod 2^i)

so that the sum over lanes, which is what compilers are slow at, is one over N / 32 groups.

On a CPU this is about as fast as NumPy, and the symbols need not be copied to be looked up: float32
weights come straight out of the loop. Each number of symbols, lanes and words is compiled for anew,
which takes about a second.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from . import rans
from .rans import TOTAL, Buffer

GROUP = 32


def decode(buffer: Buffer, n: int, freqs: Any, lanes: int, values: Any = None) -> Array:
    """`rans.decode` on JAX's default device; `values` is what each symbol of the table stands for,
    of any dtype.

    Raises:
      StreamError: anything but a whole stream that ends in the right state.

    Example:
      >>> import numpy as np
      >>> stream = rans.encode([0, 2, 1, 0], [2048, 1024, 1024], lanes=2)
      >>> print(decode(stream, 4, [2048, 1024, 1024], 2,
      ...     values=np.array([0.0, -0.5, 0.5], np.float32)))
      [ 0.   0.5 -0.5  0. ]
    """
    freq = rans.checked(freqs)
    rans.steps_of(n, lanes)
    x, words = rans.parsed(buffer, lanes)
    symbol_of, pop_of = rans.slots_of(freq)
    table = symbol_of if values is None else jnp.asarray(values)[symbol_of]
    if freq.max() == TOTAL:  # a lone symbol takes no bits
        rans.check_end(x, words.size)
        return jnp.full(n, table[0])
    room = np.append(words, np.uint16(0))  # never empty
    decoded, x, taken = _run(x, room, table, pop_of, n)
    rans.check_end(np.asarray(x), words.size - int(taken))
    return decoded


@functools.partial(jax.jit, static_argnames="n")
def _run(
    x: Array, words: Array, value_of: Array, pop_of: Array, n: int
) -> tuple[Array, Array, Array]:
    """The values, the last states, and how many words were taken: more than there are if the stream
    is truncated.
    """

    def step(x: Array, taken: Array) -> tuple[Array, Array, Array]:
        slot = x & rans.SLOT
        found = pop_of.at[slot].get(mode="promise_in_bounds")
        x = (found & rans.LOWER) * (x >> rans.SHIFT) + (found >> rans.WORD)
        low = x < rans.LEAST
        rank = _ranks(low)
        back = words.at[taken + rank].get(mode="clip").astype(np.uint32)
        x = jnp.where(low, x << rans.WORD | back, x)
        return (
            x,
            taken + rank[-1] + low[-1].astype(np.int32),
            value_of.at[slot].get(mode="promise_in_bounds"),
        )

    def body(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, taken, decoded = carry
        x, taken, values = step(x, taken)
        return x, taken, lax.dynamic_update_slice(decoded, values, (i * x.size,))

    steps, rest = divmod(n, x.size)
    taken = jnp.zeros((), np.int32)
    decoded = jnp.empty(n, value_of.dtype)
    if steps:
        x, taken, decoded = lax.fori_loop(0, steps, body, (x, taken, decoded))
    if rest:
        ended, taken, values = step(x[:rest], taken)
        x = x.at[:rest].set(ended)
        decoded = decoded.at[-rest:].set(values)
    return decoded, x, taken


def _ranks(low: Array) -> Array:
    """How many of the lanes before each are True."""
    bit = np.arange(GROUP, dtype=np.uint32)
    groups = jnp.pad(low, (0, -low.size % GROUP)).reshape(-1, GROUP)
    bits = jnp.sum(groups.astype(np.uint32) << bit, 1, dtype=np.uint32)
    counts = lax.population_count(bits).astype(jnp.int32)
    before = jnp.cumsum(counts) - counts
    within = lax.population_count(bits[:, None] & ((np.uint32(1) << bit) - np.uint32(1))).astype(
        jnp.int32
    )
    return (before[:, None] + within).ravel()[: low.size]
