"""Weight sharing by value: Δ(Θ) = c[a], k shared values c and an index aᵢ a weight.

    minimise Σᵢ hᵢ (wᵢ − c[aᵢ])²        1-D k-means; pruned weights have h = 0

Han et al. 2016 (Deep Compression), arXiv:1510.00149. Training the code moves each centroid by the
sum of its weights' gradients, the paper's rule, which here is the transpose of the gather.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Shaped

from jaxprune.core.arguments import whole
from jaxprune.core.arrays import Clustered, Common
from jaxprune.core.compression import Compression, encode_once, keep
from jaxprune.core.trees.checks import check_finite
from jaxprune.core.trees.lookup import fold_path
from jaxprune.core.trees.selection import select
from jaxprune.core.types import Params, PRNGKey, WhereLike
from jaxprune.core.where import Slot
from jaxprune.core.words import choice
from jaxprune.methods.curvature import (
    CurvatureLike,
    check_curvature,
    curvature_of,
    in_common_units,
)
from jaxprune.numerics.clusters import kmeans
from jaxprune.numerics.placement import gathered, placed_like

Init = Literal["optimal", "linear", "density", "random"]
"""How the centroids start; shared by Python and recipes."""


def cluster(
    k: int | None = None,
    *,
    bits: int | None = None,
    scope: Literal["leaf", "tree"] | Sequence[int] = "leaf",
    init: Init = "optimal",
    curvature: CurvatureLike = None,
    where: WhereLike = None,
) -> Compression:
    """Shares k values among the weights of a leaf, a tile or the tree.

    Args:
      k: number of shared values: indices cost ceil(log2 k) bits. Of a pruned leaf only the kept
        weights are clustered.
      bits: instead, the bits of an index, 1 to 16: k = 2^bits.
      scope: one codebook for each "leaf", one for the whole "tree", or one for each tile: sizes of
        a tile on the leading axes as they are stored, which they must divide, as scope=(64,) for
        runs of 64 rows: inputs of a `kernel`, outputs of a `weight`. Tiles gather a sharded leaf.
      init: how the centroids start: "optimal" (quantiles of density^(1/3), Panter & Dite 1951: the
        least distortion found), "linear" (min to max, Han et al.'s choice: large weights keep a
        centroid near), "density" (quantiles), "random" (needs `key=`).
      curvature: weights hᵢ >= 0 of the distortion (`jp.scores.diagonal_fisher`): a tree shaped like
        the params, or params -> tree. Where all that share a codebook are 0 they say nothing, and
        count as 1.
      where: which leaves, as in `jp.prune`; `jp.where.weights` by default.

    Returns:
      A `Compression` whose leaves are `Clustered` (for scope="tree" one `Common` holds the tree).

    Raises:
      ValueError: for k < 1 or k above the number of weights (kept weights, when the mask is
        concrete), a tile that does not divide, a curvature that is NaN, infinite or negative.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> tree = jp.cluster(k=2).init(jnp.array([[1.0, 1.2], [5.0, 5.2]]))
      >>> print(tree.codebook, jp.nbits(tree))          # 4 indices of 1 bit and two float32 values
      [1.1 5.1] 68
    """
    num_values = _num_values(k, bits)
    choice("cluster(init={})", init, get_args(Init))
    tile = _tile(scope)
    check_curvature("cluster", curvature)
    if isinstance(scope, str) and scope == "tree":
        return _cluster_together(num_values, init, curvature, where)

    def encode(
        slots: Sequence[Slot], params: Params, *, key: PRNGKey | None = None, **extra: Any
    ) -> list[Clustered]:
        h = curvature_of(curvature, slots, params, key=key, **extra)
        for slot in slots:
            check_finite(slot)
        codes = []
        for i, slot in enumerate(slots):
            _check_k(slot, num_values)
            weights = slot.mask if h is None else in_common_units([h[i]], [slot])[0]
            leaf_key = None if key is None else fold_path(key, slot.key)
            if tile is None:
                codes.append(_cluster_leaf(slot, weights, num_values, init, leaf_key))
            else:
                codes.append(_cluster_tiles(slot, weights, num_values, init, leaf_key, tile))
        return codes

    return encode_once(encode, where)


def _num_values(k: Any, bits: Any) -> int:
    """k, or 2^bits."""
    if (k is None) == (bits is None):
        raise ValueError(
            "cluster takes one of k= and bits=, as cluster(k=16), or cluster(bits=4) for the same"
        )
    if bits is None:
        return whole("cluster(k={})", k)
    return 2 ** whole("cluster(bits={})", bits, 1, 16)


def _tile(scope: Any) -> tuple[int, ...] | None:
    """The sizes of a tile; None for the scopes that are words."""
    if isinstance(scope, str):
        choice("cluster(scope={})", scope, ("leaf", "tree"))
        return None
    if not isinstance(scope, tuple | list) or not scope:
        raise ValueError(
            f"cluster(scope={scope!r}): give 'leaf', 'tree', or the sizes of a tile, as (64,)"
        )
    return tuple(whole("cluster(scope={})", side) for side in scope)


def _check_k(slot: Slot, k: int) -> None:
    size = slot.value.size
    if k > size:
        raise ValueError(
            f"cluster(k={k}): {slot} has only {size} weights; choose k <= {size}, "
            "or exclude it with `where`"
        )


# --- a leaf ---


def _cluster_leaf(slot: Slot, weights: Any, k: int, init: Init, key: PRNGKey | None) -> Clustered:
    x = slot.value
    codebook = kmeans.codebook(x, k, weights=weights, init=init, key=key).astype(x.dtype)
    return Clustered(codebook, kmeans.assign(x, codebook))


# --- its tiles ---


def _cluster_tiles(
    slot: Slot, weights: Any, k: int, init: Init, key: PRNGKey | None, tile: tuple[int, ...]
) -> Clustered:
    """One codebook for each tile."""
    x = slot.value
    sides = x.shape[: len(tile)]
    if len(sides) != len(tile) or any(n % t for n, t in zip(sides, tile)):
        raise ValueError(
            f"cluster(scope={tile}): the tile does not divide the leading axes of {slot}"
        )
    counts = tuple(n // t for n, t in zip(sides, tile))
    h = jnp.ones(x.shape, jnp.float32) if weights is None else weights
    x_tiles = _split_tiles(gathered(x), counts, tile)
    h_tiles = _split_tiles(gathered(h), counts, tile)

    def codebook_of(tile_and_weights: tuple[Array, Array]) -> Array:
        values, weights = tile_and_weights
        return kmeans.codebook(values, k, weights=weights, init=init, key=key)

    def indices_of(tile_and_codebook: tuple[Array, Array]) -> Array:
        return kmeans.assign(*tile_and_codebook)

    codebooks = jax.lax.map(codebook_of, (x_tiles, h_tiles)).astype(x.dtype)
    indices = jax.lax.map(indices_of, (x_tiles, codebooks))
    indices = placed_like(_join_tiles(indices, counts, tile, x.shape), x)
    return Clustered(codebooks.reshape(*counts, k), indices)


def _split_tiles(
    x: Shaped[Array, "..."], counts: tuple[int, ...], tile: tuple[int, ...]
) -> Shaped[Array, "tiles ..."]:
    """The tiles of the leading axes, which are (counts · tile), one a row."""
    n = len(tile)
    count_and_side = [size for pair in zip(counts, tile) for size in pair]
    tiles = x.reshape(*count_and_side, *x.shape[n:])
    tiles = jnp.moveaxis(tiles, [2 * i for i in range(n)], range(n))
    return tiles.reshape(-1, *tiles.shape[n:])


def _join_tiles(
    tiles: Shaped[Array, "tiles ..."],
    counts: tuple[int, ...],
    tile: tuple[int, ...],
    shape: tuple[int, ...],
) -> Shaped[Array, "..."]:
    """The inverse of `_split_tiles`."""
    n = len(tile)
    tiles = tiles.reshape(*counts, *tiles.shape[1:])
    return jnp.moveaxis(tiles, range(n), [2 * i for i in range(n)]).reshape(shape)


# --- the whole tree ---


def _cluster_together(
    k: int, init: Init, curvature: CurvatureLike, where: WhereLike
) -> Compression:
    """One codebook for all selected leaves."""
    default = where

    def start(
        params: Params, *, key: PRNGKey | None = None, where: WhereLike = None, **extra: Any
    ) -> Common:
        selection = select(default if where is None else where, params)
        slots = selection.slots
        h = curvature_of(curvature, slots, params, key=key, **extra)
        for slot in slots:
            check_finite(slot)
        total = sum(slot.value.size for slot in slots)
        if k > total:
            raise ValueError(
                f"cluster(k={k}, scope='tree'): the selected leaves have only {total} weights"
            )
        weights = [slot.mask for slot in slots] if h is None else in_common_units(h, slots)
        codebook = _codebook_of_all(slots, weights, k, init, key)
        codes = [Clustered(None, kmeans.assign(slot.value, codebook)) for slot in slots]
        return Common(codebook, selection.replaced(codes))

    return Compression(start, keep)


def _codebook_of_all(
    slots: Sequence[Slot], weights: Sequence[Any], k: int, init: Init, key: PRNGKey | None
) -> Float[Array, " k"]:
    values = [slot.value for slot in slots]
    codebook = kmeans.codebook(values, k, weights=weights, init=init, key=key)
    return codebook.astype(jnp.result_type(*(x.dtype for x in values)))
