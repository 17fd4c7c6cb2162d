"""Files that are damaged, cut, missing, foreign, or claim more than is there: one clear error
each.
"""

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import jaxprune as jp
from jaxprune.storage.format.words import FormatError
from tests.distill.cache_toy import TOLD, TOP, X, contents, opened, teacher, write

FIRST = "augmentation-0/shard-000000"


def said(folder, **changes):
    """The manifest with some changes, as write_cache writes it."""
    path = folder / "manifest.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), **changes}, indent=1, ensure_ascii=False) + "\n"
    )


# --- shards
# ---------------------------------------------------------------------------------------


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
    "a byte of the records": (
        lambda f: damage(f, 0),
        "the checksum is wrong.*write_cache writes it again",
    ),
    "a byte of the checksum": (lambda f: damage(f, -1), "the checksum is wrong"),
    "a byte of the head": (
        lambda f: damage(f, -88),
        "belongs to another cache, augmentation or place, or is damaged",
    ),
    "cut": (
        lambda f: os.truncate(f / FIRST, 100),
        "100 bytes, where this cache has 160: cut or foreign",
    ),
    "empty": (lambda f: os.truncate(f / FIRST, 0), "0 bytes"),
    "longer": (lambda f: os.truncate(f / FIRST, 161), "161 bytes"),
    "huge": (lambda f: os.truncate(f / FIRST, 1 << 40), "1099511627776 bytes"),
    "of another teacher": (
        lambda f: replace(f, {"fingerprint": "other"}),
        "belongs to another cache",
    ),
    "of other examples": (lambda f: replace(f, {"examples": X[::-1]}), "belongs to another cache"),
    "of another place": (
        lambda f: shutil.copy(f / "augmentation-0/shard-000001", f / FIRST),
        "or place",
    ),
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
        r"augmentation 0 is not written in full. Those that are: \[\]; begun: 0 \(3 of 4 "
        r"shards\). write_cache goes"
    )
    with pytest.raises(ValueError, match=message):
        opened(folder).whole()


def test_an_augmentation_that_was_not_written(folder):
    write(folder, augmentation=12)
    for read in (
        lambda a: opened(folder).read([0], augmentation=a),
        lambda a: opened(folder).whole(a),
    ):
        with pytest.raises(
            ValueError, match=r"augmentation 5 is not written in full. Those that are: \[0, 12\]"
        ):
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
    """Other processes replace files, which leaves the mapped one what it was; a new map is checked
    again.
    """
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


# --- manifests
# ---------------------------------------------------------------------------------------


def append(folder, text):
    with open(folder / "manifest.json", "a") as file:
        file.write(text)


MANIFESTS = {
    "empty": (
        lambda f: (f / "manifest.json").write_text(""),
        "not the manifest of a cache, or it is damaged",
    ),
    "no JSON": (
        lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"),
        "not the manifest of a cache",
    ),
    "deep": (
        lambda f: (f / "manifest.json").write_text("[" * 60000),
        "not the manifest of a cache",
    ),
    "foreign": (
        lambda f: (f / "manifest.json").write_text('{"name": "app"}'),
        "not the manifest of a cache",
    ),
    "of another format": (
        lambda f: said(f, format="jaxprune.other"),
        "not the manifest of a cache",
    ),
    "of another version": (
        lambda f: said(f, version=2, new=[]),
        "version 2; this library reads 1: write it again",
    ),
    "a key more": (lambda f: said(f, more=1), "unknown field `more`"),
    "a key twice": (
        lambda f: (f / "manifest.json").write_text(
            '{"count": 23,' + (f / "manifest.json").read_text()[1:]
        ),
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
    "a huge record": (
        lambda f: said(f, shape=[2**40, 2**20]),
        "2305843009213693952 bytes an example",
    ),
    "a record that overflows": (
        lambda f: said(f, shape=[2**62, 2**62, 2]),
        "bytes an example: a cache holds up to 2147483647",
    ),
    "more than a file system": (
        lambda f: said(f, count=2**62),
        "4611686018427387904 examples of 12 bytes",
    ),
    "another form": (lambda f: said(f, form="int8"), "Invalid enum value 'int8'"),
    "no k": (lambda f: said(f, form=[0, 1.0]), "give an integer of at least 1 and at most 6"),
    "k beyond the classes": (
        lambda f: said(f, form=[7, 1.0]),
        "give an integer of at least 1 and at most 6",
    ),
    "no temperature": (lambda f: said(f, form=[2, 0.0]), "one positive, finite number"),
    "no fingerprint": (
        lambda f: said(f, teacher=""),
        "a fingerprint is a text of 1 to 200 characters.*''",
    ),
    "a long fingerprint": (
        lambda f: said(f, examples="x" * 201),
        "a fingerprint is a text of 1 to 200",
    ),
    "a folder": (
        lambda f: (os.unlink(f / "manifest.json"), os.mkdir(f / "manifest.json")),
        "not a regular file",
    ),
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
        with pytest.raises(
            ValueError, match=r"holds no cache: it has no manifest.json; write_cache makes one"
        ):
            jp.distill.Cache.open(path, fingerprint=TOLD)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        jp.distill.Cache.open(tmp_path / "file", fingerprint=TOLD)
    (tmp_path / "notes").write_text("kept")
    write(tmp_path)
    assert (tmp_path / "notes").read_text() == "kept"


def test_another_teacher_other_examples_or_another_form(folder):
    before = contents(folder)
    with pytest.raises(
        ValueError, match=rf"has the teacher '{TOLD}', not 'b': give another folder"
    ):
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
            write(
                folder,
                lambda x: pytest.fail("the teacher was asked"),
                **{"augmentation": 1, **changes},
            )
    assert contents(folder) == before
