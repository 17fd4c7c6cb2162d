"""Safetensors files, read and written tensor by tensor: u64 n | n bytes of JSON | the tensors, one
after another.

https://github.com/huggingface/safetensors#format
"""

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxprune.numerics.streamed import empty
from jaxprune.storage.checkpoints import bounds
from jaxprune.storage.checkpoints.tensors import (
    Checkpoint,
    Read,
    Tensor,
    by_path,
    check_names,
    check_tensor,
    fill,
    read_exactly,
    size_of,
    split_names,
    write_array,
)
from jaxprune.storage.format.json_text import parse_json
from jaxprune.storage.format.manifest import open_regular
from jaxprune.storage.format.words import FormatError

DTYPES = {
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "BOOL": "bool",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
NAMES = {name: code for code, name in DTYPES.items()}


class File(NamedTuple):
    """An open safetensors file: what its header says, checked, and where each tensor begins.

    Attributes:
      file: the open file.
      names: name -> shape and dtype; the keys of these tensors are the name alone.
      places: name -> offset in the file.
      about: the texts of `__metadata__`.
    """

    file: BinaryIO
    names: Mapping[str, Tensor]
    places: Mapping[str, int]
    about: Mapping[str, str]

    def read(self, name: str, into: np.ndarray | None = None) -> np.ndarray:
        """One tensor, in `into` if that is given."""
        tensor = self.names[name]
        self.file.seek(self.places[name])
        array = empty(tensor.shape, tensor.dtype) if into is None else into
        return fill(array, self.file.read)


@contextlib.contextmanager
def opened_file(path: Any) -> Iterator[File]:
    """A safetensors file whose header is sound."""
    with open_regular(path) as file:
        header, start = _header(file)
        about = header.pop("__metadata__", {})
        if type(about) is not dict or not all(type(x) is str for x in about.values()):
            raise FormatError("its __metadata__ is not an object of strings")
        bounds.check_names(header)
        names = {name: _tensor(name, entry) for name, entry in header.items()}
        offsets = _offsets(header, names, size_of(file) - start)
        places = {name: start + offset for name, offset in offsets.items()}
        yield File(file, names, places, about)


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of a safetensors file."""
    with opened_file(path) as file:
        keys = split_names(file.names)
        tensors = by_path(tensor._replace(keys=keys[name]) for name, tensor in file.names.items())

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            return file.read(tensors[path].name, into)

        yield Checkpoint("safetensors", tensors, read, (), file.about)


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    (length,) = struct.unpack("<Q", read_exactly(file.read, 8))
    if length > min(bounds.MAX_JSON, size_of(file) - 8):
        raise FormatError(
            f"its header says that it is {length} bytes long: no safetensors file, or a truncated "
            f"one"
        )
    header = parse_json(read_exactly(file.read, length), "header", bounds.MAX_TOKENS)
    if type(header) is not dict:
        raise FormatError("its header is not an object")
    return header, 8 + length


def _tensor(name: str, entry: Any) -> Tensor:
    fields = entry if type(entry) is dict else {}
    dtype = fields.get("dtype")
    shape = fields.get("shape")
    if type(shape) is not list or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(
            f"{bounds.quoted(name)} is {bounds.quoted(entry)}; it must say dtype, shape and "
            f"data_offsets"
        )
    if type(dtype) is not str or dtype not in DTYPES:
        raise FormatError(
            f"{bounds.quoted(name)} has the dtype {bounds.quoted(dtype, 20)}; read are "
            f"{', '.join(DTYPES)}"
        )
    return check_tensor((name,), shape, np.dtype(DTYPES[dtype]))


def _offsets(header: dict[str, Any], names: Mapping[str, Tensor], size: int) -> dict[str, int]:
    """Where each tensor begins; they must lie one after another, without gaps, to the end of the
    file.

    Args:
      header: name -> entry.
      names: name -> tensor.
      size: bytes of all tensors.
    """
    spans = {name: _span(name, header[name]) for name in names}
    offsets: dict[str, int] = {}
    end = 0
    for name, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        tensor = names[name]
        if first != end or last - first != tensor.nbytes or last > size:
            raise FormatError(
                f"{bounds.quoted(name)}, {tensor.dtype.name}{list(tensor.shape)} of "
                f"{tensor.nbytes} bytes, says that it lies from byte {first} to {last} of {size}, "
                f"after {end}: a gap, an overlap, or a truncated file"
            )
        offsets[name] = first
        end = last
    if end != size:
        raise FormatError(
            f"its header speaks of {end} bytes of tensors; there are {size}: truncated or extended"
        )
    return offsets


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    span = entry["data_offsets"]
    is_pair = type(span) is list and len(span) == 2
    if not is_pair or not all(type(offset) is int and 0 <= offset < 2**63 for offset in span):
        raise FormatError(f"{bounds.quoted(name)} has the data_offsets {bounds.quoted(span)}")
    return span[0], span[1]


def write(
    file: BinaryIO, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any]
) -> None:
    """Writes a safetensors file, reading one tensor at a time."""
    check(tensors)
    write_checked(file, tensors, read, about)


def check(tensors: Mapping[str, Tensor]) -> None:
    """Refuses what the format cannot hold."""
    check_names(tensors.values(), _why_not)


def write_checked(
    file: BinaryIO, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any]
) -> None:
    """`write` of tensors that `check` let pass."""
    header: dict[str, Any] = {"__metadata__": texts(about)} if about else {}
    end = 0
    for tensor in tensors.values():
        entry = {"dtype": NAMES[tensor.dtype.name], "shape": list(tensor.shape)}
        header[tensor.name] = {**entry, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    if len(raw) > bounds.MAX_JSON:
        raise ValueError(
            f"{len(tensors)} names make a header of {len(raw)} bytes; safetensors takes "
            f"{bounds.MAX_JSON}"
        )
    file.write(struct.pack("<Q", len(raw)) + raw)
    for path in tensors:
        write_array(read(path), file.write)


def texts(about: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as the format has it, texts by name: what is no text becomes JSON.

    >>> texts({"format": "pt", "step": 3, "by": {"name": "x"}})
    {'format': 'pt', 'step': '3', 'by': '{"name": "x"}'}
    """
    return {
        name: x if type(x) is str else json.dumps(x, ensure_ascii=False)
        for name, x in about.items()
    }


def _why_not(tensor: Tensor) -> str:
    if tensor.name == "__metadata__":
        return "the name is reserved in safetensors: restore to .npz or .msgpack"
    if tensor.dtype.name not in NAMES:
        return f"safetensors has no {tensor.dtype.name}: restore to .msgpack or a folder"
    return ""
