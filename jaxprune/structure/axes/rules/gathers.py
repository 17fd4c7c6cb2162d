"""Rules of gathers, scatters and dynamic slices: an axis that is indexed is frozen, those taken
whole pass.
"""

from typing import Any

from jaxprune.structure.axes.expressions import fresh, names, size, unify


def gather(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Extra: for each axis of the operand its slice size, or the axis itself where it is taken
    whole.
    """
    dims = eqn.params["dimension_numbers"]
    sizes = eqn.params["slice_sizes"]
    operand, indices = ins[:2]
    walk.freeze(eqn, [indices[-1]], "an index")
    walk.freeze(eqn, [operand[k] for k in dims.collapsed_slice_dims], "it is indexed")
    for a, b in zip(dims.operand_batching_dims, dims.start_indices_batching_dims):
        unify(operand[a], indices[b], f"the parts do not line up: {walk.place(eqn)}")
    slices = [
        k
        for k in range(len(operand))
        if k not in (*dims.collapsed_slice_dims, *dims.operand_batching_dims)
    ]
    out: list[Any] = [None] * len(eqn.outvars[0].aval.shape)
    whole: list[Any] = [int(n) for n in sizes]
    for o, k in zip(dims.offset_dims, slices):
        if sizes[k] == size(operand[k]) and k not in dims.start_index_map:
            out[o] = whole[k] = operand[k]
        else:
            walk.freeze(eqn, [operand[k]], "it is indexed")
            out[o] = fresh(sizes[k], f"it is indexed: {walk.place(eqn)}")
    batch = iter(indices[:-1])
    return [[next(batch) if e is None else e for e in out]], whole


def dynamic_slice(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    out = []
    for e, n in zip(ins[0], eqn.params["slice_sizes"]):
        if n == size(e):
            out.append(e)
        else:
            walk.freeze(eqn, [e], "it is indexed")
            out.append(fresh(n, f"it is indexed: {walk.place(eqn)}"))
    return [out], None


def dynamic_update_slice(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    for a, b in zip(ins[0], ins[1]):
        if size(a) == size(b):
            unify(a, b, f"the parts do not line up: {walk.place(eqn)}")
        else:
            walk.freeze(eqn, [a, b], "it is indexed")
    return [list(ins[0])], None


def scatter(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    dims, (operand, indices, updates) = eqn.params["dimension_numbers"], ins[:3]
    why = f"the parts do not line up: {walk.place(eqn)}"
    walk.freeze(eqn, [indices[-1]], "an index")
    walk.freeze(eqn, [operand[k] for k in dims.inserted_window_dims], "it is indexed")
    windows = [
        k
        for k in range(len(operand))
        if k not in (*dims.inserted_window_dims, *dims.operand_batching_dims)
    ]
    for u, k in zip(dims.update_window_dims, windows):
        if size(updates[u]) == size(operand[k]) and k not in dims.scatter_dims_to_operand_dims:
            unify(updates[u], operand[k], why)
        else:
            walk.freeze(eqn, [updates[u], operand[k]], "it is indexed")
    for a, b in zip(dims.operand_batching_dims, dims.scatter_indices_batching_dims):
        unify(operand[a], indices[b], why)
    for u, e in zip(
        (k for k in range(len(updates)) if k not in dims.update_window_dims), indices[:-1]
    ):
        unify(updates[u], e, why)
    return [list(operand)], None


RULES = {
    "gather": gather,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    **dict.fromkeys(
        names("scatter scatter_add scatter_sub scatter_mul scatter_min scatter_max"), scatter
    ),
}
