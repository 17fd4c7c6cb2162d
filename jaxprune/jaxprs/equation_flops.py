"""What one equation of a jaxpr costs, in operations, from its shapes and parameters.

    dot_general              2 · batch · M · N · K
    conv_general_dilated     2 · output elements · window · input channels a group; padding counts,
                             as in the papers'
                             tables, and the holes between the elements of a dilated input (a
                             transposed convolution, a gradient) do not
    reductions, scans        one an input element;    pooling: one an element of each window
    all other arithmetic     one an output element, whatever it is (add, exp, compare)
    moving data              nothing: reshape, transpose, gather, select, sort, convert

XLA's `cost_analysis` differs: it leaves padding out (as `unpadded` does) and counts exp and its kin
apart; that of a compiled program also counts what its fusions compute twice.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def cost(eqn: Any) -> int:
    """Operations of an equation that calls no other jaxpr: by its rule, else one an output element.

    Raises:
      ValueError: the primitive cannot be looked into.
    """
    name = plain(eqn.primitive.name)
    if name in OPAQUE:
        raise ValueError(
            f"flops cannot look into {name!r}: count f without it, and add its operations by hand"
        )
    return COSTS[name](eqn) if name in COSTS else sum(_size(v) for v in eqn.outvars)


def unpadded(eqn: Any) -> int:
    """The same, but products with a convolution's padding do not count."""
    return _conv(eqn, padding=False) if eqn.primitive.name == "conv_general_dilated" else cost(eqn)


def plain(name: str) -> str:
    """A primitive's name with underscores only (`scatter-add` and `scatter_mul` are named
    apart).
    """
    return name.replace("-", "_")


def _size(v: Any) -> int:
    return math.prod(getattr(v.aval, "shape", ()))


def _inputs(eqn: Any) -> int:
    return _size(eqn.invars[0])


def _dot(eqn: Any) -> int:
    lhs, rhs = eqn.invars[:2]
    p = eqn.params
    ragged = p.get("ragged_dot_dimension_numbers")
    (_, contract), (_, batch) = (
        p["dimension_numbers"] if ragged is None else ragged.dot_dimension_numbers
    )
    groups = () if ragged is None else ragged.rhs_group_dimensions
    free = set(range(len(rhs.aval.shape))) - {*contract, *batch, *groups}
    return 2 * _size(lhs) * math.prod(rhs.aval.shape[i] for i in free)


def _conv(eqn: Any, padding: bool = True) -> int:
    p = eqn.params
    out = eqn.outvars[0].aval.shape
    rhs = eqn.invars[1].aval.shape
    dims = p["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    taps = 1
    for axis, (i, o, k) in enumerate(zip(dims.lhs_spec[2:], dims.out_spec[2:], dims.rhs_spec[2:])):
        low = p["padding"][axis][0]
        holes = p["lhs_dilation"][axis]
        stride = p["window_strides"][axis]
        step = p["rhs_dilation"][axis]
        taps *= _taps(out[o], rhs[k], stride, step, low, holes, None if padding else lhs[i])
    return 2 * out[dims.out_spec[0]] * out[dims.out_spec[1]] * taps * rhs[dims.rhs_spec[1]]


def _taps(
    out: int, window: int, stride: int, step: int, low: int, holes: int, n: int | None
) -> int:
    """Pairs of an output and a window place that meet an element of the dilated input; given its
    size, not padding.
    """
    if holes == 1 and n is None:
        return out * window
    places = (np.arange(out) * stride + k * step - low for k in range(window))

    def inside(x):
        return True if n is None else (x >= 0) & (x <= (n - 1) * holes)

    return sum(int(np.sum((x % holes == 0) & inside(x))) for x in places)


def _pool(eqn: Any) -> int:
    scatters = eqn.primitive.name.startswith("select_and_scatter")
    windows = eqn.invars[0] if scatters else eqn.outvars[0]
    return _size(windows) * math.prod(eqn.params["window_dimensions"])


def _fft(eqn: Any) -> int:
    n = math.prod(eqn.params["fft_lengths"])
    real = "RFFT" in str(eqn.params["fft_type"])
    size = max(_size(eqn.invars[0]), _size(eqn.outvars[0]))
    return round((2.5 if real else 5) * size * math.log2(n)) if n else 0


def _lu(eqn: Any) -> int:
    *batch, m, n = eqn.invars[0].aval.shape
    big = max(m, n)
    small = min(m, n)
    return math.prod(batch) * (big * small**2 - small**3 // 3)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SAME = _names(
    "convert_element_type reshape transpose squeeze expand_dims copy copy_p rev stop_gradient "
    "reduce_precision "
    "device_put sharding_constraint reshard mesh_cast optimization_barrier pvary pcast"
)
"""Primitives whose results are their operands, moved or rounded."""

MOVES = _names(
    "broadcast_in_dim bitcast_convert_type slice dynamic_slice dynamic_update_slice gather "
    "scatter concatenate pad split tile iota select_n sort top_k approx_top_k real imag complex "
    "empty random_seed random_wrap random_unwrap all_gather all_to_all ppermute axis_index name "
    "debug_callback debug_print create_token"
)
REDUCES = _names(
    "reduce reduce_sum reduce_prod reduce_max reduce_min reduce_and reduce_or reduce_xor argmax "
    "argmin cumsum cumprod cummax cummin cumlogsumexp"
)
POOLS = _names(
    "reduce_window reduce_window_sum reduce_window_max reduce_window_min select_and_scatter_add "
    "select_and_gather_add"
)
SCATTERS = _names("scatter_add scatter_sub scatter_mul scatter_min scatter_max")
OPAQUE = _names(
    "pallas_call ffi_call pure_callback io_callback custom_call eig eigh svd schur hessenberg "
    "tridiagonal qr geqrf geqp3 householder_product"
)
COSTS: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot,
    "ragged_dot_general": _dot,
    "conv_general_dilated": _conv,
    "fft": _fft,
    "lu": _lu,
    "cholesky": lambda eqn: _inputs(eqn) * eqn.invars[0].aval.shape[-1] // 3,
    "triangular_solve": lambda eqn: _size(eqn.invars[1]) * eqn.invars[0].aval.shape[-1],
    **dict.fromkeys(SAME | MOVES, lambda eqn: 0),
    **dict.fromkeys(REDUCES, _inputs),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(SCATTERS, lambda eqn: _size(eqn.invars[2])),
}
"""The rules, by plain name."""
