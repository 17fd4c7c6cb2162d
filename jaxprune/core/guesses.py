"""What people give where a tree of weights is asked for: one line that says what to write
instead."""

from typing import Any

import jax
import numpy as np

from jaxprune.core.leaves.paths import flatten_with_path, leaf_path


def refuse_no_tree(tree: Any) -> None:
    """Refuses what holds no weights at all, with what is meant; a tree of weights passes.

    Classes are told by what they can do, so no framework is imported.

    Raises:
      ValueError: a method (a `Compression`, an optimizer), a module without its params, a function;
        a masked array of NumPy among the leaves.

    Example:
      >>> import jaxprune as jp
      >>> refuse_no_tree(jp.prune(0.5))
      Traceback (most recent call last):
      ValueError: a Compression is given in place of a tree of weights: give what it makes,
      compression.init(params)
    """
    kind = type(tree).__name__
    can = [name for name in ("init", "update", "apply") if callable(getattr(tree, name, None))]
    if can == ["init", "update"]:
        raise ValueError(
            f"a {kind} is given in place of a tree of weights: give what it makes, "
            f"compression.init(params)"
        )
    if "init" in can and "apply" in can:
        raise ValueError(
            f"the module {kind} is given in place of a tree of weights: its params are apart, give "
            "model.init(key, x)['params']"
        )
    if callable(tree) and hasattr(tree, "__name__") and not hasattr(tree, "dtype"):
        raise ValueError(
            f"the function {tree.__name__} is given in place of a tree of weights: give params, as "
            "compression.init(params) makes them"
        )
    _refuse_masked_arrays(tree)


def _refuse_masked_arrays(tree: Any) -> None:
    """Refuses masked arrays of NumPy: nothing here keeps their masks, and what lies under one is no
    weight."""
    if not any(isinstance(x, np.ma.MaskedArray) for x in jax.tree.leaves(tree)):
        return
    for keys, x in flatten_with_path(tree)[0]:
        if isinstance(x, np.ma.MaskedArray):
            name = leaf_path(keys) or "the array"
            raise ValueError(
                f"{name} is a masked array of NumPy, {x.dtype.name}{list(x.shape)}, whose mask "
                "would be lost: give x.filled(0) for zeros in its place"
            )
