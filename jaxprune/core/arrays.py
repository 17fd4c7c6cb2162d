"""Compressed arrays: one array, written shorter.

A compression picks a code Θ from a small set and a decompression map Δ so that Δ(Θ) is near the
weights w:

    minimise  Σᵢ hᵢ (wᵢ − Δ(Θ)ᵢ)²        h = 1: magnitude pruning, k-means, SVD;  h = diagonal
                                         Fisher: OBD and its kin

the learning-compression view of Carreira-Perpiñán (2017), arXiv:1707.01209. A type below holds one
Θ as a frozen pytree, and its `materialize` is Δ. Autodiff of `materialize` is each paper's gradient
rule: the masked gradient for pruning, the cluster-summed gradient for Deep Compression, the
factors' gradients for low rank.

Two rules keep every type correct under `vmap`. Leading axes that a transform adds are batch axes,
so axes are counted from the end; and no shape is stored that the children already tell.
"""

import dataclasses
from typing import Any, ClassVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxprune.core.guesses import refuse_no_tree
from jaxprune.numerics.placement import merge_axes, sharding_on, spec_of, split_axes


def static(**kw: Any) -> Any:
    """A field that is part of the tree's structure: it changes the program, not the numbers."""
    return dataclasses.field(metadata={"static": True}, **kw)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def code(cls: type) -> type:
    """Makes `cls` a frozen dataclass and a pytree, its `static` fields in the treedef."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


class CompressedArray:
    """One array written shorter: a frozen pytree of code arrays that knows how to give the array
    back.

    Attributes:
      payload: names of the children that are weights again, open to further compression.
    """

    payload: ClassVar[tuple[str, ...]] = ()

    def materialize(self) -> Array:
        """Δ(Θ): the dense array."""
        raise NotImplementedError

    def nbits(self, kept: Any = None) -> Any:
        """Bits of the fixed-length code, of which only `kept` entries are stored where a mask hides
        the others."""
        raise NotImplementedError

    def replace(self, **changes: Any) -> "CompressedArray":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def fields(self) -> tuple[str, ...]:
        """The names of the fields that hold arrays (or nested codes), in order."""
        return tuple(f.name for f in dataclasses.fields(self) if not f.metadata.get("static"))  # pyright: ignore

    @property
    def _like(self) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(materialize, self)

    shape = property(lambda self: self._like.shape)
    dtype = property(lambda self: self._like.dtype)
    ndim = property(lambda self: len(self._like.shape))
    size = property(lambda self: self._like.size)


def is_code(x: Any) -> bool:
    """True for a compressed array: the `is_leaf` of every walk over a compressed tree."""
    return isinstance(x, CompressedArray)


def materialize(tree: Any) -> Any:
    """Dense arrays back: every compressed array w of `tree` becomes Δ(w); other leaves pass
    through.

    Args:
      tree: any pytree, with or without compressed arrays.

    Returns:
      The same tree with plain arrays, of the shapes and dtypes that were compressed.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> code = jp.Masked(jnp.array([1.0, -2.0, 3.0]), jnp.array([True, False, True]))
      >>> print(jp.materialize({"w": code})["w"])
      [1. 0. 3.]
    """
    refuse_no_tree(tree)
    return jax.tree.map(lambda x: x.materialize() if is_code(x) else x, tree, is_leaf=is_code)


def nbits(tree: Any) -> Any:
    """Bits of the fixed-length code of a tree: an int for concrete arrays, a float32 scalar under
    `jit`.

    An index into k centroids costs ceil(log2 k) bits, a b-bit integer b bits, scales and codebooks
    their full width. A `Masked` pays one bit a weight for its mask, and the code of its values for
    the kept weights only.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> code = jp.Masked(jnp.zeros((4, 8)), jnp.zeros((4, 8), bool).at[0].set(True))
      >>> jp.nbits(code), jp.nbits(jnp.zeros((4, 8)))          # 32 + 8·32 and 32·32
      (288, 1024)
    """
    refuse_no_tree(tree)
    return sum(_bits(x) for x in jax.tree.leaves(tree, is_leaf=is_code))


def _bits(x: Any, kept: Any = None) -> Any:
    if is_code(x):
        return x.nbits(kept)
    if not hasattr(x, "dtype"):
        x = np.asarray(x)
    return (x.size if kept is None else kept) * dtype_bits(x.dtype)


def dtype_bits(dtype: Any) -> int:
    """Bits of one element: 1 for bool, 4 for int4, 32 for float32."""
    if dtype == jnp.bool_:
        return 1
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits
    return 8 * dtype.itemsize


def count(mask: Array) -> Any:
    """How many entries of a mask are True: an int when concrete, a float32 scalar when traced."""
    if isinstance(mask, Tracer):
        return jnp.sum(mask, dtype=jnp.float32)
    if getattr(mask, "is_fully_addressable", True):
        return int(np.count_nonzero(np.asarray(mask)))
    return int(jnp.sum(mask))


def index_bits(k: int) -> int:
    """Bits of an index into k entries: ceil(log2 k)."""
    return max(k - 1, 0).bit_length()


@code
class Masked(CompressedArray):
    """Pruned weights: Δ = values where the mask is True, else exactly +0.0.

    Attributes:
      values: float array, or a code of it; what lies under a False mask is not part of the code.
      mask: bool array of the same shape; True is kept.
    """

    values: Any
    mask: Any
    payload = ("values",)

    def materialize(self) -> Array:
        # Not values * mask: that writes −0.0 for negative weights and keeps NaN and Inf alive.
        values = materialize(self.values)
        return jnp.where(self.mask, values, jnp.zeros((), values.dtype))

    def nbits(self, kept: Any = None) -> Any:
        there = count(self.mask)
        return (self.mask.size if kept is None else kept) + _bits(self.values, there)


@code
class Clustered(CompressedArray):
    """Shared values (Han et al. 2016, arXiv:1510.00149): Δ = codebook[indices].

    Attributes:
      codebook: `Float[k]`, or `Float[t k]` (`Float[t0 t1 k]`) with one row for every run of
        `indices`' leading axis (axes), whose length each tile count divides. None inside a
        `Common`, which holds it for a whole tree.
      indices: unsigned integers, shaped like the weights.
    """

    codebook: Any
    indices: Any

    def materialize(self) -> Array:
        return _look_up(materialize(self.codebook), self.indices)

    def nbits(self, kept: Any = None) -> Any:
        width = index_bits(self.codebook.shape[-1])
        return (self.indices.size if kept is None else kept) * width + _bits(self.codebook)


def _look_up(codebook: Array, indices: Array) -> Array:
    spec = spec_of(indices)
    if codebook.ndim == 1:
        out = None if spec is None else sharding_on(indices, *spec)
        return codebook.at[indices].get(mode="promise_in_bounds", out_sharding=out)
    runs = split_axes(indices, {0: indices.shape[0] // codebook.shape[0]})
    where = spec_of(runs)
    if where is not None:
        codebook = jax.sharding.reshard(
            codebook, sharding_on(runs, where[0], *(None,) * (codebook.ndim - 1))
        )
    return merge_axes(
        jax.vmap(jax.vmap(_look_up, in_axes=(None, 0)))(codebook, runs), indices.shape, spec
    )


@code
class Common(CompressedArray):
    """One codebook for a whole tree: the `Clustered` leaves below it hold indices alone.

    Attributes:
      codebook: `Float[k]`.
      tree: the params, whose `Clustered` leaves have no codebook of their own; `materialize` gives
        the whole tree back.
    """

    codebook: Any
    tree: Any
    payload = ("tree",)

    def materialize(self) -> Any:
        return materialize(fill_codebooks(self.tree, self.codebook))

    def nbits(self, kept: Any = None) -> Any:
        # Each leaf would count the codebook: charge it once.
        leaves = jax.tree.leaves(fill_codebooks(self.tree, self.codebook), is_leaf=is_code)
        again = sum(1 for x in leaves if _innermost(x, Clustered) is not None) - 1
        return sum(_bits(x) for x in leaves) - again * _bits(self.codebook)


def fill_codebooks(tree: Any, codebook: Any) -> Any:
    """The tree with `codebook` in every `Clustered` that has none."""

    def fill(x: Any) -> Any:
        if isinstance(x, Clustered):
            return x.replace(codebook=codebook) if x.codebook is None else x
        return x.replace(values=fill(x.values)) if isinstance(x, Masked) else x

    return jax.tree.map(fill, tree, is_leaf=is_code)


def _innermost(x: Any, kind: type) -> Any:
    while isinstance(x, Masked):
        x = x.values
    return x if isinstance(x, kind) else None


@code
class Dense(CompressedArray):
    """A leaf left as it is, and why: its code would have been larger than the array.

    Attributes:
      values: the array.
      why: for the report.
    """

    values: Any
    why: str = static(default="")
    payload = ("values",)

    def materialize(self) -> Array:
        return materialize(self.values)

    def nbits(self, kept: Any = None) -> Any:
        return _bits(self.values, kept)


@code
class Stacked(CompressedArray):
    """A code that was vmapped over an axis other than the first: Δ moves the batch axis back.

    Attributes:
      each: the code, with the stacked axis leading.
      axis: where the axis belongs, counted from the end (negative).
      rank: number of axes of the array.
    """

    each: Any
    axis: int = static()
    rank: int = static()
    payload = ("each",)

    def materialize(self) -> Array:
        return jnp.moveaxis(materialize(self.each), -self.rank, self.axis)

    def nbits(self, kept: Any = None) -> Any:
        return _bits(self.each, kept)
