"""Low rank: Δ(Θ) = U·V for matrices, a Tucker-2 core with two factors for convolutions.

minimise ‖H ∘ (W − U·V)‖²      H = 1: the truncated SVD, Eckart & Young 1936; Denil et al. 2013,
                               arXiv:1306.0543
                               H by rows: Fisher-weighted SVD, Hsu et al. 2022, arXiv:2207.00112
W[x, i, o] ≈ Σ u[i, a] core[x, a, b] v[b, o]                  Kim et al. 2016, arXiv:1511.06530
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from jaxprune.core.arguments import share, whole
from jaxprune.core.arrays import CompressedArray, Dense, nbits
from jaxprune.core.compression import Compression, encode_once
from jaxprune.core.factors import LowRank, Tucker
from jaxprune.core.leaves.layout import Axes, axes_of, check_layout
from jaxprune.core.trees.checks import check_decoded, check_finite, dense_weights
from jaxprune.core.types import Params, WhereLike
from jaxprune.core.where import Slot
from jaxprune.methods.curvature import (
    CurvatureLike,
    check_curvature,
    curvature_of,
    in_common_units,
)
from jaxprune.numerics import lowrank
from jaxprune.numerics.placement import gathered

Ranks = tuple[int, int]
"""Of inputs and outputs."""


def factorize(
    *,
    rank: int | tuple[int, int] | None = None,
    energy: float | None = None,
    curvature: CurvatureLike = None,
    layout: Any = None,
    where: WhereLike = None,
) -> Compression:
    """Writes matrices as two factors, convolutions (three axes or more) as a core and two factors.

    Gathers a sharded leaf. Which axes are inputs and outputs, names and biases tell
    (docs/layers.md). They must be the last two of a convolution, as HWIO has them: the core keeps
    the window first.

    Args:
      rank: of the factors; for convolutions the rank of inputs and outputs, one number or a pair.
        More than a side counts as the side.
      energy: instead, the fraction of the squared singular values to keep, in (0, 1]; concrete
        arrays only.
      curvature: weights hᵢ >= 0 of the error (`jp.scores.diagonal_fisher`): a tree shaped like the
        params, or params -> tree; summed over the outputs to one weight an input, for which the
        weighted problem has a closed form.
      layout: which axes are the outputs, instead: "jax" (last), "torch" (first), or a dict of path
        regex -> axis.
      where: which leaves, as in `jp.prune`; `jp.where.weights` by default.

    Returns:
      A `Compression` whose leaves are `LowRank` or `Tucker`, or `Dense` where the factors would be
      larger than the array. Zeros stay zero under a mask alone (`prune` first): the product of the
      factors has none.

    Raises:
      ValueError: for a rank < 1, an energy outside (0, 1], `energy` under trace, a curvature that
        is NaN, infinite or negative, a convolution whose inputs and outputs are not its last two
        axes (OIHW).

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.outer(jnp.arange(1.0, 5.0), jnp.ones(6))             # rank 1
      >>> tree = jp.factorize(energy=0.99).init(w)
      >>> print(tree.u.shape, tree.v.shape, bool(jnp.allclose(jp.materialize(tree), w, atol=1e-5)))
      (4, 1) (1, 6) True
    """
    if (rank is None) == (energy is None):
        raise ValueError(
            "factorize takes one of rank= and energy=, "
            "as factorize(rank=16) or factorize(energy=0.95)"
        )
    if energy is not None:
        energy = share("factorize(energy={})", energy)
    check_curvature("factorize", curvature)
    ranks = None if rank is None else _pair(rank)
    check_layout(layout, "factorize")

    def encode(slots: Sequence[Slot], params: Params, **extra: Any) -> list[CompressedArray]:
        h = curvature_of(curvature, slots, params, **extra)
        codes = []
        for i, slot in enumerate(slots):
            scaled = None if h is None else in_common_units([h[i]], [slot])[0]
            codes.append(_factorize_leaf(slot, scaled, ranks, energy, layout))
        return codes

    return encode_once(encode, where)


def _pair(rank: Any) -> Ranks:
    """The ranks of inputs and outputs."""
    pair = tuple(rank) if isinstance(rank, tuple | list) else (rank, rank)
    if len(pair) != 2:
        raise ValueError(
            f"factorize(rank={rank}): one rank, or a pair of inputs and outputs of convolutions"
        )
    inputs, outputs = (whole("factorize(rank={})", r) for r in pair)
    return inputs, outputs


def _factorize_leaf(
    slot: Slot, h: Any, ranks: Ranks | None, energy: float | None, layout: Any
) -> CompressedArray:
    """The factors of a leaf, in its dtype; the leaf itself where they would be larger."""
    check_finite(slot)
    x = slot.value
    if x.ndim < 2:
        raise ValueError(f"factorize: {slot} has one axis; exclude it with `where`")
    w = gathered(dense_weights(slot))
    outputs_first = _outputs_first(slot, layout)
    if outputs_first:
        w = jnp.matrix_transpose(w)
        h = None if h is None else jnp.matrix_transpose(h)
    factors_of = _low_rank if x.ndim == 2 else _tucker
    code = factors_of(slot, w, ranks, energy, h)
    if outputs_first:
        code = _transposed(code)
    code = jax.tree.map(lambda factor: factor.astype(x.dtype), code)
    check_decoded(slot, code)
    if nbits(code) >= nbits(x):
        return Dense(x, f"factors of rank {_rank(code)} would be larger")
    return code


def _outputs_first(slot: Slot, layout: Any) -> bool:
    """Whether the last two axes of a leaf are (outputs, inputs), not (inputs, outputs).

    Raises:
      ValueError: its outputs, or its inputs, are not on these axes at all.
    """
    axes = axes_of(slot.place, layout) if slot.open else Axes((-1,), (-2,))
    # Of heads, (in, heads, dim), both last axes are outputs: factors of heads and of dim are as
    # good as any.
    if axes.output < -2:
        raise ValueError(
            f"factorize: {slot} has its outputs on axis {axes.output}, and the factors of a "
            "convolution hold its window first, as (H, W, in, out): move its axes, as "
            "jnp.moveaxis(w, (0, 1), (-1, -2)), give layout='jax' if its outputs are last, or "
            "exclude it with `where`"
        )
    return axes.output == -2 and axes.contraction == -1


def _transposed(code: LowRank | Tucker) -> LowRank | Tucker:
    """The code of the transposed weight, in which inputs and outputs change places."""
    u = jnp.matrix_transpose(code.v)
    v = jnp.matrix_transpose(code.u)
    if isinstance(code, LowRank):
        return LowRank(u, v)
    return Tucker(jnp.matrix_transpose(code.core), u, v)


def _low_rank(
    slot: Slot, w: Float[Array, "in out"], ranks: Ranks | None, energy: Any, h: Any
) -> LowRank:
    if ranks is None:
        rank = _rank_for_energy(slot, w, energy)
    else:
        rank = min(*ranks, *w.shape)
    return LowRank(*lowrank.svd(w, rank, h))


def _tucker(
    slot: Slot, w: Float[Array, "*window in out"], ranks: Ranks | None, energy: Any, h: Any
) -> Tucker:
    if ranks is None:
        # Each of the two projections may lose half of what may be lost.
        energy_of_each = 1 - (1 - energy) / 2
        rank_in = _rank_for_energy(slot, _unfolded(w, -2), energy_of_each)
        rank_out = _rank_for_energy(slot, _unfolded(w, -1), energy_of_each)
        ranks = rank_in, rank_out
    num_inputs, num_outputs = w.shape[-2:]
    return Tucker(*lowrank.tucker2(w, (min(ranks[0], num_inputs), min(ranks[1], num_outputs)), h))


def _unfolded(w: Float[Array, "..."], axis: int) -> Float[Array, "n rest"]:
    """A row for each entry of an axis."""
    return jnp.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)


def _rank_for_energy(slot: Slot, matrix: Float[Array, "n m"], energy: Any) -> int:
    """The least rank that keeps a fraction of the squared singular values."""
    if isinstance(matrix, Tracer):
        raise ValueError(
            f"factorize(energy=…): the rank of {slot} depends on its values; under trace give rank="
        )
    return lowrank.rank_for_energy(lowrank.singular_values(matrix), energy)


def _rank(code: LowRank | Tucker) -> Any:
    return code.u.shape[-1] if isinstance(code, LowRank) else code.core.shape[-2:]
