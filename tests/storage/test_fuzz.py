"""Real files, mutated: a changed byte is found; where the checksums fit, nothing but a
`FormatError` comes out.
"""

import contextlib
import json
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxprune.coding import context_coder
from jaxprune.core.arrays import Clustered, Common, Masked
from jaxprune.core.quantized import Quantized
from jaxprune.storage.files import inspect, load, save
from jaxprune.storage.format import manifest
from jaxprune.storage.format import words as f
from jaxprune.storage.format.words import FormatError
from tests.storage.hostile import file_of, json_nodes, tree_of
from tests.storage.trees import codes, integers, mask, normal, quantized

MOST = 1 << 20
anyhow = list(HealthCheck)
few = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=anyhow)
many = settings(max_examples=5000, deadline=None, suppress_health_check=anyhow)


def banked():
    """One bank of integers and one of masks, as small as they may be."""
    rng = np.random.default_rng(0)

    def uneven(*shape):
        return rng.laplace(size=shape) * np.exp(1.5 * rng.standard_normal(shape[-1:]))

    q = [
        jnp.asarray(np.rint(np.clip(uneven(*shape), -120, 120)).astype(np.int8))
        for shape in ((3, 3, 4, 60), (50, 40))
    ]
    kept = jnp.asarray(np.abs(uneven(64, 64)) > 3)
    tree = {
        str(i): Masked(Quantized(x, jnp.ones((1,) * x.ndim), None, 8, jnp.dtype("float32")), x != 0)
        for i, x in enumerate(q)
    }
    return {**tree, "m": Masked(jnp.where(kept, 0.5, 0.0), kept), "b": jnp.zeros(3)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "x"
    found = []
    every = list(codes().items())
    trees = [
        *(dict(every[i : i + 4]) for i in range(0, len(every), 4)),
        {"w": Masked(quantized(4, 30, 9), mask(30, 9))},
        Common(normal(8), [Clustered(None, integers(0, 8, 40)), {3: np.ones(2)}, None, 1.5]),
        {
            "m": Masked(Clustered(normal(8), integers(0, 8, 900)), mask(900, keep=0.1)),
            "b": normal(3, dtype=jnp.bfloat16),
        },
        banked(),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            context_coder, "lanes_for", lambda order, bits: min(16, order.rows)
        )  # few steps: quick to read
        for i, tree in enumerate(trees):
            save(path, tree, metadata={"i": i})
            found.append(path.read_bytes())
    assert len(contents(path).banks) == 2
    return found


def contents(path):
    with manifest.open_regular(path) as file:
        return manifest.contents(file)


fraction = st.floats(0, 1, exclude_max=True)
changes = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "delete", "zero", "swap", "double"]),
    fraction,
    fraction,
    st.integers(1, 255),
)


def changed(raw, change):
    """The bytes with a flip, a cut, an insertion, …"""
    how, a, b, x = change
    raw = bytearray(raw)
    i = int(a * len(raw))
    j = int(b * len(raw))
    if how == "flip" and raw:
        raw[i] ^= x
    elif how == "cut":
        del raw[i:]
    elif how == "insert":
        raw[i:i] = bytes([x]) * (1 + x % 9)
    elif how == "delete":
        del raw[i : i + 1 + x % 9]
    elif how == "zero":
        raw[i : i + x] = bytes(len(raw[i : i + x]))
    elif how == "swap" and raw:
        raw[i], raw[j] = raw[j], raw[i]
    elif how == "double":
        raw += raw[i:]
    return bytes(raw)


# --- with the checksums as they were
# ---------------------------------------------------------------------------------------


def is_found(files, path, which, change):
    raw = files[int(which * len(files))]
    how, a, b, x = change
    a = (
        a if x % 3 else a * min(1, 700 / len(raw))
    )  # headers and manifests are short: meet them often
    other = changed(raw, (how, a, b, x))
    if other == raw:
        return
    path.write_bytes(other)
    with pytest.raises(FormatError):
        load(path, max_bytes=MOST)
    with contextlib.suppress(FormatError):
        inspect(path)


@few
@given(fraction, changes)
def test_any_mutation_is_found(files, tmp_path_factory, which, change):
    is_found(files, tmp_path_factory.getbasetemp() / "mutated", which, change)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_many_mutations_are_found(files, tmp_path, part):
    many(
        given(fraction, changes)(
            lambda which, change: is_found(files, tmp_path / "x", which, change)
        )
    )()


# --- with checksums that fit
# ---------------------------------------------------------------------------------------


def taken_apart(raw):
    """(the JSON, the number of checksums, the data)."""
    (length,) = struct.unpack("<Q", raw[:8])
    size = json.loads(raw[8 : 8 + length])["jp.manifest"]["shape"][0]
    inflate = zlib.decompressobj(-15, zdict=f.DICTIONARY)
    text = inflate.decompress(raw[8 + length + 4 : 8 + length + size])
    return json.loads(text), len(inflate.unused_data) // 4, raw[8 + length + size :]


def places_of(x):
    """Where in the JSON anything stands: (list or dict, index), in the order of the text."""
    for key in range(len(x)) if isinstance(x, list) else list(x):
        yield x, key
        if isinstance(x[key], list | dict):
            yield from places_of(x[key])


def rows_in(node):
    if isinstance(node, f.Row) and node.codec != f.CONTEXT:
        yield node
    for part in node.parts if isinstance(node, f.Code) else ():
        yield from rows_in(part)


def with_stream(text, found, data, at, change):
    """The data with a change in one stream, of which the JSON says the length anew."""
    rows = [row for leaf in found.leaves for row in rows_in(leaf.node)]

    def dtype(x):
        return str(x[0]).removeprefix("=") if isinstance(x, list) and x else None

    entries = [
        x[key]
        for x, key in places_of(text["t"])
        if dtype(x[key]) in f.DTYPES and x[key][2:3] != [f.CONTEXT]
    ]
    assert len(rows) == len(entries)
    i = int(at * (len(rows) + len(found.banks)))
    stream = [*rows, *found.banks][i]
    new = changed(data[stream.offset : stream.offset + stream.length], change)
    if i < len(rows):
        entries[i][2:] = [stream.codec, len(new)]
    else:
        text["b"][i - len(rows)] = len(new)
    return data[: stream.offset] + new + data[stream.offset + stream.length :]


def with_edit(text, at, value):
    """Something else in one place of the JSON; a tuple is added to the number there."""
    places = list(places_of(text))
    x, key = places[int(at * len(places))]
    if not isinstance(value, tuple):
        x[key] = value
    elif type(x[key]) is int:
        x[key] += value[0]


def forged(path, text, n, data):
    """Writes the file with the checksums that fit, if its manifest is one."""
    path.write_bytes(file_of(text, data, crcs=[0] * n))
    found = contents(path)
    parts = [leaf for leaf in found.leaves if isinstance(leaf.node, f.Row | f.Code)] + found.banks
    path.write_bytes(
        file_of(text, data, crcs=[zlib.crc32(data[x.offset : x.offset + x.length]) for x in parts])
    )


odd = [
    0,
    1,
    2,
    3,
    -1,
    4,
    7,
    64,
    255,
    2**31,
    2**63,
    True,
    None,
    1.5,
    "i1",
    "?",
    "=f4",
    "M",
    [],
    [4],
    [64, 64],
    (1,),
    (-1,),
]
edits = st.tuples(fraction, st.sampled_from(odd))


def survives(files, path, which, stream, edit):
    """It loads as something that fits, or is a `FormatError`: never another exception, nor a wild
    index.
    """
    raw = files[int(which * len(files))]
    text, n, data = taken_apart(raw)
    path.write_bytes(raw)
    data = with_stream(text, contents(path), data, *stream) if stream else data
    if edit:
        with_edit(text, *edit)
    with contextlib.suppress(FormatError):
        forged(path, text, n, data)
        inspect(path)
        back = load(path, max_bytes=MOST)
        assert sum(x.nbytes for x in jax.tree.leaves(back) if hasattr(x, "nbytes")) <= MOST


forgeries = (fraction, st.none() | st.tuples(fraction, changes), st.none() | edits)


@few
@given(*forgeries)
def test_any_forgery_is_survived(files, tmp_path_factory, which, stream, edit):
    survives(files, tmp_path_factory.getbasetemp() / "forged", which, stream, edit)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_many_forgeries_are_survived(files, tmp_path, part):
    many(
        given(*forgeries)(
            lambda which, stream, edit: survives(files, tmp_path / "x", which, stream, edit)
        )
    )()


@few
@given(json_nodes, st.binary(max_size=16))
def test_forged_trees(tmp_path_factory, node, data):
    path = tmp_path_factory.getbasetemp() / "tree"
    path.write_bytes(tree_of(node, data))
    for read in (load, lambda p: load(p, as_="dense", max_bytes=MOST), inspect):
        with contextlib.suppress(FormatError):
            read(path)
