"""What a compression loses: the distortion Σ h (w − Δ)², and the signal to quantisation noise
ratio."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.core.arrays import Common, is_code, materialize
from jaxprune.core.trees.lookup import by_path
from jaxprune.core.trees.walk import slots
from jaxprune.core.where import is_float
from jaxprune.core.words import nearest
from jaxprune.report.differences import difference, together


def distortion(params: Any, tree: Any, curvature: Any = None) -> Any:
    """What the code loses: Σᵢ hᵢ (wᵢ − Δᵢ)², over all float leaves.

    Unlike the sizes it may be traced, so that a `vmap` over sparsities is a rate-distortion curve.

    Args:
      params: the dense params w.
      tree: their code; Δ = `materialize(tree)`.
      curvature: h, a tree of arrays that broadcast against the leaves of the same path; 1 where it
        has none.

    Returns:
      A float (float64 sums); a float32 scalar under trace. Equal infinities, and NaN in both, lose
      nothing; an entry that is not finite on one side and another value on the other makes it
      infinite.

    Raises:
      ValueError: the trees have different leaves, or h has one that w does not.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([[1.0, -2.0], [3.0, 0.5]])
      >>> jp.measure.distortion(w, jp.prune(0.5).init(w))      # 1² + 0.5²
      1.25
    """
    w, code = _named(params, tree)
    h = {} if curvature is None else by_path(curvature, "curvature")
    _same_leaves(w, code, h)
    traced = _traced(w, code, h)
    wide = _wide_dtype(w) if traced else np.float64
    total = 0.0
    for name in _float_names(w):
        error = _errors(_cast(w[name], wide, traced), _cast(code[name], wide, traced))
        if h.get(name) is None:
            total += (error**2).sum()
        else:
            weight = _cast(h[name], wide, traced)
            total += (weight * error**2).sum()
    return total if traced else float(total)


def sqnr(params: Any, tree: Any) -> Any:
    """Signal to quantisation noise in dB: 10 log10(Σ w² / Σ (w − Δ)²), over the leaves that were
    compressed.

    Leaves that were kept would only make it look better: of them those count that differ. Where
    `tree` has no codes (it was materialized), all its float leaves count.

    Args:
      params: the dense params w.
      tree: their code; Δ = `materialize(tree)`.

    Returns:
      A float, or a scalar under trace. Infinite where no float leaf differs. −inf where only zeros
      became others, and where an entry that is not finite on one side is another value on the
      other; equal infinities and NaNs are left out of both sums.

    Raises:
      ValueError: the trees have different leaves.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([[10.0, 1.0]])
      >>> round(jp.measure.sqnr(w, jp.prune(0.5).init(w)), 2)     # 101 : 1
      20.04
    """
    w, code = _named(params, tree)
    _same_leaves(w, code, {})
    names = _float_names(w)
    compressed = _compressed_paths(tree) or set(names)
    if _traced(w, code):
        wide = _wide_dtype(w)
        return _traced_sqnr(
            [(_cast(w[n], wide, True), _cast(code[n], wide, True), n in compressed) for n in names]
        )
    rows = [difference(name, np.asarray(w[name]), np.asarray(code[name])) for name in names]
    row = together("", [row for row in rows if row.path in compressed or row.changed])
    return -math.inf if row.not_finite else row.sqnr


def _named(params: Any, tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dense leaves of both trees by path."""
    return by_path(materialize(params), "params"), by_path(materialize(tree), "compressed")


def _float_names(named: dict[str, Any]) -> list[str]:
    return [name for name, x in named.items() if is_float(x)]


def _wide_dtype(named: dict[str, Any]) -> Any:
    """The dtype that sums over all leaves are computed in, under trace."""
    return (
        jnp.float64
        if any(x.dtype == jnp.float64 for x in named.values() if is_float(x))
        else jnp.float32
    )


def _cast(x: Any, dtype: Any, traced: bool) -> Any:
    return jnp.asarray(x).astype(dtype) if traced else np.asarray(x).astype(dtype)


def _compressed_paths(tree: Any) -> set[str]:
    """The paths of the leaves that are codes."""
    inside_common = slots(tree, is_slot=lambda code: not isinstance(code, Common))
    return {slot.path for slot in inside_common if is_code(slot.value)}


def _traced(*trees: dict[str, Any]) -> bool:
    return any(isinstance(x, Tracer) for named in trees for x in named.values())


def _traced_sqnr(leaves: list[tuple[Any, Any, bool]]) -> Any:
    """`sqnr` of leaves (w, Δ, whether it was compressed), under trace."""
    errors = [_errors(w, code) for w, code, _ in leaves]
    finite = [jnp.where(jnp.isfinite(w), w, 0) for w, _, _ in leaves]
    counted = [compressed | jnp.any(e != 0) for e, (_, _, compressed) in zip(errors, leaves)]
    signal = _log10_squares([jnp.where(c, x, 0) for c, x in zip(counted, finite)])
    return jnp.where(_largest(errors) > 0, 10 * (signal - _log10_squares(errors)), jnp.inf)


def _log10_squares(arrays: list[Any]) -> Any:
    """log10 Σ x². In units of the largest entry, for the square of 1e30 is no float32."""
    unit = _largest(arrays)
    safe = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
    return jnp.log10(sum(jnp.sum((x / safe) ** 2) for x in arrays)) + 2 * jnp.log10(safe)


def _largest(arrays: list[Any]) -> Any:
    return functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x in arrays])


def _errors(w: Any, code: Any) -> Any:
    """w − Δ, 0 where both are the same infinity or NaN, and infinite where only one of them is
    finite."""
    xp = jnp if isinstance(w, jax.Array) or isinstance(code, jax.Array) else np
    same = (w == code) | (xp.isnan(w) & xp.isnan(code))
    with np.errstate(invalid="ignore"):
        error = xp.where(same, 0, w - code)
    return xp.where(xp.isnan(error), xp.inf, error)


def _same_leaves(w: dict[str, Any], code: dict[str, Any], h: dict[str, Any]) -> None:
    for name in sorted({*code, *h} - {*w}):
        which = "compressed tree" if name in code else "curvature"
        raise ValueError(
            f"the {which} has a leaf {name!r} that params lacks. Nearest: {nearest(name, w)}"
        )
    for name in w:
        if name not in code:
            raise ValueError(
                f"the compressed tree lacks the leaf {name!r} of params. Nearest: "
                f"{nearest(name, code)}"
            )
        shapes = np.shape(w[name]), np.shape(code[name])
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name or 'the array'} has the shape {shapes[0]} in params and {shapes[1]} in its "
                f"code"
            )
