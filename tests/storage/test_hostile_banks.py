"""Banks that are damaged or made to harm: one `FormatError` with its reason and place, in bounded
time and memory."""

import re
import tracemalloc
import zlib

import numpy as np
import pytest

from jaxprune.coding import context_coder, contexts
from jaxprune.coding import table_banks as fitting
from jaxprune.coding.table_banks import Bank
from jaxprune.storage.decoder import Decoder
from jaxprune.storage.files import inspect, load
from jaxprune.storage.format import manifest
from jaxprune.storage.format import words as f
from jaxprune.storage.format.words import FormatError, Row
from jaxprune.storage.streams import context_stream
from tests.storage.hostile import lines_run
from tests.storage.hostile_banks import (
    BANKS,
    GOOD,
    ROW,
    ROWS,
    ZERO,
    bank,
    coded_tables,
    leaves,
    one,
    rans,
    stream,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.jp"


def test_the_good_bank_is_good(path):
    path.write_bytes(GOOD)
    assert load(path, as_="numpy")["w"].tobytes() == bytes(64 * 64)
    path.write_bytes(one("u8", low=-1, each=[(0, 2**64 - 1)]))
    assert (load(path, as_="numpy")["w"] == 2**64 - 2).all()
    path.write_bytes(one(classes=rans([4096])))
    assert not load(path, as_="numpy")["w"].any()


@pytest.mark.parametrize("name", BANKS)
def test_hostile_banks(name, path):
    raw, reason = BANKS[name]
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=re.escape(reason)) as caught, lines_run() as lines:
        load(path, max_bytes=1 << 28)
    assert lines[0] < 20 * len(raw) + 6000
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500
    try:
        inspect(path)
    except FormatError as e:
        assert str(e) == str(caught.value)
    else:  # only the data can show it: the error says which
        assert re.search(r"leaf '\w*', byte \d+: bank \d, byte \d+: ", str(caught.value))


def test_banks_in_any_order(path):
    """Arrays take their places in a bank as the text names them, whatever the banks' order and the
    keys'."""
    rng = np.random.default_rng(0)
    shapes = {"d": (64, 60), "a": (3, 3, 8, 70), "c": (64, 64), "b": (1, 300)}
    words = {key: rng.integers(-3, 4, shape).astype(np.int8) for key, shape in shapes.items()}
    coded = [banked([words["d"], words["b"]]), banked([words["a"], words["c"]])]
    tree = {
        key: ["=i1", list(shape), 3, number]
        for (key, shape), number in zip(shapes.items(), (0, 1, 1, 0))
    }
    path.write_bytes(leaves(tree, *coded))
    for only in (".*", "c", "b|a", "d"):
        back = load(path, only=only)
        assert back.keys() == {key for key in shapes if re.fullmatch(only, key)}
        assert all(np.array_equal(x, words[key]) for key, x in back.items())


def banked(arrays, table=None, lanes=None):
    """The bytes of a bank of int8 arrays; `table` is of all their contexts."""
    shapes = [x.shape for x in arrays]
    order = contexts.layout(shapes)
    flat = contexts.gathered([x.astype(np.int16) for x in arrays], order)
    classes = fitting.fit_classes(arrays)
    ids = fitting.contexts_of(flat, order, classes)
    bank = (
        fitting.fit_bank(ids, flat)
        if table is None
        else Bank(0, np.zeros(256, np.uint8), np.array([table]))
    )
    lanes = lanes or context_coder.lanes_for(order, 8 * order.size)
    head = context_stream.write_head(context_stream.Head(bank, lanes, classes, [0] * len(arrays)))
    return head + context_coder.encode(ids, flat, order, bank, lanes)


@pytest.mark.parametrize(
    "table",
    [
        [4096],
        [0, 4096],
        [4096, 0],
        [0, 0, 4096, 0],
        [1, 4095],
        [4095, 1],
        [2048, 0, 2048],
        [4] * 1024,
        [0] * 1023 + [4096],
    ],
)
def test_extreme_tables(table):
    """Frequencies of 0 to 13 bits come back, whatever the bits that are stored of them."""
    freqs = np.array(table, np.uint16)
    x = (
        np.random.default_rng(0)
        .choice(len(table), 4096, p=freqs / 4096)
        .reshape(64, 64)
        .astype(np.int16)
    )
    found = context_stream.decode(
        memoryview(banked([x], freqs)), [Row("i2", False, (64, 64), False, 3, 0, 0, 0)]
    )
    assert found[0].dtype == np.int16 and np.array_equal(found[0], x)
    said = context_stream.Head(
        Bank(0, np.zeros(256, np.uint8), freqs[None]), 1, fitting.fit_classes([x]), [0]
    )
    assert context_stream.write_head(said).endswith(
        coded_tables(table)
    )  # the bytes that the specification makes


def test_memory_is_checked_before_a_bank_is_decoded(path):
    tree = {"a": ["i8", [64, 64], 3, 0], "b": ["i8", [2048, 1024], 3, 0]}
    path.write_bytes(leaves(tree, bank(each=(ZERO, ZERO))))
    total = 8 * (64 * 64 + 2048 * 1024)
    total += (
        2 * (64 * 64 + 2048 * 1024) + 2 * 2048 * 1024
    )  # symbols of all, and of the largest array
    tracemalloc.start()
    for only in (None, "a", "b"):  # a bank is decoded whole
        with pytest.raises(
            FormatError, match=f"{total} bytes decoded, more than max_bytes={total - 1}"
        ):
            load(path, only=only, max_bytes=total - 1)
    assert tracemalloc.get_traced_memory()[1] < 1 << 18
    tracemalloc.stop()
    path.write_bytes(leaves({"a": ROW}, bank()))
    total = (
        64 * 64 + 2 * 64 * 64 + (10 + 40) * ROWS + 2 * 4
    )  # symbols, contexts of rows, and columns of 4 pieces
    assert load(path, max_bytes=total)["a"].shape == (64, 64)
    with pytest.raises(FormatError, match=f"{total} bytes"):
        load(path, max_bytes=total - 1)


@pytest.mark.parametrize(
    "shape, dtype, lanes",
    [
        ((1, 2**20), "i1", 900),
        ((1, 2**19), "i8", 32),
        ((512, 1024), "u1", 64),
        ((5000, 60), "i1", 40),
    ],
)
@pytest.mark.parametrize("codec", f.BANKED)
def test_a_decoder_takes_the_memory_that_is_counted(shape, dtype, lanes, codec):
    """Rows of one column have the most contexts a symbol; lanes are few or many."""
    x = np.random.default_rng(0).choice(3, shape, p=[0.9, 0.06, 0.04]).astype(np.int8)
    octets = memoryview(banked([x], np.array([3700, 240, 156]), lanes))
    x = x if codec == f.CONTEXT else x.T
    rows = [Row(dtype, False, x.shape, False, codec, 0, 0, 0)]
    tracemalloc.start()
    (words,) = context_stream.decode(octets, rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(words, x)
    counted = words.nbytes + context_stream.working_bytes(rows)
    assert 0.6 * counted < peak < counted + (1 << 20)  # tables, lanes, and the places of a piece


def test_a_damaged_bank_is_decoded_once(path, monkeypatch):
    decoded = []
    whole = context_stream.decode
    monkeypatch.setattr(
        context_stream, "decode", lambda *args: decoded.append(args) or whole(*args)
    )
    n = 8
    good = bank(each=[ZERO] * n)
    bad = bank(each=[ZERO] * n, tail=stream(words=[7]))
    path.write_bytes(leaves({f"{i:02}": [*ROW[:3], i % 2] for i in range(2 * n)}, good, bad))
    with manifest.open_regular(path) as file:
        found = manifest.contents(file)
        decoder = Decoder(file, found)
        for i, leaf in enumerate(found.leaves):
            if i % 2 == 0:
                assert not decoder.read(leaf).words.any()
                continue
            with pytest.raises(
                FormatError, match=rf"leaf '{i:02}', byte \d+: bank 1, byte \d+: 1 words are left"
            ):
                decoder.read(leaf)
    assert len(decoded) == 2 and not decoder.waiting[0]


def test_a_bank_of_another_checksum_leaves_the_others(path):
    path.write_bytes(
        leaves(
            {"a": ROW, "b": [*ROW[:3], 1]}, bank(), bank(low=1), crcs=[0, 0, zlib.crc32(bank()), 1]
        )
    )
    assert not load(path, only="a", as_="numpy")["a"].any()
    with pytest.raises(
        FormatError, match=r"leaf 'b', byte \d+: bank 1, byte \d+: the checksum is wrong"
    ):
        load(path)
