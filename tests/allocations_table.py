"""Every allocation of the library, one line each: the laws of
`tests/methods/test_allocation_laws.py` run over it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jaxprune as jp


class Allocation(NamedTuple):
    """An allocation and what it must equal.

    Attributes:
      name: of the row, and in `prune(allocate=…)`.
      allocate: (params, scores, sparsity) -> a tree of counts.
      reference: (weights of each leaf, in float64; sparsity) -> how many of each leaf go, before
        rounding.
      total_exact: whether exactly round(s·N) go, of N weights in all; else round(s·n) of each leaf.
    """

    name: str
    allocate: Callable[..., Any]
    reference: Callable[[list[np.ndarray], float], list[float]]
    total_exact: bool = True


def slow_uniform(leaves, sparsity):
    return [sparsity * w.size for w in leaves]


def slow_global(leaves, sparsity):
    return count_below([np.abs(w).ravel() for w in leaves], sparsity)


def slow_lamp(leaves, sparsity):
    def lamp(w):
        squares = w.ravel() ** 2
        return np.array([x / squares[squares >= x].sum() for x in squares])

    return count_below([lamp(w) for w in leaves], sparsity)


def count_below(scores, sparsity):
    ranked = np.sort(np.concatenate(scores))
    threshold = ranked[round(sparsity * ranked.size)]
    return [int(np.sum(s < threshold)) for s in scores]


def slow_erk(leaves, sparsity):
    """Fill leaves one by one, the densest first, until the rest can share what is left."""
    raw = np.array([sum(w.shape) / w.size for w in leaves])
    sizes = np.array([w.size for w in leaves])
    full = np.zeros(len(leaves), bool)
    while True:
        left = (1 - sparsity) * sizes.sum() - sizes[full].sum()
        density = np.where(full, 1.0, raw * left / (raw * sizes)[~full].sum())
        over = (density > 1) & ~full
        if not over.any():
            return list((1 - density) * sizes)
        full[np.argmax(np.where(over, density, 0))] = True


ALLOCATIONS = [
    Allocation("uniform", jp.allocate.uniform, slow_uniform, total_exact=False),
    Allocation("erk", jp.allocate.erk, slow_erk),
    Allocation("global", jp.allocate.global_, slow_global),
    Allocation("lamp", jp.allocate.lamp, slow_lamp),
]
