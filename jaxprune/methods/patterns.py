"""What goes together: single weights, N of every M, blocks, whole units.

A pattern is three functions. `pool` turns scores of weights into one score a unit, `spread` turns a
mask of units into a mask of weights, and `select`, where there is one, chooses by itself and leaves
no budget to give (N:M).
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from jax import Array
from jaxtyping import Bool, Float

from jaxprune.core.arguments import flag, whole
from jaxprune.core.leaves.layout import Axes
from jaxprune.core.words import choice
from jaxprune.numerics import patterns as groups

Scores = Float[Array, "..."]
Mask = Bool[Array, "..."]
Shape = tuple[int, ...]


class Pattern(NamedTuple):
    """How weights are grouped for pruning.

    Attributes:
      pool: scores -> a score for each unit.
      spread: (mask of units, shape of the weights) -> mask of weights.
      select: (scores, whether they are magnitudes) -> mask of weights with no budget given, or
        None.
      siblings: whether units that are gone take their entries of the bias and the batch norm along
        (`core.leaves.companions`).
      axes: of those units, which are outputs where biases belong to them.
      at: the axes of a weight -> the pattern for it, where that depends on them.
    """

    pool: Callable[[Scores], Scores]
    spread: Callable[[Mask, Shape], Mask]
    select: Callable[[Scores, bool], Mask] | None = None
    siblings: bool = False
    axes: tuple[int, ...] = (-1,)
    at: "Callable[[Axes], Pattern] | None" = None


def n_m(n: int, m: int, axis: int | None = None) -> Pattern:
    """Keeps N of every M weights along an axis, the contraction by default, as hardware has it.

    Args:
      n: weights kept in each run.
      m: length of a run; it must divide the axis.
      axis: −2 is the contraction axis of Flax kernels (in, out) and HWIO, −1 that of PyTorch's
        (out, in); by default names and biases tell (docs/layers.md).

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([[1.0], [-4.0], [3.0], [2.0]])
      >>> print(jp.materialize(jp.prune(pattern=jp.patterns.n_m(2, 4)).init(w)).T)
      [[ 0. -4.  3.  0.]]
    """
    n = whole("n_m(n={})", n)
    m = whole("n_m(m={})", m)
    if n > m:
        raise ValueError(f"n_m(n={n}, m={m}): it keeps n of every m weights, with 0 < n <= m")
    if axis is not None:
        return _n_m_along(n, m, whole("n_m(axis={})", axis, None))

    def at(axes: Axes) -> Pattern:
        return _n_m_along(n, m, axes.contraction)

    return _n_m_along(n, m, -2)._replace(at=at)


def _n_m_along(n: int, m: int, axis: int) -> Pattern:
    """N of every M along one axis."""

    def select(scores: Scores, magnitude: bool) -> Mask:
        has_axis = -scores.ndim <= axis < scores.ndim
        if not has_axis or scores.shape[axis] % m:
            size = scores.shape[axis] if has_axis else "missing"
            raise ValueError(
                f"n_m({n}, {m}, axis={axis}): that axis of the shape {scores.shape} is {size}, "
                f"not a multiple of {m}; choose another axis, or exclude the leaf with `where`"
            )
        return groups.n_m(scores, n, m, axis, magnitude=magnitude)

    return Pattern(_alone, _as_is, select)


def block(*shape: int) -> Pattern:
    """Blocks of (inputs, outputs), scored by their sum: `block(4, 2)` is 4 inputs by 2 outputs.

    Args:
      shape: the sides of a block, the outputs' last and the inputs' before it; a third side, before
        them, is of the last axis of a convolution's window, and so on. Which axes these are names
        and biases tell (docs/layers.md): the last two of a `kernel`, the first two of a `weight`,
        whose blocks are (2, 4).

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([[1.0, 1.0, 9.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
      >>> print(jp.materialize(jp.prune(0.5, pattern=jp.patterns.block(2, 2)).init(w)))
      [[0. 0. 9. 0.]
       [0. 0. 0. 0.]]
    """
    if not shape:
        raise ValueError("block(): give the sizes of a block, as block(4, 4)")
    shape = tuple(whole("block(shape={})", side) for side in shape)

    def at(axes: Axes) -> Pattern:
        return _blocks(shape, _sides(shape, axes))

    return _blocks(shape, shape)._replace(at=at)


def _sides(shape: Shape, axes: Axes) -> Shape:
    """The sides of a block on the last axes of a weight: 1 on each that the block does not have."""
    trailing = range(-1, -len(shape) - 2, -1)
    outputs_first = dict.fromkeys((axes.output, axes.contraction, *trailing))
    block_axes = list(outputs_first)[: len(shape)]
    sides = dict(zip(block_axes, reversed(shape)))
    return tuple(sides.get(axis, 1) for axis in range(min(block_axes), 0))


def _blocks(shape: Shape, sides: Shape) -> Pattern:
    """Blocks of some sides on the last axes; `shape` is what the user calls them."""

    def pool(scores: Scores) -> Scores:
        lengths = scores.shape[-len(sides) :] if scores.ndim >= len(sides) else ()
        fits = len(lengths) == len(sides) and all(n % side == 0 for n, side in zip(lengths, sides))
        if not fits:
            stored = "" if sides == shape else f", {sides} on the last axes as these are stored,"
            raise ValueError(
                f"block{shape}{stored} does not divide the last axes of {scores.shape}; "
                "choose sizes that do, or exclude the leaf with `where`"
            )
        return groups.pool_blocks(scores, sides)

    def spread(mask: Mask, shape: Shape) -> Mask:
        return groups.spread_blocks(mask, sides)

    return Pattern(pool, spread)


def channel(axis: int | Literal["outputs"] = "outputs", *, bias: bool | None = None) -> Pattern:
    """Whole units along an axis, scored by the sum over the unit: zeroed, not yet cut out.

    Args:
      axis: the axis of the units. By default the outputs, as names and biases tell
        (docs/layers.md): the last axis of a `kernel` or `w`, the first of a `weight`, (heads, dim)
        of an attention's queries. Of layers that a scan has stacked the same units go in all;
        `jp.over(0, …)` prunes each layer by itself.
      bias: whether an output unit without weights takes its entry in the bias beside the kernel
        along, and those of the batch norm behind it where one is plainly that. Else a norm still
        gives beta − mean · gamma / sigma for it: `jp.shrink` cuts by the function itself. The
        default is yes; other axes than the outputs' leave biases alone.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"kernel": jnp.array([[3.0, 0.1], [4.0, 0.1]]), "bias": jnp.array([1.0, 1.0])}
      >>> thin = jp.materialize(jp.prune(threshold=0.5, pattern=jp.patterns.channel()).init(params))
      >>> print(thin["bias"])
      [1. 0.]
    """
    if isinstance(axis, str):
        choice("channel(axis={})", axis, ("outputs",))
    else:
        axis = whole("channel(axis={})", axis, None)
    if bias is not None:
        bias = flag("channel(bias={})", bias)
    companions = bias is not False
    if axis != "outputs":
        return _units((axis,), companions)

    def at(axes: Axes) -> Pattern:
        return _units(axes.outputs or (-1,), companions)

    return _units((-1,), companions)._replace(at=at)


def _units(axes: tuple[int, ...], companions: bool) -> Pattern:
    """Units that some axes number together."""

    def pool(scores: Scores) -> Scores:
        _check_axes(axes, scores.shape)
        return groups.pool_units(scores, axes)

    def spread(mask: Mask, shape: Shape) -> Mask:
        _check_axes(axes, shape)
        return groups.spread_units(mask, axes, shape)

    return Pattern(pool, spread, siblings=companions, axes=axes)


def _check_axes(axes: tuple[int, ...], shape: Shape) -> None:
    if any(not -len(shape) <= axis < len(shape) for axis in axes):
        numbers = ", ".join(map(str, axes))
        raise ValueError(f"channel({numbers}): the shape {shape} has no such axis")


def from_words(words: "str | Pattern") -> Pattern:
    """A pattern by its words, which Python and recipes share; a pattern is taken as it is.

    Args:
      words: two numbers of `n_m`, the sizes of `block`, or `channel`, with an axis or without.

    Raises:
      ValueError: other words, with the nearest.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.materialize(jp.prune(pattern="1:2").init(jnp.array([[1.0, 5.0], [-4.0, 6.0]]))))
      [[ 0.  0.]
       [-4.  6.]]
    """
    if isinstance(words, Pattern):
        return words
    text = words if isinstance(words, str) else ""
    ratio = re.fullmatch(r"(\d+):(\d+)", text)
    if ratio:
        return n_m(int(ratio[1]), int(ratio[2]))
    sides = re.fullmatch(r"block (\d+(?:x\d+)*)", text)
    if sides:
        return block(*map(int, sides[1].split("x")))
    axis = re.fullmatch(r"channel( -?\d+)?", text)
    if axis:
        return channel(int(axis[1]) if axis[1] else "outputs")
    choice("prune(pattern={})", words, ["2:4", "block 4x4", "channel", "channel -1"])
    raise AssertionError("these words are matched above")


def unstructured() -> Pattern:
    """Every weight by itself: the default."""
    return Pattern(_alone, _as_is)


def is_unstructured(pattern: Pattern) -> bool:
    """Whether every weight is a unit."""
    return pattern.pool is _alone


def _alone(scores: Scores) -> Scores:
    return scores


def _as_is(mask: Mask, shape: Shape) -> Mask:
    return mask
