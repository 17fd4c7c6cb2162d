"""Sums are float32, or float64 for float64: no 16-bit float ever accumulates."""

from typing import Any

import jax.numpy as jnp


def wide(dtype: Any) -> Any:
    """The dtype to compute in: float64 for float64, else float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def widen(x: Any) -> Any:
    """x in the dtype to compute in."""
    return x.astype(wide(x.dtype))


def index_dtype(k: int) -> Any:
    """The smallest unsigned dtype that holds an index into k entries."""
    return jnp.uint8 if k <= 1 << 8 else jnp.uint16 if k <= 1 << 16 else jnp.uint32
