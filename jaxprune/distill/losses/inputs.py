"""What a loss takes: checked, in float32, with what the mask leaves out set to zero.

    logits   (*examples, classes)              an example is whatever has a distribution: an image,
                                               or one token
    vectors  (*examples, features)             the same for hidden states
    maps     (batch, *positions, channels)     feature maps; the channels stand where `channel_axis`
                                               says
    rows     (batch, …)                        what relations compare: every example becomes one
                                               long vector

A masked example is zeroed before anything is computed from it and its value is zeroed again at the
end, so that even a NaN there reaches neither the loss nor its gradient. Shapes and dtypes are
checked while tracing; values only when they are concrete.

A label of −100 says that its example has none. What depends on the label is −∞ there: `masked_mean`
leaves such values out, and a plain mean of them is −∞, which nobody takes for a loss. A traced
label that is no class makes its value NaN.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxprune.core import arguments


def concrete(x: Any) -> bool:
    """Whether the value of x can be looked at."""
    return not isinstance(x, Tracer)


def positive(name: str, x: Any) -> None:
    """x > 0, where x can be looked at."""
    arguments.positive(f"{name}={{}}", x)


def fraction(name: str, x: Any) -> None:
    """0 <= x <= 1, where x can be looked at."""
    arguments.ratio(f"{name}={{}}", x)


def choice(name: str, x: Any, options: tuple[str, ...]) -> None:
    """x is one of the options."""
    if x not in options:
        raise ValueError(f"{name}={x!r}: choose one of {', '.join(options)}")


def floats(name: str, x: Any) -> Array:
    """x as an array of floats."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name}: shape {x.shape}, dtype {x.dtype}; give floats: {name}.astype(jnp.float32)"
        )
    return x


def both(
    student: Any, teacher: Any, names: tuple[str, str] = ("student", "teacher")
) -> tuple[Array, Array]:
    """The two as arrays of one dtype, float32 or wider."""
    s = floats(names[0], student)
    t = floats(names[1], teacher)
    dtype = jnp.float64 if jnp.float64 in (s.dtype, t.dtype) else jnp.float32
    return s.astype(dtype), t.astype(dtype)


def kept(mask: Any, *shapes: tuple[int, ...]) -> Array:
    """The mask, of one of the shapes; all True by default. Its result has the first of them."""
    if mask is None:
        return jnp.ones(shapes[0], bool)
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise ValueError(
            f"mask: dtype {mask.dtype}; give booleans, True for what counts: mask != 0"
        )
    if mask.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"mask: shape {mask.shape}; give one boolean an example, shape {wanted}")
    mask = mask.reshape(mask.shape + (1,) * (len(shapes[0]) - mask.ndim))
    return jnp.broadcast_to(mask, shapes[0])


def zeroed(x: Array, keep: Array) -> Array:
    """x, with zeros where `keep`, of its leading axes, is False."""
    return jnp.where(keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim)), x, 0)


def logits(student: Any, teacher: Any, mask: Any, *, fewest: int = 1) -> tuple[Array, Array, Array]:
    """Two (*examples, classes) and the mask (*examples)."""
    s, t = both(student, teacher)
    if s.ndim == 0 or s.shape != t.shape:
        what = "classes differ" if s.shape[:-1] == t.shape[:-1] and s.ndim else "shapes differ"
        raise ValueError(
            f"student {s.shape} and teacher {t.shape}: {what}; both are logits (*examples, "
            f"classes) of the same classes"
        )
    if s.shape[-1] < fewest:
        raise ValueError(
            f"student {s.shape}: {s.shape[-1]} classes; this loss needs at least {fewest}"
        )
    keep = kept(mask, s.shape[:-1])
    return zeroed(s, keep), zeroed(t, keep), keep


def vectors(student: Any, teacher: Any, mask: Any) -> tuple[Array, Array, Array]:
    """Two (*examples, features) and the mask (*examples)."""
    s, t = both(student, teacher)
    if s.ndim == 0 or s.shape != t.shape:
        raise ValueError(
            f"student {s.shape} and teacher {t.shape}: shapes differ; both are (*examples, "
            "features). Project the student to the teacher's features first"
        )
    keep = kept(mask, s.shape[:-1])
    return zeroed(s, keep), zeroed(t, keep), keep


def rows(student: Any, teacher: Any, mask: Any) -> tuple[Array, Array, Array]:
    """Two (batch, anything), flattened to (batch, features), and the mask (batch,). The widths may
    differ.
    """
    s, t = both(student, teacher)
    if s.ndim < 2 or t.ndim < 2 or s.shape[0] != t.shape[0]:
        raise ValueError(
            f"student {s.shape} and teacher {t.shape}: relations compare the examples of one "
            "batch; give (batch, …) with the same batch"
        )
    keep = kept(mask, s.shape[:1])

    def flat(x):
        return zeroed(x, keep).reshape(x.shape[0], -1)

    return flat(s), flat(t), keep


def channels_last(name: str, x: Array, channel_axis: int, least: int = 2) -> Array:
    """(batch, *positions, channels)."""
    if x.ndim < least:
        raise ValueError(
            f"{name}: shape {x.shape}; give feature maps (batch, *positions, channels)"
        )
    channel_axis = arguments.whole("channel_axis={}", channel_axis, None)
    if not -x.ndim < channel_axis < x.ndim or channel_axis == 0:
        raise ValueError(
            f"channel_axis={channel_axis}: {name} has shape {x.shape}, whose axis 0 is the batch; "
            f"channels stand on one of 1 to {x.ndim - 1}, or of {1 - x.ndim} to -1"
        )
    return jnp.moveaxis(x, channel_axis, -1)


def maps(
    student: Any,
    teacher: Any,
    mask: Any,
    channel_axis: int,
    *,
    same_channels: bool,
    least: int = 2,
    names: tuple[str, str] = ("student", "teacher"),
) -> tuple[Array, Array, Array]:
    """Two (batch, *positions, channels) of one size, and what is kept: (batch, *positions).

    Where the sizes of a position axis differ, the larger one is average-pooled to the smaller.
    """
    s, t = (
        channels_last(name, x, channel_axis, least)
        for name, x in zip(names, both(student, teacher, names))
    )
    shapes = f"{names[0]} {s.shape} and {names[1]} {t.shape} (channels last)"
    if s.ndim != t.ndim or s.shape[0] != t.shape[0]:
        raise ValueError(f"{shapes}: give maps of one batch and one number of axes")
    if same_channels and s.shape[-1] != t.shape[-1]:
        raise ValueError(
            f"{shapes}: channels differ; project the student to {t.shape[-1]} channels first"
        )
    size = tuple(map(min, s.shape[1:-1], t.shape[1:-1]))
    if s.shape[1:-1] == t.shape[1:-1]:
        keep = kept(mask, s.shape[:-1], s.shape[:1])
        return zeroed(s, keep), zeroed(t, keep), keep
    keep = kept(mask, s.shape[:1])
    everywhere = jnp.broadcast_to(keep.reshape(-1, *(1,) * len(size)), (s.shape[0], *size))
    return pooled(zeroed(s, keep), size), pooled(zeroed(t, keep), size), everywhere


def pooled(x: Array, size: tuple[int, ...]) -> Array:
    """Adaptive average pooling of (batch, *positions, channels): bin i of k covers ⌊i n/k⌋ … ⌈(i+1)
    n/k⌉.
    """
    for axis, k in enumerate(size, start=1):
        n = x.shape[axis]
        if n == k:
            continue
        weights = np.zeros((n, k))
        for i in range(k):
            start = i * n // k
            end = -(-(i + 1) * n // k)
            weights[start:end, i] = 1 / (end - start)
        by_last = jnp.matmul(
            jnp.moveaxis(x, axis, -1), jnp.asarray(weights, x.dtype), precision="highest"
        )
        x = jnp.moveaxis(by_last, -1, axis)
    return x


IGNORED = -100  # what PyTorch and Hugging Face write where an example has no label


class Labels(NamedTuple):
    """Integer labels, checked.

    Attributes:
      hot: (*examples, classes) of booleans, True at the label.
      keep: (*examples,): the mask allows the example, and its label is a class.
      ignored: (*examples,): the mask allows the example, and its label is `IGNORED`.
      wrong: (*examples,): the mask allows the example, and its label is no class.
    """

    hot: Array
    keep: Array
    ignored: Array
    wrong: Array


def labelled(labels: Any, shape: tuple[int, ...], keep: Array) -> Labels:
    """The labels of logits of a shape.

    Raises:
      ValueError: another shape or dtype; a concrete label that the mask keeps, neither a class nor
        `IGNORED`.
    """
    labels = jnp.asarray(labels)
    classes = shape[-1]
    if labels.shape != shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels: shape {labels.shape}, dtype {labels.dtype}; for logits {shape} give one "
            f"integer an example, shape {shape[:-1]}"
        )
    inside = (labels >= 0) & (labels < classes)
    ignored = without_label(labels)
    wrong = keep & ~inside & ~ignored
    if concrete(wrong) and bool(wrong.any()):
        first = int(np.asarray(labels)[np.asarray(wrong)][0])
        raise ValueError(
            f"labels: {first} is not one of the {classes} classes 0 … {classes - 1} of logits "
            f"{shape}; correct it, or leave its example out with mask=, or with the label {IGNORED}"
        )
    hot = labels[..., None] == jnp.arange(classes, dtype=labels.dtype)
    return Labels(hot, keep & inside, keep & ignored, wrong)


def without_label(labels: Array) -> Array:
    """Where the label is `IGNORED`. Unsigned labels, which cannot hold it, all count."""
    if jnp.issubdtype(labels.dtype, jnp.unsignedinteger):
        return jnp.zeros(labels.shape, bool)
    return labels == IGNORED
