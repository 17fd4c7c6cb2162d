"""Slow selection: sort everything, by value and then by index."""

import numpy as np


def order(x: np.ndarray, magnitude: bool = False) -> np.ndarray:
    """Flat indices from the smallest to the largest: NaN first; among equals the highest index
    first.
    """
    v = np.asarray(x, np.float64).reshape(-1)
    v = np.abs(v) if magnitude else v
    number = ~np.isnan(v)
    return np.lexsort((-np.arange(v.size), np.where(number, v, 0.0), number))


def keep_largest(x: np.ndarray, remove: int, magnitude: bool = False) -> np.ndarray:
    mask = np.ones(np.size(x), bool)
    mask[order(x, magnitude)[: max(remove, 0)]] = False
    return mask.reshape(np.shape(x))


def split_global(xs: list[np.ndarray], remove: int, magnitude: bool = False) -> list[int]:
    flat = np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in xs])
    mask = keep_largest(flat, remove, magnitude)
    ends = np.cumsum([np.size(x) for x in xs])[:-1]
    return [int((~part).sum()) for part in np.split(mask, ends)]


def n_m(x: np.ndarray, n: int, m: int, axis: int, magnitude: bool = False) -> np.ndarray:
    rows = np.moveaxis(np.asarray(x), axis, -1)
    runs = rows.reshape(-1, m)
    mask = np.stack([keep_largest(run, m - n, magnitude) for run in runs])
    return np.moveaxis(mask.reshape(rows.shape), -1, axis)
