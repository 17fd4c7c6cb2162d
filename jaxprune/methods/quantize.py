"""Quantisation: Δ(Θ) = (q − z)·s with integers of few bits, and its kin.

    symmetric   q = round(w / s),      s = max|w| / (2^(b−1) − 1)
    affine      q = round(w / s) + z,  s = (max w − min w) / (2^b − 1)
    fixed       q = round(w · Q),      w ≈ q / Q, |error| <= 1 / (2Q)
    float8, nf4, binary (XNOR-Net), ternary (TWN): see `jaxprune.numerics.grids`

Quantising a codebook, a prototype or a factor is the same call at another place:
`jp.at(jp.where.field("codebook"), …)`.
"""

from typing import Any, Literal

import jax
from jax import Array
from jaxtyping import Float

from jaxprune.core.arguments import flag, whole
from jaxprune.core.arrays import CompressedArray, Dense
from jaxprune.core.compression import Compression, map_weights
from jaxprune.core.leaves.layout import Axes, axes_of, check_layout
from jaxprune.core.trees.checks import check_finite
from jaxprune.core.trees.lookup import fold_path
from jaxprune.core.types import PRNGKey, WhereLike
from jaxprune.core.where import Slot
from jaxprune.core.words import choice
from jaxprune.methods.quantize_arguments import Kind, Range, Rounding, settle
from jaxprune.methods.quantizers import QUANTIZERS, fixed_point
from jaxprune.numerics import affine

Axis = int | tuple[int, ...] | Literal["outputs"] | None
Channels = tuple[int, ...]


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
    where: WhereLike = None,
) -> Compression:
    """Writes weights as integers of few bits (or float8, or signs) times a scale.

    Args:
      bits: 2 to 16 for integers, 1 for signs; 8 by default. With `scale` as wide as the largest
        weight needs, unless given.
      scale: Q, one number: q = round(w·Q), w = q / Q. Nothing saturates: too few `bits` is an error
        that names the bits needed, unless `clip`.
      axis: the channel axes that keep a scale of their own, counted from the end; None for one
        scale a leaf. A vector has one scale. By default the outputs, as names and biases tell
        (docs/layers.md): the last axis of a `kernel` or `w`, the first of a `weight`, and with them
        the axes of stacked layers.
      group: the contraction axis is cut into runs of `group` weights, each with its own scale. It
        is the inputs, as names and biases tell: the second-last axis of a `kernel`, the second of a
        `weight`, whose scales are then (outputs, inputs / group).
      kind: "symmetric", "affine" (a zero point), "float8_e4m3", "float8_e5m2", "nf4", "binary",
        "ternary". All but "binary" hold an exact 0; under a mask (`prune` first) zeros stay with
        every kind.
      rounding: "nearest" (half to even), or "stochastic": ⌊w/s + u⌋, unbiased, with `key=` given to
        init.
      range: "max" (nothing saturates), or "mse": the clipping with the least squared error.
      clip: with `scale`: saturate instead of refusing.
      layout: which axes are the outputs, instead: "jax" (last), "torch" (first), or a dict of path
        regex -> axis.
      where: which leaves, as in `jp.prune`; `jp.where.weights` by default.

    Returns:
      A `Compression` whose leaves are `Quantized` (`Binary` for signs; scalars stay, as `Dense`).
      Codes below 8 bits are packed. Scales are float32. Weights below the smallest normal float
      (1.2e-38 in float32) become 0: XLA computes without subnormal numbers.

    Raises:
      ValueError: for bits outside the range, a group that does not divide the contraction axis, NaN
        or Inf in a concrete leaf, an overflow.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> tree = jp.quantize(scale=10).init(jnp.array([[0.26, -1.0]]))
      >>> print(jp.materialize(tree), jnp.asarray(tree.q.materialize()))
      [[ 0.3 -1. ]] [[  3 -10]]
    """
    kind, bits = settle(kind, bits, scale, rounding, range)
    channel_axes = _channel_axes(axis)
    clip = flag("quantize(clip={})", clip)
    if group is not None:
        group = whole("quantize(group={})", group)
    check_layout(layout, "quantize")

    def codes_of(slot: Slot, key: PRNGKey | None) -> CompressedArray:
        w = slot.value
        if scale is not None:
            return fixed_point(w, float(scale), bits, clip, slot.mask)
        noise = _noise(rounding, key, slot)
        axes, runs = _scale_axes(slot, layout, channel_axes, group)
        return QUANTIZERS[kind](w, bits, axes, runs, slot.mask, range, noise)

    def encode(slot: Slot, *, key: PRNGKey | None = None, **extra: Any) -> CompressedArray:
        check_finite(slot)  # under trace NaN becomes 0, and infinities saturate
        if slot.value.ndim == 0:
            return Dense(slot.value, "a scalar: its scale would be as large")
        try:
            return codes_of(slot, key)
        except ValueError as error:  # arrays know no path
            raise ValueError(f"{slot}: {error}") from None

    return map_weights(encode, where)


def _channel_axes(axis: Axis) -> Channels | None:
    """The channel axes that the user names, counted from the end; None for the outputs."""
    if isinstance(axis, str):
        choice("quantize(axis={})", axis, ("outputs",))
        return None
    if axis is None:
        return ()
    named = axis if isinstance(axis, tuple | list) else (axis,)
    axes = tuple(whole("quantize(axis={})", a, None) for a in named)
    if any(a >= 0 for a in axes):
        raise ValueError(
            f"quantize(axis={axis}): count axes from the end, so that stacked layers work too: "
            "-1 is the last"
        )
    return axes


def _scale_axes(
    slot: Slot, layout: Any, channel_axes: Channels | None, group: int | None
) -> tuple[Channels, affine.Runs | None]:
    """The axes along which scales are not shared, and the runs that are groups.

    Args:
      slot: the leaf.
      layout: as in `axes_of`.
      channel_axes: that the user names; else they are those of the outputs and of stacked layers.
      group: the length of a run, or None.
    """
    axes = axes_of(slot.place, layout) if slot.open else Axes((-1,), (-2,))
    channels = axes.scales if channel_axes is None else channel_axes
    if group is None:
        return channels, None
    if axes.contraction not in channels:
        return channels, affine.Runs(group, axes.contraction)
    if channel_axes is not None:
        return channels, affine.Runs(group)
    # Nothing tells (layers, out, in) from (out, in, window). Runs along the last axis are right for
    # layers; where they do not fit, it is taken for a window.
    if -1 not in channels and slot.value.shape[-1] % group == 0:
        return channels, affine.Runs(group, -1)
    other_channels = tuple(axis for axis in channels if axis != axes.contraction)
    return other_channels, affine.Runs(group, axes.contraction)


def _noise(rounding: Rounding, key: PRNGKey | None, slot: Slot) -> Float[Array, "..."] | None:
    """The u in ⌊w/s + u⌋, of a key folded with the leaf's path; None for the nearest integer."""
    if rounding == "nearest":
        return None
    if key is None:
        raise ValueError("stochastic rounding needs a key: init(params, key=jax.random.key(0))")
    return jax.random.uniform(fold_path(key, slot.key), slot.value.shape)
