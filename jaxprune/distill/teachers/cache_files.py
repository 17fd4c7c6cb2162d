"""The files of a cache: a manifest that says what it is, and shards of records, each whole and
checked or not there.

    folder/manifest.json                          `Manifest`, as JSON
    folder/augmentation-A/shard-000000, …         records of `shard` examples (the last: what is
                                                  left), then 88 bytes:
        b"jpcache1", sha256 of manifest.json, A and the shard's number in 8 bytes each, sha256 of
        all before

So a shard that was moved, or that belongs to another cache, is told from its own. Numbers are
little-endian.
"""

import contextlib
import hashlib
import itertools
import os
import re
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO

import msgspec
import numpy as np

from jaxprune.distill.teachers import cache_forms as forms
from jaxprune.distill.teachers.cache_forms import Form
from jaxprune.storage import atomic
from jaxprune.storage.format.manifest import opened
from jaxprune.storage.format.words import FormatError

FORMAT = "jaxprune.distill.teachers.cache"
VERSION = 1
MANIFEST = "manifest.json"
MOST_MANIFEST = 1 << 16
HEAD = struct.Struct("<8s32sQQ")
TAIL = HEAD.size + 32
PIECE = 1 << 20  # bytes that are read at a time to check them


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a cache is.

    Attributes:
      format, version: of the files.
      teacher, examples: fingerprints.
      form: "float16", "float32" or `Top`.
      count: how many examples.
      shape: of one example's logits; the last axis is the classes.
      shard: examples a file.
    """

    format: str
    version: int
    teacher: str
    examples: str
    form: Form
    count: int
    shape: tuple[int, ...]
    shard: int


class _Head(msgspec.Struct):
    format: str
    version: int


def check(said: Manifest) -> None:
    """A manifest whose numbers can be, or a ValueError."""
    if not (said.shape and min(said.shape) >= 1 and said.shape[-1] < 2**31):
        raise ValueError(
            f"logits of shape {said.shape[:8]}: there is at least one class, and no empty axis"
        )
    forms.check(said.form, said.shape)
    size = forms.record_bytes(said.form, said.shape)
    if size > forms.MOST:
        raise ValueError(f"{size} bytes an example: a cache holds up to {forms.MOST}")
    if not 1 <= said.shard <= said.count or said.count * size >= 2**63:
        raise ValueError(
            f"{said.count} examples of {size} bytes, {said.shard} a file: that cannot be"
        )
    for text in (said.teacher, said.examples):
        if not (isinstance(text, str) and 1 <= len(text) <= 200):
            raise ValueError(
                f"a fingerprint is a text of 1 to 200 characters, as jp.distill.fingerprint gives: "
                f"{text!r:.80}"
            )


def encoded(said: Manifest) -> bytes:
    """manifest.json."""
    return msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n"


def same(folder: Any, what: str, stored: Any, given: Any) -> None:
    """A cache of something else is an error."""
    if stored != given:
        told = f"the cache has the {what} {stored!r:.80}, not {given!r:.80}"
        raise ValueError(f"{os.fspath(folder)}: {told}: give another folder, or delete this one")


def publish(folder: Any, said: Manifest) -> None:
    """Writes the manifest of a new cache."""
    os.makedirs(folder, exist_ok=True)
    with atomic.replacing(os.path.join(folder, MANIFEST)) as file:
        file.write(encoded(said))


def read_manifest(folder: Any) -> Manifest | None:
    """The manifest in a folder, checked; None where there is none."""
    path = os.path.join(folder, MANIFEST)
    try:
        with opened(path) as file:
            raw = file.read(MOST_MANIFEST + 1)
    except FileNotFoundError:
        return None
    try:
        return _decoded(raw)
    except (ValueError, RecursionError) as e:  # msgspec's errors are ValueErrors
        raise FormatError(f"{path}: {e}") from None


def _decoded(raw: bytes) -> Manifest:
    try:
        head = msgspec.json.decode(raw, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        head = None
    if head is None or head.format != FORMAT:
        raise ValueError("this is not the manifest of a cache, or it is damaged")
    if head.version != VERSION:
        raise ValueError(
            f"the cache has version {head.version}; this library reads {VERSION}: write it again"
        )
    said = msgspec.json.decode(raw, type=Manifest)
    check(said)
    if encoded(said) != raw:
        raise ValueError("the manifest is not the one that write_cache writes for what it says")
    return said


class Files:
    """The shards of a cache. A shard is checked when it is first read, and then mapped into memory.

    Args:
      folder: of the cache.
      manifest: which it has.
    """

    def __init__(self, folder: Any, manifest: Manifest):
        self.folder = os.fspath(folder)
        self.manifest = manifest
        self.dtype = forms.record(manifest.form, manifest.shape)
        self.shards = -(-manifest.count // manifest.shard)
        self._digest = hashlib.sha256(encoded(manifest)).digest()
        self._maps: dict[tuple[int, int], np.ndarray] = {}
        self._checked: dict[tuple[int, int], tuple[int, ...]] = {}

    def __reduce__(self) -> Any:
        return Files, (self.folder, self.manifest)  # to another process go no contents

    def path(self, augmentation: int, shard: int) -> str:
        return os.path.join(self.folder, f"augmentation-{augmentation}", f"shard-{shard:06}")

    def span(self, shard: int) -> tuple[int, int]:
        """The first example of a shard and the one after its last."""
        first = shard * self.manifest.shard
        return first, min(first + self.manifest.shard, self.manifest.count)

    def found(self) -> dict[int, set[int]]:
        """The shards that are there, by augmentation."""
        named = [
            (int(m[1]), name)
            for name in _names(self.folder)
            if (m := _AUGMENTATION.fullmatch(name))
        ]
        return {a: self._found(os.path.join(self.folder, name)) for a, name in sorted(named)}

    def _found(self, folder: str) -> set[int]:
        numbers = {int(m[1]) for name in _names(folder) if (m := _SHARD.fullmatch(name))}
        return {i for i in numbers if i < self.shards}

    def records(self, augmentation: int, shard: int) -> np.ndarray:
        """The records of a shard, checked and mapped.

        Raises:
          FormatError: it is missing, cut, damaged, or belongs elsewhere.
        """
        at = (augmentation, shard)
        maps = self._maps
        found = maps.get(at)
        if found is None:
            found = self._mapped(*at)
            # A map holds a file descriptor: only one augmentation's stay. Threads may disagree
            # which.
            self._maps = {
                **{key: x for key, x in maps.items() if key[0] == augmentation},
                at: found,
            }
        return found

    def _mapped(self, augmentation: int, shard: int) -> np.ndarray:
        path = self.path(augmentation, shard)
        try:
            with opened(path) as file:
                first, end = self.span(shard)
                self._check(file, augmentation, shard, (end - first) * self.dtype.itemsize)
                return np.asarray(np.memmap(file, self.dtype, "r", shape=(end - first,)))
        except FileNotFoundError:
            raise FormatError(f"{path} is missing; write_cache writes it again") from None

    def _check(self, file: BinaryIO, augmentation: int, shard: int, size: int) -> None:
        status = os.fstat(file.fileno())
        identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if self._checked.get((augmentation, shard)) == identity:
            return
        again = "delete it, and write_cache writes it again"
        if status.st_size != size + TAIL:
            raise FormatError(
                f"{status.st_size} bytes, where this cache has {size + TAIL}: cut or foreign; "
                f"{again}"
            )
        sha = hashlib.sha256()
        for left in range(size, 0, -PIECE):
            sha.update(file.read(min(left, PIECE)))
        head = file.read(HEAD.size)
        told = file.read()
        if head != self._head(augmentation, shard):
            raise FormatError(
                f"it belongs to another cache, augmentation or place, or is damaged; {again}"
            )
        sha.update(head)
        if sha.digest() != told:
            raise FormatError(f"the checksum is wrong: the bytes are damaged; {again}")
        self._checked[augmentation, shard] = identity

    def _head(self, augmentation: int, shard: int) -> bytes:
        return HEAD.pack(b"jpcache1", self._digest, augmentation, shard)

    def write(self, augmentation: int, shard: int, batches: Iterable[np.ndarray]) -> None:
        """Writes a shard from batches of records; it appears whole or not at all."""
        path = self.path(augmentation, shard)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        sha = hashlib.sha256()
        try:
            with atomic.replacing(path) as file:
                octets = (records.view(np.uint8).data for records in batches)
                for piece in itertools.chain(octets, [self._head(augmentation, shard)]):
                    file.write(piece)
                    sha.update(piece)
                file.write(sha.digest())
                if read_manifest(self.folder) != self.manifest:
                    raise ValueError(
                        f"{self.folder}: another writer has put another cache here meanwhile"
                    )
        except FileNotFoundError as e:
            if e.filename2 is None or not os.path.exists(path):
                raise
            # At the renaming: another writer of this cache was faster, and has tidied up.

    def tidy(self, augmentation: int) -> None:
        """Removes what killed writers have left of shards that are all there."""
        folder = os.path.dirname(self.path(augmentation, 0))
        for name in _names(folder):
            if _LEFT.fullmatch(name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))


_AUGMENTATION = re.compile(r"augmentation-(0|[1-9][0-9]{0,18})", re.ASCII)
_SHARD = re.compile(r"shard-([0-9]{6}|[1-9][0-9]{6,18})", re.ASCII)
_LEFT = re.compile(r"\.shard-[0-9]{6,19}\.[0-9a-f]{16}\.tmp", re.ASCII)


def _names(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []
