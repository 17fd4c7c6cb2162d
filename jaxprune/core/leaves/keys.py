"""Paths as text: keys joined by "/", such that different keys never have one path, and a path gives
its keys back.

Plain strings: nothing here needs JAX or NumPy, so files that are read without JAX have the same
paths.
"""

import re
from collections.abc import Iterable

SEPARATOR = "/"
KEY = re.compile(r"([^\\/]*(?:\\.[^\\/]*)*)(/|\Z)", re.DOTALL)  # an escaped key, and what ends it


def escaped(key: str | int) -> str:
    r"""A key as a part of a path: a backslash before each "/" and each backslash of its own.

    >>> print(escaped("mlp/linear"), escaped("C:\\"))
    mlp\/linear C:\\
    """
    return str(key).replace("\\", "\\\\").replace(SEPARATOR, "\\" + SEPARATOR)


def unescaped(part: str) -> str:
    """The key that a part of a path stands for."""
    return re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL)


def joined(keys: Iterable[str | int]) -> str:
    r"""The path of a leaf.

    >>> print(joined(["a/b", 0]), joined(["a\\", "b"]))
    a\/b/0 a\\/b
    """
    return SEPARATOR.join(escaped(key) for key in keys)


def split(path: str) -> tuple[str, ...]:
    r"""The keys that `joined` made a path of, as texts. An empty path is one empty key.

    >>> split(r"a\/b/0"), split(r"a\\/b"), split("a//")
    (('a/b', '0'), ('a\\', 'b'), ('a', '', ''))
    """
    keys = []
    place = 0
    while True:
        match = KEY.match(path, place)
        if match is None:
            raise ValueError(
                f"{path[:80]!r} is no path: it ends in a backslash that escapes nothing"
            )
        keys.append(unescaped(match[1]))
        place = match.end()
        if not match[2]:
            return tuple(keys)
