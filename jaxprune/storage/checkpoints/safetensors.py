"""Safetensors files, read and written tensor by tensor: u64 n | n bytes of JSON | the tensors, one after another.

https://github.com/huggingface/safetensors#format
"""

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from jaxprune.numerics.streamed import empty
from jaxprune.storage.checkpoints import tensors as t
from jaxprune.storage.checkpoints.tensors import Checkpoint, Read, Tensor
from jaxprune.storage.format import FormatError
from jaxprune.storage.manifest import open_regular

MAX_HEADER = 100_000_000  # the limit of the reference implementation

DTYPES = {f"{'IU'[unsigned]}{n}": f"{'u' * unsigned}int{n}" for n in (8, 16, 32, 64) for unsigned in (0, 1)} | {
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


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of a safetensors file."""
    with open_regular(path) as file:
        header, start = _header(file)
        about = header.pop("__metadata__", {})
        if type(about) is not dict or not all(type(x) is str for x in about.values()):
            raise FormatError("its __metadata__ is not an object of strings")
        keys = t.split_names(header)
        found = {name: _tensor(keys[name], entry) for name, entry in header.items()}
        places = _places(header, found, t.size_of(file) - start)
        tensors = t.by_path(found.values())

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            tensor = tensors[path]
            file.seek(start + places[tensor.name])
            return t.fill(empty(tensor.shape, tensor.dtype) if into is None else into, file.read)

        yield Checkpoint("safetensors", tensors, read, (), about)


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    (length,) = struct.unpack("<Q", t.exactly(file.read, 8))
    if length > min(MAX_HEADER, t.size_of(file) - 8):
        raise FormatError(f"its header says that it is {length} bytes long: no safetensors file, or a truncated one")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) != len(items):
            raise FormatError("its header has a name twice")
        return dict(items)

    try:
        header = json.loads(t.exactly(file.read, length).decode("utf-8"), object_pairs_hook=pairs)
    except FormatError:
        raise
    except (ValueError, RecursionError) as e:
        raise FormatError(f"its header is not JSON ({type(e).__name__})") from None
    if type(header) is not dict:
        raise FormatError("its header is not an object")
    return header, 8 + length


def _tensor(keys: t.Keys, entry: Any) -> Tensor:
    name = "/".join(keys)
    fields = entry if type(entry) is dict else {}
    dtype, shape = fields.get("dtype"), fields.get("shape")
    if type(shape) is not list or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{name!r} is {str(entry)[:80]}; it must say dtype, shape and data_offsets")
    if type(dtype) is not str or dtype not in DTYPES:
        raise FormatError(f"{name!r} has the dtype {str(dtype)[:20]!r}; read are {', '.join(DTYPES)}")
    return t.checked(keys, shape, np.dtype(DTYPES[dtype]))


def _places(header: dict[str, Any], found: Mapping[str, Tensor], room: int) -> dict[str, int]:
    """Where each tensor begins; they must lie one after another, without gaps, to the end of the file."""
    places: dict[str, int] = {}
    end = 0
    for name, (first, last) in sorted(((n, _span(n, header[n])) for n in found), key=lambda item: item[1]):
        if first != end or last - first != found[name].nbytes or last > room:
            raise FormatError(
                f"{name!r}, {found[name].dtype.name}{list(found[name].shape)} of {found[name].nbytes} bytes, says that "
                f"it lies from byte {first} to {last} of {room}, after {end}: a gap, an overlap, or a truncated file"
            )
        places[name], end = first, last
    if end != room:
        raise FormatError(f"its header speaks of {end} bytes of tensors; there are {room}: truncated or extended")
    return places


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    span = entry["data_offsets"]
    if type(span) is not list or len(span) != 2 or not all(type(x) is int and x >= 0 for x in span):
        raise FormatError(f"{name!r} has the data_offsets {str(span)[:60]}")
    return span[0], span[1]


def write(file: BinaryIO, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any]) -> None:
    """Writes a safetensors file, reading one tensor at a time."""
    t.check_names(tensors.values(), _why_not)
    header: dict[str, Any] = {"__metadata__": {str(key): _as_text(x) for key, x in about.items()}} if about else {}
    end = 0
    for tensor in tensors.values():
        entry = {"dtype": NAMES[tensor.dtype.name], "shape": list(tensor.shape)}
        header[tensor.name] = {**entry, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    try:
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a name or the metadata is no text that UTF-8 can hold: restore to .npz or .msgpack") from None
    raw += b" " * (-len(raw) % 8)
    file.write(struct.pack("<Q", len(raw)) + raw)
    for path in tensors:
        t.write(read(path), file.write)


def _as_text(x: Any) -> str:
    """Metadata as safetensors holds it: texts as they are, all else as JSON."""
    return x if type(x) is str else json.dumps(x)


def _why_not(tensor: Tensor) -> str:
    if tensor.name == "__metadata__":
        return "the name is reserved in safetensors: restore to .npz or .msgpack"
    if tensor.dtype.name not in NAMES:
        return f"safetensors has no {tensor.dtype.name}: restore to .msgpack or a folder"
    return ""
