"""Safetensors in several files, as Hugging Face writes large models: a folder of shards, and mostly an index.

model.safetensors.index.json    {"metadata": {…}, "weight_map": {name of a tensor: name of a file beside it}}
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxprune.storage.checkpoints import safetensors
from jaxprune.storage.checkpoints import tensors as t
from jaxprune.storage.checkpoints.tensors import Checkpoint
from jaxprune.storage.format import FormatError
from jaxprune.storage.manifest import open_regular

INDEX = ".safetensors.index.json"
SHARD = ".safetensors"
MAX_INDEX = 100_000_000  # bytes


def is_sharded(path: Any) -> bool:
    """Whether a path is an index, or a folder with an index or with shards."""
    name = os.fspath(path)
    if os.path.isdir(name):
        return any(entry.endswith((INDEX, SHARD)) for entry in os.listdir(name))
    return name.endswith(INDEX)


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of all shards together; each tensor is read from its own file when it is asked for."""
    folder, placed = _placed(os.fspath(path))
    with contextlib.ExitStack() as stack:
        shards = {}
        for name in sorted(set(placed.values()) if placed is not None else _shards(folder)):
            try:
                shards[name] = stack.enter_context(safetensors.opened(os.path.join(folder, name)))
            except (FormatError, FileNotFoundError) as e:
                reason = "it is missing" if isinstance(e, FileNotFoundError) else str(e)
                raise FormatError(f"the shard {name!r}: {reason}") from None
        found: dict[str, tuple[str, str]] = {}  # the name of a tensor: its shard, and its path there
        for name, shard in shards.items():
            for there, tensor in shard.tensors.items():
                if tensor.name in found:
                    raise FormatError(f"{tensor.name!r} is in two shards, {found[tensor.name][0]!r} and {name!r}")
                found[tensor.name] = name, there
        _check(placed, found)
        keys = t.split_names(found)
        tensors = t.by_path(
            shards[name].tensors[there]._replace(keys=keys[tensor]) for tensor, (name, there) in found.items()
        )

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            name, there = found[tensors[path].name]
            return shards[name].read(there, into)

        about = {key: value for shard in shards.values() for key, value in shard.about.items()}
        yield Checkpoint("safetensors, sharded", tensors, read, (), about)


def _placed(path: str) -> tuple[str, dict[str, str] | None]:
    """The folder, and the index of tensors, if there is one."""
    if not os.path.isdir(path):
        return os.path.dirname(path) or ".", _index(path)
    indices = sorted(name for name in os.listdir(path) if name.endswith(INDEX))
    if len(indices) > 1:
        raise FormatError(f"the folder has the indices {', '.join(indices[:3])}: name one of them")
    return path, _index(os.path.join(path, indices[0])) if indices else None


def _index(path: str) -> dict[str, str]:
    with open_regular(path) as file:
        raw = file.read(MAX_INDEX + 1)
    try:
        said = json.loads(raw.decode("utf-8")) if len(raw) <= MAX_INDEX else None
    except (ValueError, RecursionError) as e:
        raise FormatError(f"the index is not JSON ({type(e).__name__})") from None
    placed = said.get("weight_map") if type(said) is dict else None
    if type(placed) is not dict or not placed or not all(type(name) is str for name in placed.values()):
        raise FormatError("the index has no weight_map from names of tensors to names of files")
    for name in placed.values():
        if os.path.basename(name) != name or not name.endswith(SHARD):
            raise FormatError(f"the index names the file {name[:80]!r}: a shard is a {SHARD} file beside the index")
    return placed


def _shards(folder: str) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(SHARD)]


def _check(placed: dict[str, str] | None, found: dict[str, tuple[str, str]]) -> None:
    """Whether an index and the shards say the same."""
    for name, file in (placed or {}).items():
        if name not in found or found[name][0] != file:
            where = f"it is in {found[name][0]!r}" if name in found else "no shard has it"
            raise FormatError(f"the index says that {name!r} is in {file!r}; {where}")
    missing = [name for name in found if placed is not None and name not in placed]
    if missing:
        raise FormatError(f"{missing[0]!r} is in a shard, and the index does not list it")
