"""jaxprune's own files as checkpoints: dense arrays, in the layout that they were made from."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxprune.core.leaves.keys import joined, split
from jaxprune.storage.accounting import LeafMemory, shared
from jaxprune.storage.checkpoints import layouts
from jaxprune.storage.checkpoints.bounds import quoted
from jaxprune.storage.checkpoints.tensors import Checkpoint, Tensor, by_path, placed
from jaxprune.storage.decoder import Decoder
from jaxprune.storage.filling import leaves_by_path
from jaxprune.storage.format import manifest, parts
from jaxprune.storage.format.manifest import Contents
from jaxprune.storage.format.shapes import dense
from jaxprune.storage.format.words import DTYPES, FIRST, Code, Group, Leaf, Row, header

BEGINNING = header(0, 0)[8:].split(str(FIRST).encode())[0]  # of the JSON header


def is_own(first_bytes: bytes) -> bool:
    """Whether a file that begins so was written by `save`."""
    return first_bytes[8:].startswith(BEGINNING)


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of a jaxprune file; each leaf is checked, decoded and made dense when it is
    read.
    """
    with manifest.open_regular(path) as file:
        contents = manifest.contents(file)
        origin = contents.metadata.get("checkpoint", {})
        if type(origin) is not dict:
            origin = {}
        layout = origin.get("layout", "jax")
        about = origin.get("about", {})
        stored = leaves_by_path(contents)
        boxed = _boxed_paths(origin.get("boxed"), stored)
        tensors = {
            path: _tensor(path, leaf, group, contents, layout, path in boxed)
            for path, (leaf, group) in stored.items()
        }
        decoder = Decoder(file, contents)
        memory = LeafMemory(contents)

        @functools.cache
        def codebook(group: Group | None) -> Any:
            return None if group is None else parts.made(decoder.read(group.codebook), host=False)

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            leaf, group = stored[path]
            node = decoder.read(leaf, shared(group))
            array = parts.as_numpy(node, codebook(group))
            return placed(layouts.from_jax(array, layout, tensors[path].keys), into)

        def memory_of(path: str) -> int:
            return memory.dense(*stored[path])

        notes = [
            f"{quoted(path)[1:-1]} is nothing (None), and is left out"
            for path in _none_paths(contents.tree, ())
        ]
        yield Checkpoint(
            kind="jaxprune",
            tensors=by_path(tensors.values()),
            read=read,
            notes=tuple(notes),
            about=about if type(about) is dict else {},
            memory_of=memory_of,
        )


def _none_paths(node: Any, keys: tuple[str | int, ...]) -> Iterator[str]:
    """The paths of what is None in a tree."""
    if node is None:
        yield joined(keys) or "the tree"
    elif isinstance(node, Group):
        yield from _none_paths(node.tree, keys)
    elif not isinstance(node, Leaf):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _none_paths(child, (*keys, key))


def _boxed_paths(boxed: Any, paths: Iterable[str]) -> set[str]:
    """The leaves that were NNX's variables in the checkpoint: all of them, or those that are
    listed.
    """
    if boxed is True:
        return set(paths)
    if type(boxed) is not list:
        return set()
    return {path for path in boxed if type(path) is str}


def _tensor(
    path: str, leaf: Leaf, group: Group | None, contents: Contents, layout: str, boxed: bool
) -> Tensor:
    """A leaf as its checkpoint had it."""
    keys = () if isinstance(contents.tree, Leaf) else split(path)
    if not isinstance(leaf.node, Row | Code):
        return Tensor(keys, (), np.asarray(leaf.node).dtype, boxed)
    shape, dtype = dense(leaf.node, shared(group))
    tensor = Tensor(keys, shape, np.dtype(DTYPES[dtype].name), boxed)
    if not layouts.is_reordered(layout, keys, shape):
        return tensor
    *window, inputs, outputs = shape
    return tensor._replace(shape=(outputs, inputs, *window))
