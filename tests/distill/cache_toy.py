"""A teacher of 23 examples and its cache, for the tests of the cached teacher."""

import numpy as np

import jaxprune as jp

RNG = np.random.default_rng(3)
X = RNG.normal(size=(23, 4)).astype(np.float32)
W = RNG.normal(size=(4, 6)).astype(np.float32)
TOLD = jp.distill.fingerprint(W)
TOP = jp.distill.Top(2, temperature=3.0)
FORMS = ["float16", "float32", TOP]


def teacher(x):
    return np.einsum("...i,ij->...j", x, W)  # the same bits for every batch


def write(folder, logits_of=teacher, examples=X, **kw):
    return jp.distill.write_cache(
        folder, logits_of, examples, **{"fingerprint": TOLD, "batch": 3, "shard": 6, **kw}
    )


def opened(folder):
    return jp.distill.Cache.open(folder, fingerprint=TOLD)


def contents(folder):
    """Every file of a folder, and its bytes."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }
