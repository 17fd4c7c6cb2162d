"""Slow least squares for layers, in NumPy and float64, as He, Zhang & Sun 2017 (arXiv:1707.06168)
write them.
"""

import numpy as np


def refit(x, target, w, b=None, ridge=0.0, mask=None):
    """The weights and bias that bring x w + b near to the target, output by output; without b
    weights alone.

    The pull is towards w, and ridge is a share of the mean variance of x (of its mean square, if
    there is no bias).
    """
    x, target, w = (np.asarray(a, np.float64) for a in (x, target, w))
    new_w = w.copy()
    new_b = None if b is None else np.asarray(b, np.float64).copy()
    for j in range(w.shape[1]):
        used = np.arange(len(w)) if mask is None else np.nonzero(mask[:, j])[0]
        rows = x[:, used]
        rest = target[:, j] - x @ w[:, j] - (0 if b is None else new_b[j])
        mean_x = rows.mean(0) if b is not None else np.zeros(len(used))
        mean_rest = rest.mean() if b is not None else 0.0
        centred = rows - mean_x
        pull = ridge * np.sum(centred**2) / max(len(used), 1)
        system = np.vstack([centred, np.sqrt(pull) * np.eye(len(used))])
        change = np.linalg.lstsq(system, np.concatenate([rest - mean_rest, np.zeros(len(used))]))[0]
        new_w[used, j] += change
        if b is not None:
            new_b[j] += mean_rest - mean_x @ change
    return new_w, new_b
