"""Low rank: Δ(Θ) = U·V for matrices, a Tucker-2 core with two factors for convolutions.

minimise ‖H ∘ (W − U·V)‖²        H = 1: the truncated SVD (Eckart & Young 1936; Denil et al. 2013, arXiv:1306.0543)
                                 H by rows: Fisher-weighted SVD (Hsu et al. 2022, arXiv:2207.00112)
W[x, i, o] ≈ Σ u[i, a] core[x, a, b] v[b, o]                       Kim et al. 2016, arXiv:1511.06530
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.core.arguments import share, whole
from jaxprune.core.arrays import CompressedArray, Dense, nbits
from jaxprune.core.compression import Compression, call, keep
from jaxprune.core.factors import LowRank, Tucker
from jaxprune.core.leaves.layout import Axes, axes_of, check_layout
from jaxprune.core.leaves.where import Slot
from jaxprune.core.tree import check_decoded, check_finite, refuse_word, rewrite, there
from jaxprune.methods.curvature import in_common_units, look_up_curvature
from jaxprune.numerics import lowrank
from jaxprune.numerics.placement import gathered


def factorize(
    *,
    rank: int | tuple[int, int] | None = None,
    energy: float | None = None,
    curvature: Any = None,
    layout: Any = None,
    where: Any = None,
) -> Compression:
    """Writes matrices as two factors and convolutions (three axes or more) as a core and two factors. Gathers a sharded
    leaf.

    Which axes are inputs and outputs, names and biases tell (docs/layers.md). They must be the last two of a
    convolution, as HWIO has them: the core keeps the window first.

    Args:
      rank: of the factors; for convolutions the rank of inputs and outputs, one number or a pair. More than a side
        counts as the side.
      energy: instead, the fraction of the squared singular values to keep, in (0, 1]; concrete arrays only.
      curvature: weights hᵢ >= 0 of the error (`jp.scores.diagonal_fisher`): a tree shaped like the params, or params ->
        tree; summed over the outputs to one weight an input, for which the weighted problem has a closed form.
      layout: which axes are the outputs, instead: "jax" (last), "torch" (first), or a dict of path regex -> axis.
      where: which leaves, as in `jp.prune`; `jp.where.weights` by default.

    Returns:
      A `Compression` whose leaves are `LowRank` or `Tucker`, or `Dense` where the factors would be larger than the
      array. Zeros stay zero under a mask alone (`prune` first): the product of the factors has none.

    Raises:
      ValueError: for a rank < 1, an energy outside (0, 1], `energy` under trace, a curvature that is NaN, infinite or
        negative, a convolution whose inputs and outputs are not its last two axes (OIHW).

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.outer(jnp.arange(1.0, 5.0), jnp.ones(6))             # rank 1
      >>> tree = jp.factorize(energy=0.99).init(w)
      >>> print(tree.u.shape, tree.v.shape, bool(jnp.allclose(jp.materialize(tree), w, atol=1e-5)))
      (4, 1) (1, 6) True
    """
    if (rank is None) == (energy is None):
        raise ValueError("factorize takes one of rank= and energy=, as factorize(rank=16) or factorize(energy=0.95)")
    if energy is not None:
        energy = share("factorize(energy={})", energy)
    refuse_word("factorize", curvature)
    ranks = None if rank is None else _pair(rank)
    check_layout(layout, "factorize")
    rule = where

    def encode(slot: Slot, h: Any) -> CompressedArray:
        check_finite(slot)
        x = slot.value
        if x.ndim < 2:
            raise ValueError(f"factorize: {slot} has one axis; exclude it with `where`")
        w = gathered(there(slot))
        turned = _is_turned(slot, layout)
        if turned:
            w = jnp.matrix_transpose(w)
            h = None if h is None else jnp.matrix_transpose(h)
        code = (_matrix if x.ndim == 2 else _convolution)(slot, w, ranks, energy, h)
        code = _transposed(code) if turned else code
        code = jax.tree.map(lambda part: part.astype(x.dtype), code)
        check_decoded(slot, code)
        if nbits(code) >= nbits(x):
            return Dense(x, f"factors of rank {_rank(code)} would be larger")
        return code

    def init(params: Any, *, where: Any = None, **extra: Any) -> Any:
        tree = call(curvature, params, **extra) if callable(curvature) else curvature

        def all_of(chosen: list[Slot]) -> list[CompressedArray]:
            if tree is None:
                return [encode(slot, None) for slot in chosen]
            weights = look_up_curvature(tree, chosen, "curvature")
            return [encode(slot, in_common_units([h], [slot])[0]) for slot, h in zip(chosen, weights)]

        return rewrite(all_of, params, rule if where is None else where)

    return Compression(init, keep)


def _pair(rank: Any) -> tuple[int, int]:
    """The ranks of inputs and outputs."""
    pair = tuple(rank) if isinstance(rank, tuple | list) else (rank, rank)
    if len(pair) != 2:
        raise ValueError(f"factorize(rank={rank}): one rank, or a pair of inputs and outputs of convolutions")
    ins, outs = (whole("factorize(rank={})", r) for r in pair)
    return ins, outs


def _is_turned(slot: Slot, layout: Any) -> bool:
    """Whether the last two axes of a leaf are (outputs, inputs), not (inputs, outputs).

    Raises:
      ValueError: its outputs, or its inputs, are not on these axes at all.
    """
    axes = axes_of(slot.place, layout) if slot.open else Axes((-1,), (-2,))
    # Of heads, (in, heads, dim), both last axes are outputs: factors of heads and of dim are as good as any.
    if axes.output < -2:
        raise ValueError(
            f"factorize: {slot} has its outputs on axis {axes.output}, and the factors of a convolution hold its "
            "window first, as (H, W, in, out): move its axes, as jnp.moveaxis(w, (0, 1), (-1, -2)), give layout='jax' "
            "if its outputs are last, or exclude it with `where`"
        )
    return axes.output == -2 and axes.contraction == -1


def _transposed(code: LowRank | Tucker) -> LowRank | Tucker:
    """The code of the transposed weight, in which inputs and outputs change places."""
    u, v = jnp.matrix_transpose(code.v), jnp.matrix_transpose(code.u)
    if isinstance(code, LowRank):
        return LowRank(u, v)
    return Tucker(jnp.matrix_transpose(code.core), u, v)


def _matrix(slot: Slot, w: Any, ranks: Any, energy: float | None, h: Any) -> LowRank:
    r = _for_energy(slot, w, energy) if ranks is None else min(min(ranks), *w.shape)
    return LowRank(*lowrank.svd(w, r, h))


def _convolution(slot: Slot, w: Any, ranks: Any, energy: Any, h: Any) -> Tucker:
    ins, outs = w.shape[-2:]
    if ranks is None:
        unfold = lambda axis: jnp.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
        # Each mode loses at most half of what may be lost.
        each = 1 - (1 - energy) / 2
        ranks = _for_energy(slot, unfold(-2), each), _for_energy(slot, unfold(-1), each)
    return Tucker(*lowrank.tucker2(w, (min(ranks[0], ins), min(ranks[1], outs)), h))


def _for_energy(slot: Slot, matrix: Any, energy: Any) -> int:
    if isinstance(matrix, Tracer):
        raise ValueError(f"factorize(energy=…): the rank of {slot} depends on its values; under trace give rank=")
    return lowrank.rank_for_energy(lowrank.singular_values(matrix), energy)


def _rank(code: LowRank | Tucker) -> Any:
    return code.u.shape[-1] if isinstance(code, LowRank) else code.core.shape[-2:]
