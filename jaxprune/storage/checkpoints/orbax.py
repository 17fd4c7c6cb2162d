"""Orbax's checkpoint folders. Reading takes one leaf at a time; writing needs them all in memory,
as Orbax does."""

import contextlib
import glob
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxprune.storage.checkpoints import bounds, foreign
from jaxprune.storage.checkpoints.bounds import quoted
from jaxprune.storage.checkpoints.tensors import (
    Checkpoint,
    Keys,
    Read,
    Tensor,
    by_path,
    check_tensor,
    check_tree,
    leads_out,
    placed,
)
from jaxprune.storage.format.json_text import parse_json
from jaxprune.storage.format.trees import plain_key
from jaxprune.storage.format.words import CODE_OF, MAX_DEPTH, FormatError

DEFAULT = "default"  # the folder of a lone item below a step
METADATA = "_METADATA"
BOX = "value"  # the key below which an NNX variable has its array


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of a folder that a StandardCheckpointer, PyTreeCheckpointer or
    CheckpointManager's step wrote."""
    import orbax.checkpoint as ocp

    folder = _folder(os.path.abspath(path))
    _check_metadata(os.path.join(folder, METADATA))
    with contextlib.ExitStack() as stack:
        with _own_words():
            store = stack.enter_context(ocp.PyTreeCheckpointer())
            tree = store.metadata(folder).item_metadata.tree
            arrays, notes = _arrays(tree)
            boxed = _boxed([_plain(keys) for keys, _ in arrays])
            places = {_plain(keys): keys for keys, _ in arrays}
            tensors = by_path(_tensor(_plain(keys), x, boxed) for keys, x in arrays)
            _check_places(places)

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            keys = _stored_keys(tensors[path])
            with _own_words(path):
                return placed(_leaf(store, folder, tree, places[keys]), into)

        yield Checkpoint("orbax", tensors, read, tuple(notes))


# --- folders
# ---------------------------------------------------------------------------------------


def is_checkpoint(path: str) -> bool:
    """Whether a folder is one that Orbax wrote a tree to."""
    return os.path.isfile(os.path.join(path, METADATA))


def _folder(path: str) -> str:
    """The folder of a tree: this one, or the one item of the step that this is."""
    if is_checkpoint(path):
        return path
    folders = [name for name in os.listdir(path) if os.path.isdir(os.path.join(path, name))]
    folders.sort(key=_by_number)
    items = [
        name
        for name in folders
        if is_checkpoint(os.path.join(path, name)) and not name[-1:].isdigit()
    ]
    if DEFAULT in items:
        return os.path.join(path, DEFAULT)
    if len(items) == 1:
        return os.path.join(path, items[0])
    if items:
        raise FormatError(_name_one(path, "items", items, items[0]))
    steps = [name for name in folders if _is_step(os.path.join(path, name))]
    if steps:
        raise FormatError(_name_one(path, "steps", steps, steps[-1]))
    foreign_kind = foreign.of_folder(os.listdir(path))
    raise FormatError(foreign_kind or "the folder is no checkpoint of Orbax (no _METADATA)")


def _name_one(path: str, what: str, names: list[str], example: str) -> str:
    """The error about a folder that holds several trees."""
    listed = ", ".join(quoted(name)[1:-1] for name in names[-8:])
    if len(names) > 8:
        listed += " and older ones"
    return f"the folder has the {what} {listed}: name one, as {os.path.join(path, example)}"


def _is_step(path: str) -> bool:
    """Whether a folder is a step of a CheckpointManager: a tree, or items that are trees."""
    return is_checkpoint(path) or any(
        is_checkpoint(os.path.join(path, name)) for name in os.listdir(path)
    )


def _by_number(name: str) -> tuple[str, int]:
    """The order of steps: step_9 comes before step_10."""
    digits = re.search(r"[0-9]*\Z", name)
    number = digits[0][:18] if digits else ""
    return name[: len(name) - len(number)], int(number or 0)


def _check_metadata(path: str) -> None:
    """Bounds what Orbax will make of its metadata."""
    value = parse_json(
        bounds.read_bounded(path, bounds.MAX_JSON, METADATA), METADATA, bounds.MAX_TOKENS
    )
    leaves = value.get("tree_metadata") if type(value) is dict else None
    if type(leaves) is not dict or not all(type(leaf) is dict for leaf in leaves.values()):
        raise FormatError(f"the {METADATA} has no tree_metadata, an object of objects")
    if len(leaves) > bounds.MAX_ARRAYS:
        raise FormatError(f"it has {len(leaves)} arrays; at most {bounds.MAX_ARRAYS} are read")
    for name, leaf in leaves.items():
        keys = leaf.get("key_metadata", [])
        if type(keys) is not list or len(keys) > MAX_DEPTH or len(name) > 2 * bounds.MAX_NAME:
            raise FormatError(
                f"{quoted(name)} has more than {MAX_DEPTH} keys, or a name that is too long"
            )


# --- leaves
# ---------------------------------------------------------------------------------------


def _arrays(tree: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
    """The arrays of a tree of metadata with their keys, and notes about what is none."""
    flat = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape") or x is None
    )[0]
    arrays = []
    notes = []
    for keys, x in flat:
        name = quoted(_name(keys))[1:-1]
        if not _is_array(x):
            notes.append(f"{name} is nothing (None), and is left out")
        elif getattr(x.dtype, "name", None) not in CODE_OF:
            notes.append(
                f"{name} holds {str(x.dtype)[:40]}, which is no dtype of arrays that are read; it "
                f"is left out"
            )
        else:
            arrays.append((keys, x))
    return arrays, notes


def _tensor(keys: Keys, x: Any, boxed: set[Keys]) -> Tensor:
    dtype = np.dtype(x.dtype)
    if keys in boxed:
        return check_tensor(keys[:-1], x.shape, dtype, boxed=True)
    return check_tensor(keys, x.shape, dtype)


def _stored_keys(tensor: Tensor) -> Keys:
    """The keys that a tensor has in Orbax's tree."""
    return (*tensor.keys, BOX) if tensor.boxed else tensor.keys


def _boxed(leaves: list[Keys]) -> set[Keys]:
    """The keys of arrays that are NNX's variables, of which Orbax keeps an object with the one key
    `value`.

    A folder does not say of which class its objects were. So they are told by all of a tree being
    so, or all of a subtree of the first level with two arrays or more: elsewhere `value` may be a
    key of the user's.
    """
    children = Counter(keys[:-1] for keys in leaves)
    alike = {
        keys for keys in leaves if len(keys) > 1 and keys[-1] == BOX and children[keys[:-1]] == 1
    }
    if len(alike) == len(leaves):
        return alike
    sizes = Counter(keys[:1] for keys in leaves)
    boxes = Counter(keys[:1] for keys in alike)
    return {keys for keys in alike if len(keys) > 2 and 2 <= sizes[keys[:1]] == boxes[keys[:1]]}


def _check_places(places: Mapping[Keys, Any]) -> None:
    """Refuses two arrays of one place: Orbax joins keys by dots, and of such two the second is over
    the first."""
    seen: dict[str, Keys] = {}
    for keys in places:
        other = seen.setdefault(".".join(keys), keys)
        if other is not keys:
            lost = quoted("/".join(other))
            kept = quoted("/".join(keys))
            raise FormatError(f"Orbax wrote {kept} over {lost}: one of them is lost")


@contextlib.contextmanager
def _own_words(path: str = "") -> Iterator[None]:
    """Orbax raises what its parts raise."""
    try:
        yield
    except (FormatError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as e:
        where = f"leaf {quoted(path)}: " if path else ""
        raise FormatError(f"{where}Orbax cannot read it: {_first_line(e)}") from e


def _first_line(e: Exception) -> str:
    return bounds.shortened((str(e).strip() or type(e).__name__).splitlines()[0], 2000)


def _is_array(x: Any) -> bool:
    return getattr(x, "shape", None) is not None and getattr(x, "dtype", None) is not None


def _plain(keys: Any) -> Keys:
    return tuple(str(plain_key(key)) for key in keys)


def _name(keys: Any) -> str:
    return "/".join(_plain(keys))


def _leaf(store: Any, folder: str, tree: Any, keys: Any) -> np.ndarray:
    """One leaf: what the item leaves out, Orbax does not read."""
    import orbax.checkpoint as ocp

    def wanted(leaf_keys: Any, _: Any) -> Any:
        return 0 if leaf_keys == keys else ocp.PLACEHOLDER

    item = jax.tree_util.tree_map_with_path(wanted, tree, is_leaf=lambda x: hasattr(x, "shape"))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    restored = store.restore(folder, ocp.args.PyTreeRestore(item=item, restore_args=as_numpy))
    return next(np.asarray(x) for x in jax.tree.leaves(restored) if x is not ocp.PLACEHOLDER)


def write(path: Any, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any]) -> None:
    """Writes a folder that a StandardCheckpointer restores: nested dicts of arrays."""
    import orbax.checkpoint as ocp

    check(tensors)
    if os.path.lexists(path):
        raise ValueError(
            f"{path} exists; a folder is not replaced: remove it, or choose another name"
        )
    tree: dict[str, Any] = {}
    for leaf, tensor in tensors.items():
        *keys, last = _stored_keys(tensor)
        parent = tree
        for key in keys:
            parent = parent.setdefault(key, {})
        parent[last] = read(leaf)
    try:
        with ocp.StandardCheckpointer() as store:
            store.save(os.path.abspath(path), tree)
    except BaseException as e:
        remove_leftovers(path)
        if not isinstance(e, Exception):
            raise
        # Orbax raises what its parts raise.
        raise OSError(
            f"{path}: Orbax cannot write it, and nothing is left: {_first_line(e)}"
        ) from e


def remove_leftovers(path: Any) -> None:
    """Removes what is half written of the folder at `path`."""
    folder, name = os.path.split(os.path.abspath(path))
    for left in glob.glob(f"{glob.escape(name)}.orbax-checkpoint-tmp*", root_dir=folder):
        shutil.rmtree(os.path.join(folder, left), ignore_errors=True)


def check(tensors: Mapping[str, Tensor]) -> None:
    """Refuses what Orbax cannot hold, or would lose."""
    check_tree(tensors.values(), _why_not)
    seen: dict[str, str] = {}
    for tensor in tensors.values():
        other = seen.setdefault(".".join(_stored_keys(tensor)), tensor.name)
        if other != tensor.name:
            raise ValueError(
                f"{quoted(tensor.name)}: Orbax joins keys by dots, and would write it over "
                f"{quoted(other)}: restore to .safetensors or .msgpack"
            )


def _why_not(tensor: Tensor) -> str:
    if leads_out(Tensor(tensor.keys, (), tensor.dtype)) or any("/" in key for key in tensor.keys):
        return (
            "a folder cannot hold this name, which leads out of it: restore to .safetensors or "
            ".msgpack"
        )
    if not tensor.size:
        return (
            f"Orbax refuses arrays without elements, as this of shape {list(tensor.shape)}: "
            f"restore to .safetensors"
        )
    return ""
