"""Pytrees as nodes of the format, and templates for the way back.

Strings and integers are keys, lists and tuples stay what they are, and None and Python numbers are
kept in the tree. Any other pytree node (a NamedTuple, a Flax FrozenDict, an nnx.State, an Equinox
module) is a dict of its keys in a file, and becomes itself again through a template.
"""

import re
from typing import Any

import jax
import numpy as np

from jaxprune.core.arrays import Common, is_code, materialize
from jaxprune.core.leaves.paths import flatten_with_path, is_variable, leaf_path
from jaxprune.storage.format.parts import to_node
from jaxprune.storage.format.shapes import Shaped, check_values, dense
from jaxprune.storage.format.words import DTYPES, MAX_DEPTH, Code, FormatError, Group, Leaf, join

Keys = tuple[Any, ...]
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def to_nodes(tree: Any) -> Any:
    """The tree as dicts, lists and tuples of `Leaf`s; a ValueError names the path of what a file
    cannot hold.
    """
    return _node(tree, (), None)


def _node(x: Any, above: Keys, shared: Shaped | None) -> Any:
    path = leaf_path(above)
    if len(above) > MAX_DEPTH:
        raise ValueError(f"{path}: a tree more than {MAX_DEPTH} levels deep cannot be saved")
    if x is None:
        return None
    if isinstance(x, Common):
        codebook = _leaf(x.codebook, f"{path}.codebook", None)
        return Group(path, codebook, _node(x.tree, above, dense(codebook.node)))
    keys, kids = _open(x)
    if is_code(x) or keys is None:
        return _leaf(x, path, shared)
    if above and is_variable(type(x)) and (is_code(kids[0]) or _open(kids[0])[0] is None):
        return _node(kids[0], above, shared)
    nodes = [_node(kid, (*above, key), shared) for key, kid in zip(keys, kids)]
    if type(x) in (list, tuple):
        return type(x)(nodes)
    return dict(sorted(zip(_plain_keys(keys, path), nodes), key=lambda pair: pair[0]))


def _open(x: Any) -> tuple[list[Any] | None, list[Any]]:
    """The keys and children of one pytree node; the keys are None for a leaf."""
    found = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)[0]
    if len(found) == 1 and not found[0][0]:
        return None, []
    return [keys[0] for keys, _ in found], [kid for _, kid in found]


def plain_key(key: Any) -> Any:
    """A key of JAX as the string or integer that it is of."""
    for name in ("key", "idx", "name"):
        if hasattr(key, name):
            return getattr(key, name)
    return str(key)


def _plain_keys(keys: list[Any], path: str) -> list[Any]:
    plain = [plain_key(key) for key in keys]
    kinds = {type(key) for key in plain}
    if not (kinds <= {str} or (kinds == {int} and all(-(2**63) <= key < 2**63 for key in plain))):
        raise ValueError(
            f"{path or 'the tree'}: keys {plain[:5]} cannot be saved; use strings only, or "
            f"integers only"
        )
    for key in plain:
        if type(key) is str and LONE_SURROGATE.search(key):
            raise ValueError(
                f"{path or 'the tree'}: the key {key[:80]!r} has half of a surrogate pair, and is "
                f"no text"
            )
    return plain


def _leaf(x: Any, path: str, shared: Shaped | None) -> Leaf:
    try:
        node = to_node(x)
        if isinstance(node, Code):
            dense(node, shared)
            check_values(node, shared)
    except FormatError as e:
        raise ValueError(f"{path or 'the tree'}: {e}") from None
    return Leaf(path, node)


# --- templates
# ---------------------------------------------------------------------------------------


def dense_template(like: Any) -> Any:
    """The tree with dense leaves, or what stands for them, in place of codes."""
    return jax.tree.map(
        lambda x: jax.eval_shape(materialize, x) if is_code(x) else x, like, is_leaf=is_code
    )


def names(template: Any) -> list[tuple[str, str]]:
    """For each leaf of a template the paths that it may have in a file: an nnx.Variable's, and the
    plain one.
    """
    named = [leaf_path(keys) for keys, _ in flatten_with_path(template)[0]]
    plain = [
        join(tuple(map(plain_key, keys)))
        for keys, _ in jax.tree_util.tree_flatten_with_path(template)[0]
    ]
    return list(zip(named, plain))


def expects_data(x: Any) -> bool:
    """False for a template's functions, strings and other static leaves, which stay as they are."""
    return hasattr(x, "shape") or isinstance(x, bool | int | float)


def mismatch(x: Any, node: Any, shared: Shaped | None) -> str:
    """Why a leaf of a template cannot take a stored one; "" when it can."""
    if isinstance(node, bool | int | float):
        return (
            ""
            if np.shape(x) == ()
            else f"an array of shape {np.shape(x)} expected, a number stored"
        )
    shape, code = dense(node, shared)
    stored = DTYPES[code].name
    expected = x.dtype.name if hasattr(x, "dtype") else stored
    if np.shape(x) == shape and expected == stored:
        return ""
    return f"{expected}{list(np.shape(x))} expected, {stored}{list(shape)} stored"
