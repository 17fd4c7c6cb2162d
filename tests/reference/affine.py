"""Quantisation as the papers write it, one scale entry and one weight at a time, in float64."""

import itertools
import math

import numpy as np


def entries(shape, axis, group):
    """The index lists of the weights that share a scale, keyed by the entry's index in the
    scale.
    """
    cut = len(shape) - min(2, len(shape))
    shared = {}
    for index in itertools.product(*map(range, shape)):
        entry = []
        for d, i in enumerate(index):
            channel = len(shape) > 1 and d - len(shape) in axis
            entry.append(i if channel else i // group if group and d == cut else 0)
        shared.setdefault(tuple(entry), []).append(index)
    return shared


def per_entry(f, w, axis=(), group=None, where=None):
    """The array of f(the counted weights of an entry)."""
    where = np.ones(w.shape, bool) if where is None else where
    shared = entries(w.shape, axis, group)
    out = np.zeros([1 + max(e[d] for e in shared) for d in range(w.ndim)])
    for entry, indices in shared.items():
        out[entry] = f([float(w[i]) for i in indices if where[i] and math.isfinite(w[i])])
    return out


def per_weight(f, w, *scales, axis=(), group=None):
    """The array of f(weight, its scale, …)."""
    out = np.zeros(w.shape)
    for entry, indices in entries(w.shape, axis, group).items():
        for i in indices:
            out[i] = f(float(w[i]), *(float(s[entry]) for s in scales))
    return out


def symmetric_scale(bits):
    return lambda ws: max([abs(x) for x in ws], default=0.0) / (2 ** (bits - 1) - 1) or 1.0


def symmetric(bits):
    top = 2 ** (bits - 1) - 1
    return lambda x, s: max(-top, min(top, round(x / s)))  # Python's round is half to even too


def affine_scale(bits):
    """(max w − min w) / (2^b − 1), and for equal weights the spacing of float32 at them."""

    def scale(ws):
        ws = ws or [0.0]
        spacing = max(map(abs, ws)) / 2**22
        return max((max(ws) - min(ws)) / (2**bits - 1), spacing) or 1.0

    return scale


def zero_point(bits):
    return lambda ws: round(-min(ws, default=0.0) / affine_scale(bits)(ws))


def affine(bits):
    return lambda x, s, z: max(0, min(2**bits - 1, round(x / s) + z))


def alpha(ws):
    """XNOR-Net: the mean magnitude."""
    return sum(map(abs, ws)) / len(ws) if ws else 0.0


def ternary_alpha(ws):
    """TWN: the mean magnitude beyond Δ = 0.7 mean|w|."""
    beyond = [abs(x) for x in ws if abs(x) > 0.7 * alpha(ws)]
    return sum(beyond) / len(beyond) if beyond else 0.0


def nearest(grid):
    return lambda x, s: min(range(len(grid)), key=lambda i: abs(x / s - grid[i]))


def ternary(x, alpha, delta):
    return alpha if x > delta else -alpha if x < -delta else 0.0
