"""Which arrays share a bank: those that gain by it, in batches and sizes that a reader takes."""

import numpy as np
import pytest

from jaxprune.storage.files import inspect, load, save
from jaxprune.storage.format import manifest
from jaxprune.storage.format import words as f
from jaxprune.storage.format.words import Array, Leaf
from jaxprune.storage.prediction import predicted_bytes
from jaxprune.storage.streams import grouping, smallest
from tests.storage.hostile import lines_run
from tests.storage.trees import assert_same

rng = np.random.default_rng(0)


def uneven(*shape, size=2.0, dtype=np.int8, middle=0):
    """Integers whose outputs differ: a bank takes some fifth less than a stream by itself."""
    x = rng.laplace(size=shape) * np.exp(1.5 * rng.standard_normal(shape[-1])) * size
    return (np.rint(np.clip(x, -120, 120)) + middle).astype(dtype)


def even(*shape):
    """All that a bank says of it is lost."""
    return rng.integers(-128, 128, shape).astype(np.int8)


def array(x):
    if x.dtype == bool:
        return Array("?", True, x.view(np.uint8))
    return Array(f.CODE_OF[x.dtype.name], True, x)


def members(*arrays):
    """The numbers of the arrays in each bank."""
    every = [x if isinstance(x, Array) else array(x) for x in arrays]
    number = {id(x): i for i, x in enumerate(every)}
    banked = grouping.banks_of([grouping.Member(x) for x in every])
    return [[number[id(member.array)] for member in group.members] for group in banked]


def test_what_loses_stays_out():
    assert members(uneven(60, 60), even(90, 90), uneven(3, 3, 20, 30), even(64, 64)) == [[0, 2]]
    assert (
        members(even(90, 90)) == members(uneven(60, 60)) == members() == []
    )  # the second has too few symbols
    assert members(uneven(80, 80)) == [[0]]


def test_masks_and_integers_are_apart():
    arrays = [
        uneven(80, 80),
        uneven(80, 80) > 4,
        uneven(80, 80).astype(np.int16),
        uneven(90, 90) > 6,
    ]
    assert members(*arrays) == [[1, 3], [0, 2]]


def test_what_a_bank_cannot_hold():
    for other in (
        uneven(6400),  # of one axis
        np.zeros((80, 80), np.int8),  # of one value
        Array("i1", True, uneven(80, 80), rng.random((80, 80)) < 0.9),  # under a mask
        Array("f4", True, np.abs(uneven(80, 80)).astype(np.uint32)),
        Array("float8_e5m2", True, np.abs(uneven(80, 80)).astype(np.uint8)),
        uneven(80, 0),
    ):
        assert members(other, uneven(80, 80)) == [[1]]
    x = uneven(80, 80, dtype=np.int16)
    for top, fits in ((x.min() + 511, True), (x.min() + 512, False)):
        x[0, 0] = top
        assert members(x) == ([[0]] if fits else [])


@pytest.mark.parametrize("middle", [-2000, -700, 0, 130, 5000])
def test_integers_far_from_0(middle, tmp_path):
    tree = {"x": uneven(80, 80, dtype=np.int16, middle=middle), "y": uneven(90, 90)}
    save(tmp_path / "x", tree)
    assert [row.codecs for row in inspect(tmp_path / "x").rows] == [("context",)] * 2
    assert_same(load(tmp_path / "x"), tree)


def test_too_few_symbols_for_a_bank(tmp_path):
    for shape, codec in (((63, 65), "rans"), ((64, 64), "context")):
        x = uneven(*shape, size=8)
        save(tmp_path / "x", x)
        assert inspect(tmp_path / "x").rows[0].codecs == (codec,)
        assert_same(load(tmp_path / "x"), x)


def test_too_many_symbols_for_one_bank(monkeypatch, tmp_path):
    """Arrays that are too many for a bank together have one each; a batch is no larger than a
    bank.
    """
    arrays = {str(i): uneven(80, 80) for i in range(5)}
    monkeypatch.setattr(f, "MOST_BANK", 2 * 6400)
    assert members(*arrays.values()) == [[i] for i in range(5)]
    assert members(*list(arrays.values())[:2]) == [[0, 1]]
    leaves = [Leaf(path, array(x)) for path, x in arrays.items()]
    assert [len(batch) for batch in grouping.batches(leaves)] == [2, 2, 1]
    assert [
        len(batch) for batch in grouping.batches([Leaf("", array(uneven(300, 80))), *leaves])
    ] == [1, 2, 2, 1]
    save(tmp_path / "x", arrays)
    assert [row.bank for row in rows(tmp_path / "x")] == [0, 0, 1, 1, 2]
    assert_same(load(tmp_path / "x"), arrays)
    monkeypatch.setattr(f, "MOST_OF_ONE", 6399)
    assert members(*arrays.values()) == []


def rows(path):
    with manifest.open_regular(path) as file:
        return [leaf.node for leaf in manifest.contents(file).leaves]


def test_a_bank_is_smaller_than_the_streams_and_as_predicted():
    arrays = [array(uneven(80, 80)), array(uneven(3, 3, 30, 40))]
    (group,) = grouping.banks_of([grouping.Member(x) for x in arrays])
    octets = group.write()
    assert abs(len(octets) - group.size) <= 16
    assert len(octets) < sum(
        len(b"".join(smallest.encode(x.words.ravel(), f.DTYPES["i1"])[1])) for x in arrays
    )
    assert predicted_bytes([x.words for x in arrays]) == group.size


def test_batches_cost_as_much_for_each_leaf_however_many_there_are():
    def lines(n):
        leaves = [Leaf(str(i), array(np.zeros(2, np.int8))) for i in range(n)]
        with lines_run() as count:
            assert [len(batch) for batch in grouping.batches(leaves)] == [n]
        return count[0]

    assert lines(400) < 5 * lines(100)
