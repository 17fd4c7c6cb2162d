"""What is wrong with a call of `axes` or `shrink`, where it can be told: a module for a function,
swapped arguments.

A module of a framework holds its arrays, and what comes after it would be taken for the params: a
batch would be cut.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax


def refuse_odd_call(name: str, functions: Sequence[Any], params: Any) -> None:
    """Refuses what is no function of params, with the call that is meant.

    Args:
      name: of the function that was called.
      functions: that it was given.
      params: what came after them.

    Raises:
      ValueError: a module, a function that is none, params that are one, Flax variables without
        their collection.
    """
    for f in functions:
        kind = type(f).__name__
        if _is_a(f, "flax.linen", "Module"):
            raise ValueError(
                f"{name}: {kind} is a linen module: give its apply, jp.{name}(model.apply, "
                f"variables, x)"
            )
        if _is_a(f, "flax.nnx", "Module"):
            raise ValueError(
                f"{name}: {kind} is an NNX module, and a function of params is asked for: graph, "
                f"params = nnx.split(model); jp.{name}(lambda params, x: nnx.merge(graph, "
                "params)(x), params, x)"
            )
        if _is_a(f, "equinox", "Module") and any(hasattr(x, "dtype") for x in jax.tree.leaves(f)):
            raise ValueError(
                f"{name}: {kind} is an Equinox module, not a function of params: {_equinox(name)}"
            )
        if not callable(f):
            swapped = (
                f": the function comes first, jp.{name}(f, params, x)" if callable(params) else ""
            )
            raise ValueError(
                f"{name}: a {kind} is given, and a function of params is asked for{swapped}"
            )
        of_linen = (
            _is_a(getattr(f, "__self__", None), "flax.linen", "Module") and f.__name__ == "apply"
        )
        if of_linen and isinstance(params, Mapping) and "params" not in params:
            raise ValueError(
                f"{name}: apply of a linen module takes variables, and has {sorted(params)[:5]}: "
                'give {"params": params}'
            )
    if _is_a(params, "equinox", "Module") and not all(
        hasattr(x, "dtype") for x in jax.tree.leaves(params)
    ):
        raise ValueError(f"{name}: an Equinox module holds what is no array: {_equinox(name)}")


def _equinox(name: str) -> str:
    return (
        f"params, static = eqx.partition(model, eqx.is_array); jp.{name}(lambda params, x: "
        "eqx.combine(params, static)(x), params, x)"
    )


def _is_a(x: Any, module: str, kind: str) -> bool:
    """Whether x is of a class of a framework; one that was not imported has no instances."""
    found = sys.modules.get(module)
    return found is not None and isinstance(x, getattr(found, kind))
