"""Safetensors in shards: a folder of them, with an index that says which tensor is where, as
Hugging Face writes it.

    model.safetensors.index.json    {"metadata": {"total_size": 64}, "weight_map": {"l1.weight":
                                    "model-00001-of-…", …}}
    model-00001-of-00002.safetensors, model-00002-of-00002.safetensors

Without an index the shards of a folder are one checkpoint too. Each is read tensor by tensor.
https://huggingface.co/docs/safetensors,
https://huggingface.co/docs/huggingface_hub/package_reference/serialization
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from jaxprune.storage.atomic import new_folder
from jaxprune.storage.checkpoints import bounds, safetensors
from jaxprune.storage.checkpoints.bounds import quoted
from jaxprune.storage.checkpoints.tensors import Checkpoint, Read, Tensor, by_path, split_names
from jaxprune.storage.format.json_text import parse_json
from jaxprune.storage.format.words import FormatError

SHARD = ".safetensors"
INDEX = ".safetensors.index.json"
MAX_SHARDS = 500  # all are open at once, and systems let a process open 1,024 files
NAME = "model"

WeightMap = dict[str, str]  # tensor -> file name of its shard


def is_sharded(folder: str) -> bool:
    """Whether a folder holds safetensors files."""
    return any(name.endswith((SHARD, INDEX)) for name in os.listdir(folder))


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of a folder of shards, or of its index."""
    folder, index = _index_of(os.fspath(path))
    if index is None:
        weight_map = None
        shards = _shards_of(folder)
    else:
        weight_map = _weight_map(os.path.join(folder, index))
        shards = sorted(set(weight_map.values()))
    if len(shards) > MAX_SHARDS:
        raise FormatError(f"it has {len(shards)} shards; at most {MAX_SHARDS} are read")
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(_shard(folder, name)) for name in shards}
        shard_of = _shard_of_each(files, weight_map)
        keys = split_names(shard_of)
        tensors = by_path(
            files[shard].names[name]._replace(keys=keys[name]) for name, shard in shard_of.items()
        )

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            name = tensors[path].name
            shard = shard_of[name]
            with _naming(shard):
                return files[shard].read(name, into)

        yield Checkpoint(
            "safetensors shards", tensors, read, _notes(folder, files, weight_map), _about(files)
        )


def _index_of(path: str) -> tuple[str, str | None]:
    """The folder of some shards and the name of their index, if there is one."""
    if not os.path.isdir(path):
        return os.path.split(path)
    names = sorted(name for name in os.listdir(path) if name.endswith(INDEX))
    if len(names) > 1:
        raise FormatError(
            f"it has several indices: give one, as {os.path.join(path, names[0])}; also {names[1:]}"
        )
    return path, names[0] if names else None


def _weight_map(path: str) -> WeightMap:
    """The `weight_map` of an index: texts to names of files beside it."""
    value = parse_json(
        bounds.read_bounded(path, bounds.MAX_JSON, "index"), "index", bounds.MAX_TOKENS
    )
    weight_map = value.get("weight_map") if type(value) is dict else None
    if type(weight_map) is not dict or not weight_map:
        raise FormatError(
            "the index has no weight_map, an object of tensors and the files that they are in"
        )
    bounds.check_names(weight_map)
    for name, shard in weight_map.items():
        if type(shard) is not str or not _is_plain(shard):
            raise FormatError(
                f"the index says that {quoted(name)} is in {quoted(shard)}: a shard is a {SHARD} "
                f"file beside the index"
            )
    return weight_map


def _is_plain(name: str) -> bool:
    """Whether a name is that of a shard in the same folder, on every system."""
    if not name.endswith(SHARD) or len(name) > 255 or name[1:2] == ":":
        return False
    return not any(letter in "/\\\0" or "\ud800" <= letter <= "\udfff" for letter in name)


def _shards_of(folder: str) -> list[str]:
    return sorted(
        name for name in os.listdir(folder) if name.endswith(SHARD) and not name.startswith(".")
    )


@contextlib.contextmanager
def _shard(folder: str, name: str) -> Iterator[safetensors.File]:
    with contextlib.ExitStack() as stack:
        with _naming(name):
            try:
                file = stack.enter_context(safetensors.opened_file(os.path.join(folder, name)))
            except FileNotFoundError:
                raise FormatError(
                    "the index names it, but it is not there: download it too"
                ) from None
        yield file


@contextlib.contextmanager
def _naming(shard: str) -> Iterator[None]:
    """An error of a shard says which."""
    try:
        yield
    except FormatError as e:
        raise FormatError(f"shard {quoted(shard)}: {e}") from None


def _shard_of_each(
    files: Mapping[str, safetensors.File], weight_map: WeightMap | None
) -> WeightMap:
    """The shard of each tensor, by what the shards hold; the index must agree."""
    shard_of: WeightMap = {}
    for shard, file in files.items():
        for name in file.names:
            if name in shard_of:
                raise FormatError(
                    f"{quoted(name)} is in {shard_of[name]} and in {shard}: give one of the files, "
                    f"or an index"
                )
            shard_of[name] = shard
    for name, shard in (weight_map or {}).items():
        if shard_of.get(name) != shard:
            elsewhere = f"it is in {shard_of[name]}" if name in shard_of else "no shard has it"
            raise FormatError(
                f"the index says that {quoted(name)} is in {quoted(shard)}; {elsewhere}"
            )
    if weight_map is not None and shard_of.keys() != weight_map.keys():
        name = next(name for name in shard_of if name not in weight_map)
        raise FormatError(
            f"{quoted(name)} is in the shard {shard_of[name]}, and the index does not list it"
        )
    return shard_of


def _notes(
    folder: str, files: Mapping[str, safetensors.File], weight_map: WeightMap | None
) -> tuple[str, ...]:
    if weight_map is None:
        return ()
    beside = [name for name in _shards_of(folder or ".") if name not in files]
    return tuple(f"{quoted(name)} is not in the index, and is left out" for name in beside[:5])


def _about(files: Mapping[str, safetensors.File]) -> dict[str, str]:
    """The metadata on which all shards agree."""
    first, *rest = [file.about for file in files.values()] or [{}]
    return {
        key: text for key, text in first.items() if all(about.get(key) == text for about in rest)
    }


# --- writing
# ---------------------------------------------------------------------------------------


def write(
    path: Any, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any], shard_bytes: int
) -> None:
    """Writes a new folder of shards of at most `shard_bytes` of tensors each (a larger tensor has
    one of its own).

    One shard alone is `model.safetensors`, without an index, as other tools have it.
    """
    safetensors.check(tensors)
    shards = split(tensors, shard_bytes)
    if len(shards) > MAX_SHARDS:
        raise ValueError(
            f"--shard-size {shard_bytes} makes {len(shards)} shards; at most {MAX_SHARDS}: make it "
            f"larger"
        )
    names = [f"{NAME}-{i + 1:05}-of-{len(shards):05}{SHARD}" for i in range(len(shards))]
    if len(shards) == 1:
        names = [NAME + SHARD]
    with new_folder(path) as folder:
        for name, paths in zip(names, shards):
            shard = {path: tensors[path] for path in paths}
            with _new_file(os.path.join(folder, name)) as file:
                safetensors.write_checked(file, shard, read, about)
        if len(shards) > 1:
            with _new_file(os.path.join(folder, NAME + INDEX)) as file:
                file.write(_index(tensors, names, shards))


def _index(tensors: Mapping[str, Tensor], names: list[str], shards: list[list[str]]) -> bytes:
    weight_map = {}
    for name, paths in zip(names, shards):
        for path in paths:
            weight_map[tensors[path].name] = name
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[BinaryIO]:
    """A file that is on the disk when the block ends."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def split(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    """The paths of each shard, in order.

    >>> x = np.dtype("float32")
    >>> split({name: Tensor((name,), (2,), x) for name in "abc"}, 16)
    [['a', 'b'], ['c']]
    """
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for path, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(path)
        room -= tensor.nbytes
    return shards
