"""Weight sharing by value: Δ(Θ) = c[a], k shared values c and an index aᵢ a weight.

    minimise Σᵢ hᵢ (wᵢ − c[aᵢ])²        1-D k-means; pruned weights have h = 0

Han et al. 2016 (Deep Compression), arXiv:1510.00149. Training the code moves each centroid by the sum of its weights'
gradients, the paper's rule, which here is nothing but the transpose of the gather.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxprune.core.arguments import whole
from jaxprune.core.arrays import Clustered, Common
from jaxprune.core.compression import Compression, call, keep
from jaxprune.core.leaves.where import Slot
from jaxprune.core.tree import check_finite, fold_path, refuse_word, rewrite
from jaxprune.core.words import choice
from jaxprune.methods.curvature import in_common_units, look_up_curvature
from jaxprune.numerics.clusters import kmeans
from jaxprune.numerics.placement import gathered, placed_like

Init = Literal["optimal", "linear", "density", "random"]


def cluster(
    k: int | None = None,
    *,
    bits: int | None = None,
    scope: Literal["leaf", "tree"] | Sequence[int] = "leaf",
    init: Init = "optimal",
    curvature: Any = None,
    where: Any = None,
) -> Compression:
    """Shares k values among the weights of a leaf, a tile or the tree.

    Args:
      k: number of shared values: indices cost ceil(log2 k) bits. Of a pruned leaf only the kept weights are clustered.
      bits: instead, the bits of an index, 1 to 16: k = 2^bits.
      scope: one codebook for each "leaf", one for the whole "tree", or one for each tile: sizes of a tile on the
        leading axes as they are stored, which they must divide, as scope=(64,) for runs of 64 rows: inputs of a
        `kernel`, outputs of a `weight`. Tiles gather a sharded leaf.
      init: how the centroids start: "optimal" (quantiles of density^(1/3), Panter & Dite 1951: the least distortion
        found), "linear" (min to max, Han et al.'s choice: large weights keep a centroid near), "density" (quantiles),
        "random" (needs `key=`).
      curvature: weights hᵢ >= 0 of the distortion (`jp.scores.diagonal_fisher`): a tree shaped like the params, or params
        -> tree. Where all that share a codebook are 0 they say nothing, and count as 1.
      where: which leaves, as in `jp.prune`; `jp.where.weights` by default.

    Returns:
      A `Compression` whose leaves are `Clustered` (for scope="tree" one `Common` holds the tree).

    Raises:
      ValueError: for k < 1 or k above the number of weights (kept weights, when the mask is concrete), a tile that does
        not divide, a curvature that is NaN, infinite or negative.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> tree = jp.cluster(k=2).init(jnp.array([[1.0, 1.2], [5.0, 5.2]]))
      >>> print(tree.codebook, jp.nbits(tree))          # 4 indices of 1 bit and two float32 values
      [1.1 5.1] 68
    """
    k = _num_values(k, bits)
    choice("cluster(init={})", init, get_args(Init))
    tile = _tile(scope)
    refuse_word("cluster", curvature)
    rule = where

    def start(params: Any, *, key: Any = None, where: Any = None, **extra: Any) -> Any:
        where = rule if where is None else where
        h = call(curvature, params, key=key, **extra) if callable(curvature) else curvature
        if isinstance(scope, str) and scope == "tree":
            return _together(params, where, h, k, init, key)
        one = _encode if tile is None else partial(_tiled, tile=tile)

        def encode(chosen: list[Slot]) -> list[Clustered]:
            for slot in chosen:
                check_finite(slot)
            return [one(s, weights, _fit(s, k), init, _fold(key, s)) for s, weights in zip(chosen, _weights(chosen, h, False))]

        return rewrite(encode, params, where)

    return Compression(start, keep)


def _num_values(k: Any, bits: Any) -> int:
    """k, or 2^bits."""
    if (k is None) == (bits is None):
        raise ValueError("cluster takes one of k= and bits=, as cluster(k=16), or cluster(bits=4) for the same")
    return whole("cluster(k={})", k) if bits is None else 2 ** whole("cluster(bits={})", bits, 1, 16)


def _tile(scope: Any) -> tuple[int, ...] | None:
    """The sizes of a tile; None for the scopes that are words."""
    if isinstance(scope, str):
        choice("cluster(scope={})", scope, ("leaf", "tree"))
        return None
    if not isinstance(scope, tuple | list) or not scope:
        raise ValueError(f"cluster(scope={scope!r}): give 'leaf', 'tree', or the sizes of a tile, as (64,)")
    return tuple(whole("cluster(scope={})", side) for side in scope)


def _fit(slot: Slot, k: int) -> int:
    there = slot.value.size
    if k > there:
        raise ValueError(
            f"cluster(k={k}): {slot} has only {there} weights; choose k <= {there}, or exclude it with `where`"
        )
    return k


def _weights(chosen: list[Slot], curvature: Any, together: bool) -> list[Any]:
    """h of the distortion: the curvature where there is one, 0 under a mask. `together`: all share one codebook."""
    if curvature is None:
        return [slot.mask for slot in chosen]
    weights = look_up_curvature(curvature, chosen, "curvature")
    if together:
        return in_common_units(weights, chosen)
    return [in_common_units([h], [slot])[0] for slot, h in zip(chosen, weights)]


def _fold(key: Any, slot: Slot) -> Any:
    return None if key is None else fold_path(key, slot.key)


def _encode(slot: Slot, weights: Any, k: int, init: Init, key: Any) -> Clustered:
    x = slot.value
    codebook = kmeans.codebook(x, k, weights=weights, init=init, key=key).astype(x.dtype)
    return Clustered(codebook, kmeans.assign(x, codebook))


def _tiled(slot: Slot, weights: Any, k: int, init: Init, key: Any, tile: tuple[int, ...]) -> Clustered:
    """One codebook for each tile: the leading axes are cut into runs, and the runs' axes vmapped."""
    x = slot.value
    sides = x.shape[: len(tile)]
    if len(sides) != len(tile) or any(n % t for n, t in zip(sides, tile)):
        raise ValueError(f"cluster(scope={tile}): the tile does not divide the leading axes of {slot}")
    counts = tuple(n // t for n, t in zip(sides, tile))
    rows = lambda a: _tiles(gathered(a), counts, tile)
    h = jnp.ones(x.shape, jnp.float32) if weights is None else weights
    books = jax.lax.map(lambda xh: kmeans.codebook(xh[0], k, weights=xh[1], init=init, key=key), (rows(x), rows(h)))
    books = books.astype(x.dtype)
    indices = jax.lax.map(lambda xc: kmeans.assign(*xc), (rows(x), books))
    return Clustered(books.reshape(*counts, k), placed_like(_untile(indices, counts, tile, x.shape), x))


def _tiles(x: Any, counts: tuple[int, ...], tile: tuple[int, ...]) -> Any:
    """The tiles of the leading axes, one a row: (T, …)."""
    n = len(tile)
    cut = x.reshape(*(s for pair in zip(counts, tile) for s in pair), *x.shape[n:])
    front = [2 * i for i in range(n)]
    cut = jnp.moveaxis(cut, front, range(n))
    return cut.reshape(-1, *cut.shape[n:])


def _untile(rows: Any, counts: tuple[int, ...], tile: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    n = len(tile)
    cut = rows.reshape(*counts, *rows.shape[1:])
    return jnp.moveaxis(cut, range(n), [2 * i for i in range(n)]).reshape(shape)


def _together(params: Any, where: Any, curvature: Any, k: int, init: Init, key: Any) -> Common:
    """One codebook for all selected leaves."""
    found: list[Any] = []

    def all_of(chosen: list[Slot]) -> list[Clustered]:
        for slot in chosen:
            check_finite(slot)
        total = sum(s.value.size for s in chosen)
        if k > total:
            raise ValueError(f"cluster(k={k}, scope='tree'): the selected leaves have only {total} weights")
        weights = _weights(chosen, curvature, True)
        codebook = kmeans.codebook([s.value for s in chosen], k, weights=weights, init=init, key=key)
        codebook = codebook.astype(jnp.result_type(*(s.value.dtype for s in chosen)))
        found.append(codebook)
        return [Clustered(None, kmeans.assign(s.value, codebook)) for s in chosen]

    tree = rewrite(all_of, params, where)
    return Common(found[0], tree)
