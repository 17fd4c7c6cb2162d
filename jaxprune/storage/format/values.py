"""What nodes stand for, as NumPy arrays: `materialize` where JAX is not. NumPy and the standard
library only.

Dtypes that NumPy lacks are widened exactly: bfloat16, float8 and float4 to float32, int4 and int2
to int8. The numbers are those of `jp.load(path, as_="dense")`, bit for bit where they are looked up
or products of two; LowRank and Tucker are sums of float32 products, whose order differs, so that
they agree to some 1e-6 of Σ |products|. Weights of 16 bits with a float64 scale may be rounded
twice there, and once here.
"""

import functools
import math
from typing import Any

import numpy as np

from ..accounting import shared
from .shapes import Shape, dense
from .words import DTYPES, KINDS, Array, Code, FormatError, Group, Row

NATIVE = {
    "?": "?",
    "f2": "f2",
    "f4": "f4",
    "f8": "f8",
    "c8": "c8",
}  # what words are viewed as; integers are themselves
WEIGHTS = {
    "f2": "f2",
    "f4": "f4",
    "f8": "f8",
    "bf": "f4",
}  # what is computed, and in what NumPy holds it

# Fields with an entry for each weight; others are scales and codebooks.
OF_ROWS = {
    "M": ("mask", "values"),
    "C": ("indices",),
    "P": ("words",),
    "Q": ("q",),
    "B": ("signs",),
}

# Bits of exponent and mantissa, bias, and what the topmost patterns are: as of IEEE 754; one NaN,
# all bits but the sign ("fn"); one NaN, in the place of −0 ("fnuz"); numbers. Micikevicius et al.
# 2022, arXiv:2209.05433; Noune et al. 2022, arXiv:2206.02915; float4: OCP Microscaling Formats 1.0,
# as is e8m0, which is an exponent alone.
SMALL = {
    "float8_e3m4": (3, 4, 3, "ieee"),
    "float8_e4m3": (4, 3, 7, "ieee"),
    "float8_e4m3b11fnuz": (4, 3, 11, "fnuz"),
    "float8_e4m3fn": (4, 3, 7, "fn"),
    "float8_e4m3fnuz": (4, 3, 8, "fnuz"),
    "float8_e5m2": (5, 2, 15, "ieee"),
    "float8_e5m2fnuz": (5, 2, 16, "fnuz"),
    "float4_e2m1fn": (2, 1, 1, "numbers"),
}


def value(node: Any, codebook: np.ndarray | None = None) -> Any:
    """The array of a decoded node (a number is itself); `codebook` is that of the `Common` above.

    Raises:
      FormatError: it computes weights of a dtype that no weights have.
    """
    if isinstance(node, Array):
        return np.asarray(_plain(node))
    if not isinstance(node, Code):
        return node
    parts = [value(part, codebook if node.tag == "M" else None) for part in node.parts]
    if node.tag == "C" and node.parts[0] is None:
        parts[0] = codebook
    with np.errstate(all="ignore"):  # infinities and NaNs compute as in JAX: silently
        return np.asarray(RULES[node.tag](node, *parts))


def made_bytes(node: Any, group: Group | None) -> int:
    """Bytes that `value` makes of a node besides its words."""
    if not isinstance(node, Row | Code):
        return 0
    shape, dtype = dense(node, shared(group))
    widened = dtype == "bf" or dtype.startswith("float")
    itemsize = 4 if widened else DTYPES[dtype].itemsize
    return math.prod(shape) * itemsize if widened or isinstance(node, Code) else 0


def rows_of(node: Any, rows: slice, shape: Shape) -> Any:
    """The code of some rows (of the first axis) of an array of this shape; None where its parts are
    not of rows.
    """
    if isinstance(node, Array):
        return (
            Array(node.dtype, node.host, node.words[rows])
            if shape and node.shape == shape
            else None
        )
    if not isinstance(node, Code) or node.tag not in OF_ROWS:
        return None
    parts: list[Any] = []
    for name, part in zip(KINDS[node.tag].fields, node.parts):
        if name in OF_ROWS[node.tag]:
            cut = rows_of(part, rows, shape)
        else:
            cut = _codebook_of(part) if name == "codebook" else _scale_of(part, rows, shape)
        if cut is None and part is not None:
            return None
        parts.append(cut)
    return Code(node.tag, node.statics, tuple(parts))


def _codebook_of(part: Any) -> Any:
    """What rows need of a codebook: all of it, if there is but one."""
    return part if part is not None and len(dense(part)[0]) == 1 else None


def _scale_of(part: Any, rows: slice, shape: Shape) -> Any:
    """What rows need of a scale or a zero point: all of it, or rows of it; None where it has runs
    of rows.
    """
    if not isinstance(part, Array) or part.shape[0] == 1:
        return part if isinstance(part, Array) else None
    return rows_of(part, rows, part.shape) if part.shape[0] == shape[0] else None


# --- dtypes
# ---------------------------------------------------------------------------------------


def _plain(array: Array) -> np.ndarray:
    """The numbers of words."""
    if array.dtype == "bf":
        return (array.words.astype("u4") << 16).view("f4")
    if array.dtype.startswith("float"):
        return small_floats(array.dtype)[array.words]
    return array.words.view(NATIVE.get(array.dtype, array.words.dtype))


@functools.cache
def small_floats(dtype: str) -> np.ndarray:
    """The float32 of every pattern of bits.

    >>> small_floats("float4_e2m1fn").tolist()[:8]
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    if dtype == "float8_e8m0fnu":
        return np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype("f4")
    exponents, mantissas, bias, top = SMALL[dtype]
    bits = np.arange(1 << (1 + exponents + mantissas))
    magnitude = bits & ((1 << exponents + mantissas) - 1)
    exponent = bits >> mantissas & ((1 << exponents) - 1)
    fraction = (bits & ((1 << mantissas) - 1)) / (1 << mantissas)
    size = np.ldexp(fraction + (exponent > 0), np.maximum(exponent, 1) - bias)
    if top == "ieee":
        size = np.where(exponent == exponent.max(), np.where(fraction > 0, np.nan, np.inf), size)
    if top == "fn":
        size[magnitude == magnitude.max()] = np.nan
    numbers = np.where(bits > magnitude, -size, size).astype("f4")
    if top == "fnuz":
        numbers[bits.size // 2] = np.nan
    return numbers


def _rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """x in a dtype of weights, to nearest even."""
    if dtype not in WEIGHTS:
        raise FormatError(
            f"weights of {DTYPES[dtype].name} are not computed: they are float16, 32, 64 or "
            f"bfloat16"
        )
    if dtype != "bf":
        return x.astype(WEIGHTS[dtype], copy=False)
    x = x.astype("f4", copy=False)
    bits = x.view("u4")
    near = (bits + (0x7FFF + (bits >> 16 & 1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, near.view("f4"))


def _wide(x: np.ndarray) -> np.ndarray:
    """x in the dtype to compute in: float64 for itself, else float32."""
    return _as(x, np.dtype("f8" if x.dtype == "f8" else "f4"))


def _as(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if x.dtype.kind == "c":
        raise FormatError("weights are not computed from complex numbers")
    return x.astype(dtype, copy=False)


# --- codes
# ---------------------------------------------------------------------------------------


def _masked(node: Code, mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(mask, values, np.zeros((), values.dtype))


def _clustered(node: Code, codebook: np.ndarray, indices: np.ndarray) -> np.ndarray:
    tiles = codebook.ndim - 1
    places = []  # which tile an index of each leading axis is in
    for axis, (tile, n) in enumerate(zip(codebook.shape[:-1], indices.shape)):
        place = np.repeat(np.arange(tile), n // tile)
        places.append(place.reshape(-1, *(1,) * (indices.ndim - 1 - axis)))
    return codebook[(*places, indices)] if tiles else codebook[indices]


def _same(node: Code, values: np.ndarray) -> np.ndarray:
    return values


def _stacked(node: Code, each: np.ndarray) -> np.ndarray:
    axis, rank = node.statics
    return np.moveaxis(each, -rank, axis)


def _quantized(
    node: Code, q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None
) -> np.ndarray:
    _, dtype, grid = node.statics
    scale = _expanded(_wide(scale), q.shape)
    if q.dtype == bool:
        return _rounded(_signed(q, scale), dtype)
    if (
        grid is None and zero_point is None and q.dtype.kind in "iu"
    ):  # converts and multiplies in one pass
        return _rounded(np.multiply(q, scale, dtype=scale.dtype, casting="unsafe"), dtype)
    x = _as(q, scale.dtype) if grid is None else _looked_up(_wide(q), grid, scale.dtype)
    if zero_point is not None:
        x = x - _expanded(_as(zero_point, scale.dtype), q.shape)
    return _rounded(x * scale, dtype)


def _binary(node: Code, signs: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return _rounded(
        _signed(signs.astype(bool), _expanded(_wide(scale), signs.shape)), node.statics[0]
    )


def _signed(signs: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (2 * signs.astype(scale.dtype) - 1) * scale


def _expanded(scale: np.ndarray, shape: Shape) -> np.ndarray:
    """A scale whose axes are 1, or as long as those of `shape`."""
    for axis, (d, n) in enumerate(zip(scale.shape, shape)):
        scale = scale if d in (1, n) else np.repeat(scale, n // d, axis)
    return scale


def _looked_up(q: np.ndarray, grid: tuple[float, ...], dtype: np.dtype) -> np.ndarray:
    """grid[q], and 0 where q is no index."""
    inside = (q >= 0) & (q < len(grid)) & (q == np.trunc(q))
    return np.where(
        inside, np.array(grid, dtype)[np.where(inside, q, 0).astype(np.intp)], dtype.type(0)
    )


def _shared(
    node: Code, prototypes: np.ndarray, assignment: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    axis = node.statics[0] % prototypes.ndim
    batch = assignment.ndim - 1
    dtype = dense(node)[1]
    wide = (
        *assignment.shape[:-1],
        *(1,) * (axis - batch),
        assignment.shape[-1],
        *(1,) * (prototypes.ndim - axis - 1),
    )
    units = np.take_along_axis(prototypes, assignment.reshape(wide).astype(np.intp), axis)
    return _rounded(units * _rounded(_wide(scale), dtype).reshape(wide), dtype)


def _low_rank(node: Code, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _product(u, v, dense(node)[1])


def _tucker(node: Code, core: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    window = (1,) * (core.ndim - u.ndim)
    dtype = dense(node)[1]
    u, v = (x.reshape(*x.shape[:-2], *window, *x.shape[-2:]) for x in (u, v))
    return _product(_product(u, core, dtype), v, dtype)


def _product(a: np.ndarray, b: np.ndarray, dtype: str) -> np.ndarray:
    a = _wide(a)
    return _rounded(a @ _as(b, a.dtype), dtype)


RULES: dict[str, Any] = {
    "M": _masked,
    "C": _clustered,
    "D": _same,
    "S": _stacked,
    "P": _same,
    "Q": _quantized,
    "B": _binary,
    "R": _shared,
    "L": _low_rank,
    "T": _tucker,
}
