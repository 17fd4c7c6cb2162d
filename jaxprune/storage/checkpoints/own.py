"""jaxprune's own files as checkpoints: dense arrays under the names and in the layout that they were made from."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxprune.storage import manifest, parts
from jaxprune.storage.accounting import decoded_bytes, shared
from jaxprune.storage.checkpoints import layouts
from jaxprune.storage.checkpoints import tensors as t
from jaxprune.storage.checkpoints.tensors import Checkpoint, Tensor
from jaxprune.storage.format import DTYPES, FIRST, Code, FormatError, Row, header, split
from jaxprune.storage.loading import Loading
from jaxprune.storage.structure import dense

MAX_LEAF = 1 << 36  # bytes of one leaf, dense
BEGINNING = header(0, 0)[8:].split(str(FIRST).encode())[0]


def is_own(beginning: bytes) -> bool:
    """Whether a file that begins so was written by `save`."""
    return beginning[8:].startswith(BEGINNING)


@contextlib.contextmanager
def opened(path: Any, max_leaf: int = MAX_LEAF) -> Iterator[Checkpoint]:
    """The checkpoint of a jaxprune file; each leaf is checked, decoded and made dense when it is read."""
    with manifest.open_regular(path) as file:
        contents = manifest.contents(file)
        loading = Loading(file, contents, "numpy", None, 2**63)
        made = contents.metadata.get("checkpoint", {})
        layout = made.get("layout", "jax") if type(made) is dict else "jax"
        named = loading.named()
        stored = {path: _tensor(path, leaf.node, group) for path, (leaf, group) in named.items()}
        tensors = {path: _original(layout, tensor) for path, tensor in stored.items()}

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            leaf, group = named[path]
            if tensors[path].nbytes + decoded_bytes(leaf.node) > max_leaf:
                raise FormatError(f"leaf {path!r} takes more than {max_leaf} bytes decoded")
            node = loading.decoder.read(leaf, shared(group))
            x = parts.as_numpy(node, loading.codebook(group) if group else None)
            return t.placed(layouts.turned(x, layout, tensors[path].keys), into)

        about = made.get("about", {}) if type(made) is dict else {}
        yield Checkpoint("jaxprune", t.by_path(tensors.values()), read, (), about if type(about) is dict else {})


def _tensor(path: str, node: Any, group: Any) -> Tensor:
    keys = split(path) if path else ()
    if not isinstance(node, Row | Code):
        return Tensor(keys, (), np.asarray(node).dtype)
    shape, dtype = dense(node, shared(group))
    return Tensor(keys, shape, np.dtype(DTYPES[dtype].name))


def _original(layout: str, tensor: Tensor) -> Tensor:
    if not layouts.turns(layout, tensor.keys, tensor.shape):
        return tensor
    *window, inputs, outputs = tensor.shape
    return tensor._replace(shape=(outputs, inputs, *window))
