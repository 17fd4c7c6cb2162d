"""Quantisation: Δ(Θ) = (q − z)·s with integers of few bits, and its kin.

    symmetric   q = round(w / s),      s = max|w| / (2^(b−1) − 1)
    affine      q = round(w / s) + z,  s = (max w − min w) / (2^b − 1)
    fixed       q = round(w · Q),      w ≈ q / Q, |error| <= 1 / (2Q)
    float8, nf4, binary (XNOR-Net), ternary (TWN): see `jaxprune.numerics.grids`

Quantising a codebook, a prototype or a factor is the same call at another place: `jp.at(jp.where.field("codebook"),
…)`.
"""

import re
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.core.arguments import flag, positive, whole
from jaxprune.core.arrays import CompressedArray, Dense
from jaxprune.core.compression import Compression, keep
from jaxprune.core.leaves.layout import Axes, axes_of, check_layout
from jaxprune.core.leaves.where import Slot
from jaxprune.core.quantized import Binary, Quantized, pack
from jaxprune.core.tree import check_finite, fold_path, map_slots
from jaxprune.core.words import choice, nearest
from jaxprune.numerics import affine, grids
from jaxprune.numerics.precision import wide

Kind = Literal["symmetric", "affine", "float8_e4m3", "float8_e5m2", "nf4", "binary", "ternary"]
Rounding = Literal["nearest", "stochastic"]
Range = Literal["max", "mse"]
Axis = int | tuple[int, ...] | Literal["outputs"] | None


def quantize(
    bits: int | None = None,
    *,
    scale: float | None = None,
    axis: Axis = "outputs",
    group: int | None = None,
    kind: Kind = "symmetric",
    rounding: Rounding = "nearest",
    range: Range = "max",
    clip: bool = False,
    layout: Any = None,
    where: Any = None,
) -> Compression:
    """Writes weights as integers of few bits (or float8, or signs) times a scale.

    Args:
      bits: 2 to 16 for integers, 1 for signs; 8 by default. With `scale` as wide as the largest weight needs, unless
        given.
      scale: Q, one number: q = round(w·Q), w = q / Q. Nothing saturates: too few `bits` is an error that names the bits
        needed, unless `clip`.
      axis: the channel axes that keep a scale of their own, counted from the end; None for one scale a leaf. A vector
        has one scale. By default the outputs, as names and biases tell (docs/layers.md): the last axis of a
        `kernel` or `w`, the first of a `weight`, and with them the axes of stacked layers.
      group: the contraction axis is cut into runs of `group` weights, each with its own scale. It is the inputs, as
        names and biases tell: the second-last axis of a `kernel`, the second of a `weight`, whose scales are then
        (outputs, inputs / group).
      kind: "symmetric", "affine" (a zero point), "float8_e4m3", "float8_e5m2", "nf4", "binary", "ternary".
        All but "binary" hold an exact 0; under a mask (`prune` first) zeros stay with every kind.
      rounding: "nearest" (half to even), or "stochastic": ⌊w/s + u⌋, unbiased, with `key=` given to init.
      range: "max" (nothing saturates), or "mse": the clipping with the least squared error.
      clip: with `scale`: saturate instead of refusing.
      layout: which axes are the outputs, instead: "jax" (last), "torch" (first), or a dict of path regex -> axis.
      where: which leaves, as in `jp.prune`; `jp.where.weights` by default.

    Returns:
      A `Compression` whose leaves are `Quantized` (`Binary` for signs; scalars stay, as `Dense`). Codes below 8 bits
      are packed. Scales are float32. Weights below the smallest normal float (1.2e-38 in float32) become 0: XLA
      computes without subnormal numbers.

    Raises:
      ValueError: for bits outside the range, a group that does not divide the contraction axis, NaN or Inf in a
        concrete leaf, an overflow.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> tree = jp.quantize(scale=10).init(jnp.array([[0.26, -1.0]]))
      >>> print(jp.materialize(tree), jnp.asarray(tree.q.materialize()))
      [[ 0.3 -1. ]] [[  3 -10]]
    """
    kind, bits = _settle(kind, bits, scale, rounding, range)
    given = _axes(axis)
    clip = flag("quantize(clip={})", clip)
    if group is not None:
        group = whole("quantize(group={})", group)
    check_layout(layout, "quantize")
    rule = where

    def encode(slot: Slot, key: Any) -> CompressedArray:
        w, mask = slot.value, slot.mask
        check_finite(slot)  # under trace NaN becomes 0, and infinities saturate
        if w.ndim == 0:
            return Dense(w, "a scalar: its scale would be as large")
        try:
            if scale is not None:
                return _fixed(w, float(scale), bits, clip, mask)
            u = _noise(rounding, key, slot)
            axes, runs = _scale_axes(slot, layout, given, group)
            return _CODES[kind](w, bits, axes, runs, mask, range, u)
        except ValueError as error:
            raise ValueError(f"{slot}: {error}") from None

    def init(params: Any, *, key: Any = None, where: Any = None, **extra: Any) -> Any:
        return map_slots(lambda s: encode(s, key), params, rule if where is None else where)

    return Compression(init, keep)


Channels = tuple[int, ...]


def _scale_axes(
    slot: Slot, layout: Any, given: Channels | None, group: int | None
) -> tuple[Channels, affine.Runs | None]:
    """The axes along which scales are not shared, and the runs that are groups.

    Args:
      slot: the leaf.
      layout: as in `axes_of`.
      given: the channel axes that the user names; else they are those of the outputs and of stacked layers.
      group: the length of a run, or None.
    """
    axes = axes_of(slot.place, layout) if slot.open else Axes((-1,), (-2,))
    channels = axes.scales if given is None else given
    if group is None:
        return channels, None
    if axes.contraction not in channels:
        return channels, affine.Runs(group, axes.contraction)
    if given is not None:
        return channels, affine.Runs(group)
    # Nothing tells (layers, out, in) from (out, in, window). Runs along the last axis are right for layers; where they
    # do not fit, it is taken for a window.
    if -1 not in channels and slot.value.shape[-1] % group == 0:
        return channels, affine.Runs(group, -1)
    others = tuple(axis for axis in channels if axis != axes.contraction)
    return others, affine.Runs(group, axes.contraction)


def _axes(axis: Any) -> tuple[int, ...] | None:
    """The channel axes, counted from the end; None where the outputs are meant."""
    if isinstance(axis, str):
        choice("quantize(axis={})", axis, ("outputs",))
        return None
    several = () if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    axes = tuple(whole("quantize(axis={})", a, None) for a in several)
    if any(a >= 0 for a in axes):
        raise ValueError(
            f"quantize(axis={axis}): count axes from the end, so that stacked layers work too: -1 is the last"
        )
    return axes


def _refuse_dtype(bits: Any) -> None:
    """A dtype or a kind in the place of bits: "int8", jnp.int8, "nf4"."""
    name = bits if isinstance(bits, str) else getattr(bits, "__name__", None) or getattr(bits, "name", None)
    if not isinstance(name, str):
        return
    digits = re.fullmatch(r"u?int(\d+)", name) or re.fullmatch(r"(\d+)(?:[- ]?bits?)?", name)
    if digits:
        raise ValueError(f"quantize(bits={name!r}): give the bits as a number, as quantize({int(digits[1])})")
    if name in get_args(Kind):
        raise ValueError(f"quantize(bits={name!r}): that is a kind, give quantize(kind={name!r})")
    raise ValueError(
        f"quantize(bits={name!r}): give the bits as a number, as quantize(8), or a kind, as quantize(kind='nf4'): "
        f"one of {nearest(name, get_args(Kind), 9)}"
    )


def _settle(kind: Kind, bits: Any, scale: Any, rounding: Any, range: Any) -> tuple[Kind, int | None]:
    """The kind and its bits, or what is wrong with the arguments."""
    choice("quantize(kind={})", kind, get_args(Kind))
    choice("quantize(rounding={})", rounding, get_args(Rounding))
    choice("quantize(range={})", range, get_args(Range))
    _refuse_dtype(bits)
    bits = None if bits is None else whole("quantize(bits={})", bits, None)
    if scale is not None:
        positive("quantize(scale={})", scale)
        if kind != "symmetric" or (bits is not None and not 2 <= bits <= 32):
            raise ValueError(f"quantize(scale={scale}, bits={bits}, kind={kind!r}): Q > 0, 2 to 32 bits, symmetric")
        return kind, bits
    if kind in ("symmetric", "affine"):
        bits = 8 if bits is None else bits
        if not 1 <= bits <= 16:
            raise ValueError(
                f"quantize(bits={bits}): integers have 2 to 16 bits, 1 is binary; give scale=Q for wider ones"
            )
        return ("binary" if bits == 1 else kind), bits
    own = {"binary": 1, "ternary": 2, "nf4": 4}.get(kind, 8)
    if bits not in (None, own):
        raise ValueError(f"quantize(bits={bits}, kind={kind!r}): {kind} has {own} bits; leave bits out")
    if rounding == "stochastic" or range == "mse":
        raise ValueError(
            f"quantize(kind={kind!r}): stochastic rounding and range='mse' are for integers (symmetric, affine)"
        )
    return kind, own


def _noise(rounding: str, key: Any, slot: Slot) -> Any:
    if rounding == "nearest":
        return None
    if key is None:
        raise ValueError("stochastic rounding needs a key: init(params, key=jax.random.key(0))")
    return jax.random.uniform(fold_path(key, slot.key), slot.value.shape)


def _fixed(w: Any, Q: float, bits: int | None, clip: bool, mask: Any) -> Quantized:
    if bits is None and isinstance(w, Tracer):
        raise ValueError(f"quantize(scale={Q}) finds its bits from values, and this leaf is traced: give bits=")
    bits = bits or max(2, affine.bits_needed(w, Q, mask))
    q = affine.fixed_point(w, Q, bits, clip, mask)
    s = jnp.full((1,) * w.ndim, 1 / Q, wide(w.dtype))
    return Quantized(pack(q, bits), s, None, bits, w.dtype)


# Compiled, it allocates nothing of the weights' size but the codes.
_affine_codes = jax.jit(affine.quantize_affine, static_argnames="bits")


def _symmetric(w: Any, bits: int, axes: Any, group: Any, mask: Any, range: Any, u: Any) -> Quantized:
    s = affine.symmetric_scale(w, bits, axes, group, mask, range)
    return Quantized(pack(affine.symmetric_codes(w, s, bits, u), bits), s, None, bits, w.dtype)


def _affine(w: Any, bits: int, axes: Any, group: Any, mask: Any, range: Any, u: Any) -> Quantized:
    s, z = affine.affine_params(w, bits, axes, group, mask, range)
    return Quantized(pack(_affine_codes(w, s, z, bits, u), bits), s, z, bits, w.dtype)


def _float8(dtype: Any) -> Any:
    def encode(w: Any, bits: int, axes: Any, group: Any, mask: Any, range: Any, u: Any) -> Quantized:
        s = affine.absmax_scale(w, grids.FLOAT8[jnp.dtype(dtype).name], axes, group, mask)
        return Quantized(grids.quantize_float8(w, s, dtype), s, None, bits, w.dtype)

    return encode


def _nf4(w: Any, bits: int, axes: Any, group: Any, mask: Any, range: Any, u: Any) -> Quantized:
    s = affine.absmax_scale(w, 1.0, axes, group, mask)
    return Quantized(pack(grids.quantize_grid(w, s, grids.NF4), bits), s, None, bits, w.dtype, grids.NF4)


def _binary(w: Any, bits: int, axes: Any, group: Any, mask: Any, range: Any, u: Any) -> Binary:
    signs, alpha = grids.binary(w, axes, mask, group)
    return Binary(pack(signs.astype(jnp.uint8), 1), alpha, w.dtype)


def _ternary(w: Any, bits: int, axes: Any, group: Any, mask: Any, range: Any, u: Any) -> Quantized:
    q, alpha = grids.ternary(w, axes, mask, group)
    return Quantized(pack(q, bits), alpha, None, bits, w.dtype)


_CODES = {
    "symmetric": _symmetric,
    "affine": _affine,
    "float8_e4m3": _float8(jnp.float8_e4m3fn),
    "float8_e5m2": _float8(jnp.float8_e5m2),
    "nf4": _nf4,
    "binary": _binary,
    "ternary": _ternary,
}
