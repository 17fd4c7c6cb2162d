"""One leaf as a node and back: arrays as words, compressed arrays as their parts.

Under a mask only kept entries are stored; the others come back as +0.0, or 0.
"""

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core import arrays, factors, quantized
from jaxprune.core.arrays import is_code, materialize
from jaxprune.numerics import packing, placement
from jaxprune.storage.format import values
from jaxprune.storage.format.shapes import dense, integers_of
from jaxprune.storage.format.words import (
    CODE_OF,
    DTYPES,
    KINDS,
    MAX_TEXT,
    NONZERO,
    Array,
    Code,
    FormatError,
)

TYPES: dict[str, type] = {
    "M": arrays.Masked,
    "C": arrays.Clustered,
    "D": arrays.Dense,
    "S": arrays.Stacked,
    "P": quantized.Packed,
    "Q": quantized.Quantized,
    "B": quantized.Binary,
    "R": factors.Shared,
    "L": factors.LowRank,
    "T": factors.Tucker,
}
SHORT_INTEGERS = ("int2", "int4", "uint2", "uint4")
CHUNK = 1 << 18  # entries compared or made dense at a time
BY_ROWS = ("f4", "f8")  # NumPy rounds others at other places than JAX
WIDE = ("f8", "i8", "u8")
TAG_OF = {cls: tag for tag, cls in TYPES.items()}


def to_node(x: Any) -> Any:
    """A leaf as an `Array`, a `Code` or a Python number."""
    return _part(x, None) if is_code(x) or _is_array(x) else _scalar(x)


def _scalar(x: Any) -> Any:
    if type(x) not in (bool, int, float):
        raise FormatError(
            f"a {type(x).__name__} cannot be saved; leaves are arrays, codes, numbers and None"
        )
    if type(x) is int and not -(2**63) <= x < 2**63:
        raise FormatError("an integer of more than 64 bits cannot be saved")
    return x


def _part(x: Any, mask: np.ndarray | None) -> Any:
    """A part of a code, of which `mask` is what is kept."""
    if x is None:
        return None
    if not is_code(x):
        return _array(x, mask)
    tag = TAG_OF.get(type(x))
    if tag is None:
        raise FormatError(f"a {type(x).__name__} cannot be saved here: save what it materializes")
    kind = KINDS[tag]
    statics = tuple(_static(x, name) for name in kind.statics)
    if isinstance(x, quantized.Packed):
        return Code(tag, statics, (_unpacked(x, mask),))
    if isinstance(x, arrays.Masked) and mask is None:
        values = _part(x.values, None)
        if _is_nonzero(_part(x.mask, None), values):
            return Code(tag, (), (NONZERO, values))
    parts = []
    for name in kind.fields:
        if isinstance(x, arrays.Stacked) and mask is not None:
            mask = _stack_first(mask, x.axis, x.rank)
        parts.append(_part(getattr(x, name), mask if name in kind.hidden else None))
        if isinstance(x, arrays.Masked) and name == "mask" and isinstance(parts[0], Array):
            mask = (
                parts[0].words.view(bool)
                if parts[0].mask is None
                else parts[0].words.view(bool) & parts[0].mask
            )
    return Code(tag, statics, tuple(parts))


def _is_nonzero(mask: Any, values: Any) -> bool:
    """Whether a mask says no more than which of the integers below it are 0."""
    try:
        inner = integers_of(values)
        shape = dense(values)[0]
    except FormatError:
        return False
    if not (
        isinstance(mask, Array)
        and mask.dtype == "?"
        and mask.host == inner.host
        and inner.shape == shape
    ):
        return False
    kept = mask.words.reshape(-1)
    words = inner.words.reshape(-1)
    some = (slice(i, i + CHUNK) for i in range(0, kept.size, CHUNK))
    return all(np.array_equal(kept[part].view(bool), words[part] != 0) for part in some)


def _stack_first(mask: np.ndarray, axis: int, rank: int) -> np.ndarray | None:
    """The mask of a `Stacked` as one of its `each`."""
    return np.moveaxis(mask, axis, -rank) if -axis <= mask.ndim >= rank else None


def _static(x: Any, name: str) -> Any:
    value = getattr(x, name)
    if name == "dense_dtype":
        return _dtype_code(jnp.dtype(value))
    if name == "grid":
        return None if value is None else tuple(float(g) for g in value)
    if name == "why":
        return str(value)[:MAX_TEXT]
    return int(value)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _dtype_code(dtype: Any) -> str:
    code = CODE_OF.get(getattr(dtype, "name", ""))
    if code is None:
        hint = (
            ": save jax.random.key_data(key)" if jnp.issubdtype(dtype, jax.dtypes.prng_key) else ""
        )
        raise FormatError(f"the dtype {dtype} cannot be saved{hint}")
    return code


def _array(x: Any, mask: np.ndarray | None) -> Array:
    if not _is_array(x):
        raise FormatError(f"a part of a code is a {type(x).__name__}, not an array")
    code = _dtype_code(x.dtype)
    if isinstance(x, jax.Array) and x.is_deleted():
        raise FormatError(
            "the array was deleted: it was donated to a function; save what that returned"
        )
    host = not isinstance(x, jax.Array)
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        raise FormatError(
            "the array is spread over several hosts: gather it with "
            "multihost_utils.process_allgather"
        )
    values = np.ascontiguousarray(np.asarray(x)).reshape(np.shape(x))
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return Array(code, host, _words(values, code), _fitting(mask, values.shape))


def _words(values: np.ndarray, code: str) -> np.ndarray:
    """The bits of an array. Bytes that hold fewer than 8 bits may have anything in the others."""
    if code in SHORT_INTEGERS:
        return values.astype(DTYPES[code].word)
    words = values.view(DTYPES[code].word)
    return words & np.uint8(15) if code.startswith("float4") else words


def _values(array: Array) -> np.ndarray:
    dtype = jnp.dtype(DTYPES[array.dtype].name)
    return array.words.astype(dtype) if array.dtype in SHORT_INTEGERS else array.words.view(dtype)


def _unpacked(x: quantized.Packed, mask: np.ndarray | None) -> Array:
    words = _array(x.words, None)
    if (
        words.dtype != "u1"
        or len(words.shape) < 2
        or -(-x.length // 8) != words.shape[-1]
        or not 1 <= x.bits <= 7
    ):
        raise FormatError(
            f"Packed(length={x.length}) has words of shape {words.shape} and dtype {words.dtype}"
        )
    codes = packing.unpack(words.words, x.length, x.signed, xp=np)
    return Array("i1" if x.signed else "u1", words.host, codes, _fitting(mask, codes.shape))


def _fitting(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    return mask if mask is not None and mask.shape == shape else None


# --- and back
# ---------------------------------------------------------------------------------------


def as_numpy(node: Any, shared: Any = None) -> np.ndarray:
    """A leaf's node as a dense array, which may be read-only, with little besides it in memory."""
    if isinstance(node, Code) and node.tag == "M" and isinstance(node.parts[1], Array):
        node = node.parts[1]  # what its mask hides was read as zeros
    if isinstance(node, Array):
        return _values(node)
    if not isinstance(node, Code):
        return np.asarray(node)
    if (made_by_rows := _by_rows(node, shared)) is not None:
        return made_by_rows
    with _wide(node, *jax.tree.leaves(shared)):
        code = arrays.fill_codebooks(made(node, host=False), shared)
        return np.asarray((_compiled if code.size >= placement.HOST else materialize)(code))


_compiled = jax.jit(materialize)  # allocates nothing of the array's size but the array


def _by_rows(node: Code, shared: Any) -> np.ndarray | None:
    """A large code as `materialize` has it, by NumPy and some rows at a time, where its parts are
    of rows.
    """
    codebook = None if shared is None else np.asarray(shared)
    shape, dtype = dense(
        node, None if codebook is None else (codebook.shape, CODE_OF[codebook.dtype.name])
    )
    if (
        dtype not in BY_ROWS
        or math.prod(shape) < CHUNK
        or values.rows_of(node, slice(0, 1), shape) is None
    ):
        return None
    out = np.empty(shape, dtype)
    step = max(1, CHUNK * shape[0] // math.prod(shape))
    for i in range(0, shape[0], step):
        rows = slice(i, i + step)
        out[rows] = values.value(values.rows_of(node, rows, shape), codebook)
    return out


def from_node(node: Any, as_: str = "compressed", shared: Any = None) -> Any:
    """A leaf's node as an array, a code or a number; `shared` is the codebook of the `Common`
    above.
    """
    if isinstance(node, Array) and (as_ == "numpy" or node.host):
        return _host(node)
    if not isinstance(node, Code) or as_ == "compressed":
        return made(node, host=True)
    with _wide(node, *jax.tree.leaves(shared)):
        value = materialize(arrays.fill_codebooks(made(node, host=False), shared))
    return np.array(value) if as_ == "numpy" else value


def _host(array: Array) -> np.ndarray:
    values = _values(array)
    return values if values.flags.writeable else values.copy()


def made(node: Any, host: bool) -> Any:
    """A node as what it was saved from; with `host`, NumPy arrays are NumPy arrays again."""
    if isinstance(node, Array):
        if host and node.host:
            return _host(node)
        with _wide(node):
            return jnp.asarray(_values(node))
    if not isinstance(node, Code):
        return node
    cls = TYPES[node.tag]
    kind = KINDS[node.tag]
    statics = dict(zip(kind.statics, node.statics))
    if cls is quantized.Packed:
        return _repacked(node.parts[0], host, statics["bits"], bool(statics["signed"]))
    if "dense_dtype" in statics:
        statics["dense_dtype"] = jnp.dtype(DTYPES[statics["dense_dtype"]].name)
    return cls(**{name: made(part, host) for name, part in zip(kind.fields, node.parts)}, **statics)


def _repacked(array: Array, host: bool, bits: int, signed: bool) -> Any:
    words = packing.pack(array.words, bits, xp=np)
    return quantized.Packed(
        words if host and array.host else jnp.asarray(words), array.shape[-1], signed
    )


def _wide(*nodes: Any) -> Any:
    """Lets JAX hold 64-bit arrays, whatever jax_enable_x64 says, where there are some: bits are
    kept.
    """
    return jax.enable_x64(True) if any(map(_has_wide, nodes)) else contextlib.nullcontext()


def _has_wide(node: Any) -> bool:
    if isinstance(node, Code):
        return any(s in WIDE for s in node.statics) or any(map(_has_wide, node.parts))
    return node is not None and (node.dtype in WIDE or CODE_OF.get(str(node.dtype)) in WIDE)
