"""Rules of sums and products over axes: matrix products, convolutions, reductions, sorting.

What is summed over may be cut; whether that is exact depends on zeros (`zeros`). What is compared
or counted along an axis (max, argmax, cumsum, sort, pooling windows) freezes it.
"""

from typing import Any

from jaxprune.structure.axes.expressions import fresh, names, product, size, unify


def dot_general(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Extra: the contracted axes."""
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    left, right = ins
    walk.unify(eqn, [left[k] for k in (*lc, *lb)], [right[k] for k in (*rc, *rb)])

    def rest(axes, gone):
        return [e for k, e in enumerate(axes) if k not in gone]

    out = [left[k] for k in lb] + rest(left, (*lc, *lb)) + rest(right, (*rc, *rb))
    return [out], [left[k] for k in lc]


def conv(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Extra: the axis of feature groups (None for one) and the input channels of a group."""
    p, (x, kernel) = eqn.params, ins
    dims = p["dimension_numbers"]
    groups = p["feature_group_count"]
    shape = eqn.outvars[0].aval.shape
    if p["batch_group_count"] != 1:
        return walk.refuse(eqn, ins)
    walk.freeze(eqn, [x[k] for k in dims.lhs_spec[2:]], "a spatial axis")
    walk.freeze(eqn, [kernel[k] for k in dims.rhs_spec[2:]], "a kernel's window")
    channels = x[dims.lhs_spec[1]]
    features = kernel[dims.rhs_spec[0]]
    inner = kernel[dims.rhs_spec[1]]
    out: list[Any] = [fresh(n, f"a spatial axis: {walk.place(eqn)}") for n in shape]
    out[dims.out_spec[0]] = x[dims.lhs_spec[0]]
    out[dims.out_spec[1]] = features
    if groups == 1:
        walk.unify(eqn, [channels], [inner])
        return [out], (None, inner)
    group = fresh(groups)
    of_group = fresh(size(features) // groups)
    why = f"the groups do not line up: {walk.place(eqn)}"
    unify(product((group, inner)), channels, why)
    unify(product((group, of_group)), features, why)
    return [out], (group, inner)


def reduce_sum(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Extra: the axes summed over."""
    gone = eqn.params["axes"]
    return [[e for k, e in enumerate(ins[0]) if k not in gone]], [ins[0][k] for k in gone]


def reduce(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    gone = eqn.params["axes"]
    walk.freeze(eqn, [ins[0][k] for k in gone], "its elements are compared")
    return [[e for k, e in enumerate(ins[0]) if k not in gone]], None


def cumulative(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    walk.freeze(eqn, [ins[0][eqn.params["axis"]]], "it is run along")
    return [list(ins[0])], None


def sort(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    walk.freeze(eqn, [axes[eqn.params["dimension"]] for axes in ins], "it is sorted")
    for axes in ins[1:]:
        walk.unify(eqn, ins[0], axes)
    return [list(axes) for axes in ins], None


def top_k(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    axis = eqn.params.get("axis", -1) % len(ins[0])
    shape = eqn.outvars[0].aval.shape
    walk.freeze(eqn, [ins[0][axis]], "it is sorted")
    out = [
        fresh(shape[k], f"it is sorted: {walk.place(eqn)}") if k == axis else e
        for k, e in enumerate(ins[0])
    ]
    return [out, list(out)], None


def window(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Pooling: axes with a window freeze, the others pass."""
    p = eqn.params
    out = []
    for k, e in enumerate(ins[0]):
        dilated = p.get("base_dilation", (1,) * len(ins[0]))[k] != 1
        if (
            p["window_dimensions"][k] == 1
            and p["window_strides"][k] == 1
            and not any(p["padding"][k])
            and not dilated
        ):
            out.append(e)
        else:
            walk.freeze(eqn, [e], "a pooling window")
            out.append(fresh(eqn.outvars[0].aval.shape[k], f"a pooling window: {walk.place(eqn)}"))
    return [out], None


REDUCE = names("reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin")
RULES = {
    **dict.fromkeys(REDUCE, reduce),
    **dict.fromkeys(names("cumsum cumprod cummax cummin cumlogsumexp"), cumulative),
    **dict.fromkeys(names("reduce_window_sum reduce_window_max reduce_window_min"), window),
    "dot_general": dot_general,
    "conv_general_dilated": conv,
    "reduce_sum": reduce_sum,
    "sort": sort,
    "top_k": top_k,
}
