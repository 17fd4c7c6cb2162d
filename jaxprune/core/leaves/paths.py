"""Paths: what a leaf is called, everywhere that leaves have names, and the class of the module that
holds it."""

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import GetAttrKey

from jaxprune.core.leaves.keys import joined

Keys = tuple[Any, ...]


def leaf_path(keys: Keys) -> str:
    r"""The name of a leaf: its keys, as `flatten_with_path` gives them, joined by "/".

    A "/" or a backslash inside a key has a backslash before it, so that two leaves never share a
    path.

    >>> from jax.tree_util import DictKey
    >>> print(leaf_path((DictKey("a/b"), DictKey("w"))), leaf_path((DictKey("a\\"), DictKey("b"))))
    a\/b/w a\\/b
    """
    return joined(jax.tree_util.keystr((key,), simple=True) for key in keys)


def flatten_with_path(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[list[tuple[Keys, Any]], Any]:
    """`jax.tree_util.tree_flatten_with_path` without the `value` of NNX variables: a box is no part
    of a name.

    Example:
      >>> from flax import nnx
      >>> state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> [leaf_path(keys) for keys, _ in flatten_with_path(state)[0]]
      ['bias', 'kernel']
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    if not any(_ends_in_value(keys) for keys, _ in flat):
        return flat, treedef
    holders = _holders(treedef)
    named = [
        (keys[:-1] if _ends_in_value(keys) and is_variable(holder) else keys, leaf)
        for (keys, leaf), (holder, _) in zip(flat, holders)
    ]
    return named, treedef


def map_with_path(
    f: Callable[..., Any], tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """The tree with f(keys, leaf) at every leaf, by the keys of `flatten_with_path`."""
    flat, treedef = flatten_with_path(tree, is_leaf)
    return jax.tree.unflatten(treedef, [f(keys, leaf) for keys, leaf in flat])


def owners(flat: list[tuple[Keys, Any]], treedef: Any) -> list[str]:
    """The name of the class of the module that holds each leaf; "" where that is a dict, a list or
    a tuple."""
    if not any(isinstance(key, GetAttrKey) for keys, _ in flat for key in keys[-2:]):
        return [""] * len(flat)
    return [module.__name__ if module is not None else "" for _, module in _holders(treedef)]


def is_variable(node: type | None) -> bool:
    """Whether a class is one of NNX's variables."""
    bases = node.__mro__ if node is not None else ()
    return any(
        base.__name__ == "Variable" and base.__module__.startswith("flax.nnx") for base in bases
    )


def _ends_in_value(keys: Keys) -> bool:
    return len(keys) > 1 and isinstance(keys[-1], GetAttrKey) and keys[-1].name == "value"


def _holders(treedef: Any) -> list[tuple[type | None, type | None]]:
    """For each leaf the class of the node right above it, and of the module that holds it (not a
    box, not a dict)."""
    found: list[tuple[type | None, type | None]] = []
    _collect(treedef, None, None, found)
    return found


def _collect(
    treedef: Any,
    node: type | None,
    module: type | None,
    found: list[tuple[type | None, type | None]],
) -> None:
    data = treedef.node_data()
    if data is None:
        if treedef.num_leaves:
            found.append((node, module))
        return
    kind = data[0]
    if not is_variable(kind):
        module = (
            None
            if kind.__module__ == "builtins" or kind.__name__ in ("State", "FrozenDict")
            else kind
        )
    for child in treedef.children():
        _collect(child, kind, module, found)
