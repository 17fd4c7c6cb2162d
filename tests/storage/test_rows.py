"""Large leaves are made dense some rows at a time: the numbers are those of `materialize`, to the
bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.storage.format import parts
from jaxprune.storage.format.parts import to_node
from jaxprune.storage.format.shapes import dense

w = jnp.asarray(np.random.default_rng(0).standard_normal((24, 16), np.float32))
V = w.reshape(-1)
BOOK = jnp.array([-1.5, -0.0, 0.25, 2.0])
IDS = jnp.asarray(np.random.default_rng(1).integers(0, 4, (24, 16), np.uint8))
HALF = jnp.asarray(np.random.default_rng(2).random((24, 16)) < 0.5)
sparse = jp.prune(0.7).init(w)


def at(c, x, **kw):
    return c(**kw).init({"kernel": x}, key=jax.random.key(0))["kernel"]


BY_ROWS = {
    "masked clusters": at(jp.cluster, sparse, k=5),
    "clusters": jp.Clustered(BOOK, IDS),
    "masked integers, a scale a column": jp.Masked(at(jp.quantize, w, bits=8), HALF),
    "a scale a row": at(jp.quantize, w, bits=8, axis=-2),
    "one scale": at(jp.quantize, w, bits=12, axis=None),
    "packed": at(jp.quantize, w, bits=3),
    "a zero point": at(jp.quantize, w, bits=8, kind="affine"),
    "zero points of rows": at(jp.quantize, w, bits=8, kind="affine", axis=(-2,)),
    "a grid": at(jp.quantize, w, kind="nf4"),
    "float8": at(jp.quantize, w, kind="float8_e4m3"),
    "signs": at(jp.quantize, w, kind="binary"),
    "a vector": jp.Clustered(BOOK, IDS.reshape(-1)),
    "a vector with a scale": jp.quantize(bits=8, where=jp.where.ndim(1)).init(V),
    "four axes": at(jp.quantize, w.reshape(4, 2, 3, 16), bits=8),
    "a quantised codebook": jp.Clustered(
        jp.quantize(bits=8, where=jp.where.ndim(1)).init(BOOK), IDS
    ),
    "masked twice": jp.Masked(jp.Masked(jp.Clustered(BOOK, IDS), HALF), IDS > 0),
}
WHOLE = {
    "groups": at(jp.quantize, w, bits=8, group=8),
    "a codebook for each tile": jp.cluster(k=3, scope=(8,), where=jp.where.ndim(2)).init(w),
    "factors": at(jp.factorize, w, rank=2),
    "bfloat16": at(jp.quantize, w.astype("bfloat16"), bits=8),
    "float16": at(jp.quantize, w.astype("float16"), bits=8),
}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(parts, "CHUNK", 100)


@pytest.mark.parametrize("name", [*BY_ROWS, *WHOLE])
def test_as_materialized(name):
    code = (BY_ROWS | WHOLE)[name]
    node = to_node(code)
    x = parts.as_numpy(node)
    expected = np.asarray(jp.materialize(code))
    assert (
        x.dtype == expected.dtype
        and x.shape == expected.shape
        and x.tobytes() == expected.tobytes()
    )
    assert (parts._by_rows(node, None) is None) == (name in WHOLE)


def test_a_shared_codebook():
    node = to_node(jp.Masked(jp.Clustered(None, IDS), HALF))
    book = np.asarray(BOOK)
    expected = np.where(HALF, book[np.asarray(IDS)], np.float32(0))
    assert parts.as_numpy(node, BOOK).tobytes() == expected.tobytes()
    assert dense(node, ((4,), "f4")) == ((24, 16), "f4")


def test_masks_are_compared_in_parts():
    """A mask that differs from the integers in its last part alone is stored."""
    q = jnp.asarray(np.random.default_rng(3).integers(0, 2, (24, 16), np.uint8)).at[-1, -1].set(1)
    same = q != 0
    other = (q != 0).at[-1, -1].set(False)

    def code(mask):
        return to_node(
            jp.Masked(jp.Quantized(q, jnp.ones((1, 1)), None, 8, jnp.dtype("float32")), mask)
        )

    assert code(same).parts[0] == 0 and isinstance(code(other).parts[0], parts.Array)
