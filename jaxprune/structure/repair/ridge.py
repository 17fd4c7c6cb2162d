"""Ridge regression of a layer's weights and bias on the outputs that it should have.

    min over D, β of  ‖X D + 1 βᵀ − R‖² + λ ‖D‖²,        R = Y − (X W + b)

X is what the small network feeds the layer, Y what its outputs should be, W and b its weights and
bias, D and β their changes, so λ pulls towards the weights as they are; λ = ridge · tr(XᵀX) /
columns, X about its mean where there is a bias. Sums over batches are float64, and so is all that
is solved.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.numerics.precision import widen
from jaxprune.structure.repair.rows import inputs, outputs
from jaxprune.structure.repair.sites import Layer

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried on held-out rows."""

ENOUGH = 200
"""Rows for each weight of an output: of convolutions with more, only every other place is taken
along each axis."""

FITTED = 0.75
"""The share of the rows of each batch that strengths are fitted to; the rest judges them."""


class Batch(NamedTuple):
    """What a layer is fitted to on one batch.

    Attributes:
      x: what the small network feeds it.
      made: what it gives.
      end: the value at the end of its way in the large network, cut to the small one's shape.
      others: the other operand of each link of its way in the small network.
    """

    x: Any
    made: Any
    end: Any
    others: Sequence[Any]


class Sums(NamedTuple):
    """Sums over rows, for each group of a layer.

    Attributes:
      count: of rows.
      gram: [groups, columns, columns], Σ x xᵀ.
      cross: [groups, columns, outputs], Σ x r.
      mean_x, mean_r: [groups, columns] and [groups, outputs], Σ x and Σ r.
      square: [groups, outputs], Σ r².
      whole: Σ y².
    """

    count: Any
    gram: Any
    cross: Any
    mean_x: Any
    mean_r: Any
    square: Any
    whole: Any

    def __add__(self, other: Any) -> "Sums":
        return Sums(*(np.add(a, b, dtype=np.float64) for a, b in zip(self, other)))


class Change(NamedTuple):
    """Changes of a layer.

    Attributes:
      weights: [groups, columns, outputs].
      bias: [groups, outputs]; zeros where there is none.
      ridge: the strength that was taken.
      errors: ‖Y' − Y‖ / ‖Y‖ before and after.
    """

    weights: np.ndarray
    bias: np.ndarray
    ridge: float
    errors: tuple[float, float]


def summed(layer: Layer, batches: Sequence[Batch], held_out: bool) -> tuple[Sums, Sums]:
    """Sums over the rows that are fitted to, and over those that are held out (empty if not asked
    for).
    """
    every = _every(layer, batches)
    of_batch = jax.jit(lambda batch: sums_of(layer, batch, held_out, every))
    total = [
        jax.tree.map(lambda a: np.asarray(a, np.float64), of_batch(batch)) for batch in batches
    ]
    fit, rest = total[0]
    for more_fit, more_rest in total[1:]:
        fit = fit + more_fit
        rest = rest + more_rest
    return fit, rest


def sums_of(layer: Layer, batch: Batch, held_out: bool, every: int = 1) -> tuple[Sums, Sums]:
    """The sums of one batch; every: see `_every`."""
    eqn = layer.eqn
    k = layer.weight
    wanted = layer.wanted(batch.end, batch.others, batch.made)
    x = inputs(eqn, widen(batch.x), layer.kernel, k, every)
    y = outputs(eqn, wanted, k, layer.groups, every)
    r = y - outputs(eqn, widen(batch.made), k, layer.groups, every)
    n = x.shape[1]
    first = max(1, int(FITTED * n)) if held_out else n
    return _sums(x[:, :first], r[:, :first], y[:, :first]), _sums(
        x[:, first:], r[:, first:], y[:, first:]
    )


def _every(layer: Layer, batches: Sequence[Batch]) -> int:
    """1 / the share of places, along each axis, that a convolution is fitted to.

    Neighbours say nearly the same, and sums over rows take most of the time.
    """
    if layer.step.name == "dot_general":
        return 1
    spec = layer.eqn.params["dimension_numbers"]
    columns = int(np.prod([layer.kernel[k] for k in spec.rhs_spec[1:]]))
    shape = np.shape(batches[0].made)
    places = [shape[k] for k in spec.out_spec[2:]]
    rows = len(batches) * shape[spec.out_spec[0]] * int(np.prod(places))
    every = 1
    while rows > ENOUGH * columns * 2 ** len(places) and min(places, default=0) > 2 * every:
        every *= 2
        rows //= 2 ** len(places)
    return every


def _sums(x: Any, r: Any, y: Any) -> Sums:
    def product(a: Any, b: Any) -> Any:
        return jnp.einsum("gni,gnj->gij", a, b, precision="highest")

    count = jnp.float32(x.shape[1])
    return Sums(
        count,
        product(x, x),
        product(x, r),
        x.sum(1),
        r.sum(1),
        jnp.square(r).sum(1),
        jnp.square(y).sum(),
    )


def change_of(
    fit: Sums,
    rest: Sums,
    ridge: float | None,
    bias: bool,
    mask: np.ndarray | None = None,
    fixed: bool = False,
) -> Change:
    """The change of a layer.

    Args:
      fit, rest: of `summed`.
      ridge: the strength; None: the one of `GRID` whose error is least on the held-out rows, then
        fitted to all.
      bias: whether a constant is fitted.
      mask: [groups, columns, outputs], the weights that may change.
      fixed: no weight may.

    Raises:
      ValueError: NaN or Inf, or dependent inputs without a ridge.
    """
    whole = fit + rest
    if not all(np.isfinite(x).all() for x in whole):
        raise ValueError("what it is multiplied with, or gives, has NaN or Inf")
    if fixed:
        weights = np.zeros(whole.cross.shape)
        return _told(whole, weights, _intercept(whole, weights, bias), 0.0)
    if ridge is None:
        trials = [_weights(fit, strength, bias, mask) for strength in GRID]
        held_out = [error(rest, w, _intercept(fit, w, bias)) for w in trials]
        ridge = GRID[int(np.argmin(held_out))]
    weights = _weights(whole, ridge, bias, mask)
    return _told(whole, weights, _intercept(whole, weights, bias), ridge)


def _told(sums: Sums, weights: np.ndarray, bias: np.ndarray, ridge: float) -> Change:
    before = error(sums, np.zeros_like(weights), np.zeros_like(bias))
    after = error(sums, weights, bias)
    size = max(float(sums.whole), np.finfo(float).tiny)
    return Change(
        weights, bias, ridge, (float(np.sqrt(before / size)), float(np.sqrt(after / size)))
    )


def error(sums: Sums, weights: np.ndarray, bias: np.ndarray) -> float:
    """‖X D + 1 βᵀ − R‖²."""
    quadratic = np.sum(weights * (sums.gram @ weights)) - 2 * np.sum(weights * sums.cross)
    shifted = np.sum(weights * (sums.mean_x[..., None] * bias[:, None])) - np.sum(
        bias * sums.mean_r
    )
    return max(
        float(quadratic + 2 * shifted + sums.count * np.sum(bias**2) + sums.square.sum()), 0.0
    )


def _intercept(sums: Sums, weights: np.ndarray, bias: bool) -> np.ndarray:
    """The constant that is best beside these weights."""
    rest = sums.mean_r - np.einsum("gi,gij->gj", sums.mean_x, weights)
    return rest / max(float(sums.count), 1.0) if bias else np.zeros_like(sums.mean_r)


def _weights(sums: Sums, ridge: float, bias: bool, mask: np.ndarray | None) -> np.ndarray:
    gram = sums.gram
    cross = sums.cross
    if bias:
        count = max(float(sums.count), 1.0)
        gram = gram - sums.mean_x[:, :, None] * sums.mean_x[:, None] / count
        cross = cross - sums.mean_x[:, :, None] * sums.mean_r[:, None] / count
    if mask is None:
        return ridge_regression(gram, cross, ridge)
    return masked_regression(gram, cross, ridge, mask)


def ridge_regression(gram: np.ndarray, cross: np.ndarray, ridge: float) -> np.ndarray:
    """(G + λ I)⁻¹ R of each group, λ = ridge · tr(G) / n; zeros where nothing ever came in."""
    n = gram.shape[-1]
    trace = np.trace(gram, axis1=1, axis2=2)
    live = trace > 0
    change = np.zeros_like(cross)
    pull = ridge / n * trace[live][:, None, None]
    try:
        change[live] = np.linalg.solve(gram[live] + pull * np.eye(n), cross[live])
    except np.linalg.LinAlgError:
        raise ValueError(
            "its inputs are dependent: give a ridge above 0, or more examples"
        ) from None
    return change


def masked_regression(
    gram: np.ndarray, cross: np.ndarray, ridge: float, mask: np.ndarray
) -> np.ndarray:
    """The same where each output may use some inputs only: a system for each output, of the inputs
    that it has.
    """
    change = np.zeros_like(cross)
    for g in range(len(gram)):
        for o in range(cross.shape[-1]):
            used = np.nonzero(mask[g, :, o])[0]
            if used.size:
                inner = gram[g][np.ix_(used, used)][None]
                change[g, used, o] = ridge_regression(
                    inner, cross[g, used, o][None, :, None], ridge
                )[0, :, 0]
    return change
