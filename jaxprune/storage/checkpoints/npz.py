"""NumPy's .npz archives, read and written member by member. Nothing is unpickled."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as numpy_format

from jaxprune.numerics.streamed import empty
from jaxprune.storage.checkpoints import npy
from jaxprune.storage.checkpoints import tensors as t
from jaxprune.storage.checkpoints.tensors import Checkpoint, Read, Tensor
from jaxprune.storage.format import FormatError
from jaxprune.storage.manifest import open_regular

BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)  # what zipfile raises
BFLOAT16 = np.dtype("bfloat16")


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of an .npz archive."""
    with open_regular(path) as file, _archive(file) as archive:
        members = [info.filename for info in archive.infolist()]
        _refuse_foreign(members)
        names = [name.removesuffix(".npy") for name in members]
        keys = t.split_names(names)
        if len(keys) != len(names):
            raise FormatError("it has two members of one name")
        heads = {name: _head(archive, name) for name in names}
        tensors = t.by_path(t.checked(keys[n], shape, _named(dtype)) for n, (shape, _, dtype) in heads.items())

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            tensor = tensors[path]
            into = empty(tensor.shape, tensor.dtype) if into is None else into
            with _member(archive, tensor.name) as (stream, (_, fortran, dtype)):
                _fill(into.T if fortran else into, stream, dtype)
            return into

        voids = [n for n, (_, _, dtype) in heads.items() if dtype.str == "|V2"]
        yield Checkpoint("npz", tensors, read, (_note(voids),) if voids else ())


def _refuse_foreign(members: list[str]) -> None:
    """Names zip archives that other tools write, and the way out."""
    if any(name.split("/")[-1] == "data.pkl" for name in members):
        raise FormatError("this is PyTorch's, a pickle, which is never read: write it by safetensors.torch.save_file")
    if "model.weights.h5" in members:
        raise FormatError("this is Keras' (.keras): load it with Keras, and np.savez its weights")


def _note(voids: list[str]) -> str:
    more = f" and {len(voids) - 1} more" if len(voids) > 1 else ""
    return f"{voids[0]}{more}: NumPy wrote |V2, which is read as bfloat16"


def _named(dtype: np.dtype) -> np.dtype:
    """NumPy writes bfloat16 as two nameless bytes; no other dtype of JAX has that width and no name."""
    if dtype.str == "|V1":
        raise FormatError(
            "NumPy wrote an array as |V1: a float8 or int4 without its name. Save it as .safetensors or .msgpack"
        )
    return BFLOAT16 if dtype.str == "|V2" else dtype


def _fill(into: np.ndarray, stream: Any, dtype: np.dtype) -> None:
    if dtype.byteorder == ">":
        into[...] = t.fill(empty(into.shape, into.dtype), stream.read).view(dtype)
    else:
        t.fill(into, stream.read)
    if stream.read(1):
        raise FormatError("bytes are left over after the array")


def _archive(file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except BROKEN as e:
        raise FormatError(f"it is no whole zip archive ({e}): the file is truncated or damaged") from None


def _head(archive: zipfile.ZipFile, name: str) -> npy.Header:
    with _member(archive, name) as (_, head):
        return head


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[Any, npy.Header]]:
    """A member behind its header, and the header."""
    try:
        with archive.open(f"{name}.npy") as stream:
            yield stream, npy.read_header(stream)
    except KeyError:
        raise FormatError(f"member {name!r} is no .npy array") from None
    except (FormatError, ValueError, *BROKEN) as e:
        raise FormatError(f"member {name!r}: {e}") from None


def write(file: BinaryIO, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any]) -> None:
    """Writes an .npz archive, uncompressed as `np.savez` does, reading one tensor at a time."""
    t.check_names(tensors.values(), _why_not)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path, tensor in tensors.items():
            with archive.open(zipfile.ZipInfo(f"{tensor.name}.npy"), "w", force_zip64=True) as member:
                head = {
                    "descr": numpy_format.dtype_to_descr(tensor.dtype),
                    "fortran_order": False,
                    "shape": tensor.shape,
                }
                numpy_format.write_array_header_1_0(member, head)
                t.write(read(path), member.write)


def _why_not(tensor: Tensor) -> str:
    if tensor.dtype.kind == "V":
        return f".npz cannot hold {tensor.dtype.name}: restore to .safetensors, .msgpack or a folder"
    if t.leads_out(tensor):
        return "the name leads out of a folder, where the archive is unpacked: restore to .safetensors or .msgpack"
    return ""
