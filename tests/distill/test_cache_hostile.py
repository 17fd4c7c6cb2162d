"""Files that are damaged, cut, missing or foreign, disks that are full, calls that are wrong: one clear error each."""

import errno
import json
import os
import shutil
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import jaxprune as jp
from jaxprune.storage.format import FormatError
from tests.distill.test_cache import TOLD, TOP, X, contents, teacher, write

FIRST = "augmentation-0/shard-000000"


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "cache")
    return tmp_path / "cache"


def opened(folder):
    return jp.distill.Cache.open(folder, fingerprint=TOLD)


def said(folder, **changes):
    """The manifest with some changes, as write_cache writes it."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=1, ensure_ascii=False) + "\n")


# --- shards -----------------------------------------------------------------------------------------------------------


def damage(folder, at):
    path = folder / FIRST
    raw = bytearray(path.read_bytes())
    raw[at] ^= 16
    path.write_bytes(raw)


def replace(folder, other):
    write(folder.parent / "other", **other)
    shutil.copy(folder.parent / "other" / FIRST, folder / FIRST)


def directory(folder):
    os.unlink(folder / FIRST)
    os.mkdir(folder / FIRST)


SHARDS = {
    "a byte of the records": (lambda f: damage(f, 0), "the checksum is wrong.*write_cache writes it again"),
    "a byte of the checksum": (lambda f: damage(f, -1), "the checksum is wrong"),
    "a byte of the head": (lambda f: damage(f, -88), "belongs to another cache, augmentation or place, or is damaged"),
    "cut": (lambda f: os.truncate(f / FIRST, 100), "100 bytes, where this cache has 160: cut or foreign"),
    "empty": (lambda f: os.truncate(f / FIRST, 0), "0 bytes"),
    "longer": (lambda f: os.truncate(f / FIRST, 161), "161 bytes"),
    "huge": (lambda f: os.truncate(f / FIRST, 1 << 40), "1099511627776 bytes"),
    "of another teacher": (lambda f: replace(f, {"fingerprint": "other"}), "belongs to another cache"),
    "of other examples": (lambda f: replace(f, {"examples": X[::-1]}), "belongs to another cache"),
    "of another place": (lambda f: shutil.copy(f / "augmentation-0/shard-000001", f / FIRST), "or place"),
    "a folder": (directory, "not a regular file"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_a_shard_that_is_wrong(case, folder):
    harm, message = SHARDS[case]
    harm(folder)
    cache = opened(folder)
    assert cache.read([6]).shape == (1, 6)  # of another shard
    for call in (lambda: cache.read([22, 0]), cache.whole, lambda: write(folder)):
        with pytest.raises(FormatError, match=message) as caught:
            call()
        assert str(folder / FIRST) in str(caught.value)
    shutil.rmtree(folder / FIRST) if case == "a folder" else os.unlink(folder / FIRST)
    assert_array_equal(write(folder).whole(), teacher(X).astype(np.float16))  # as the message says


def test_every_byte_of_every_file_is_looked_at(folder):
    want = teacher(X).astype(np.float16)
    for path in ("manifest.json", FIRST):
        raw = (folder / path).read_bytes()
        for i in range(len(raw)):
            for wrong in (raw[:i], bytes([*raw[:i], raw[i] ^ 1, *raw[i + 1 :]])):
                (folder / path).write_bytes(wrong)
                with pytest.raises(ValueError) as caught:
                    opened(folder).whole()
                assert str(folder) in str(caught.value) and len(str(caught.value)) < 500
        (folder / path).write_bytes(raw)
    assert_array_equal(opened(folder).whole(), want)


def test_a_missing_shard(folder):
    cache = opened(folder)
    cache.read([0])
    os.unlink(folder / "augmentation-0/shard-000002")
    with pytest.raises(FormatError, match="shard-000002 is missing; write_cache"):
        cache.read([12])
    message = (
        r"augmentation 0 is not written in full. Those that are: \[\]; begun: 0 \(3 of 4 shards\). write_cache goes"
    )
    with pytest.raises(ValueError, match=message):
        opened(folder).whole()


def test_an_augmentation_that_was_not_written(folder):
    write(folder, augmentation=12)
    for read in (lambda a: opened(folder).read([0], augmentation=a), lambda a: opened(folder).whole(a)):
        with pytest.raises(ValueError, match=r"augmentation 5 is not written in full. Those that are: \[0, 12\]"):
            read(5)
        for wrong in (-1, 0.0, True, "0", 2**63):
            with pytest.raises(ValueError, match=r"augmentation=.*give an integer"):
                read(wrong)


def test_foreign_names_are_no_shards(folder):
    for name in ("augmentation-00", "augmentation-x", "augmentation-9", "augmentation-٣"):
        os.mkdir(folder / name)
    for name in ("shard-0000000", "shard-000004", "shard-٠٠٠٠٠٠", ".shard-000000.tmp", "notes"):
        (folder / "augmentation-9" / name).write_text("x")
    assert opened(folder).augmentations == (0,)
    write(folder, augmentation=9)
    assert (folder / "augmentation-9/notes").exists() and opened(folder).augmentations == (0, 9)


def test_a_shard_that_changes_after_it_was_checked(folder):
    """Other processes replace files, which leaves the mapped one what it was; a new map is checked again."""
    write(folder, augmentation=1)
    cache = opened(folder)
    want = cache.read([0])
    raw = bytearray((folder / FIRST).read_bytes())
    raw[0] ^= 1
    (folder / "new").write_bytes(raw)
    os.replace(folder / "new", folder / FIRST)
    assert_array_equal(cache.read([0]), want)
    cache.read([0], augmentation=1)
    with pytest.raises(FormatError, match="the checksum is wrong"):
        cache.read([0])


# --- manifests --------------------------------------------------------------------------------------------------------


def append(folder, text):
    with open(folder / "manifest.json", "a") as file:
        file.write(text)


MANIFESTS = {
    "empty": (lambda f: (f / "manifest.json").write_text(""), "not the manifest of a cache, or it is damaged"),
    "no JSON": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "not the manifest of a cache"),
    "deep": (lambda f: (f / "manifest.json").write_text("[" * 60000), "not the manifest of a cache"),
    "foreign": (lambda f: (f / "manifest.json").write_text('{"name": "app"}'), "not the manifest of a cache"),
    "of another format": (lambda f: said(f, format="jaxprune.other"), "not the manifest of a cache"),
    "of another version": (lambda f: said(f, version=2, new=[]), "version 2; this library reads 1: write it again"),
    "a key more": (lambda f: said(f, more=1), "unknown field `more`"),
    "a key twice": (
        lambda f: (f / "manifest.json").write_text('{"count": 23,' + (f / "manifest.json").read_text()[1:]),
        "not the one that write_cache writes",
    ),
    "blanks": (lambda f: append(f, " "), "not the one that write_cache writes"),
    "long": (lambda f: append(f, " " * 70000), "manifest.json"),
    "a float": (lambda f: said(f, count=23.5), r"Expected `int`, got `float` - at `\$.count`"),
    "no examples": (lambda f: said(f, count=0), "0 examples"),
    "negative": (lambda f: said(f, count=-23), "-23 examples"),
    "no rows": (lambda f: said(f, shard=0), "0 a file"),
    "a shard beyond the end": (lambda f: said(f, shard=24), "24 a file"),
    "no axis": (lambda f: said(f, shape=[]), "at least one class"),
    "no class": (lambda f: said(f, shape=[3, 0]), "at least one class"),
    "many classes": (lambda f: said(f, shape=[2**31]), "at least one class"),
    "a huge record": (lambda f: said(f, shape=[2**40, 2**20]), "2305843009213693952 bytes an example"),
    "a record that overflows": (
        lambda f: said(f, shape=[2**62, 2**62, 2]),
        "bytes an example: a cache holds up to 2147483647",
    ),
    "more than a file system": (lambda f: said(f, count=2**62), "4611686018427387904 examples of 12 bytes"),
    "another form": (lambda f: said(f, form="int8"), "Invalid enum value 'int8'"),
    "no k": (lambda f: said(f, form=[0, 1.0]), "k is an integer from 1 to the 6 classes"),
    "k beyond the classes": (lambda f: said(f, form=[7, 1.0]), "k is an integer from 1 to the 6 classes"),
    "no temperature": (lambda f: said(f, form=[2, 0.0]), "one finite number above 0"),
    "no fingerprint": (lambda f: said(f, teacher=""), "a fingerprint is a text of 1 to 200 characters.*''"),
    "a long fingerprint": (lambda f: said(f, examples="x" * 201), "a fingerprint is a text of 1 to 200"),
    "a folder": (lambda f: (os.unlink(f / "manifest.json"), os.mkdir(f / "manifest.json")), "not a regular file"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_is_wrong(case, folder):
    harm, message = MANIFESTS[case]
    harm(folder)
    for call in (lambda: opened(folder), lambda: write(folder)):
        with pytest.raises(FormatError, match=message) as caught:
            call()
        assert str(folder / "manifest.json") in str(caught.value) and len(str(caught.value)) < 500


CLAIMS = {
    "examples": {"count": 2**40},
    "examples in few shards": {"count": 2**40, "shard": 2**40},
    "classes": {"shape": [2**29]},
    "positions": {"shape": [2**20, 6]},
    "classes of k": {"shape": [2**30], "form": [6, 1.0]},
    "fewer examples": {"count": 22},
    "another form": {"form": "float32"},
    "other numbers of one size": {"shape": [2, 3]},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_manifest_that_claims_more_takes_no_memory(claim, folder):
    said(folder, **CLAIMS[claim])
    tracemalloc.start()
    for call in (lambda: opened(folder).read([3, 20]), lambda: opened(folder).whole()):
        with pytest.raises(ValueError, match=r"cut or foreign|another cache|not written in full"):
            call()
    assert tracemalloc.get_traced_memory()[1] < 1 << 21
    tracemalloc.stop()


def test_where_there_is_no_cache(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"holds no cache: it has no manifest.json; write_cache makes one"):
            jp.distill.Cache.open(path, fingerprint=TOLD)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        jp.distill.Cache.open(tmp_path / "file", fingerprint=TOLD)
    (tmp_path / "notes").write_text("kept")
    write(tmp_path)
    assert (tmp_path / "notes").read_text() == "kept"


def test_another_teacher_other_examples_or_another_form(folder):
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"has the teacher '{TOLD}', not 'b': give another folder"):
        jp.distill.Cache.open(folder, fingerprint="b")
    with pytest.raises(ValueError, match="has the examples '"):
        jp.distill.Cache.open(folder, fingerprint=TOLD, examples=X + 1)
    for changes, what in (
        ({"fingerprint": "b"}, "teacher"),
        ({"examples": X[::-1]}, "examples"),
        ({"examples": X[:22]}, "examples"),
        ({"form": "float32"}, "form 'float16', not 'float32'"),
        ({"form": TOP}, "form"),
        ({"shard": 7}, "shard 6, not 7"),
    ):
        with pytest.raises(ValueError, match=f"the cache has the {what}"):
            write(folder, lambda x: pytest.fail("the teacher was asked"), **{"augmentation": 1, **changes})
    assert contents(folder) == before


def test_two_teachers_start_at_once(tmp_path):
    """The second one's manifest replaces that of the first, which writes nothing then, and says so."""

    calls = []

    def first(x):
        calls.append(0)
        if len(calls) == 2:  # its manifest is there, its first shard is not
            os.unlink(tmp_path / "manifest.json")
            write(tmp_path, lambda x: teacher(x) + 1, fingerprint="second")
        return teacher(x)

    with pytest.raises(ValueError, match="another writer has put another cache here meanwhile"):
        write(tmp_path, first)
    found = jp.distill.Cache.open(tmp_path, fingerprint="second").whole()
    assert_array_equal(found, (teacher(X) + 1).astype(np.float16))


# --- full disks -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch):
    """A real ENOSPC, in the third shard."""
    real, full = open, lambda name: "shard-000002" in str(name)
    failing = lambda name, *a, **kw: real("/dev/full", "wb") if full(name) else real(name, *a, **kw)
    monkeypatch.setattr("builtins.open", failing)
    with pytest.raises(OSError, match=r"No space left.*; 2 of 4 shards are kept, and the same call goes on") as caught:
        write(tmp_path / "full")
    assert caught.value.filename.endswith("shard-000002") and caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "full/augmentation-0")) == ["shard-000000", "shard-000001"]
    write(tmp_path / "full"), write(tmp_path / "whole")
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_a_file_that_may_not_grow(tmp_path):
    resource = pytest.importorskip("resource")
    x = np.zeros((3000, 6), np.float32)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, old[1]))
    try:
        with pytest.raises(OSError, match="File too large; 0 of 1 shards are kept"):
            write(tmp_path, lambda x: x, x, shard=3000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert os.listdir(tmp_path / "augmentation-0") == []


# --- calls ------------------------------------------------------------------------------------------------------------

VALUES = {
    "NaN": (np.nan, "nan: a teacher's logits are numbers, or -inf"),
    "+inf": (np.inf, "inf: a teacher's logits"),
    "an overflow": (65520.0, "65520, for which float16 has no room: use form='float32', or -inf"),
    "a mask of 1e9": (-1e9, "-1e\\+09, for which float16 has no room"),
}


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("form", ["float16", "float32", TOP], ids=str)
def test_values_that_teach_nothing(case, form, tmp_path):
    value, message = VALUES[case]
    z = teacher(X)
    z[13, 4] = value
    keeps = np.isfinite(value) and form != "float16"
    calls = iter(range(0, 99, 3))
    harmed = lambda x: z[(i := next(calls)) : i + 3]
    if keeps:
        write(tmp_path, harmed, form=form)
        return
    with pytest.raises(ValueError, match=f"example 13: the logits hold {message}"):
        write(tmp_path, harmed, form=form)
    assert sorted(os.listdir(tmp_path / "augmentation-0")) == ["shard-000000", "shard-000001"]


def test_the_largest_float16_is_kept(tmp_path):
    z = np.float32([[65504, -65504, 65519.99, 1e-9]])
    assert write(tmp_path, lambda x: z, X[:1]).whole().tolist() == [[65504, -65504, 65504, 0]]


def test_float64_beyond_float32(tmp_path):
    with pytest.raises(ValueError, match="example 0: the logits hold 1e\\+300, for which float32 has no room"):
        write(tmp_path, lambda x: np.full((1, 2), 1e300), X[:1], form="float32")


INDICES = {
    "floats": ([0.0, 1.0], "dtype float64.*give integers from 0 to 22"),
    "nothing": ([], "dtype float64"),
    "flags": ([True], "dtype bool"),
    "texts": (["1"], "give integers"),
    "negative": ([3, -1], "-1 is out of range; the cache holds examples 0 to 22"),
    "beyond": (np.uint8([[0, 23]]), "23 is out of range"),
    "far beyond": (np.uint64(2**64 - 1), "18446744073709551615 is out of range"),
    "a float of JAX": (jnp.zeros(3), "dtype float32"),
}


@pytest.mark.parametrize("case", INDICES)
def test_indices_that_are_none(case, folder):
    indices, message = INDICES[case]
    with pytest.raises(ValueError, match=f"indices: .*{message}"):
        opened(folder).read(indices)


CALLS = {
    "no examples": ({"examples": X[:0]}, r"examples of shapes \[\(0, 4\)\]: give arrays of one length, 1 or more"),
    "no arrays": ({"examples": {}}, r"shapes \[\]"),
    "a number": ({"examples": np.float32(3)}, r"shapes \[\(\)\]"),
    "unequal lengths": ({"examples": (X, X[1:])}, r"\(23, 4\), \(22, 4\)"),
    "a list of numbers": ({"examples": [1, 2]}, r"\(\), \(\)"),
    "texts": ({"examples": np.array(["a"])}, "ndarray <U1"),
    "a negative seed": ({"augmentation": -1}, "augmentation=-1"),
    "a float for a seed": ({"augmentation": 0.0}, "augmentation=0.0"),
    "no batch": ({"batch": 0}, "batch=0: give an integer, 1 or more"),
    "no rows": ({"shard": 0}, "shard=0"),
    "no form": ({"form": "int8"}, r"form='int8': choose 'float16', 'float32' or jp.distill.Top"),
    "k of all and one": ({"form": jp.distill.Top(7)}, r"k is an integer from 1 to the 6 classes"),
    "k of no integer": ({"form": jp.distill.Top(2.0)}, "k is an integer"),
    "no temperature": ({"form": jp.distill.Top(2, 0.0)}, "above 0"),
    "no fingerprint": ({"fingerprint": ""}, "a fingerprint is a text of 1 to 200 characters.*''"),
    "params for a fingerprint": ({"fingerprint": {"w": 1}}, "a fingerprint is a text"),
    "one logit an example": ({"logits_of": lambda x: teacher(x)[:, 0]}, r"float32\[3\] for 3 examples"),
    "too few logits": ({"logits_of": lambda x: teacher(x)[1:]}, r"float32\[2, 6\] for 3 examples"),
    "no classes": ({"logits_of": lambda x: teacher(x)[:, :0]}, "at least one class"),
    "integers": ({"logits_of": lambda x: np.ones((len(x), 2), int)}, r"int64\[3, 2\].*floats of shape \(3, \*pos"),
    "lists": ({"logits_of": lambda x: teacher(x).tolist()}, r"list\[3, 6\]"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_are_wrong(case, tmp_path):
    changes, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "cache", **{"logits_of": teacher, **changes})
    assert not (tmp_path / "cache").exists()


def test_another_number_of_classes(folder):
    """A teacher whose outputs change within a write, and one that has another fingerprint's."""
    calls = iter(range(99))
    widening = lambda x: np.ones((len(x), 6 + (next(calls) > 2)), np.float32)
    with pytest.raises(ValueError, match=r"example 9: logits of shape \(7,\); the cache holds \(6,\)"):
        write(folder, widening, augmentation=1)
    with pytest.raises(ValueError, match=r"example 6: logits of shape \(5,\)"):
        write(folder, lambda x: np.ones((len(x), 5), np.float32), augmentation=1)
