"""What a cache keeps of a teacher's logits: one record an example.

    float16, float32    logits (*shape)                                       2 or 4 bytes a class
    Top(k, T)           log_probs (*positions, k) float32, indices (*positions, k) of the smallest
                        unsigned integer that
                        counts the classes, log_tail (*positions) float32     of softmax(z / T);
                        shape = (*positions, C)

Records are packed and little-endian. A logit of −inf stays what it is, a class that cannot be; NaN,
+inf and a number that float16 has no room for are errors: none of them would teach what the teacher
says.
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxprune.core import arguments
from jaxprune.distill.losses import inputs
from jaxprune.distill.losses.decoupled import TopK, top_k_teacher

MOST = 2**31 - 1  # bytes of a record: what a NumPy dtype can have


class Top(NamedTuple):
    """The form of a cache that keeps the k most probable classes and one tail:
    `losses.top_k_teacher`, on disk.

    Attributes:
      k: how many classes.
      temperature: of the loss that will read it, `partial(losses.top_k,
        temperature=form.temperature)`; the tail of one temperature does not give that of another.

    Example:
      >>> import jaxprune as jp
      >>> jp.distill.Top(8, temperature=4.0)
      Top(k=8, temperature=4.0)
    """

    k: int
    temperature: float = 1.0


Form = Literal["float16", "float32"] | Top


def check(form: Any, shape: tuple[int, ...]) -> None:
    """A form that keeps logits of this shape, or a ValueError."""
    if isinstance(form, Top):
        arguments.whole("form=Top(k={})", form.k, 1, shape[-1])
        inputs.positive("temperature", form.temperature)
    elif form not in ("float16", "float32"):
        raise ValueError(
            f"form={form!r}: choose 'float16', 'float32' or jp.distill.Top(k, temperature)"
        )


def record(form: Form, shape: tuple[int, ...]) -> np.dtype:
    """The dtype of what is kept of one example, whose logits have this shape."""
    if not isinstance(form, Top):
        return np.dtype([("logits", np.dtype(form).newbyteorder("<"), shape)])
    head = (*shape[:-1], form.k)
    return np.dtype(
        [
            ("log_probs", "<f4", head),
            ("indices", _smallest(shape[-1]), head),
            ("log_tail", "<f4", shape[:-1]),
        ]
    )


def record_bytes(form: Form, shape: tuple[int, ...]) -> int:
    """Its size, as an integer that does not overflow, before any dtype is made."""
    positions = math.prod(shape[:-1])
    classes = shape[-1]
    if isinstance(form, Top):
        return positions * (form.k * (4 + np.dtype(_smallest(classes)).itemsize) + 4)
    return positions * classes * np.dtype(form).itemsize


def _smallest(classes: int) -> str:
    return "u1" if classes <= 2**8 else "<u2" if classes <= 2**16 else "<u4"


def encode(form: Form, logits: Any, first: int) -> np.ndarray:
    """Logits (n, *shape) as n records.

    Args:
      form: of the cache.
      logits: floats.
      first: the index of the first example, for what an error says.

    Raises:
      ValueError: NaN, +inf or an overflow, with the index of its example.
    """
    kept = np.empty(len(logits), record(form, logits.shape[1:]))
    if isinstance(form, Top):
        for name, x in _top(logits, form.k, form.temperature)._asdict().items():
            kept[name] = x
        bad = np.isnan(kept["log_probs"]).reshape(len(kept), -1).any(1)
    else:
        found = np.asarray(logits)
        with np.errstate(over="ignore"):
            kept["logits"] = found.astype(np.float64 if found.dtype.itemsize > 4 else np.float32)
        bad = (~np.isfinite(kept["logits"]) & ~(found == -np.inf)).reshape(len(kept), -1).any(1)
    if bad.any():
        raise _unkept(form, logits, int(np.argmax(bad)), first)
    return kept


@partial(jax.jit, static_argnums=(1, 2))
def _top(logits: Any, k: int, temperature: float) -> TopK:
    return top_k_teacher(logits, k, temperature=temperature)


def _unkept(form: Form, logits: Any, i: int, first: int) -> ValueError:
    """Why example i of a batch is not kept."""
    row = np.asarray(logits[i]).astype(np.float64)
    wrong = row[np.isnan(row) | (row == np.inf)]
    if wrong.size:
        said = f"{wrong[0]}: a teacher's logits are numbers, or -inf for a class that cannot be"
    else:
        largest = row[np.isfinite(row)][np.argmax(np.abs(row[np.isfinite(row)]))]
        said = (
            f"{largest:.6g}, for which {form} has no room: use form='float32', or -inf for a "
            f"class that cannot be"
        )
    return ValueError(f"example {first + i}: the logits hold {said}")


def decode(form: Form, records: np.ndarray) -> Any:
    """What the losses read: logits as they are stored, or a `TopK` of float32 and int32."""
    if not isinstance(form, Top):
        return _native(records["logits"])
    indices = records["indices"].astype(np.int32)
    return TopK(_native(records["log_probs"]), indices, _native(records["log_tail"]))


def _native(x: np.ndarray) -> np.ndarray:
    return x.astype(x.dtype.newbyteorder("="), copy=False)
