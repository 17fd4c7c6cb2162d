"""Floats in planes: every bit comes back, whatever it means; small where something can be saved;
hostile streams."""

import contextlib
import lzma
import struct
import zlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.storage import reader
from jaxprune.storage.format import words as f
from jaxprune.storage.format.words import FormatError
from jaxprune.storage.streams import lzma_stream, planes, repeats, smallest
from jaxprune.storage.streams.byte_sources import FileSource

RNG = np.random.default_rng(5)
WEIGHTS = (0.05 * RNG.standard_normal((300, 200)) * np.exp(RNG.standard_normal((300, 1)))).astype(
    np.float32
)


def zeroed(x, share):
    return np.where(RNG.random(x.shape) < share, np.zeros((), x.dtype), x)


def dense_again(x, bits):
    """Rounded to integers with a scale for each row, and multiplied out."""
    scale = np.abs(x).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    return (np.rint(x / scale) * scale).astype(x.dtype)


ARRAYS = {
    "float32": WEIGHTS,
    "bfloat16": WEIGHTS.astype(ml_dtypes.bfloat16),
    "float16": WEIGHTS.astype(np.float16),
    "float64": WEIGHTS[:30].astype(np.float64),
    "90% zeros": zeroed(WEIGHTS, 0.9),
    "90% zeros, bfloat16": zeroed(WEIGHTS, 0.9).astype(ml_dtypes.bfloat16),
    "16 values": WEIGHTS.ravel()[RNG.integers(0, 16, 50_000)],
    "1,000 values": WEIGHTS.ravel()[RNG.integers(0, 1000, 50_000)],
    "200 values, bfloat16": np.arange(200).astype(ml_dtypes.bfloat16)[RNG.integers(0, 200, 50_000)],
    "a ramp": np.arange(50_000, dtype=np.float32),
    "sorted": np.sort(WEIGHTS.ravel()),
    "one-hot": np.eye(256, dtype=np.float32),
    "a causal mask": np.where(np.tri(200), 0, -np.inf).astype(np.float32),
    "copies of rows": np.tile(WEIGHTS[:80], (5, 1)),
    "rows by lot": WEIGHTS[RNG.integers(0, 30, 300)],
    "whole numbers": np.rint(50 * RNG.standard_normal(50_000)).astype(np.float32),
    "NaNs of many payloads": RNG.integers(0x7F800001, 0x7FFFFFFF, 5000, np.uint32).view(np.float32),
    "zeros of both signs": np.where(RNG.random(5000) < 0.5, np.float32(-0.0), np.float32(0)),
    "denormals": RNG.integers(0, 1 << 20, 5000, np.uint32).view(np.float32),
    "noise": RNG.integers(0, 2**32, 5000, np.uint32).view(np.float32),
    "one": np.float32([3]),
    "a scalar": np.float32(3).reshape(()),
    "none": np.zeros((3, 0), np.float32),
    "an odd length": WEIGHTS.ravel()[:12_347],
    "8 bits a row": dense_again(WEIGHTS, 8),
    "4 bits a row": dense_again(WEIGHTS, 4),
    "4 bits a row, float16": dense_again(WEIGHTS, 4).astype(np.float16),
    "a grid, float16": (np.rint(500 * WEIGHTS) / 100).astype(np.float16),
    "99.9% zeros": zeroed(WEIGHTS, 0.999),
    "97.5% minus infinity": np.where(RNG.random((200, 200)) < 0.975, -np.inf, 0).astype(np.float32),
    "a table, tiled, int16": np.tile(RNG.integers(-3000, 3000, 4096, np.int16), 16),
    "a table, tiled, int64": np.tile(RNG.integers(-(2**62), 2**62, 4096, np.int64), 8),
    "a table, tiled, float8": np.tile(RNG.integers(0, 250, 4096, np.uint8), 16).view(
        ml_dtypes.float8_e4m3fnuz
    ),
    "positions": np.arange(-300, 40_000, dtype=np.int32),
    "times": np.cumsum(RNG.integers(0, 3 << 30, 5000, np.int64)),
    "a causal mask, bool": np.tri(200).astype(bool),
    "columns first": np.asfortranarray(WEIGHTS),
    "every other column": WEIGHTS[:, ::2],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_every_bit_comes_back_in_fewer_bytes_than_general_coders_take(name, tmp_path):
    """Deflate and LZMA stand for what people use; the file has 300 bytes for a header besides."""
    x = ARRAYS[name]
    jp.save(tmp_path / "x", {"w": x})
    for back in (jp.load(tmp_path / "x")["w"], jp.load(tmp_path / "x", as_="numpy")["w"]):
        assert back.dtype == x.dtype and back.shape == x.shape and back.tobytes() == x.tobytes()
    stored = jp.inspect(tmp_path / "x").bytes.data
    assert stored <= len(zlib.compress(x.tobytes(), 9)) + 8
    assert (
        stored
        <= 1.075 * len(lzma.compress(x.tobytes(), lzma.FORMAT_RAW, filters=[lzma_stream.LZMA])) + 8
    )
    assert abs(jp.inspect(tmp_path / "x").bytes.predicted - stored) <= 0.01 * stored


def test_sizes_are_near_what_the_numbers_are_worth():
    """Independent weights: the exponent's entropy and all bits of the mantissa; few values: the
    entropy of which."""
    x = RNG.standard_normal(1 << 18).astype(np.float32)
    _, times = np.unique(x.view(np.uint32) << 1 >> 24, return_counts=True)
    share = times / times.sum()
    bits = 24 - (share * np.log2(share)).sum()
    assert 8 * planes.size(x.view(np.uint32)) < 1.005 * bits * x.size
    skewed = np.minimum(RNG.geometric(0.4, 1 << 18), 30).astype(np.float32)
    share = np.unique(skewed, return_counts=True)[1] / skewed.size
    assert (
        8 * planes.size(skewed.view(np.uint32))
        < 1.06 * -(share * np.log2(share)).sum() * skewed.size
    )


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_blocks_of_all_forms_and_their_borders(dtype, monkeypatch):
    monkeypatch.setattr(planes, "BLOCK", 1 << 12)
    step = planes.BLOCK // np.dtype(dtype).itemsize
    for n in (step - 1, step, step + 1, 3 * step + 5):
        noise = RNG.integers(0, np.iinfo(dtype).max, n, dtype)
        sparse = np.where(RNG.random(n) < 0.7, dtype(7), noise)
        rare = np.where(RNG.random(n) < 0.99, dtype(7), noise)
        for words in (noise, sparse, rare, noise[RNG.integers(0, 9, n)]):
            stream = b"".join(planes.encode(words))
            back = planes.decode(stream, n, np.dtype(dtype).str[1:])
            assert back.dtype == dtype and np.array_equal(back, words)


def test_large_arrays_are_predicted_from_pieces(monkeypatch):
    x = np.repeat(WEIGHTS.ravel(), 1)
    monkeypatch.setattr(planes, "EXACT_SIZE", 1 << 14)
    monkeypatch.setattr(planes, "SAMPLE", 1 << 12)
    exact = sum(map(len, planes.encode(x.view(np.uint32))))
    assert planes.size(x.view(np.uint32)) == pytest.approx(exact, rel=0.01)


def test_what_repeats_far_away_is_found_and_chance_is_not():
    def seen(x):
        return repeats.has_copies(x.ravel().view(f"u{x.itemsize}"))

    assert seen(ARRAYS["copies of rows"]) and seen(ARRAYS["rows by lot"])
    assert not any(
        seen(ARRAYS[name])
        for name in ("float32", "90% zeros, bfloat16", "16 values", "noise", "one")
    )
    assert not seen(np.zeros(100_000, np.float32))


def test_lzma_is_not_tried_where_copies_are_too_far_away(monkeypatch):
    far = np.tile(WEIGHTS, (2, 1))
    assert repeats.has_copies(far.ravel().view(np.uint32))
    monkeypatch.setattr(repeats, "DICTIONARY", WEIGHTS.nbytes)
    assert not repeats.has_copies(far.ravel().view(np.uint32))


def test_lzma_gives_up_where_two_dictionaries_bring_nothing(monkeypatch):
    words = np.concatenate(
        [RNG.integers(0, 2**32, 200_000, np.uint32), np.zeros(800_000, np.uint32)]
    )
    monkeypatch.setattr(lzma_stream, "PIECE", 1 << 14)
    assert lzma_stream.encode(words, words.nbytes // 2) is not None
    monkeypatch.setattr(lzma_stream, "DICTIONARY", 1 << 16)
    assert lzma_stream.encode(words, words.nbytes // 2) is None


def test_a_stream_is_read_from_the_file_block_by_block(tmp_path, monkeypatch):
    """The reader never holds a float leaf's bytes and its array both."""
    monkeypatch.setattr(planes, "BLOCK", 1 << 14)
    jp.save(tmp_path / "x", {"w": WEIGHTS})
    largest = []
    take = FileSource.take

    def watched(self, n):
        largest.append(n)
        return take(self, n)

    monkeypatch.setattr(FileSource, "take", watched)
    assert reader.read(tmp_path / "x")["w"].tobytes() == WEIGHTS.tobytes()
    assert max(largest) <= 1 << 12


def test_files_without_floats_in_planes_are_of_version_1(tmp_path):
    jp.save(tmp_path / "old", {"w": jnp.arange(30, dtype=jnp.int8), "b": jnp.ones(3)})
    jp.save(tmp_path / "new", {"w": WEIGHTS})
    assert b'"jaxprune":"1"' in (tmp_path / "old").read_bytes()[:60]
    octets = (tmp_path / "new").read_bytes()
    assert b'"jaxprune":"2"' in octets[:60]
    (tmp_path / "wrong").write_bytes(octets.replace(b'"jaxprune":"2"', b'"jaxprune":"1"', 1))
    with pytest.raises(FormatError, match="codec"):
        jp.load(tmp_path / "wrong")


# --- hostile
# ---------------------------------------------------------------------------------------

STREAM = b"".join(planes.encode(WEIGHTS.ravel()[:5000].view(np.uint32)))
SPARSE = b"".join(planes.encode(zeroed(WEIGHTS, 0.8).ravel()[:5000].view(np.uint32)))
RARE = b"".join(planes.encode(zeroed(WEIGHTS, 0.99).ravel()[:5000].view(np.uint32)))
PALETTE = b"".join(planes.encode(ARRAYS["1,000 values"][:9000].view(np.uint32)))
LZMA = b"".join(lzma_stream.encode(WEIGHTS.ravel()[:5000].view(np.uint32), 1 << 20) or [])
KINDS = ["planes", "sparse", "rare", "palette", "lzma", "escape"]
TAILS = np.rint(3 * RNG.standard_cauchy(5000)).clip(-32767, 32767).astype(np.int16)
ESCAPED = b"".join(smallest.encode(TAILS, f.DTYPES["i2"])[1])
BOMB = zlib.compress(bytes(1 << 24), 9, -15)


def plane(method, octets, length=None):
    return struct.pack("<BI", method, len(octets) if length is None else length) + octets


WRONG = {
    "nothing": b"",
    "an unknown form": b"\x07",
    "an unknown method": b"\0" + plane(9, b"x"),
    "a length beyond the end": b"\0" + plane(0, b"x", 2**32 - 1),
    "a bomb": b"\0" + plane(1, BOMB),
    "a bomb in a bomb": b"\0" + plane(3, zlib.compress(BOMB, 9, -15)),
    "too short a plane": b"\0" + plane(1, zlib.compress(b"abc", 9, -15)),
    "a constant of two bytes": b"\0" + plane(2, b"ab"),
    "no deflate": b"\0" + plane(1, b"\xff\xff\xff"),
    "bytes left over": STREAM + b"x",
    "cut": STREAM[:-1],
    "an empty palette": struct.pack("<BH", 2, 0),
    "a palette of too many": struct.pack("<BH", 2, 5000) + bytes(20_000),
    "too many rare words": struct.pack("<BII", 3, 0, 5001),
    "a rare word behind the end": struct.pack("<BII", 3, 0, 1)
    + 2 * plane(2, b"\0")
    + plane(2, b"\x13")
    + plane(2, b"\x88"),
    "gaps of 2^32": struct.pack("<BII", 3, 0, 5000) + 8 * plane(2, b"\xff"),
    "an index beyond the palette": struct.pack("<BH", 2, 1) + bytes(4) + plane(2, b"\x01"),
}


@pytest.mark.parametrize("name", WRONG)
def test_hostile_streams(name):
    with pytest.raises(FormatError):
        planes.decode(WRONG[name], 5000, "u4")


@pytest.mark.parametrize("stream", [b"", LZMA[:-1], LZMA + b"x", b"\xff" * 9, LZMA[:200]])
def test_hostile_lzma(stream):
    with pytest.raises(FormatError):
        lzma_stream.decode(stream, 5000, "u4")
    for n in (4999, 5001, 0):
        with pytest.raises(FormatError):
            lzma_stream.decode(LZMA, n, "u4")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(KINDS), st.integers(0, 2**31), st.integers(1, 255), st.booleans())
def test_mutated_streams_give_words_or_a_format_error(kind, place, change, cut):
    streams_of = {
        "planes": STREAM,
        "sparse": SPARSE,
        "rare": RARE,
        "palette": PALETTE,
        "lzma": LZMA,
        "escape": ESCAPED,
    }
    stream = bytearray(streams_of[kind])
    n = 9000 if kind == "palette" else 5000
    stream[place % len(stream)] ^= change
    octets = bytes(stream[: place % len(stream)] if cut else stream)
    if kind == "escape":
        octets = octets or b"\0"
        with contextlib.suppress(FormatError):
            assert smallest.decode(octets, n, f.ESCAPE, f.DTYPES["i2"]).size == n
        return
    try:
        words = (
            lzma_stream.decode(octets, n, "u4")
            if kind == "lzma"
            else planes.decode(octets, n, "u4")
        )
    except FormatError:
        return
    assert words.size == n


def test_lzma_gives_no_element_that_the_dtype_lacks():
    octets = b"".join(lzma_stream.encode(np.tile(np.uint8([0, 1, 2]), 2000), 6000) or [])
    assert smallest.decode(octets, 6000, f.LZMA, f.DTYPES["u1"]).max() == 2
    with pytest.raises(FormatError, match="from 0 to 2 leave the range of bool"):
        smallest.decode(octets, 6000, f.LZMA, f.DTYPES["?"])


@pytest.mark.parametrize(
    "words", [b"", b"\0", b"\2\0", b"\2" * 5000, b"\xff" * 12, b"\xff\xff\xff\xff\x0f"]
)
def test_hostile_lists_of_frequent_words(words):
    deflated = zlib.compress(words, 9, -15)
    octets = bytes([len(deflated)]) + deflated + ESCAPED[-200:]
    with pytest.raises(FormatError):
        smallest.decode(octets, 5000, f.ESCAPE, f.DTYPES["i2"])


def test_a_damaged_byte_is_found(tmp_path):
    jp.save(tmp_path / "x", {"w": WEIGHTS})
    octets = bytearray((tmp_path / "x").read_bytes())
    octets[-100] ^= 1  # in the noise of the last plane: only the checksum can see it
    (tmp_path / "x").write_bytes(octets)
    with pytest.raises(FormatError, match="checksum"):
        jp.load(tmp_path / "x")


def test_integers_of_one_byte_have_no_planes(tmp_path):
    jp.save(tmp_path / "x", {"w": WEIGHTS})
    assert f.CODECS[f.PLANES] in str(jp.inspect(tmp_path / "x"))
    with pytest.raises(FormatError, match="none of one array of int8"):
        smallest.decode(STREAM, 5000, f.PLANES, f.DTYPES["i1"])
