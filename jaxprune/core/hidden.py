"""What a mask hides is zero in memory too: norms, hashes and files say the same of a code and of
its saved copy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core.arrays import Clustered, CompressedArray, Dense, Masked, Stacked, is_code
from jaxprune.core.quantized import Binary, Packed, Quantized
from jaxprune.numerics import packing

# The fields that have one entry a weight, which a mask above the code hides.
ALIGNED = {Clustered: "indices", Dense: "values", Quantized: "q", Binary: "signs"}


def zero_hidden(tree: Any, mask: Any = None, *, host: bool = False) -> Any:
    """The tree with 0 (or +0.0) in every entry that a mask hides.

    Args:
      tree: any pytree with codes.
      mask: a mask above the whole tree, which then is one array or code; None: only the masks
        inside count.
      host: also in NumPy's arrays. They are read block by block and never trained, so by default
        they stay as they are and no copy is made.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> from jaxprune.core.hidden import zero_hidden
      >>> print(zero_hidden(jp.Masked(jnp.array([1.0, 7.0]), jnp.array([True, False]))).values)
      [1. 0.]
    """

    def leaf(x: Any) -> Any:
        if is_code(x):
            return _zeroed(x, mask, host)
        return x if mask is None else _zeroed_array(x, mask, host)

    return jax.tree.map(leaf, tree, is_leaf=is_code)


def _zeroed(x: CompressedArray, mask: Any, host: bool) -> CompressedArray:
    """A code with zeros under its own masks, and under the mask above it, if there is one."""
    if isinstance(x, Masked):
        own = x.mask if mask is None else x.mask & mask
        return x.replace(values=zero_hidden(x.values, own, host=host), mask=own)
    if isinstance(x, Packed) and mask is not None:
        return x.replace(words=x.words & packing.pack(mask.astype(jnp.uint8), 1))
    if isinstance(x, Stacked):
        moved = None if mask is None else jnp.moveaxis(mask, x.axis, -x.rank)
        return x.replace(each=zero_hidden(x.each, moved, host=host))
    aligned = ALIGNED.get(type(x))
    fields = {name: getattr(x, name) for name in x.fields()}
    return x.replace(
        **{
            name: zero_hidden(value, mask if name == aligned else None, host=host)
            for name, value in fields.items()
        }
    )


def _zeroed_array(x: Any, mask: Any, host: bool) -> Any:
    if isinstance(x, np.ndarray):
        return np.where(np.asarray(mask), x, x.dtype.type(0)) if host else x
    return jnp.where(mask, x, jnp.zeros((), x.dtype))
