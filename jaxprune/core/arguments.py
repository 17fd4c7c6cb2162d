"""Numbers that are given as arguments: checked whatever their type, Python's, NumPy's or a JAX scalar."""

import operator
from typing import Any

import numpy as np
from jax.core import Tracer


def fraction(what: str, x: Any) -> Any:
    """x, if it is one number in [0, 1); a traced one is taken as it is.

    Args:
      what: how the error names it, with `{}` in the place of the value, as "prune({})".
      x: any number that has no axes.

    Raises:
      ValueError: text, a boolean, an array with axes, NaN, or a number outside [0, 1).

    Example:
      >>> fraction("prune({})", 0.5)
      0.5
      >>> fraction("prune({})", "50%")
      Traceback (most recent call last):
      ValueError: prune('50%'): give one number in [0, 1), the fraction of weights to remove
    """
    if isinstance(x, Tracer):
        return x
    if not _is_number(x) or not 0 <= float(x) < 1:
        raise ValueError(f"{what.format(_shown(x))}: give one number in [0, 1), the fraction of weights to remove")
    return x


def finite(what: str, x: Any) -> Any:
    """x, if it is one finite number; a traced one is taken as it is."""
    if not isinstance(x, Tracer) and not (_is_number(x) and np.isfinite(float(x))):
        raise ValueError(f"{what.format(_shown(x))}: give one finite number")
    return x


def whole(what: str, x: Any, least: int = 1) -> int:
    """x as a Python integer, if it is a whole number of at least `least`.

    Raises:
      ValueError: text, a boolean, a float (even 4.0), an array with axes, a traced value, or a number below `least`.

    Example:
      >>> import numpy as np
      >>> whole("cluster(k={})", np.int64(4))
      4
      >>> whole("cluster(k={})", 4.0)
      Traceback (most recent call last):
      ValueError: cluster(k=4.0): give an integer of at least 1
    """
    try:
        number = None if isinstance(x, bool | np.bool_ | Tracer) else operator.index(x)
    except TypeError:
        number = None
    if number is None or number < least:
        traced = " that is known when the program is traced" if isinstance(x, Tracer) else ""
        raise ValueError(f"{what.format(_shown(x))}: give an integer of at least {least}{traced}")
    return number


def _is_number(x: Any) -> bool:
    if isinstance(x, str | bool | np.bool_) or np.ndim(x) != 0:
        return False
    return isinstance(x, int | float) or np.issubdtype(getattr(x, "dtype", np.dtype(object)), np.number)


def _shown(x: Any) -> str:
    return repr(x) if isinstance(x, str) else str(x)
