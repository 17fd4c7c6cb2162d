"""NumPy's .npz archives, read and written member by member. Nothing is unpickled.

A member that is no array, or an array that JAX has nothing like (Python objects, text, dates,
records), is left out and noted; the others are read. A damaged one is an error.
"""

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as numpy_format

from jaxprune.numerics.streamed import empty
from jaxprune.storage.checkpoints import bounds, foreign, npy
from jaxprune.storage.checkpoints.bounds import UnsupportedArray, quoted
from jaxprune.storage.checkpoints.npy import Head
from jaxprune.storage.checkpoints.tensors import (
    Checkpoint,
    Read,
    Tensor,
    by_path,
    check_names,
    leads_out,
    size_of,
    split_names,
    write_array,
)
from jaxprune.storage.format.manifest import open_regular
from jaxprune.storage.format.words import FormatError

SUFFIX = ".npy"
MAX_MEMBER = 65_535  # bytes of a member's name
DEFLATE_RATIO = 1032  # the most that deflate can shrink; a member that says more is a lie
ENCRYPTED = 1  # a bit of a member's flags

# What zipfile raises of a damaged archive. NotImplementedError is of a compression that it lacks.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    OSError,
)


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of an .npz archive."""
    with open_regular(path) as file, _archive(file) as archive:
        members = _members(archive, size_of(file))
        heads: dict[str, Head] = {}
        notes = [f"{quoted(name)} is no array, and is left out" for name in _others(archive)]
        for name, info in members.items():
            try:
                heads[name] = _head(archive, name, info)
            except UnsupportedArray as e:
                notes.append(f"{e}; it is left out")
        if notes and not heads:
            raise FormatError(f"none of its members can be read. {notes[0]}")
        keys = split_names(heads)
        tensors = by_path(
            Tensor(keys[name], head.shape, head.dtype) for name, head in heads.items()
        )

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            tensor = tensors[path]
            array = empty(tensor.shape, tensor.dtype) if into is None else into
            with _member(archive, tensor.name, members[tensor.name]) as stream:
                head = npy.read_head(stream.read, tensor.name)
                return npy.read_array(stream.read, head, array)

        nameless = [name for name, head in heads.items() if head.is_nameless]
        if nameless:
            notes.append(npy.note(nameless))
        yield Checkpoint("npz", tensors, read, tuple(notes))


def _archive(file: BinaryIO) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(file)
    except BROKEN as e:
        reason = f"{type(e).__name__}: {str(e)[:80]}"
        raise FormatError(
            f"it is no whole zip archive ({reason}): the file is truncated or damaged"
        ) from None
    foreign_kind = foreign.of_archive(archive.namelist())
    if foreign_kind:
        raise FormatError(foreign_kind)
    return archive


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The arrays by name, if what the archive says of their sizes can be true."""
    infos = [info for info in archive.infolist() if info.filename.endswith(SUFFIX)]
    members = {info.filename.removesuffix(SUFFIX): info for info in infos}
    if len(members) != len(infos):
        raise FormatError("it has two members of one name")
    bounds.check_names(members)
    if not infos and archive.infolist():
        raise FormatError(f"it is a zip archive with no .npy members: {quoted(archive.namelist())}")
    if sum(info.compress_size for info in infos) > size:
        raise FormatError("its members overlap, or are longer than the file")
    for name, info in members.items():
        reason = _why_not_read(info)
        if reason:
            raise FormatError(f"member {quoted(name)} {reason}")
    return members


def _why_not_read(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & ENCRYPTED:
        return "is encrypted: save the archive without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return (
            f"has the compression {info.compress_type}; np.savez and np.savez_compressed write 0 "
            f"and 8"
        )
    ratio = 1 if info.compress_type == zipfile.ZIP_STORED else DEFLATE_RATIO
    if info.file_size > ratio * info.compress_size:
        return f"says that {info.compress_size} bytes become {info.file_size}: that cannot be"
    return ""


def _others(archive: zipfile.ZipFile) -> list[str]:
    """Members that are neither arrays nor folders."""
    return [name for name in archive.namelist() if not name.endswith((SUFFIX, "/"))][:5]


def _head(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Head:
    with _member(archive, name, info) as stream:
        head = npy.read_head(stream.read, name)
        if head.size + head.nbytes != info.file_size:
            raise FormatError(
                f"its header speaks of {head.nbytes} bytes, {info.file_size - head.size} follow"
            )
        return head


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Iterator[Any]:
    """The stream of a member; errors say which."""
    try:
        with archive.open(info) as stream:
            yield stream
    except UnsupportedArray:
        raise
    except FormatError as e:
        raise FormatError(f"member {quoted(name)}: {e}") from None
    except BROKEN as e:
        raise FormatError(f"member {quoted(name)}: {type(e).__name__}: {quoted(str(e))}") from None


def write(
    file: BinaryIO, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any]
) -> None:
    """Writes an .npz archive, uncompressed as `np.savez` does, reading one tensor at a time."""
    check_names(tensors.values(), _why_not)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path, tensor in tensors.items():
            # Read before its member is begun: an error of reading leaves no half of one open.
            array = read(path)
            descr = numpy_format.dtype_to_descr(tensor.dtype)
            head = {"descr": descr, "fortran_order": False, "shape": tensor.shape}
            info = zipfile.ZipInfo(f"{tensor.name}{SUFFIX}")
            with archive.open(info, "w", force_zip64=True) as member:
                numpy_format.write_array_header_1_0(member, head)
                write_array(array, member.write)
            del array  # before the next one is read


def _why_not(tensor: Tensor) -> str:
    if tensor.dtype.kind == "V":
        return (
            f".npz cannot hold {tensor.dtype.name}: restore to .safetensors, .msgpack or a folder"
        )
    if leads_out(tensor):
        return (
            "the name leads out of a folder, where the archive is unpacked: restore to "
            ".safetensors or .msgpack"
        )
    if len(tensor.name.encode()) + len(SUFFIX) > MAX_MEMBER:
        return f"the name is longer than the {MAX_MEMBER} bytes of a zip archive"
    return ""
