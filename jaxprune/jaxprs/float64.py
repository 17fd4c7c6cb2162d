"""A function computed in float64 throughout, whatever precision it was written for.

The function is traced as it is, at the dtypes of its arguments, and its equations are then
evaluated on float64: every float that it takes, holds or casts to is one. So a scan whose carry
starts from float32 zeros, or a softmax that casts to float32, is computed in float64 too, where
calling the function on float64 arguments would fail or round.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs.calls import ENTERED, Body, bodies, enter
from jaxprune.jaxprs.equations import of_arrays, open_jaxpr
from jaxprune.jaxprs.interpret import interpret

DERIVATIVES = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})
BITS = frozenset({"bitcast_convert_type", "nextafter"})
"""What depends on how a float is written down: computed in the precision that it was traced in."""


def in_float64(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, computed in float64: floats among its arguments, constants and casts are widened, and its
    results are float64.

    The global `jax_enable_x64` stays as it is. Equations that cannot be widened (a kernel, a custom
    reduction) are computed as they were traced.

    Args:
      f: a pure function of arrays; what is not an array among its arguments is given to it as it
        is.

    Returns:
      A function with the arguments and results of f, to be called outside of jit.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.jaxprs.float64 import in_float64
      >>> f = lambda x: (x + jnp.float32(1e-12)) - x
      >>> print(f(jnp.ones(())), abs(float(in_float64(f)(jnp.ones(()))) - 1e-12) < 1e-15)
      0.0 True
    """

    def wide(*args: Any, **kw: Any) -> Any:
        g, arrays = of_arrays(f, args, kw)
        closed, shape = jax.make_jaxpr(g, return_shape=True)(*arrays)
        jaxpr, consts = open_jaxpr(closed)
        with jax.enable_x64(True):
            run = jax.jit(lambda consts, arrays: _run(jaxpr, consts, arrays))
            outs = run(jax.tree.map(_on_host, consts), jax.tree.map(_on_host, arrays))
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return wide


def _on_host(x: Any) -> Any:
    """An array widened; on the host, so that no device is asked for a dtype that it may not have
    yet.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return x
    x = np.asarray(x)
    return x.astype(_wide(x.dtype))


def _wide(dtype: Any) -> Any:
    """The widest dtype of this kind; integers, booleans and random keys stay."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.dtype(np.complex128)
    return np.dtype(np.float64) if jnp.issubdtype(dtype, jnp.floating) else dtype


def _run(jaxpr: Any, consts: list[Any], values: list[Any]) -> list[Any]:
    """The results of a jaxpr on widened values."""
    return interpret(jaxpr, consts, values, _results, literal=_wide_literal)


def _wide_literal(literal: Any) -> Any:
    return jnp.asarray(literal.val, _wide(literal.aval.dtype))


def _results(eqn: Any, values: list[Any]) -> list[Any]:
    """The results of an equation on widened values."""
    name = eqn.primitive.name
    if name in ENTERED or name == "while":
        return enter(eqn, values, _run_body, None)[0]
    if name in DERIVATIVES:
        return _run_body(bodies(eqn)[0], values, None)[0]  # only its value is asked for
    if name == "reduce_precision":
        return values
    if name in BITS or bodies(eqn):
        narrow = [_cast(x, v.aval.dtype) for x, v in zip(values, eqn.invars)]
        outs = _bind(eqn, narrow, eqn.params)
        return [_cast(x, _wide(x.dtype)) for x in outs]
    return _bind(eqn, values, {key: _wide_param(value) for key, value in eqn.params.items()})


def _run_body(body: Body, values: list[Any], _: Any) -> tuple[list[Any], None]:
    consts = [_cast(jnp.asarray(x), _wide(x.dtype)) for x in body.consts]
    return _run(body.jaxpr, consts, values), None


def _wide_param(value: Any) -> Any:
    """A parameter of an equation: a dtype is widened, all else stays."""
    is_dtype = isinstance(value, np.dtype) or (
        isinstance(value, type) and issubclass(value, np.generic)
    )
    is_dtype = is_dtype or (isinstance(value, type) and hasattr(value, "dtype"))  # jnp.float32
    return _wide(jnp.dtype(value)) if is_dtype else value


def _cast(x: Any, dtype: Any) -> Any:
    return (
        x if x.dtype == dtype or jnp.issubdtype(x.dtype, jax.dtypes.extended) else x.astype(dtype)
    )


def _bind(eqn: Any, values: list[Any], params: dict[str, Any]) -> list[Any]:
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]
