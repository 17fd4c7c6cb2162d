"""Classes and tables that are chosen: they cover what is coded, and pay for themselves."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxprune.coding import code_lengths as codes
from jaxprune.coding import contexts
from jaxprune.coding import table_banks as banks
from jaxprune.coding.contexts import Classes

quick = settings(deadline=None, max_examples=60, derandomize=True)


def information(counts):
    """n H of each row's symbols, with what its table takes."""
    return sum(codes.entropy_bits(row) + 16 + 9 * np.count_nonzero(row) for row in counts)


def counts_of(ids, values, table_of, tables):
    found = np.zeros((tables, int(values.max()) - int(values.min()) + 1), int)
    np.add.at(found, (table_of[ids], values - values.min()), 1)
    return found


def drawn(n, contexts, spread, seed):
    rng = np.random.default_rng(seed)
    ids = rng.choice(rng.choice(256, contexts, replace=False), n).astype(np.uint8)
    return ids, np.rint(rng.standard_normal(n) * np.exp(ids / 256 * spread)).astype(np.int16)


@quick
@given(st.integers(1, 3000), st.integers(1, 256), st.floats(0, 5), st.integers(0, 999))
def test_tables_cover_what_is_coded_and_merging_pays(n, contexts, spread, seed):
    ids, values = drawn(n, contexts, spread, seed)
    bank = banks.fit_bank(ids, values)
    assert bank.low == values.min() and bank.low + bank.freqs.shape[1] - 1 == values.max()
    assert bank.table_of.shape == (256,) and set(bank.table_of.tolist()) == set(
        range(len(bank.freqs))
    )
    assert len(bank.freqs) <= banks.MOST_TABLES and (bank.freqs.sum(1) == 4096).all()
    assert (bank.freqs[bank.table_of[ids], values - bank.low] > 0).all()
    cost = information(counts_of(ids, values, bank.table_of, len(bank.freqs)))
    assert cost <= information(counts_of(ids, values, np.zeros(256, int), 1)) + 1e-6
    if len(set(ids.tolist())) <= banks.MOST_TABLES:
        assert cost <= information(counts_of(ids, values, np.arange(256), 256)) + 16 * 256


def test_merging_goes_on_while_it_pays():
    """No two neighbours, by mean magnitude, are left whose merging would save bits."""
    ids, values = drawn(20_000, 40, 4, 0)
    bank = banks.fit_bank(ids, values)
    counts = counts_of(ids, values, bank.table_of, len(bank.freqs))
    assert 1 < len(counts) < 40
    for a, b in itertools.pairwise(counts):
        assert information([a + b]) >= information([a, b]) - 1e-6


def test_contexts_alike_share_a_table_and_others_do_not():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.array([3, 90, 91, 200], np.uint8), 4000)
    values = np.concatenate(
        [np.zeros(4000, int), rng.integers(-1, 2, 8000), rng.integers(-30, 31, 4000)]
    )
    bank = banks.fit_bank(ids, values.astype(np.int16))
    assert bank.table_of[[3, 90, 91, 200]].tolist() == [0, 1, 1, 2]
    assert bank.table_of[[2, 4, 89, 150, 199, 255]].tolist() == [
        0,
        0,
        0,
        1,
        1,
        2,
    ]  # unused ones: as the one before
    each = np.full((3, 61), 0)
    each[0, 30] = 4096
    each[1, 29:32] = 1365
    each[2] = 67
    assert np.abs(bank.freqs.astype(int) - each).max() < 60


def test_never_more_than_64_tables():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(256), 2000).astype(np.uint8)
    values = (ids.astype(np.int16) * 3 + rng.integers(0, 3, ids.size)).astype(np.int16)
    bank = banks.fit_bank(ids, values)
    assert len(bank.freqs) == 64 and (bank.freqs[bank.table_of[ids], values - bank.low] > 0).all()


# --- classes
# ---------------------------------------------------------------------------------------


def coded_bits(arrays, classes):
    """Bits of the arrays and of their classes."""
    order = contexts.layout([x.shape for x in arrays])
    flat = contexts.gathered(arrays, order)
    ids = banks.contexts_of(flat, order, classes)
    said = np.concatenate([part for c in classes for part in c[1:]])
    bank = banks.fit_bank(ids, flat)
    return float(banks.bits(ids, flat, bank).sum()) + codes.entropy_bits(np.bincount(said + 15))


def flat_classes(classes):
    return [Classes(c.level, *(np.zeros_like(part) for part in c[1:])) for c in classes]


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_classes_pay_where_an_axis_is_uneven(axis):
    rng = np.random.default_rng(axis)
    shape = (5, 5, 30, 40)
    uneven = np.exp(1.5 * rng.standard_normal([n if i == axis else 1 for i, n in enumerate(shape)]))
    x = np.rint(np.clip(rng.laplace(size=shape) * uneven, -300, 300)).astype(np.int16)
    classes = banks.fit_classes([x])
    assert coded_bits([x], classes) < 0.97 * coded_bits([x], flat_classes(classes))
    places = classes[0].places.reshape(5, 5)
    found = (places[:, 0], places[0], classes[0].inputs, classes[0].outputs)[axis]
    assert np.corrcoef(found, np.log2(uneven).ravel())[0, 1] > 0.9


def test_even_arrays_are_told_nothing():
    x = np.random.default_rng(0).integers(-3, 4, (64, 64)).astype(np.int16)
    (classes,) = banks.fit_classes([x])
    assert classes.level == round(2 * np.log2(np.abs(x).mean()))
    assert not classes.outputs.any() and not classes.inputs.any() and not classes.places.any()


@quick
@given(
    st.lists(
        st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple), min_size=1, max_size=4
    ),
    st.data(),
)
def test_classes_are_in_range(shapes, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    size = data.draw(st.sampled_from([0, 0.3, 5, 500]))
    arrays = [
        np.rint(np.clip(size * rng.standard_normal(shape) ** 3, -512, 511)).astype(np.int16)
        for shape in shapes
    ]
    for x, c in zip(arrays, banks.fit_classes(arrays), strict=True):
        places, inputs, outputs = contexts.view_of(x.shape)
        assert (c.outputs.size, c.inputs.size, c.places.size) == (outputs, inputs, places)
        assert -16 <= c.level <= 16 and all(
            part.dtype == np.int8 and abs(part).max() <= 15 for part in c[1:]
        )
