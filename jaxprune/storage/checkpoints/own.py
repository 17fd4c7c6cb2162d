"""jaxprune's own files as checkpoints: dense arrays under the names and in the layout that they
were made from.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxprune.core.leaves.keys import joined, split
from jaxprune.storage.accounting import LeafMemory, shared
from jaxprune.storage.checkpoints import layouts
from jaxprune.storage.checkpoints import tensors as t
from jaxprune.storage.checkpoints.bounds import quoted
from jaxprune.storage.checkpoints.tensors import Checkpoint, Tensor
from jaxprune.storage.format import manifest, parts
from jaxprune.storage.format.manifest import Contents
from jaxprune.storage.format.shapes import dense
from jaxprune.storage.format.words import DTYPES, FIRST, Code, Group, Leaf, Row, header
from jaxprune.storage.loading import Loading

BEGINNING = header(0, 0)[8:].split(str(FIRST).encode())[0]


def is_own(beginning: bytes) -> bool:
    """Whether a file that begins so was written by `save`."""
    return beginning[8:].startswith(BEGINNING)


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of a jaxprune file; each leaf is checked, decoded and made dense when it is
    read.
    """
    with manifest.open_regular(path) as file:
        contents = manifest.contents(file)
        loading = Loading(file, contents, "numpy", None, 2**63)
        made = contents.metadata.get("checkpoint", {})
        made = made if type(made) is dict else {}
        layout = made.get("layout", "jax")
        about = made.get("about", {})
        named = loading.named()
        boxes = _boxes(made.get("boxed"), named)
        stored = {path: _tensor(path, *named[path], contents, path in boxes) for path in named}
        tensors = {path: _original(layout, tensor) for path, tensor in stored.items()}
        memory = LeafMemory(contents)

        def needs(path: str) -> int:
            return memory.dense(*named[path])

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            leaf, group = named[path]
            node = loading.decoder.read(leaf, shared(group))
            x = parts.as_numpy(node, loading.codebook(group) if group else None)
            return t.placed(layouts.turned(x, layout, tensors[path].keys), into)

        checked = t.by_path(tensors.values())
        nothings = _nothings(contents.tree, ())
        notes = tuple(
            f"{quoted(path)[1:-1]} is nothing (None), and is left out" for path in nothings
        )
        yield Checkpoint(
            "jaxprune", checked, read, notes, about if type(about) is dict else {}, needs
        )


def _nothings(node: Any, keys: tuple[str | int, ...]) -> Iterator[str]:
    """The paths of what is None in a tree."""
    if node is None:
        yield joined(keys) or "the tree"
    elif isinstance(node, Group):
        yield from _nothings(node.tree, keys)
    elif not isinstance(node, Leaf):
        for key, kid in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _nothings(kid, (*keys, key))


def _boxes(boxed: Any, paths: Iterable[str]) -> set[str]:
    """The leaves that were NNX's variables in the checkpoint: all of them, or those that are
    listed.
    """
    if boxed is True:
        return set(paths)
    return {path for path in boxed if type(path) is str} if type(boxed) is list else set()


def _tensor(path: str, leaf: Leaf, group: Group | None, contents: Contents, boxed: bool) -> Tensor:
    keys = () if isinstance(contents.tree, Leaf) else split(path)
    if not isinstance(leaf.node, Row | Code):
        return Tensor(keys, (), np.asarray(leaf.node).dtype, boxed)
    shape, dtype = dense(leaf.node, shared(group))
    return Tensor(keys, shape, np.dtype(DTYPES[dtype].name), boxed)


def _original(layout: str, tensor: Tensor) -> Tensor:
    if not layouts.turns(layout, tensor.keys, tensor.shape):
        return tensor
    *window, inputs, outputs = tensor.shape
    return tensor._replace(shape=(outputs, inputs, *window))
