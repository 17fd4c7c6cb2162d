"""What goes together: single weights, N of every M, blocks, whole units.

A pattern is three functions. `pool` turns a score into one score a unit, `spread` turns a mask of units into a mask of
weights, and `select`, where there is one, chooses by itself and leaves no budget to give (N:M).
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from jax import Array

from jaxprune.core.arguments import flag, whole
from jaxprune.core.layout import Axes
from jaxprune.core.words import choice
from jaxprune.numerics import patterns as groups


class Pattern(NamedTuple):
    """How weights are grouped for pruning.

    Attributes:
      pool: score -> a score for each unit.
      spread: (mask of units, shape of the weights) -> mask of weights.
      select: (score, magnitude) -> mask of weights with no budget given, or None.
      siblings: whether units that are gone take their entries of the bias and the batch norm along (`companions`).
      axis: the axis of those units.
      at: the axes of a weight -> the pattern for it, where that depends on them.
    """

    pool: Callable[[Array], Array]
    spread: Callable[[Array, tuple[int, ...]], Array]
    select: Callable[[Array, bool], Array] | None = None
    siblings: bool = False
    axis: int = -1
    at: "Callable[[Axes], Pattern] | None" = None


def n_m(n: int, m: int, axis: int | None = None) -> Pattern:
    """N of every M weights along `axis` are kept (the contraction axis by default, as 2:4 hardware wants).

    Args:
      n: weights kept in each run.
      m: length of a run; it must divide the axis.
      axis: −2 is the contraction axis of Flax kernels (in, out) and HWIO, −1 that of PyTorch's (out, in); by default
        names and biases tell (`jaxprune.core.layout`).

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
        axis = whole("n_m(axis={})", axis, None)

    if axis is None:
        return n_m(n, m, -2)._replace(at=_n_m_along(n, m))

    def choose(score: Array, magnitude: bool) -> Array:
        if not -score.ndim <= axis < score.ndim or score.shape[axis] % m:
            size = score.shape[axis] if -score.ndim <= axis < score.ndim else "missing"
            raise ValueError(
                f"n_m({n}, {m}, axis={axis}): that axis of the shape {score.shape} is {size}, not a multiple of {m}; "
                "choose another axis, or exclude the leaf with `where`"
            )
        return groups.n_m(score, n, m, axis, magnitude=magnitude)

    return Pattern(alone, _as_is, choose)


def _n_m_along(n: int, m: int) -> Callable[[Axes], Pattern]:
    def at(axes: Axes) -> Pattern:
        return n_m(n, m, axes.contraction)

    return at


def block(*shape: int) -> Pattern:
    """Blocks over the last axes, scored by the sum of their weights' scores: `block(4, 4)`.

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

    def pool(score: Array) -> Array:
        sides = score.shape[-len(shape) :] if score.ndim >= len(shape) else ()
        if len(sides) != len(shape) or any(n % b for n, b in zip(sides, shape, strict=True)):
            raise ValueError(
                f"block{shape} does not divide the last axes of {score.shape}; choose sizes that do, or exclude the "
                "leaf with `where`"
            )
        return groups.pool_blocks(score, shape)

    return Pattern(pool, lambda mask, _: groups.spread_blocks(mask, shape))


def channel(axis: int = -1, *, bias: bool | None = None) -> Pattern:
    """Whole units along `axis`, scored by the sum over the unit (Σ|w| for magnitudes): zeroed, not yet cut out.

    Args:
      axis: the axis of the units; −1 is the output of Flax and Haiku kernels, 0 that of Equinox and PyTorch weights.
      bias: whether an output unit without weights takes its entry in the bias beside the kernel along, and those of the
        batch norm behind it where one is plainly that. Else a norm still gives beta − mean · gamma / sigma for it:
        `jp.shrink` cuts by the function itself. The default is yes; other axes than the outputs' leave biases alone.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"kernel": jnp.array([[3.0, 0.1], [4.0, 0.1]]), "bias": jnp.array([1.0, 1.0])}
      >>> thin = jp.materialize(jp.prune(threshold=0.5, pattern=jp.patterns.channel(-1)).init(params))
      >>> print(thin["bias"])
      [1. 0.]
    """

    axis = whole("channel(axis={})", axis, None)
    if bias is not None:
        bias = flag("channel(bias={})", bias)

    def at(shape: tuple[int, ...]) -> int:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"channel({axis}): the shape {shape} has no such axis")
        return axis % len(shape)

    def pool(score: Array) -> Array:
        return groups.pool_units(score, at(score.shape))

    def spread(mask: Array, shape: tuple[int, ...]) -> Array:
        return groups.spread_units(mask, at(shape), shape)

    return Pattern(pool, spread, siblings=bias is not False, axis=axis)


def from_words(words: "str | Pattern", layout: str | None = None) -> Pattern:
    """A pattern by its words, as recipes have them: "2:4", "block 4x4", "channel -1"; a pattern is taken as it is.

    Args:
      words: two numbers of `n_m`, the sizes of `block`, or the axis of `channel`.
      layout: with "jax" N:M runs along −2, whatever names say.

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
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        return n_m(int(match[1]), int(match[2]), -2 if layout == "jax" else None)
    if match := re.fullmatch(r"block (\d+(?:x\d+)*)", text):
        return block(*map(int, match[1].split("x")))
    if match := re.fullmatch(r"channel( -?\d+)?", text):
        return channel(int(match[1] or -1))
    choice("prune(pattern={})", words, ["2:4", "block 4x4", "channel -1"])
    raise AssertionError("these words are matched above")


def unstructured() -> Pattern:
    """Every weight by itself: the default."""
    return Pattern(alone, _as_is)


def alone(score: Array) -> Array:
    """Every weight is a unit."""
    return score


def _as_is(mask: Array, shape: tuple[int, ...]) -> Array:
    return mask
