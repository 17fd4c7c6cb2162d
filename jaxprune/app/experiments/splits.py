"""The data of a run, checked whole before the first step: what its factory made, and whether the
model can learn it.

Each thing that would make a table of a run wrong without an error (labels that are no class, a NaN,
inputs and labels of different lengths, a batch larger than the data) is one line that names the
split, the value and the fix.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NAMES = ("train", "validation", "test")
HOW = (
    "give an object with train, validation and test, each a pair (x, y) of arrays, as a "
    "NamedTuple of three pairs"
)


class Splits(NamedTuple):
    """Three pairs (x, y) of NumPy arrays with equal first axes: x of examples, y of classes.

    Attributes:
      train: what a phase learns from.
      validation: what chooses epochs.
      test: what is reported, and chooses nothing.
    """

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def splits_of(made: Any) -> Splits:
    """What a data factory made, as checked splits.

    Args:
      made: an object with the attributes train, validation and test, each a pair (x, y): x floats
        or integers (examples, *shape), y integers (examples, *positions).

    Raises:
      ValueError: another type; a split that is missing, empty, or whose x and y differ in length; x
        or y that are no arrays of numbers; float64 inputs; NaN or infinite inputs; labels that are
        text, floats, one-hot or negative; splits whose examples differ in shape or dtype.
    """
    if isinstance(made, Mapping):
        raise ValueError(f"it makes a {type(made).__name__} with {list(made)}: {HOW}")
    missing = [name for name in NAMES if not hasattr(made, name)]
    if missing:
        raise ValueError(f"it makes a {type(made).__name__} without {', '.join(missing)}: {HOW}")
    splits = Splits(*(_pair(getattr(made, name), name) for name in NAMES))
    x, y = splits.train
    for name in NAMES[1:]:
        other_x, other_y = getattr(splits, name)
        if (other_x.shape[1:], other_x.dtype) != (x.shape[1:], x.dtype):
            raise ValueError(
                f"x of {name} is {other_x.dtype} of examples {other_x.shape[1:]}, and that of "
                f"train {x.dtype} of {x.shape[1:]}: all splits are seen by one model"
            )
        if other_y.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"y of {name} has labels of shape {other_y.shape[1:]}, and that of train "
                f"{y.shape[1:]}"
            )
    return splits


def check_outputs(logits: Any, splits: Splits) -> None:
    """Whether every label is one of the model's classes.

    Args:
      logits: shape and dtype of the model's outputs for a batch, (batch, *positions, classes).
      splits: of the run.

    Raises:
      ValueError: outputs that are no logits, one class, labels of another shape, a label that is no
        class.
    """
    if not hasattr(logits, "shape"):
        raise ValueError(
            f"the model gives a {type(logits).__name__}: it must give one array of logits (batch, "
            f"classes)"
        )
    labels = splits.train[1]
    if (
        not jnp.issubdtype(logits.dtype, jnp.floating)
        or logits.shape[1:-1] != labels.shape[1:]
        or logits.ndim < 2
    ):
        raise ValueError(
            f"the model gives {logits.dtype}{list(logits.shape)} for a batch of "
            f"{logits.shape[0] if logits.ndim else 1}"
            f", and an example has labels of shape {labels.shape[1:]}: logits are floats (batch, "
            f"{'*positions, ' if labels.ndim > 1 else ''}classes)"
        )
    classes = logits.shape[-1]
    for name in NAMES:
        largest = int(getattr(splits, name)[1].max())
        if largest >= classes:
            raise ValueError(
                f"y of {name} has the label {largest}, and the model gives {classes} "
                f"output{'s' if classes > 1 else ''}: labels are 0 … classes − 1"
            )
    if classes < 2:
        raise ValueError(
            "the model gives 1 output: its softmax is always 1. Give one output a class, two for "
            "yes or no"
        )


def _pair(pair: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a split."""
    if isinstance(pair, Mapping) or not isinstance(pair, tuple | list) or len(pair) != 2:
        what = (
            f"{type(pair).__name__}{f' of {len(pair)}' if isinstance(pair, tuple | list) else ''}"
        )
        raise ValueError(f"{name} is a {what}: {HOW}")
    x, y = (_array(part, f"{letter} of {name}") for part, letter in zip(pair, "xy"))
    if not len(x) or len(x) != len(y):
        raise ValueError(
            f"{name} has {len(x)} inputs and {len(y)} labels: give one label an input, and one at "
            f"least"
        )
    _check_inputs(x, f"x of {name}")
    _check_labels(y, f"y of {name}")
    return x, y


def _array(value: Any, what: str) -> np.ndarray:
    """An array with a first axis of examples, without a copy where it is one."""
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(
            f"{what} is a masked array: fill it, as x.filled(0), or leave those examples out"
        )
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise ValueError(
            f"{what} is a {type(value).__name__}: give a NumPy array, as np.asarray(…)"
        )
    if not value.shape:
        raise ValueError(f"{what} is one number: give an array whose first axis is of examples")
    return np.asarray(value)


def _check_inputs(x: np.ndarray, what: str) -> None:
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    if not floats and not np.issubdtype(x.dtype, np.integer) and x.dtype != np.bool_:
        raise ValueError(f"{what} has the dtype {x.dtype}: give floats, or integers (tokens)")
    if x.dtype.itemsize == 8 and not jax.config.read("jax_enable_x64"):
        narrow = "np.float32" if floats else "np.int32"
        raise ValueError(
            f"{what} is {x.dtype}, which JAX would make smaller: give x.astype({narrow})"
        )
    if floats and not np.isfinite(
        np.sum(x, dtype=np.float64)
    ):  # the sum is cheap; only a bad one is looked at
        bad = np.argwhere(~np.isfinite(x))
        if len(bad):
            first = bad[0].tolist()
            raise ValueError(
                f"{what} has {len(bad)} values that are NaN or infinite, the first at {first}: "
                f"correct or drop them"
            )


def _check_labels(y: np.ndarray, what: str) -> None:
    if not np.issubdtype(y.dtype, np.integer):
        fix = f"y is {y.dtype}: give classes as integers"
        if y.dtype.kind in "OSU":
            fix = (
                f"y is text or objects ({y.dtype}): give integers, as np.unique(y, "
                f"return_inverse=True)[1]"
            )
        elif y.ndim > 1 and _is_one_hot(y):
            fix = "y is one-hot: give y.argmax(-1)"
        raise ValueError(f"{what}: {fix}")
    if y.min() < 0:
        raise ValueError(
            f"{what} has the label {int(y.min())}: a class is >= 0. Leave examples without a label "
            f"out"
        )
    if y.ndim > 1 and y.shape[-1] > 1 and _is_one_hot(y):
        raise ValueError(f"{what} is one-hot, of shape {y.shape}: give y.argmax(-1)")


def _is_one_hot(y: np.ndarray) -> bool:
    """Whether each row over the last axis has one 1 and else zeros."""
    return bool(np.all((y == 0) | (y == 1)) and np.all(np.sum(y, -1) == 1))
