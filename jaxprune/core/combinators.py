"""Compressions made of compressions: one after another, elsewhere, now and then, or not at all."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jax import Array, lax
from jaxtyping import Bool, Int

from jaxprune.core.arguments import whole
from jaxprune.core.compression import Compression, check_compression, keep
from jaxprune.core.trees.partition import join_arrays, split_arrays
from jaxprune.core.types import Compressed, Params, WhereLike
from jaxprune.core.words import compiled

Step = int | Int[Array, ""]

identity = Compression(keep, keep)
"""Changes nothing: the unit of `chain`."""


def chain(*compressions: Compression) -> Compression:
    """One after another: each works on what those before it made.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> both = jp.chain(jp.prune(0.5), jp.cluster(k=1))
      >>> print(jp.materialize(both.init(jnp.array([[1.0, 5.0], [0.5, 7.0]]))))
      [[0. 6.]
       [0. 6.]]
    """
    for compression in compressions:
        check_compression("chain(a, b)", compression)

    def init(params: Params, **extra: Any) -> Compressed:
        for compression in compressions:
            params = compression.init(params, **extra)
        return params

    def update(tree: Compressed, **extra: Any) -> Compressed:
        for compression in compressions:
            tree = compression.update(tree, **extra)
        return tree

    return Compression(init, update)


def at(where: WhereLike, compression: Compression) -> Compression:
    """The compression with its `where` replaced (the outermost `at` wins).

    Args:
      where: a regular expression for whole paths, a rule of `jp.where`, a tree of booleans, or a
        function that makes one of the params.
      compression: what happens there.

    Raises:
      ValueError: what is no compression; a text that is no regular expression.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
      >>> small = jp.at("a", jp.quantize(bits=8)).init(params)
      >>> type(small["a"]).__name__, type(small["b"]).__name__
      ('Quantized', 'ArrayImpl')
    """
    refuse_swapped("at(where, compression)", where)
    check_compression("at(where, compression)", compression)
    if isinstance(where, str):
        compiled("where", where)
    init = partial(compression.init, where=where)
    update = partial(compression.update, where=where)
    return Compression(init, update)


def freeze(compression: Compression) -> Compression:
    """`init` of the compression; `update` changes nothing.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> gradual = jp.freeze(jp.prune(jp.schedules.cubic(0.75, 0, 10)))
      >>> tree = gradual.init(jnp.ones((2, 2)), step=0)
      >>> int(gradual.update(tree, step=10).mask.sum())
      4
    """
    check_compression("freeze(compression)", compression)
    return Compression(compression.init, keep)


def every(n: int, compression: Compression) -> Compression:
    """Updates on the steps that n divides.

    Under `vmap` a `lax.cond` computes both branches: where updates are expensive and steps are
    vmapped, call `update` outside.

    Raises:
      ValueError: n is no integer of at least 1; what is no compression.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> seldom = jp.every(10, jp.prune(jp.schedules.one_shot(0.75)))
      >>> tree = jp.prune(0.25).init(jnp.arange(4.0).reshape(2, 2))
      >>> [int(seldom.update(tree, step=step).mask.sum()) for step in (9, 10)]
      [3, 1]
    """
    refuse_swapped("every(n, compression)", n)
    n = whole("every(n={})", n)
    check_compression("every(n, compression)", compression)

    def is_due(step: Step) -> Bool[Array, ""] | bool:
        return step % n == 0

    return _when(is_due, compression)


def between(begin: int, end: int, compression: Compression) -> Compression:
    """Updates on the steps begin <= step <= end.

    Raises:
      ValueError: bounds that are no integers of at least 0, or end < begin; what is no compression.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> late = jp.between(5, 9, jp.prune(jp.schedules.one_shot(0.75)))
      >>> tree = jp.prune(0.25).init(jnp.arange(4.0).reshape(2, 2))
      >>> [int(late.update(tree, step=step).mask.sum()) for step in (4, 5)]
      [3, 1]
    """
    refuse_swapped("between(begin, end, compression)", begin)
    begin = whole("between(begin={})", begin, 0)
    end = whole("between(end={})", end, 0)
    check_compression("between(begin, end, compression)", compression)
    if end < begin:
        raise ValueError(f"between(begin={begin}, end={end}): give begin <= end")

    def is_due(step: Step) -> Bool[Array, ""] | bool:
        return (step >= begin) & (step <= end)

    return _when(is_due, compression)


def _when(
    is_due: Callable[[Step], Bool[Array, ""] | bool], compression: Compression
) -> Compression:
    """The compression, whose `update` runs on the steps for which `is_due` holds."""

    def update(tree: Compressed, *, step: Step, **extra: Any) -> Compressed:
        arrays, rest = split_arrays(tree)  # functions of a module cannot go through `lax.cond`

        def updated(arrays: Any) -> Any:
            return split_arrays(compression.update(join_arrays(arrays, rest), step=step, **extra))[
                0
            ]

        return join_arrays(lax.cond(is_due(step), updated, lambda arrays: arrays, arrays), rest)

    return Compression(compression.init, update)


def refuse_swapped(call: str, first: Any) -> None:
    """Refuses a compression as the first argument of a call in which it comes last."""
    if isinstance(first, Compression):
        raise ValueError(f"{call}: a Compression is given as the first argument, and it comes last")
