"""Numbers that are given as arguments: checked whatever their type, Python's, NumPy's or a JAX
scalar.

Each check takes what the error calls the argument, with `{}` in the place of the value, as
"cluster(k={})".
"""

import math
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def fraction(what: str, x: Any) -> Any:
    """x, if it is one number in [0, 1); a traced one is taken as it is.

    Args:
      what: how the error names it, with `{}` in the place of the value, as "prune(sparsity={})".
      x: any number that has no axes.

    Raises:
      ValueError: text, a boolean, an array with axes, NaN, or a number outside [0, 1).

    Example:
      >>> fraction("prune(sparsity={})", 0.5)
      0.5
      >>> fraction("prune(sparsity={})", "50%")
      Traceback (most recent call last):
      ValueError: prune(sparsity='50%'): give one number in [0, 1), the fraction of weights to
      remove
    """
    if isinstance(x, Tracer):
        return x
    if not (_is_finite(x) and 0 <= float(x) < 1):
        raise ValueError(
            f"{what.format(_shown(x))}: give one number in [0, 1), the fraction of weights to "
            f"remove"
        )
    return x


def finite(what: str, x: Any) -> Any:
    """x, if it is one finite number; a traced one is taken as it is."""
    if not isinstance(x, Tracer) and not _is_finite(x):
        raise ValueError(f"{what.format(_shown(x))}: give one finite number")
    return x


def positive(what: str, x: Any) -> Any:
    """x, if it is one finite number above 0; a traced one is taken as it is.

    Example:
      >>> positive("quantize(scale={})", float("inf"))
      Traceback (most recent call last):
      ValueError: quantize(scale=inf): give one positive, finite number
    """
    if not isinstance(x, Tracer) and not (_is_finite(x) and float(x) > 0):
        raise ValueError(f"{what.format(_shown(x))}: give one positive, finite number")
    return x


def at_least_zero(what: str, x: Any, schedule: bool = True) -> Any:
    """x, if it is one finite number of at least 0, or a schedule of one (unless `schedule` is
    False); a traced one is taken as it is.

    Example:
      >>> at_least_zero("attract(mu={})", -1)
      Traceback (most recent call last):
      ValueError: attract(mu=-1): give one finite number >= 0, or a schedule of it
    """
    if isinstance(x, Tracer) or (schedule and callable(x)):
        return x
    if not (_is_finite(x) and float(x) >= 0):
        other = ", or a schedule of it" if schedule else ""
        raise ValueError(f"{what.format(_shown(x))}: give one finite number >= 0{other}")
    return x


def share(what: str, x: Any) -> Any:
    """x as a Python number, if it is one in (0, 1]; a traced one is taken as it is.

    Example:
      >>> share("share(similarity={})", 1.5)
      Traceback (most recent call last):
      ValueError: share(similarity=1.5): give one number in (0, 1]
    """
    if not isinstance(x, Tracer) and not (_is_finite(x) and 0 < float(x) <= 1):
        raise ValueError(f"{what.format(_shown(x))}: give one number in (0, 1]")
    return x if isinstance(x, Tracer) else float(x)


def ratio(what: str, x: Any) -> Any:
    """x, if it is one number in [0, 1]; a traced one is taken as it is.

    Example:
      >>> ratio("jsd(beta={})", 2)
      Traceback (most recent call last):
      ValueError: jsd(beta=2): give one number from 0 to 1
    """
    if not isinstance(x, Tracer) and not (_is_finite(x) and 0 <= float(x) <= 1):
        raise ValueError(f"{what.format(_shown(x))}: give one number from 0 to 1")
    return x


def whole(what: str, x: Any, least: int | None = 1, most: int | None = None) -> int:
    """x as a Python integer, if it is a whole number of at least `least` and at most `most` (None:
    no bound).

    Raises:
      ValueError: text, a boolean, a float (even 4.0), an array with axes, a traced value, or a
        number out of bounds.

    Example:
      >>> import numpy as np
      >>> whole("cluster(k={})", np.int64(4))
      4
      >>> whole("cluster(k={})", 4.0)
      Traceback (most recent call last):
      ValueError: cluster(k=4.0): give an integer of at least 1
    """
    try:
        number = (
            None if isinstance(x, bool | np.bool_ | Tracer) or _is_bool(x) else operator.index(x)
        )
    except TypeError:
        number = None
    too_small = number is not None and least is not None and number < least
    too_large = number is not None and most is not None and number > most
    if number is None or too_small or too_large:
        low = "" if least is None else f" of at least {least}"
        technical = (
            most is not None and most >= 2**31 and not too_large
        )  # nobody has to be told of 64 bits
        high = "" if most is None or technical else f" and at most {most}"
        traced = " that is known when the program is traced" if isinstance(x, Tracer) else ""
        raise ValueError(f"{what.format(_shown(x))}: give an integer{low}{high}{traced}")
    return number


def flag(what: str, x: Any) -> bool:
    """x, if it is True or False: other values would be taken for True.

    Example:
      >>> flag("quantize(clip={})", "no")
      Traceback (most recent call last):
      ValueError: quantize(clip='no'): give True or False
    """
    if not isinstance(x, bool | np.bool_):
        raise ValueError(f"{what.format(_shown(x))}: give True or False")
    return bool(x)


def _is_number(x: Any) -> bool:
    if isinstance(x, bool | np.bool_) or _is_bool(x):
        return False
    if isinstance(x, int | float):
        return True
    kind = getattr(x, "dtype", None)
    real = kind is not None and (
        jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    )
    return real and np.ndim(x) == 0


def _is_bool(x: Any) -> bool:
    """Whether x is an array of booleans: `operator.index` takes one of JAX for 0 or 1."""
    return getattr(x, "dtype", None) == np.bool_


def _is_finite(x: Any) -> bool:
    try:
        return _is_number(x) and math.isfinite(float(x))
    except OverflowError:  # an integer beyond all floats
        return False


def _shown(x: Any) -> str:
    text = repr(x) if isinstance(x, str) else " ".join(str(x).split())
    return text if len(text) <= 80 else f"{text[:80]}…"
