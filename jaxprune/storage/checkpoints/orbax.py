"""Orbax's checkpoint folders. Reading takes one leaf at a time; writing needs them all in memory, as Orbax does."""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxprune.storage.checkpoints import tensors as t
from jaxprune.storage.checkpoints.tensors import Checkpoint, Keys, Read, Tensor
from jaxprune.storage.format import FormatError
from jaxprune.storage.trees import plain_key

BOXED = "nnx.variables"  # said of a checkpoint whose arrays are the values of variables, to be written so again
ITEM = "default"  # the folder of a lone item below a step


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of a folder that a StandardCheckpointer, PyTreeCheckpointer or CheckpointManager's step wrote."""
    import orbax.checkpoint as ocp

    folder = _folder(os.path.abspath(path))
    with ocp.PyTreeCheckpointer() as store:
        with _own_words():
            tree = store.metadata(folder).item_metadata.tree
            flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape") or x is None)[0]
        notes = tuple(f"{_name(keys)} is nothing (None), and is left out" for keys, x in flat if not _is_array(x))
        places = {_plain(keys): keys for keys, x in flat if _is_array(x)}
        boxed = _are_boxed(list(places))
        if boxed:
            places = {keys[:-1]: place for keys, place in places.items()}
        arrays = {keys: x for keys, x in flat if _is_array(x)}
        tensors = t.by_path(
            t.checked(keys, arrays[place].shape, np.dtype(arrays[place].dtype)) for keys, place in places.items()
        )

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            with _own_words(path):
                return t.placed(_leaf(store, folder, tree, places[tensors[path].keys]), into)

        yield Checkpoint("orbax", tensors, read, notes, {BOXED: "true"} if boxed else {})


def _folder(path: str) -> str:
    for folder in (path, os.path.join(path, ITEM)):
        if os.path.exists(os.path.join(folder, "_METADATA")):
            return folder
    below = sorted(n for n in os.listdir(path) if os.path.exists(os.path.join(path, n, "_METADATA")))
    items = [name for name in below if not name.isdigit()]  # those with a number for a name are steps
    if len(items) == 1:
        return os.path.join(path, items[0])
    if items:
        raise FormatError(f"it holds the items {', '.join(items[:8])}: name one, as {os.path.join(path, items[0])}")
    steps = sorted((name for name in os.listdir(path) if name.isdigit()), key=int)
    hint = f": it has the steps {', '.join(steps[:5])}; name one, as {os.path.join(path, steps[-1])}" if steps else ""
    raise FormatError(f"the folder is no checkpoint of Orbax (there is no _METADATA){hint}")


@contextlib.contextmanager
def _own_words(path: str = "") -> Iterator[None]:
    """Orbax raises what its parts raise."""
    try:
        yield
    except (FormatError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as e:
        where = f"leaf {path!r}: " if path else ""
        raise FormatError(f"{where}Orbax cannot read it: {_first_line(e)[:200]}") from e


def _first_line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def _are_boxed(names: list[Keys]) -> bool:
    """Whether every array is the `value` of a box of its own, as in a state of NNX's variables.

    In memory these have no `value` in their paths, so that one recipe fits the state and its checkpoint.
    """
    parents = [keys[:-1] for keys in names]
    return bool(names) and len(set(parents)) == len(parents) and all(len(k) > 1 and k[-1] == "value" for k in names)


def _is_array(x: Any) -> bool:
    return getattr(x, "shape", None) is not None and getattr(x, "dtype", None) is not None


def _plain(keys: Any) -> Keys:
    return tuple(str(plain_key(key)) for key in keys)


def _name(keys: Any) -> str:
    return "/".join(_plain(keys))


def _leaf(store: Any, folder: str, tree: Any, keys: Any) -> np.ndarray:
    """One leaf: what the item leaves out, Orbax does not read."""
    import orbax.checkpoint as ocp

    chosen = jax.tree_util.tree_map_with_path(
        lambda at, x: 0 if at == keys else ocp.PLACEHOLDER, tree, is_leaf=lambda x: hasattr(x, "shape")
    )
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), chosen)
    found = store.restore(folder, ocp.args.PyTreeRestore(item=chosen, restore_args=plain))
    return next(np.asarray(x) for x in jax.tree.leaves(found) if x is not ocp.PLACEHOLDER)


def write(path: Any, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any]) -> None:
    """Writes a folder that a StandardCheckpointer restores: nested dicts of arrays."""
    import orbax.checkpoint as ocp

    t.check_names(tensors.values(), _why_not)
    if os.path.lexists(path):
        raise ValueError(f"{path} exists; a folder is not replaced: remove it, or choose another name")
    tree: dict[str, Any] = {}
    for leaf, tensor in tensors.items():
        place = tree
        keys = (*tensor.keys, "value") if BOXED in about else tensor.keys
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = read(leaf)
    try:
        with ocp.StandardCheckpointer() as store:
            store.save(os.path.abspath(path), tree)
    except BaseException as e:
        remove_leftovers(path)
        if not isinstance(e, Exception):
            raise
        # Orbax raises what its parts raise.
        raise OSError(f"{path}: Orbax cannot write it, and nothing is left: {_first_line(e)}") from e


def remove_leftovers(path: Any) -> None:
    """Removes what is half written of the folder at `path`."""
    folder, name = os.path.split(os.path.abspath(path))
    for left in glob.glob(f"{glob.escape(name)}.orbax-checkpoint-tmp*", root_dir=folder):
        shutil.rmtree(os.path.join(folder, left), ignore_errors=True)


def _why_not(tensor: Tensor) -> str:
    if not tensor.keys:
        return "the array has no name, and a folder holds named ones: put it in a dict"
    if t.leads_out(Tensor(tensor.keys, (), tensor.dtype)) or any("/" in key for key in tensor.keys):
        return "a folder cannot hold this name, which leads out of it: restore to .safetensors or .msgpack"
    if not tensor.size:
        return f"Orbax refuses arrays without elements, as this of shape {list(tensor.shape)}: restore to .safetensors"
    return ""
