"""A name for what arrays hold: the same paths, dtypes, shapes and bytes give the same, wherever the
arrays lie.

    sha256 of, for each tree, the number of its leaves and, in the order of their paths,
        path, kind, dtype, shape      as JSON, after its length in 8 bytes
        the bytes                     row-major, little-endian

A container is known by its keys alone, so that what `jp.load` gives back as dicts keeps its
fingerprint. A compressed array counts as its type, its static fields and the arrays of its code:
another code of equal weights is another tree.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core.arrays import is_code
from jaxprune.core.hidden import zero_hidden
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path

CHUNK = 1 << 24  # bytes of a leaf that are copied at a time, where it is not contiguous
Path = tuple[str, ...]


def fingerprint(*trees: Any) -> str:
    """sha256 over the sorted paths, dtypes, shapes and bytes of the leaves, as 64 hexadecimal
    digits.

    Leaf by leaf: a leaf on a device is copied to the host, contiguous NumPy arrays and memory maps
    are not copied at all. Sharding, memory layout and byte order do not matter. Functions have no
    bytes: what a teacher computes with its params is told apart by a text, as `fingerprint(params,
    "resnet56, images in [0, 1]")`.

    Args:
      trees: pytrees of arrays of numbers, PRNG keys, compressed arrays, Python numbers and strings.
        A trailing NNX `value` does not lengthen a path.

    Returns:
      64 hexadecimal digits.

    Raises:
      ValueError: no tree, no leaf at all, a leaf that is not among these, two leaves of one path.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.distill.fingerprint({"w": jnp.ones((2, 3))})[:16]
      'd4d5f3acc4bf01c8'
    """
    sha = hashlib.sha256(b"jaxprune fingerprint 1")
    leaves = 0
    for tree in trees:
        named = sorted(_leaves(zero_hidden(tree, host=True), ()), key=lambda leaf: leaf[0])
        paths = [path for path, _ in named]
        twice = next((a for a, b in itertools.pairwise(paths) if a == b), None)
        if twice is not None:
            raise ValueError(
                f"fingerprint: two leaves have the path {'/'.join(twice)!r}; give their keys other "
                f"names"
            )
        _say(sha, len(named))
        for path, x in named:
            _add(sha, path, x)
        leaves += len(named)
    if leaves == 0:
        raise ValueError("fingerprint: there is no array to tell apart; give the teacher's params")
    return sha.hexdigest()


def _leaves(tree: Any, above: Path) -> Iterator[tuple[Path, Any]]:
    """(path, leaf) of every leaf; of a code first what it is, then its fields."""
    for keys, x in flatten_with_path(tree, is_leaf=is_code)[0]:
        path = (*above, *_names(keys))
        if not is_code(x):
            yield path, x
            continue
        fields = x.fields()
        fixed = {f.name: getattr(x, f.name) for f in dataclasses.fields(x) if f.name not in fields}
        yield (*path, "."), _Code(f"{type(x).__name__} {json.dumps(fixed, default=_plain)}")
        for name in fields:
            yield from _leaves(getattr(x, name), (*path, f".{name}"))


class _Code(str):
    """What a code is, beside its arrays; no string of the user's is taken for it."""


def _names(keys: tuple[Any, ...]) -> Path:
    return tuple(leaf_path((key,)) for key in keys)


def _plain(x: Any) -> Any:
    """A static field of a code that JSON has no word for."""
    if isinstance(x, np.generic):
        return x.item()
    try:
        return jnp.dtype(x).name
    except TypeError:
        raise ValueError(
            f"fingerprint: a static field of a code holds {x!r}, which has no bytes"
        ) from None


def _say(sha: Any, *words: Any) -> None:
    """Words, so that no other words read the same."""
    octets = json.dumps(words).encode()
    sha.update(len(octets).to_bytes(8, "little") + octets)


def _add(sha: Any, path: Path, x: Any) -> None:
    if isinstance(x, str | bool | int | float):
        _say(sha, path, "code" if isinstance(x, _Code) else type(x).__name__, x)
        return
    kind = "array"
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        kind = str(jax.random.key_impl(x))
        x = jax.random.key_data(x)
    numbers = hasattr(x, "shape") and hasattr(x, "dtype") and _is_number(x.dtype)
    if not numbers:
        raise ValueError(
            f"fingerprint: {'/'.join(path) or 'the tree'} is a {type(x).__name__} "
            f"{getattr(x, 'dtype', '')}: it has no "
            "bytes that name it; leave it out, or give a text that does"
        )
    x = np.asarray(x)
    _say(sha, path, kind, x.dtype.name, x.shape)
    for piece in _pieces(np.atleast_1d(x)):
        sha.update(piece)


def _is_number(dtype: Any) -> bool:
    return dtype == np.bool_ or jnp.issubdtype(dtype, np.number)


def _pieces(x: np.ndarray) -> Iterator[Any]:
    """The bytes of an array, row-major and little-endian, in pieces of some rows."""
    little = x.dtype.newbyteorder("<")
    rows = max(1, CHUNK * len(x) // max(x.nbytes, 1))
    for i in range(0, len(x), rows):
        yield np.ascontiguousarray(x[i : i + rows], little).reshape(-1).view(np.uint8)
