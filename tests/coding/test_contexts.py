"""The order of coding and the contexts against the same one symbol at a time; the coder against the
textbook's.
"""

import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxprune.coding import context_coder, contexts, rans
from jaxprune.coding import lanes as coder
from jaxprune.coding import table_banks as banks
from jaxprune.coding.contexts import EXPECTED, Classes
from tests.reference import contexts as ref

quick = settings(deadline=None, max_examples=60, derandomize=True)

SHAPES = {
    "one element": [()],
    "a vector": [(37,)],
    "a row of one column": [(1, 40)],
    "a column": [(70, 1)],
    "a matrix in pieces": [(50, 9)],
    "a kernel": [(3, 2, 5, 4)],
    "one axis more": [(2, 1, 3, 6, 2)],
    "several": [(3, 3, 2, 4), (17, 5), (6,), (), (40, 3), (1, 7), (16, 2)],
    "equal lengths": [(4, 3), (2, 2, 1, 5), (4, 2)],
    "pieces longer than 16": [(130, 60), (19, 4), (1, 3)],
    "pieces of 16, but for a symbol": [(4351, 1)],
    "pieces of 17": [(4352, 1)],
}


def some(shapes, seed=0, size=4.0):
    """Arrays of small integers with uneven rows, and classes that know nothing of them."""
    rng = np.random.default_rng(seed)
    arrays = []
    classes = []
    for shape in shapes:
        x = rng.laplace(size=shape) * size * np.exp(rng.standard_normal(shape[-1:]))
        arrays.append(np.asarray(np.rint(np.clip(x, -400, 400)), np.int16))
        places, inputs, outputs = contexts.view_of(shape)

        def part(n):
            return rng.integers(-15, 16, n).astype(np.int8)

        classes.append(
            Classes(int(rng.integers(-16, 17)), part(outputs), part(inputs), part(places))
        )
    return arrays, classes


def agrees(shapes, seed, size=4.0):
    arrays, classes = some(shapes, seed, size)
    order = contexts.layout(shapes)
    flat = contexts.gathered(arrays, order)
    assert flat.tolist() == ref.gathered(arrays)
    for x, back in zip(arrays, contexts.scattered(flat, shapes, order)):
        assert back.dtype == x.dtype and np.array_equal(back, x)
    assert contexts.sums(flat, order).tolist() == [x.sum() for x in arrays]
    ids = banks.contexts_of(flat, order, classes)
    assert ids.tolist() == ref.contexts_of(arrays, classes)
    return arrays, classes, order, flat, ids


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    agrees(SHAPES[name], 1)


axes = st.lists(st.integers(1, 7), max_size=5).map(tuple)
longer = st.tuples(st.integers(1, 60), st.integers(1, 40))


@quick
@given(
    st.lists(axes | longer, min_size=1, max_size=5),
    st.integers(0, 999),
    st.sampled_from([0.1, 2.0, 90.0]),
)
def test_any_arrays(shapes, seed, size):
    agrees(shapes, seed, size)


@pytest.mark.slow
def test_pieces_have_at_most_1024_columns():
    shapes = [(1500, 200), (30, 3)]
    order = agrees(shapes, 2)[2]
    assert [(p.start, p.length) for p in order.pieces] == [(0, 750), (750, 750), (0, 30)]
    assert max(piece.length for piece in contexts.layout([(2**20, 1)]).pieces) <= 1024


def test_every_context_is_met():
    """Classes 0 … 31 and neighbours −4 … 3, so that the comparison with the reference is one of all
    of them.
    """
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (600, 1)) * rng.integers(0, 300, (600, 64))
    x[:, :32] //= 100

    def part(n):
        return np.repeat(np.arange(-15, 16), -(-n // 31))[:n].astype(np.int8)

    classes = [Classes(0, part(64), rng.permutation(part(600)), np.zeros(1, np.int8))]
    order = contexts.layout([x.shape])
    flat = contexts.gathered([x.astype(np.int16)], order)
    ids = banks.contexts_of(flat, order, classes)
    assert set((ids // 8).tolist()) == set(range(32)) and set((ids % 8).tolist()) == set(range(8))
    assert ids.tolist() == ref.contexts_of([x], classes)


def test_integers_follow_the_formulas():
    """The context is that of real numbers, up to one step of g where the linear mantissa or 1/16
    matter.
    """
    arrays, classes = some([(60, 20), (3, 3, 4, 10)], 3)
    gaps = [
        int(np.clip(np.floor(g), -4, 3)) - (i % 8 - 4)
        for i, (c, g) in zip(
            ref.contexts_of(arrays, classes), ref.real_contexts_of(arrays, classes)
        )
        if c == i // 8
    ]
    assert len(gaps) == 60 * 20 + 360
    assert max(map(abs, gaps)) <= 1 and np.mean(np.abs(gaps)) < 0.1
    assert EXPECTED.tolist() == [round(16 * 2 ** ((c - 16) / 2)) for c in range(32)]


# --- the coder
# ---------------------------------------------------------------------------------------


@pytest.mark.slow
@quick
@given(st.lists(axes | longer, min_size=1, max_size=4), st.integers(0, 999), st.integers(1, 50))
def test_stream_equals_the_textbook(shapes, seed, lanes):
    arrays, classes, order, flat, ids = agrees(shapes, seed)
    bank = banks.fit_bank(ids, flat)
    lanes = min(lanes, order.rows)
    stream = context_coder.encode(ids, flat, order, bank, lanes)
    assert stream == ref.encode(
        arrays, classes, bank.low, bank.table_of.tolist(), bank.freqs.tolist(), lanes
    )
    back = context_coder.decode(stream, order, classes, bank, lanes)
    assert back.dtype == np.int16 and np.array_equal(back, flat)


@pytest.mark.parametrize("lanes", [1, 59, 60, 61])
def test_runs_at_the_ends_of_columns(lanes):
    arrays, classes, order, flat, ids = agrees([(18, 30), (7, 1)], 4)
    assert [band.rows for band in order.bands] == [61, 60]
    bank = banks.fit_bank(ids, flat)
    stream = context_coder.encode(ids, flat, order, bank, lanes)
    assert stream == ref.encode(
        arrays, classes, bank.low, bank.table_of.tolist(), bank.freqs.tolist(), lanes
    )
    assert np.array_equal(context_coder.decode(stream, order, classes, bank, lanes), flat)


def test_length_is_the_bits_that_are_said():
    _, _, order, flat, ids = agrees([(90, 90), (3, 3, 8, 16)], 5)
    bank = banks.fit_bank(ids, flat)
    bits = banks.bits(ids, flat, bank)
    assert bits[:50].tolist() == pytest.approx(
        [
            12 - np.log2(bank.freqs[bank.table_of[i], v - bank.low])
            for i, v in zip(ids[:50], flat[:50])
        ],
        rel=1e-6,
    )
    lanes = context_coder.lanes_for(order, float(bits.sum()))
    stream = context_coder.encode(ids, flat, order, bank, lanes)
    assert abs(8 * len(stream) - bits.sum() - 24 * lanes) <= 16 * lanes
    assert (
        context_coder.lanes_for(order, 1e12) == order.rows
        and context_coder.lanes_for(order, 0) == 1
    )


def test_decode_refuses():
    _, classes, order, flat, ids = agrees([(40, 30)], 6)
    bank = banks.fit_bank(ids, flat)
    stream = context_coder.encode(ids, flat, order, bank, 4)
    other = bank.table_of.copy()
    other[7] = len(bank.freqs)
    sums = bank.freqs.copy()
    sums[0, sums[0].argmax()] += 1
    long = contexts.layout([(2**15, 1)])
    for buffer, at, b, lanes, message in (
        (stream, order, bank, 0, "0 lanes"),
        (stream, order, bank, order.rows + 1, f"{order.rows + 1} lanes"),
        (stream, long, bank, 1, "1 lanes for 32768"),
        (stream[:-2], order, bank, 4, "truncated"),
        (stream[:15], order, bank, 4, "15 bytes"),
        (stream[:-1], order, bank, 4, "whole words"),
        (stream + b"\0\0", order, bank, 4, "1 words are left over"),
        (b"\xff\xff\0\0" + stream[4:], order, bank, 4, "below"),
        (stream, order, bank._replace(table_of=other), 4, "not among"),
        (stream, order, bank._replace(table_of=bank.table_of[:-1]), 4, "255 contexts"),
        (stream, order, bank._replace(freqs=sums), 4, "sum to 4096"),
    ):
        with pytest.raises(rans.StreamError, match=message):
            context_coder.decode(buffer, at, classes, b, lanes)


def test_a_state_that_does_not_come_to_rest():
    order = contexts.layout([(4, 4)])
    bank = banks.Bank(0, np.zeros(256, np.uint8), np.array([[4096]], np.uint16))
    classes = [Classes(0, *(np.zeros(n, np.int8) for n in (4, 4, 1)))]
    good = (1 << 16).to_bytes(4, "little")
    assert not context_coder.decode(good, order, classes, bank, 1).any()
    with pytest.raises(rans.StreamError, match="initial state"):
        context_coder.decode((65537).to_bytes(4, "little"), order, classes, bank, 1)


@pytest.mark.parametrize("lanes", [3, 40, 61, 64])
def test_columns_are_decoded_in_blocks(lanes, monkeypatch):
    """A column of 64 rows in blocks of 7: whole runs of lanes, and runs in several parts."""
    _, classes, order, flat, ids = agrees([(90, 64)], 7)
    bank = banks.fit_bank(ids, flat)
    stream = context_coder.encode(ids, flat, order, bank, lanes)
    monkeypatch.setattr(context_coder, "BLOCK", 7)
    monkeypatch.setattr(coder, "CHUNK", 5)
    monkeypatch.setattr(banks, "CHUNK", 50)
    assert np.array_equal(context_coder.decode(stream, order, classes, bank, lanes), flat)
    assert np.array_equal(banks.contexts_of(flat, order, classes), ids)


@pytest.mark.parametrize("lanes", [1, 40])
def test_wide_and_narrow_pieces(lanes):
    """Pieces are moved at once or by columns, as they have fewer rows than `NARROW` or not."""
    _, classes, order, flat, ids = agrees([(2, 5, 63), (9, 65), (2, 2, 3, 64)], 8)
    bank = banks.fit_bank(ids, flat)
    stream = context_coder.encode(ids, flat, order, bank, lanes)
    assert np.array_equal(context_coder.decode(stream, order, classes, bank, lanes), flat)


def test_work_is_linear_in_symbols():
    """Arrays of all lengths: pieces times bands would be 2 million steps, tens of seconds."""
    shapes = [(n, 1) for n in range(1, 1025) for _ in range(4)]
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-2, 3, shape).astype(np.int16) for shape in shapes]

    def zeros(n):
        return np.zeros(n, np.int8)

    begin = time.process_time()
    order = contexts.layout(shapes)
    flat = contexts.gathered(arrays, order)
    contexts.Contexts(order, [Classes(0, zeros(1), zeros(n), zeros(1)) for n, _ in shapes])
    assert all(map(np.array_equal, contexts.scattered(flat, shapes, order), arrays))
    assert time.process_time() - begin < 3  # 0.2 s on a quiet core


def test_one_lane_is_not_slow():
    order = contexts.layout([(128, 128)])
    classes = [Classes(0, *(np.zeros(n, np.int8) for n in (128, 128, 1)))]
    bank = banks.Bank(0, np.zeros(256, np.uint8), np.array([[2048, 2048]], np.uint16))
    flat = np.random.default_rng(0).integers(0, 2, order.size).astype(np.int16)
    stream = context_coder.encode(np.zeros(order.size, np.uint8), flat, order, bank, 1)
    begin = time.process_time()
    for _ in range(10):
        context_coder.decode(stream, order, classes, bank, 1)
    assert time.process_time() - begin < 1  # 0.05 s on a quiet core; array by array 1.1 s
