"""The inner loop: K steps between two looks at the metrics, as one compiled loop or as a Python
loop over a step.

    carry = (state, the metrics of the chunk);     metrics[i] ← step i's, for i < n ≤ K

Small steps are dispatch-bound: compiled, they cost a third to a tenth. A convolution is the other
way round on a CPU, where XLA runs it about ten times slower inside a compiled loop. Both run the
same body, fetch the metrics once a chunk, and never wait for the device in between.

The compiled loop gathers small batches several at a time: one gather costs about what its first
element does, and is up to a third of a small step (XLA:CPU hands a part of it to another thread).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.distill.placing import places
from jaxprune.jaxprs.calls import bodies
from jaxprune.jaxprs.interpret import equations

BLOCK = 1 << 18  # bytes of batches that are gathered at once

Inner = Literal["auto", "python", "scan"]
Chunk = Callable[[Any, list[Any], Any, Any], tuple[Any, Any]]


def chunk_runner(step: Any, take: Any, inner: Inner, length: int, *args: Any) -> tuple[Chunk, str]:
    """Builds (state, rows, data, teacher) -> (state, metrics): arrays of `length`, of which the
    first len(rows) hold.

    Args:
      step: (state, batch, teacher) -> (state, metrics).
      take: (row, data) -> batch, inside the compiled step: what turns indices into examples. Of
        several rows, with a leading axis, it gives several batches.
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

    def one(state, row, data, teacher):
        return step(state, take(row, data), teacher)

    closed, shapes = jax.make_jaxpr(one, return_shape=True)(*args)
    slow = jax.default_backend() == "cpu" and convolves(closed)
    kind = inner if inner != "auto" else "python" if slow else "scan"
    blank = {name: np.zeros((length, *x.shape), x.dtype) for name, x in shapes[1].items()}
    if kind == "python":
        return _python(one, blank, places(args[0])), kind
    return _scan(step, take, blank, length, _block(take, length, *args[1:3]), places(args[0])), kind


def _block(take: Any, length: int, row: Any, data: Any) -> int:
    """How many batches are gathered at once; 1 where the rows hold them already."""
    batch = jax.tree.leaves(jax.eval_shape(take, row, data))
    size = sum(x.size * x.dtype.itemsize for x in batch)
    return max(1, min(BLOCK // max(1, size), length)) if jax.tree.leaves(data) else 1


def _scan(step: Any, take: Any, blank: Any, length: int, block: int, stay: Any) -> Chunk:
    def many(state: Any, rows: Any, n: Any, data: Any, teacher: Any) -> tuple[Any, Any]:
        def some(j: Any, carry: Any) -> Any:
            first = j * block
            batches = take(
                jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, block), rows), data
            )

            def pick(i):
                return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 0, False), batches)

            def body(i, carry):
                return _advance(step, carry, first + i, pick(i), teacher)

            return lax.fori_loop(0, jnp.minimum(block, n - first), body, carry)

        # The bound is traced: chunks of every length share one compilation.
        return lax.fori_loop(0, (n + block - 1) // block, some, (state, blank))

    run = jax.jit(many, donate_argnums=0, out_shardings=(stay, None))
    whole = -(-length // block) * block

    def chunk(state: Any, rows: list[Any], *rest: Any) -> tuple[Any, Any]:
        padded = rows + [rows[-1]] * (whole - len(rows))
        return run(state, jax.tree.map(_stack, *padded), np.int32(len(rows)), *rest)

    return chunk


def _python(one: Any, blank: Any, stay: Any) -> Chunk:
    step = jax.jit(partial(_advance, one), donate_argnums=0, out_shardings=(stay, None))

    def chunk(state: Any, rows: list[Any], *rest: Any) -> tuple[Any, Any]:
        carry = (state, jax.tree.map(jnp.asarray, blank))
        for i, row in enumerate(rows):
            carry = step(carry, np.int32(i), row, *rest)
        return carry

    return chunk


def _stack(*rows: Any) -> Any:
    return (np if isinstance(rows[0], np.ndarray) else jnp).stack(rows)


def _advance(step: Any, carry: tuple[Any, Any], i: Any, batch: Any, *rest: Any) -> tuple[Any, Any]:
    state, metrics = carry
    state, new = step(state, batch, *rest)
    return state, {name: metrics[name].at[i].set(x) for name, x in new.items()}


def convolves(jaxpr: Any) -> bool:
    """Whether a convolution runs anywhere in a jaxpr, which XLA:CPU runs about ten times slower in
    a compiled loop.
    """
    eqns = equations(jaxpr)
    here = any(eqn.primitive.name == "conv_general_dilated" for eqn in eqns)
    return here or any(convolves(body.jaxpr) for eqn in eqns for body in bodies(eqn))
