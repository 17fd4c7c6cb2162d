"""Rules of what is elementwise, and of what moves elements around.

A rule is (walk, eqn, axes of the operands) -> (axes of the results, what the other passes need to
know).
"""

import math
from typing import Any

from jaxprune.structure.axes.expressions import (
    Axis,
    concatenated,
    free,
    fresh,
    names,
    pieces,
    product,
    size,
    unify,
)

ELEMENTWISE = names(
    """
    add sub mul div rem max min pow atan2 nextafter and or xor not shift_left
    shift_right_logical shift_right_arithmetic eq ne lt le gt ge eq_to lt_to le_to neg sign
    floor ceil round exp exp2 log expm1 log1p tanh sin cos tan asin acos atan sinh cosh asinh
    acosh atanh logistic sqrt rsqrt cbrt square integer_pow abs is_finite erf erfc erf_inv
    lgamma digamma igamma igammac bessel_i0e bessel_i1e convert_element_type reduce_precision
    real imag conj complex select_n clamp add_any population_count clz mul_add polynomial log2
    one_minus_square polygamma zeta igamma_grad_a regularized_incomplete_beta
    """
)
IDENTITY = names(
    """
    copy copy_p stop_gradient device_put sharding_constraint layout_constraint reshard pvary
    pcast name optimization_barrier mesh_cast
    """
)


def elementwise(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Axes meet their like; one of size 1 is stretched (so JAX's equations may broadcast)."""
    out = [None] * len(eqn.outvars[0].aval.shape)
    for axes in (a for a in ins if len(a) == len(out)):
        for k, e in enumerate(axes):
            if out[k] is None or (size(out[k]) == 1 and size(e) > 1):
                out[k] = e
            elif size(out[k]) == size(e):
                unify(out[k], e, f"the parts do not line up: {walk.place(eqn)}")
    return [out] * len(eqn.outvars), None


def bitcast(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    same = len(ins[0]) == len(eqn.outvars[0].aval.shape)
    return elementwise(walk, eqn, ins) if same else walk.refuse(eqn, ins)


def identity(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    return [list(axes) for axes in ins], None


def broadcast_in_dim(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    shape = eqn.params["shape"]
    out: list[Axis] = [fresh(n) for n in shape]
    for e, k in zip(ins[0], eqn.params["broadcast_dimensions"]):
        if size(e) == shape[k]:
            out[k] = e
    return [out], None


def transpose(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    return [[ins[0][k] for k in eqn.params["permutation"]]], None


def squeeze(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    gone = {k % len(ins[0]) for k in eqn.params["dimensions"]}
    return [[e for k, e in enumerate(ins[0]) if k not in gone]], None


def reshape(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Runs of axes with equal products are tied: (6, 4) -> (2, 3, 4) makes of the first axis a
    product 2 · 3.
    """
    order = eqn.params.get("dimensions") or range(len(ins[0]))
    old = [ins[0][k] for k in order]
    new = list(eqn.params["new_sizes"])
    why = f"the parts do not line up: {walk.place(eqn)}"
    if 0 in new:
        return [[fresh(n, "empty") for n in new]], None
    out: list[Axis] = []
    for taken, made in _runs(old, new):
        wide = [n for n in made if n != 1]
        if len(wide) == 1:
            found = iter([product(taken)])
        else:
            parts = [fresh(n) for n in wide]
            unify(product(parts), product(taken), why)
            found = iter(parts)
        out += [fresh(1) if n == 1 else next(found) for n in made]
    return [out], None


def _runs(old: list[Axis], new: list[int]) -> list[tuple[list[Axis], list[int]]]:
    """The shortest runs of old and new axes with equal products."""
    runs = []
    i = 0
    k = 0
    while i < len(old) or k < len(new):
        taken = old[i : i + 1]
        made = new[k : k + 1]
        i = i + 1
        k = k + 1
        while (a := math.prod(map(size, taken))) != (b := math.prod(made)):
            if a < b:
                taken.append(old[i])
                i += 1
            else:
                made.append(new[k])
                k += 1
        runs.append((taken, made))
    return runs


def tile(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """n repetitions of an axis: a product n · axis."""
    reps = [fresh(n) for n in eqn.params["reps"]]
    return [[e if size(r) == 1 else product((r, e)) for r, e in zip(reps, ins[0])]], reps


def concatenate(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    d = eqn.params["dimension"]

    def rest(axes):
        return [e for k, e in enumerate(axes) if k != d]

    for axes in ins[1:]:
        walk.unify(eqn, rest(ins[0]), rest(axes))
    return [
        [concatenated([axes[d] for axes in ins]) if k == d else e for k, e in enumerate(ins[0])]
    ], None


def stack(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """A new axis, a position an operand."""
    for axes in ins[1:]:
        walk.unify(eqn, ins[0], axes)
    k = eqn.params["axis"]
    return [[*ins[0][:k], concatenated([fresh(1) for _ in ins]), *ins[0][k:]]], None


def unstack(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    k = eqn.params["axis"]
    walk.freeze(eqn, [ins[0][k]], "its positions are taken apart")
    return [[*ins[0][:k], *ins[0][k + 1 :]] for _ in eqn.outvars], None


def split(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    d = eqn.params["axis"]
    why = f"the parts do not line up: {walk.place(eqn)}"
    parts = pieces(ins[0][d], [int(n) for n in eqn.params["sizes"]], why)
    return [[p if k == d else e for k, e in enumerate(ins[0])] for p in parts], None


def slice_(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """x[a:b] is a term of a concatenation; x[a::k] a factor of a product with k, whose other factor
    is frozen.
    """
    p = eqn.params
    out = []
    strides = p["strides"] or (1,) * len(ins[0])
    for e, low, high, k, n in zip(
        ins[0],
        p["start_indices"],
        p["limit_indices"],
        strides,
        eqn.outvars[0].aval.shape,
        strict=True,
    ):
        if n == size(e):
            out.append(e)
        elif k == 1:
            why = f"the parts do not line up: {walk.place(eqn)}"
            out.append(pieces(e, [low, high - low, size(e) - high], why)[1])
        elif size(e) == n * k and low < k:
            runs = fresh(n)
            steps = fresh(k)
            unify(e, product((runs, steps)), f"the parts do not line up: {walk.place(eqn)}")
            walk.freeze(eqn, [steps], "every k-th is taken")
            out.append(runs)
        else:
            walk.freeze(eqn, [e], "every k-th is taken")
            out.append(fresh(n, f"every k-th is taken: {walk.place(eqn)}"))
    return [out], None


def rev(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    walk.freeze(eqn, [ins[0][k] for k in eqn.params["dimensions"]], "it is reversed")
    return [list(ins[0])], None


def pad(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """What is added before and after are terms of their own, which may be cut; holes and cropping
    freeze.
    """
    out = []
    around = []
    for e, (low, high, inner), n in zip(
        ins[0], eqn.params["padding_config"], eqn.outvars[0].aval.shape
    ):
        if low < 0 or high < 0 or inner:
            walk.freeze(eqn, [e], "it is padded inside or cropped")
            out.append(fresh(n, f"it is padded inside or cropped: {walk.place(eqn)}"))
            around.append(None)
        else:
            around.append((free(low), free(high)))
            out.append(concatenated([around[-1][0], e, around[-1][1]]))
    return [out], around


def made_here(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Positions and random bits: made whole, and cut like any array."""
    return [[fresh(n) for n in v.aval.shape] for v in eqn.outvars], None


def keys(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    walk.freeze(eqn, [e for axes in ins for e in axes], "random keys")
    return [[fresh(n, "random keys") for n in v.aval.shape] for v in eqn.outvars], None


def split_keys(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Keys of their own for what is then run over: layers that go take theirs along."""
    walk.freeze(eqn, ins[0], "random keys")
    return [[*ins[0], *(fresh(n) for n in eqn.params["shape"])]], None


def random_bits(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    walk.freeze(eqn, ins[0], "random keys")
    return made_here(walk, eqn, ins)


KEYS = names("random_seed random_wrap random_unwrap random_fold_in random_clone")
RULES = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(IDENTITY, identity),
    **dict.fromkeys(KEYS, keys),
    "bitcast_convert_type": bitcast,
    "broadcast_in_dim": broadcast_in_dim,
    "transpose": transpose,
    "squeeze": squeeze,
    "reshape": reshape,
    "tile": tile,
    "concatenate": concatenate,
    "split": split,
    "stack": stack,
    "unstack": unstack,
    "slice": slice_,
    "rev": rev,
    "pad": pad,
    "iota": made_here,
    "random_bits": random_bits,
    "random_split": split_keys,
}
