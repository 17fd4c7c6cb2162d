"""A tree of codes, taken apart into the arrays that a file holds: each weight leaf is a few of
them.

A mask over a code hides entries: indices, integers and values under a False mask are not pieces.
Summed over the pieces, symbols · bits is `nbits`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.core.arrays import (
    Clustered,
    Common,
    Masked,
    Stacked,
    dtype_bits,
    fill_codebooks,
    index_bits,
    is_code,
    materialize,
)
from jaxprune.core.factors import Shared
from jaxprune.core.guesses import refuse_no_tree
from jaxprune.core.quantized import Packed, Quantized
from jaxprune.core.trees.selection import no_match, selector
from jaxprune.core.where import Slot, is_float, leaf_slots

ALIGNED = ("values", "indices", "q", "signs", "each")


class Leaf(NamedTuple):
    """A leaf of the user's tree.

    Attributes:
      path: its name.
      code: the array or code there.
      codebook: the one it shares with other leaves, or None.
      side: True for a shared codebook, which is no leaf of the user's.
      slot: its place among its neighbours, by which selections go.
    """

    path: str
    code: Any
    codebook: Any = None
    side: bool = False
    slot: Slot | None = None


class Piece(NamedTuple):
    """One array of a code.

    Attributes:
      fields: its place in the code.
      symbols: the entries that are stored, on the host, in one row.
      bits: of one entry, at fixed length.
      coded: whether an entropy coder takes it: integers, masks and float8 numbers; not wider
        floats.
    """

    fields: tuple[str, ...]
    symbols: np.ndarray
    bits: int
    coded: bool


def leaves(tree: Any, path: str = "", codebook: Any = None) -> list[Leaf]:
    """The leaves of a tree by path; a codebook for a whole tree is one more. Functions and texts
    are no weights.

    Raises:
      ValueError: an array is traced or abstract, so that its numbers are not known; something that
        is no tree of weights; a masked array.
    """
    refuse_no_tree(tree)
    check_concrete(tree)
    found: list[Leaf] = []
    for slot in leaf_slots(tree, Slot(path, None))[0]:
        x = slot.value
        if isinstance(x, Common):
            name = "/".join(filter(None, (slot.path, "(codebook)")))
            found += [Leaf(name, x.codebook, side=True), *leaves(x.tree, slot.path, x.codebook)]
        elif not callable(x) and not isinstance(x, str):
            found.append(Leaf(slot.path, x, codebook, slot=slot))
    return found


def check_concrete(tree: Any) -> None:
    """Refuses arrays whose numbers are not known."""
    for x in jax.tree.leaves(tree):
        if isinstance(x, Tracer | jax.ShapeDtypeStruct):
            raise ValueError(
                f"measuring needs concrete arrays, not {x}: call it outside jit, vmap and "
                f"eval_shape"
            )


def host(x: Any) -> np.ndarray:
    """An array's numbers on the host (a PRNG key's, its words)."""
    if jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x)


def dense(leaf: Leaf) -> np.ndarray:
    """The weights that a leaf stands for."""
    return host(materialize(fill_codebooks(leaf.code, leaf.codebook)))


def kept(leaf: Leaf) -> np.ndarray:
    """Which weights are there: by the mask where there is one, else those that are not 0."""
    mask = _mask(leaf.code)
    return dense(leaf) != 0 if mask is None else mask


def _mask(code: Any) -> np.ndarray | None:
    if isinstance(code, Masked):
        inner = _mask(code.values)
        mask = host(code.mask)
        return mask if inner is None else mask & inner
    inner = _mask(code.each) if isinstance(code, Stacked) else None
    return inner if inner is None else np.moveaxis(inner, -code.rank, code.axis)


def pieces(leaf: Leaf) -> list[Piece]:
    """The arrays that a leaf is stored as; a shared codebook is left to its own leaf."""
    return list(_pieces(leaf.code, (), None, None, leaf.codebook))


def _pieces(
    x: Any, fields: tuple[str, ...], there: np.ndarray | None, bits: int | None, codebook: Any
) -> Iterator[Piece]:
    if isinstance(x, Packed):
        yield _piece(materialize(x), fields, there, x.bits)
    elif isinstance(x, Masked):
        mask = host(x.mask)
        yield _piece(mask, (*fields, "mask"), there, 1)
        yield from _pieces(
            x.values, (*fields, "values"), mask if there is None else mask & there, None, codebook
        )
    elif is_code(x):
        if isinstance(x, Stacked) and there is not None:
            there = np.moveaxis(there, x.axis, -x.rank)
        for name in (n for n in x.fields() if getattr(x, n) is not None):
            below = there if name in ALIGNED else None
            yield from _pieces(
                getattr(x, name), (*fields, name), below, _bits(x, name, codebook), codebook
            )
    else:
        yield _piece(host(x), fields, there, bits)


def _bits(x: Any, name: str, codebook: Any) -> int | None:
    """Bits of an entry where the code knows better than the dtype."""
    if isinstance(x, Clustered) and name == "indices":
        return index_bits((codebook if x.codebook is None else x.codebook).shape[-1])
    if isinstance(x, Shared) and name == "assignment":
        return index_bits(x.prototypes.shape[x.axis])
    return x.bits if isinstance(x, Quantized) and name == "q" else None


def _piece(x: Any, fields: tuple[str, ...], there: np.ndarray | None, bits: int | None) -> Piece:
    x = np.asarray(x)
    width = dtype_bits(x.dtype)
    integer = jnp.issubdtype(x.dtype, jnp.integer)
    coded = (
        integer or x.dtype == bool or (jnp.issubdtype(x.dtype, jnp.floating) and not is_float(x))
    )
    if coded and x.dtype.kind == "V":  # int4 as a byte, the bits of a float8
        x = x.astype(np.int8) if integer else x.view(np.uint8)
    symbols = x.ravel() if there is None or there.shape != x.shape else x[there]
    return Piece(fields, symbols, width if bits is None else bits, bool(coded))


def select(tree: Any, where: Any = None) -> list[Leaf]:
    """The leaves that `where` selects; all of them when it is None.

    Raises:
      ValueError: nothing is selected.
    """
    found = leaves(tree)
    if where is None:
        return found
    test = selector(where, tree)
    chosen = [
        leaf
        for leaf in found
        if leaf.slot is not None and test(leaf.slot._replace(value=dense(leaf)))
    ]
    if not chosen:
        raise no_match(where, tree)
    return chosen
