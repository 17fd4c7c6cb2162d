"""Arrays that share a bank: the codec `context`, and masks that follow from integers."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.core.arrays import Clustered, Masked
from jaxprune.core.quantized import Quantized
from jaxprune.storage.accounting import shares
from jaxprune.storage.decoder import Decoder
from jaxprune.storage.files import inspect, load, save
from jaxprune.storage.format.manifest import contents, opened
from jaxprune.storage.format.parts import to_node
from jaxprune.storage.format.words import CONTEXT, Array, FormatError, Leaf, Row
from jaxprune.storage.prediction import predicted_bytes, predicted_leaf_bytes
from jaxprune.storage.streams import grouping
from jaxprune.storage.streams.context_stream import decode
from tests.reference import bank as reference
from tests.storage.trees import assert_same

F32 = jnp.dtype("float32")


def integers(rng, shape, keep):
    """Laplacian integers, pruned, whose size differs by output and input."""
    w = (
        rng.laplace(size=shape)
        * np.exp(rng.standard_normal(shape[-1]))
        * np.exp(rng.standard_normal((shape[-2], 1)))
    )
    w[np.abs(w) < np.quantile(np.abs(w), 1 - keep)] = 0
    return np.rint(np.clip(w * 2, -120, 120)).astype(np.int8)


def model(seed=0, keep=0.3):
    rng = np.random.default_rng(seed)
    tree = {}
    for i, shape in enumerate([(3, 3, 8, 16), (3, 3, 16, 16), (64, 100), (1, 1, 16, 32)]):
        q = jnp.asarray(integers(rng, shape, keep))
        tree[f"q{i}"] = Masked(Quantized(q, jnp.ones((1,) * q.ndim), None, 8, F32), q != 0)
        indices = jnp.asarray(rng.integers(0, 16, shape).astype(np.uint8))
        kept = jnp.asarray(integers(rng, shape, keep) != 0)
        tree[f"k{i}"] = Masked(Clustered(jnp.arange(16.0), jnp.where(kept, indices, 0)), kept)
    return tree


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.jp"


@pytest.mark.parametrize("keep", [1.0, 0.3, 0.05])
def test_banks_round_trip_and_are_predicted(keep, path):
    tree = model(keep=keep)
    save(path, tree)
    assert_same(load(path), tree)
    assert_same(load(path, only="q1|k3"), {"k3": tree["k3"], "q1": tree["q1"]})
    found = inspect(path)
    assert "context" in str(found)
    assert predicted_bytes(tree) == found.bytes.predicted
    assert abs(found.bytes.predicted - found.bytes.data) <= 0.01 * found.bytes.data
    assert sum(row.stored_bytes for row in found.rows) == found.bytes.data


def test_leaves_have_parts_of_their_bank_by_symbols(path):
    """Two integer arrays in one bank, one three times the other; the masks follow from them, the
    scales are apart.
    """
    rng = np.random.default_rng(0)
    q = [jnp.asarray(integers(rng, shape, 0.3)) for shape in ((64, 96), (64, 32))]
    noise = [
        jnp.asarray(rng.standard_normal((1, n), np.float32)) for n in (1, 32)
    ]  # scales that are stored raw
    tree = {f"{i}": Masked(Quantized(x, noise[i], None, 8, F32), x != 0) for i, x in enumerate(q)}
    save(path, tree)
    a, b = inspect(path).rows
    scales = (4, 4 * 32)
    bank = inspect(path).bytes.data - 4 - 4 * 32
    assert a.codecs == b.codecs == ("context", "raw")
    assert (a.stored_bytes - scales[0], b.stored_bytes - scales[1]) == (
        bank * 3 // 4,
        bank - bank * 3 // 4,
    )
    group = predicted_bytes(tree) - sum(scales)
    nodes = [Leaf(key, to_node(x)) for key, x in tree.items()]
    assert predicted_leaf_bytes(nodes) == [
        group * 3 // 4 + scales[0],
        group - group * 3 // 4 + scales[1],
    ]


def test_a_model_with_its_outputs_first_takes_no_more_bytes(path):
    """PyTorch's and Equinox's arrays are coded as their transposes are: rows of outputs, inputs and
    places.
    """
    tree = model()

    def turned(x):
        return jax.tree.map(
            lambda a: jnp.moveaxis(jnp.moveaxis(a, -1, 0), -1, 1) if a.ndim > 1 else a, x
        )

    save(path, {"layer": {key: {"kernel": x} for key, x in tree.items()}})
    last = inspect(path)
    first = {"layer": {key: {"weight": turned(x)} for key, x in tree.items()}}
    save(path, first)
    assert inspect(path).bytes.data == last.bytes.data
    assert inspect(path).rows[0].codecs[0] == "context first"
    assert_same(load(path), first)
    assert_same(load(path, only=".*q1.*"), {"layer": {"q1": first["layer"]["q1"]}})
    assert predicted_bytes(first) == inspect(path).bytes.predicted


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**6), min_size=1).filter(any))
def test_shares_are_whole_and_fair(total, weights):
    parts = shares(total, weights)
    assert sum(parts) == total
    assert all(abs(part - Fraction(total * w, sum(weights))) < 1 for part, w in zip(parts, weights))


def test_the_same_bytes(path):
    save(path, model())
    first = path.read_bytes()
    save(path, model())
    assert path.read_bytes() == first


def test_a_damaged_bank_leaves_the_other_leaves(path):
    tree = {**model(), "bias": jnp.ones(3)}
    save(path, tree)
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    assert_same(load(path, only="bias"), {"bias": tree["bias"]})
    with pytest.raises(FormatError, match=r"bank \d+, byte \d+: the checksum is wrong"):
        load(path)


# --- the page
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1.0, 0.3, 0.05])
def test_the_page_says_how_to_read_a_bank(keep, path):
    """The banks of a file, read by a slow reader that was written from docs/format.md."""
    save(path, model(keep=keep))
    with opened(path) as file:
        found = contents(file)
        decoder = Decoder(file, found)
        assert found.banks
        for bank in found.banks:
            octets = decoder.read_bytes(bank.offset, bank.length, bank.crc)
            expected = decode(octets, bank.rows)
            read = reference.decode(octets, [row.shape for row in bank.rows])
            assert read == [x.ravel().tolist() for x in expected]


@pytest.mark.parametrize(
    "shapes",
    [
        [(4096,)],
        [(3000,), (), (2, 2, 300)],
        [(5000, 1), (1, 300)],  # pieces of which the last is shorter
        [(7, 40, 30), (40, 7, 30), (2, 3, 5, 7), (300, 2)],
    ],
)
def test_the_page_on_arrays_of_any_shape(shapes):
    rng = np.random.default_rng(1)
    arrays = [
        rng.integers(-9, 300, shape).astype(np.int16) // 5 + 2000 * (i % 2)
        for i, shape in enumerate(shapes)
    ]
    members = [grouping.Member(Array("i2", False, np.asarray(x, np.int16))) for x in arrays]
    octets = grouping.fit_bank(members)[0].write()
    rows = [Row("i2", False, shape, False, CONTEXT, i, 0, 0) for i, shape in enumerate(shapes)]
    assert [x.tolist() for x in decode(memoryview(octets), rows)] == [x.tolist() for x in arrays]
    assert reference.decode(octets, shapes) == [x.ravel().tolist() for x in arrays]


def test_classes_have_a_codec_of_their_own():
    array = Array("i1", False, np.random.default_rng(0).integers(-3, 3, (64, 64)).astype(np.int8))
    octets = bytearray(grouping.fit_bank([grouping.Member(array)])[0].write())
    head = reference.Octets(octets)
    for _ in range(4 + 2):
        head.varint()
    assert octets[head.at] <= 2
    octets[head.at] = CONTEXT
    with pytest.raises(FormatError, match="classes of a bank have the codec 3"):
        decode(memoryview(octets), [Row("i1", False, (64, 64), False, CONTEXT, 0, 0, 0)])
