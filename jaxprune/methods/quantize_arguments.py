"""What `quantize` is told: its words, which recipes share, and which of them go together."""

import re
from typing import Any, Literal, get_args

from jaxprune.core.arguments import positive, whole
from jaxprune.core.words import choice, nearest

Kind = Literal["symmetric", "affine", "float8_e4m3", "float8_e5m2", "nf4", "binary", "ternary"]
Rounding = Literal["nearest", "stochastic"]
Range = Literal["max", "mse"]

FIXED_WIDTHS = {"binary": 1, "ternary": 2, "nf4": 4, "float8_e4m3": 8, "float8_e5m2": 8}


def settle(
    kind: Kind, bits: Any, scale: Any, rounding: Rounding, range: Range
) -> tuple[Kind, int | None]:
    """The kind and its bits; None where `scale` leaves them to the weights.

    Raises:
      ValueError: a word that is none, bits that the kind does not have, or arguments that do not go
        together.
    """
    choice("quantize(kind={})", kind, get_args(Kind))
    choice("quantize(rounding={})", rounding, get_args(Rounding))
    choice("quantize(range={})", range, get_args(Range))
    _refuse_dtype(bits)
    if bits is not None:
        bits = whole("quantize(bits={})", bits, None)
    if scale is not None:
        _check_scale(kind, bits, scale)
        return kind, bits
    if kind in ("symmetric", "affine"):
        return _integers(kind, bits)
    width = FIXED_WIDTHS[kind]
    if bits not in (None, width):
        raise ValueError(
            f"quantize(bits={bits}, kind={kind!r}): {kind} has {width} bits; leave bits out"
        )
    if rounding == "stochastic" or range == "mse":
        raise ValueError(
            f"quantize(kind={kind!r}): stochastic rounding and range='mse' are for integers "
            "(symmetric, affine)"
        )
    return kind, width


def _check_scale(kind: Kind, bits: int | None, scale: Any) -> None:
    positive("quantize(scale={})", scale)
    fits = bits is None or 2 <= bits <= 32
    if kind != "symmetric" or not fits:
        raise ValueError(
            f"quantize(scale={scale}, bits={bits}, kind={kind!r}): Q > 0, 2 to 32 bits, symmetric"
        )


def _integers(kind: Kind, bits: int | None) -> tuple[Kind, int]:
    """Integers of 2 to 16 bits; those of one bit are signs."""
    width = 8 if bits is None else bits
    if not 1 <= width <= 16:
        raise ValueError(
            f"quantize(bits={width}): integers have 2 to 16 bits, 1 is binary; "
            "give scale=Q for wider ones"
        )
    return ("binary" if width == 1 else kind), width


def _refuse_dtype(bits: Any) -> None:
    """Refuses a dtype or a kind in the place of bits: "int8", jnp.int8, "nf4"."""
    name = bits if isinstance(bits, str) else getattr(bits, "__name__", None)
    name = name or getattr(bits, "name", None)
    if not isinstance(name, str):
        return
    digits = re.fullmatch(r"u?int(\d+)", name) or re.fullmatch(r"(\d+)(?:[- ]?bits?)?", name)
    if digits:
        advice = f"give the bits as a number, as quantize({int(digits[1])})"
    elif name in get_args(Kind):
        advice = f"that is a kind, give quantize(kind={name!r})"
    else:
        kinds = nearest(name, get_args(Kind), 9)
        advice = (
            "give the bits as a number, as quantize(8), or a kind, as quantize(kind='nf4'): "
            f"one of {kinds}"
        )
    raise ValueError(f"quantize(bits={name!r}): {advice}")
