"""What was done to a leaf, in words, read off the types of its code."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.core.arrays import Clustered, Dense, Masked, Stacked, is_code
from jaxprune.core.factors import LowRank, Shared, Tucker
from jaxprune.core.quantized import Binary, Packed, Quantized


def describe(code: Any) -> str:
    """A code in words, its parts after it; "" for an array.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> from jaxprune.report.describe import describe
      >>> w = jnp.arange(1.0, 65.0).reshape(8, 8)
      >>> eight_bit = jp.at(jp.where.field("codebook"), jp.quantize(bits=8))
      >>> describe(jp.chain(jp.prune(0.5), jp.cluster(k=4), eight_bit).init(w))
      'Masked 50% · Clustered 4 · codebook int8'
    """
    return " · ".join(_words(code))


def _words(code: Any) -> list[str]:
    if isinstance(code, Stacked):
        return _words(code.each)
    if isinstance(code, Dense):
        return _words(code.values)
    if isinstance(code, Masked):
        return [f"Masked {percent(float(np.mean(np.asarray(code.mask))))}", *_words(code.values)]
    return [_name(code), *_parts(code)] if is_code(code) else []


def _parts(code: Any) -> list[str]:
    """The parts of a code that are codes again, each after its name."""
    inside = [(name, getattr(code, name)) for name in code.fields()]
    codes = [(name, x) for name, x in inside if is_code(x) and not isinstance(x, Packed)]
    return [f"{name} {' '.join(_words(x))}" for name, x in codes]


def _name(code: Any) -> str:
    if isinstance(code, Clustered):
        return "Clustered" if code.codebook is None else f"Clustered {_sizes(code.codebook.shape)}"
    if isinstance(code, Shared):
        units = code.assignment.shape[-1]
        return f"Shared {code.prototypes.shape[code.axis]} of {units}"
    if isinstance(code, LowRank):
        return f"LowRank {code.u.shape[-1]}"
    if isinstance(code, Tucker):
        return f"Tucker {_sizes(code.core.shape[-2:])}"
    if isinstance(code, Quantized):
        return _grid(code)
    return "binary" if isinstance(code, Binary) else type(code).__name__


def _grid(code: Quantized) -> str:
    if code.grid is not None:
        return "nf4" if len(code.grid) == 16 else f"grid of {len(code.grid)}"
    q = code.q.materialize() if isinstance(code.q, Packed) else code.q
    if jnp.issubdtype(q.dtype, jnp.floating):
        return q.dtype.name
    return f"int{code.bits}"


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)


def percent(fraction: float) -> str:
    """A fraction in percent, three digits at most: 8%, 12.5%, 0.13%. Only the whole is 100%."""
    text = f"{100 * fraction:.3g}%"
    return ">99.9%" if text == "100%" and fraction < 1 else text
