"""The inner loop: K steps between two looks at the metrics, as one compiled loop or as a Python loop over a step.

    carry = (state, the metrics of the chunk);     metrics[i] ← step i's, for i < n ≤ K

Small steps are dispatch-bound: compiled, a small network's step costs about a tenth. A convolution is the other way
round on a CPU, where XLA runs it about ten times slower inside a compiled loop. Both run the same body, fetch the
metrics once a chunk, and never wait for the device in between.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.transforms.calls import bodies
from jaxprune.transforms.jaxpr import open_jaxpr

Inner = Literal["auto", "python", "scan"]
Chunk = Callable[[Any, list[Any], Any, Any], tuple[Any, Any]]


def chunk_runner(step: Any, take: Any, inner: Inner, length: int, *args: Any) -> tuple[Chunk, str]:
    """Builds (state, rows, data, teacher) -> (state, metrics): arrays of `length`, of which the first len(rows) hold.

    Args:
      step: (state, batch, teacher) -> (state, metrics).
      take: (row, data) -> batch, inside the compiled step: what turns indices into examples.
      inner: "auto" looks for convolutions in the step.
      length: K, the most rows.
      args: state, row, data and teacher, or their shapes.

    Returns:
      The runner, which donates the state, and what was chosen, "python" or "scan".

    Raises:
      ValueError: another word for `inner`; whatever the step says of the shapes.
    """
    if inner not in ("auto", "python", "scan"):
        raise ValueError(f"fit(inner={inner!r}): 'auto', 'python' or 'scan'")
    one = lambda state, row, data, teacher: step(state, take(row, data), teacher)
    closed, shapes = jax.make_jaxpr(one, return_shape=True)(*args)
    slow = jax.default_backend() == "cpu" and convolves(closed)
    kind = inner if inner != "auto" else "python" if slow else "scan"
    blank = {name: np.zeros((length, *x.shape), x.dtype) for name, x in shapes[1].items()}
    return (_python if kind == "python" else _scan)(one, blank, length), kind


def _scan(one: Any, blank: Any, length: int) -> Chunk:
    def many(state: Any, rows: Any, n: Any, *rest: Any) -> tuple[Any, Any]:
        pick = lambda i: jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 0, False), rows)
        body = lambda i, carry: _advance(one, carry, i, pick(i), *rest)
        # The bound is traced: chunks of every length share one compilation.
        return lax.fori_loop(0, n, body, (state, blank))

    run = jax.jit(many, donate_argnums=0)

    def chunk(state: Any, rows: list[Any], *rest: Any) -> tuple[Any, Any]:
        padded = rows + [rows[-1]] * (length - len(rows))
        return run(state, jax.tree.map(_stack, *padded), np.int32(len(rows)), *rest)

    return chunk


def _python(one: Any, blank: Any, length: int) -> Chunk:
    step = jax.jit(partial(_advance, one), donate_argnums=0)

    def chunk(state: Any, rows: list[Any], *rest: Any) -> tuple[Any, Any]:
        carry = (state, jax.tree.map(jnp.asarray, blank))
        for i, row in enumerate(rows):
            carry = step(carry, np.int32(i), row, *rest)
        return carry

    return chunk


def _stack(*rows: Any) -> Any:
    return (np if isinstance(rows[0], np.ndarray) else jnp).stack(rows)


def _advance(one: Any, carry: tuple[Any, Any], i: Any, row: Any, *rest: Any) -> tuple[Any, Any]:
    state, metrics = carry
    state, new = one(state, row, *rest)
    return state, {name: metrics[name].at[i].set(x) for name, x in new.items()}


def convolves(jaxpr: Any) -> bool:
    """Whether a convolution runs anywhere in a jaxpr, which XLA:CPU runs about ten times slower in a compiled loop."""
    eqns = open_jaxpr(jaxpr)[0].eqns
    here = any(eqn.primitive.name == "conv_general_dilated" for eqn in eqns)
    return here or any(convolves(body.jaxpr) for eqn in eqns for body in bodies(eqn))
