"""The verbs `save`, `load` and `inspect`. docs/format.md specifies the format of the files."""

import os
from typing import Any

from jaxprune.core.arguments import whole
from jaxprune.core.guesses import refuse_no_tree
from jaxprune.core.words import choice
from jaxprune.storage.accounting import leaves
from jaxprune.storage.atomic import replacing
from jaxprune.storage.format.manifest import contents, opened
from jaxprune.storage.format.trees import to_nodes
from jaxprune.storage.inspection import Inspection, summary
from jaxprune.storage.loading import As, load_tree
from jaxprune.storage.streams.varints import Buffer
from jaxprune.storage.writer import Writer

Path = str | os.PathLike[str]


def save(path: Path, tree: Any, *, metadata: dict[str, Any] | None = None) -> None:
    """Writes a tree of arrays and compressed arrays: each array by its smallest lossless codec.

    The file appears whole or not at all: it is written beside `path`, flushed to the disk, and
    renamed. What a mask hides is not stored. The same tree gives the same bytes.

    Args:
      path: the file; any suffix will do. It is a valid safetensors file.
      tree: any pytree. Leaves are arrays of any dtype of JAX, compressed arrays, NumPy arrays,
        Python numbers and None.
      metadata: what JSON can hold, for `inspect(path).metadata`.

    Raises:
      ValueError: a leaf or a key that cannot be saved; the message has its path.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, tempfile, os
      >>> path = os.path.join(tempfile.mkdtemp(), "model.jp")
      >>> jp.save(path, {"w": jp.Masked(jnp.arange(4.0), jnp.arange(4) > 1)}, metadata={"epoch": 3})
      >>> print(jp.load(path)["w"].values, jp.inspect(path).metadata)
      [0. 0. 2. 3.] {'epoch': 3}
    """
    _refuse_no_path("save", path, tree, "params")
    refuse_no_tree(tree)
    nodes = to_nodes(tree)
    data: list[Buffer] = []
    banks: list[Buffer] = []
    writer = Writer(data.append, banks.append, keeps_arrays=True)
    for leaf, _ in leaves(nodes):
        writer.add(leaf)
    head = writer.finish(nodes, metadata)
    with replacing(path) as file:
        for piece in (head, *data, *banks):
            file.write(piece)


def load(
    path: Path,
    like: Any = None,
    *,
    as_: As = "compressed",
    only: str | None = None,
    max_bytes: int = 2**34,
) -> Any:
    """Reads a tree that `save` wrote, bit for bit.

    Args:
      path: the file.
      like: a tree of arrays or `jax.ShapeDtypeStruct`s, shaped like the dense weights: the result
        has its structure (NamedTuples, Flax FrozenDicts, nnx.States, Equinox modules). Without it,
        these come back as dicts.
      as_: "compressed" gives codes back as codes; "dense" as JAX arrays; "numpy" makes everything a
        NumPy array.
      only: a regular expression; only leaves whose whole path it matches are read. Others are left
        out (None in lists), or are those of `like`.
      max_bytes: the most that the decoded arrays and the decoder of the largest bank may take;
        checked before any of them is made.

    Raises:
      FormatError: the file is damaged, truncated, hostile, or of a newer version.
      ValueError: a path that is none; `like` has leaves that the file lacks, or lacks some, or
        others in shape or dtype; `only` matches nothing.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, tempfile, os
      >>> path = os.path.join(tempfile.mkdtemp(), "model.jp")
      >>> indices = jnp.array([0, 1, 1], jnp.uint8)
      >>> jp.save(path, {"w": jp.Clustered(jnp.array([1.0, 2.0]), indices), "steps": 7})
      >>> jp.load(path, as_="numpy", only="w")
      {'w': array([1., 2., 2.], dtype=float32)}
    """
    _refuse_no_path("load", path, like, "like=params")
    choice("load(as_={})", as_, ("compressed", "dense", "numpy"))
    max_bytes = whole("load(max_bytes={})", max_bytes, 0)
    if like is not None:
        refuse_no_tree(like)
    with opened(path) as file:
        return load_tree(file, contents(file), like, as_, only, max_bytes)


def inspect(path: Path) -> Inspection:
    """What a file holds, from its header and manifest alone; the data is not read.

    Returns:
      An `Inspection`: `.rows` (one a leaf), `.bytes` (file, data, manifest, predicted),
      `.metadata`, `.to_dict()`; it prints as a table.

    Raises:
      FormatError: as `load`, but for what only the data can show.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, jaxprune as jp
      >>> path = os.path.join(tempfile.mkdtemp(), "model.jpz")
      >>> jp.save(path, {"kernel": jp.prune(0.5).init(jnp.eye(4))})
      >>> [(row.path, row.kind, row.dense_bytes) for row in jp.inspect(path).rows]
      [('kernel', 'Masked', 64)]
    """
    _refuse_no_path("inspect", path)
    with opened(path) as file:
        return summary(contents(file))


def _refuse_no_path(call: str, path: Any, other: Any = None, argument: str = "") -> None:
    """A path is text or an `os.PathLike`; where the other argument is one, they are swapped."""
    if isinstance(path, str | os.PathLike):
        return
    example = f"jp.{call}('model.jpz'{argument and ', ' + argument})"
    swapped = ": the arguments are swapped" if isinstance(other, str | os.PathLike) else ""
    raise ValueError(
        f"{call}: the first argument is a {type(path).__name__}, not a path of a file, as "
        f"{example}{swapped}"
    )
