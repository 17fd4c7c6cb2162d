"""What a code stands for, from the shapes of its parts alone, and the rules that `materialize`
needs them to keep.

`dense` is `jax.eval_shape(materialize)` written out, so that a file is checked, and shown, without
reading its data and without JAX. `save` asks it too: what would not load is not written.
"""

import math
from typing import Any

import numpy as np

from .words import ALIGNED, DTYPES, KINDS, MAX_SIZE, NONZERO, Array, Code, FormatError, Row

Shape = tuple[int, ...]
Shaped = tuple[Shape, str]  # shape, and key of DTYPES


def dense(node: Any, shared: Shaped | None = None) -> Shaped:
    """(shape, dtype) of the array that a part stands for; `shared` is the codebook of the `Common`
    above.
    """
    if isinstance(node, Row | Array):
        return node.shape, node.dtype
    if not isinstance(node, Code):
        raise FormatError(
            "a part is missing"
            if node is None
            else f"a part is a {type(node).__name__}, not an array"
        )
    shape, dtype = RULES[node.tag](
        dict(zip(KINDS[node.tag].fields, node.parts)), shared, *node.statics
    )
    if math.prod(max(1, n) for n in shape) > MAX_SIZE:
        raise FormatError(
            f"{KINDS[node.tag].name} stands for an array of shape {shape}, which is too large"
        )
    return shape, dtype


def check_values(node: Any, shared: Shaped | None = None) -> None:
    """Indices below the number of entries they point into, integers within their bits, masks of
    zeros and ones.
    """
    if not isinstance(node, Code):
        return
    parts = dict(zip(KINDS[node.tag].fields, node.parts))
    if node.tag == "C":
        _within(
            parts["indices"],
            0,
            _codebook(parts["codebook"], shared)[0][-1] - 1,
            "Clustered.indices",
        )
    elif node.tag == "R":
        _within(
            parts["assignment"],
            0,
            dense(parts["prototypes"])[0][node.statics[0]] - 1,
            "Shared.assignment",
        )
    elif node.tag == "P":
        bits, signed = node.statics
        low = -(1 << (bits - 1)) if signed else 0
        _within(parts["words"], low, low + (1 << bits) - 1, f"Packed integers of {bits} bits")
    for part in node.parts:
        check_values(part, shared)


def _within(array: Array, low: int, high: int, what: str) -> None:
    kept = array.kept()
    if kept.size and not (low <= int(kept.min()) and int(kept.max()) <= high):
        raise FormatError(
            f"{what} run from {kept.min()} to {kept.max()}; they must lie in {low} … {high}"
        )


def _need(true: Any, reason: str) -> None:
    if not true:
        raise FormatError(reason)


def _plain(node: Any, what: str, kinds: str) -> Shape:
    """The shape of a part that is an array, not a code, of a dtype whose word is of these kinds."""
    _need(isinstance(node, Row | Array), f"{what} is not an array")
    _need(
        node.dtype[0] in kinds and DTYPES[node.dtype].discrete,
        f"{what} has the dtype {DTYPES[node.dtype].name}",
    )
    return node.shape


def _broadcast(*shapes: Shape) -> Shape:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise FormatError(f"the shapes {', '.join(map(str, shapes))} do not fit") from None


def integers_of(node: Any) -> Any:
    """The integers below a mask that is not stored: it is True where they are not 0."""
    while isinstance(node, Code) and node.tag in ALIGNED:
        node = node.parts[KINDS[node.tag].fields.index(KINDS[node.tag].hidden[0])]
    if not isinstance(node, Row | Array) or node.dtype[0] not in "?iu":
        raise FormatError("a mask is said to be that of the integers below it, but there are none")
    return node


def _masked(parts: dict[str, Any], shared: Shaped | None) -> Shaped:
    if parts["mask"] == NONZERO:
        shape, dtype = dense(parts["values"], shared)
        inner = integers_of(parts["values"])
        _need(
            inner.shape == shape,
            f"a mask is that of integers of shape {inner.shape}, and its values are {shape}",
        )
        return shape, dtype
    mask, (shape, dtype) = _plain(parts["mask"], "Masked.mask", "?"), dense(parts["values"], shared)
    return _broadcast(mask, shape), dtype


def _codebook(node: Any, shared: Shaped | None) -> Shaped:
    if node is None and shared is None:
        raise FormatError("Clustered has no codebook, and no Common above it has one")
    return shared if node is None and shared else dense(node)


def _clustered(parts: dict[str, Any], shared: Shaped | None) -> Shaped:
    (book, dtype), shape = (
        _codebook(parts["codebook"], shared),
        _plain(parts["indices"], "Clustered.indices", "iu"),
    )
    *tiles, k = book or (0,)
    fit = (
        book
        and len(shape) >= len(tiles)
        and all(t > 0 and n % t == 0 for t, n in zip(tiles, shape))
    )
    _need(fit, f"Clustered has a codebook of shape {book} for indices of shape {shape}")
    _need(k > 0 or 0 in shape, "Clustered has an empty codebook")
    return shape, dtype


def _dense(parts: dict[str, Any], shared: Shaped | None, why: str) -> Shaped:
    return dense(parts["values"])


def _stacked(parts: dict[str, Any], shared: Shaped | None, axis: int, rank: int) -> Shaped:
    shape, dtype = dense(parts["each"])
    _need(
        rank <= len(shape) and -axis <= len(shape),
        f"Stacked(axis={axis}, rank={rank}) of an array of shape {shape}",
    )
    rest = list(shape)
    stack = rest.pop(len(shape) - rank)
    rest.insert(len(shape) + axis, stack)
    return tuple(rest), dtype


def _packed(parts: dict[str, Any], shared: Shaped | None, bits: int, signed: int) -> Shaped:
    shape = _plain(parts["words"], "Packed.words", "iu")
    _need(
        bits <= 7 and shape and parts["words"].dtype == ("i1" if signed else "u1"),
        f"Packed({bits} bits) of {shape}",
    )
    return shape, parts["words"].dtype


def _scale(node: Any, shape: Shape, what: str) -> None:
    scale = dense(node)[0]
    fit = len(scale) == len(shape) and all(
        d == n or (d > 0 and n % d == 0) for d, n in zip(scale, shape)
    )
    _need(fit, f"{what} has the shape {scale} for integers of shape {shape}")


def _quantized(
    parts: dict[str, Any], shared: Any, bits: int, dtype: str, grid: tuple[float, ...] | None
) -> Shaped:
    shape = dense(parts["q"])[0]
    _scale(parts["scale"], shape, "Quantized.scale")
    if parts["zero_point"] is not None:
        _scale(parts["zero_point"], shape, "Quantized.zero_point")
    return shape, dtype


def _binary(parts: dict[str, Any], shared: Shaped | None, dtype: str) -> Shaped:
    shape = dense(parts["signs"])[0]
    _scale(parts["scale"], shape, "Binary.scale")
    return shape, dtype


def _shared(parts: dict[str, Any], shared: Shaped | None, axis: int) -> Shaped:
    shape, dtype = dense(parts["prototypes"])
    units = _plain(parts["assignment"], "Shared.assignment", "iu")
    scale = dense(parts["scale"])[0]
    batch = len(units) - 1
    _need(
        units == scale and units,
        f"Shared has a scale of shape {scale} for an assignment of shape {units}",
    )
    fit = -axis <= len(shape) - batch and shape[:batch] == units[:-1]
    _need(
        fit,
        f"Shared(axis={axis}) has prototypes of shape {shape} for an assignment of shape {units}",
    )
    _need(shape[axis] > 0 or 0 in units, "Shared has no prototypes")
    rest = list(shape)
    rest[axis] = units[-1]
    return tuple(rest), dtype


def _matmul(a: Shape, b: Shape) -> Shape:
    _need(
        min(len(a), len(b)) >= 2 and a[-1:] == b[-2:-1],
        f"factors of shapes {a} and {b} do not multiply",
    )
    return (*_broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def _low_rank(parts: dict[str, Any], shared: Shaped | None) -> Shaped:
    (u, dtype), (v, _) = dense(parts["u"]), dense(parts["v"])
    return _matmul(u, v), dtype


def _tucker(parts: dict[str, Any], shared: Shaped | None) -> Shaped:
    (core, _), (u, dtype), (v, _) = (dense(parts[name]) for name in ("core", "u", "v"))
    _need(
        len(core) >= len(u) >= 2 and len(v) >= 2,
        f"Tucker has factors of shapes {u} and {v} for a core of {core}",
    )
    window = (1,) * (len(core) - len(u))

    def wide(x):
        return (*x[:-2], *window, *x[-2:])

    return _matmul(_matmul(wide(u), core), wide(v)), dtype


RULES: dict[str, Any] = {
    "M": _masked,
    "C": _clustered,
    "D": _dense,
    "S": _stacked,
    "P": _packed,
    "Q": _quantized,
    "B": _binary,
    "R": _shared,
    "L": _low_rank,
    "T": _tucker,
}
