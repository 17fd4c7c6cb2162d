"""A compression is two pure functions, as an optax transform is, on trees of weights.

`init` may change a tree's structure and runs once a phase; `update` never changes it and runs
inside `jit`. Extras (`step`, `grads`, `key`, `stats`) are keyword-only, and each compression
ignores those that it does not need.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from jaxprune.core.trees.selection import select
from jaxprune.core.trees.walk import IsSlot, never
from jaxprune.core.types import Compressed, Params, WhereLike
from jaxprune.core.where import Slot


class Compression(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: `(params, **extra) -> tree` with compressed arrays.
      update: `(tree, *, step, **extra) -> tree` of the same structure, shapes and dtypes.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]

    def __call__(self, *args: Any, **extra: Any) -> NoReturn:
        """Refused: which of the two functions is meant is for the caller to say."""
        raise ValueError(
            "a Compression is a pair of functions: give compression.init(params), once, "
            "and update after"
        )


def keep(tree: Compressed, **extra: Any) -> Compressed:
    """The tree, unchanged: the `update` of compressions that encode once."""
    return tree


def encode_once(
    encode: Callable[..., Sequence[Any]], where: WhereLike, is_slot: IsSlot = never
) -> Compression:
    """The compression that encodes selected weights at `init` and keeps their codes at `update`.

    Args:
      encode: (slots, params, **extra) -> one code for each slot, in their order.
      where: which weights, unless `init` is told otherwise, as `at` does.
      is_slot: which codes in a tree are one slot as they stand; else their fields are.
    """

    default = where

    def init(params: Params, *, where: WhereLike = None, **extra: Any) -> Compressed:
        selection = select(default if where is None else where, params, is_slot)
        return selection.replaced(encode(selection.slots, params, **extra))

    return Compression(init, keep)


def map_weights(
    encode: Callable[..., Any], where: WhereLike, is_slot: IsSlot = never
) -> Compression:
    """`encode_once` for codes of which each depends on its own weights: encode(slot, **extra)."""

    def encode_all(slots: Sequence[Slot], params: Params, **extra: Any) -> list[Any]:
        return [encode(slot, **extra) for slot in slots]

    return encode_once(encode_all, where, is_slot)


def check_compression(call: str, x: Any) -> Compression:
    """x, if it is a compression.

    Args:
      call: that it is an argument of, as "jp.project(compression)".
      x: anything.

    Raises:
      ValueError: something else, with what is meant.
    """
    if isinstance(x, Compression) or _has_init_and_update(x):
        return x
    if callable(x) and hasattr(x, "__name__"):
        raise ValueError(
            f"{call}: {x.__name__} is a function that makes a compression: "
            "call it, as jp.prune(0.9)"
        )
    if isinstance(x, list | tuple):
        raise ValueError(
            f"{call}: a {type(x).__name__} is given, not a compression: "
            "join several by jp.chain(a, b)"
        )
    raise ValueError(f"{call}: {x!r} is given, not a compression, as jp.prune(0.9)")


def _has_init_and_update(x: Any) -> bool:
    return callable(getattr(x, "init", None)) and callable(getattr(x, "update", None))


def call_with(f: Callable[..., Any], *args: Any, **extra: Any) -> Any:
    """f(*args) with those extras that its signature names.

    Raises:
      ValueError: an extra that f cannot do without is missing, with the call that gives it.

    Example:
      >>> call_with(lambda w, *, step=0: w + step, 1, step=2, key=None)
      3
    """
    parameters = inspect.signature(f).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    extra = {name: x for name, x in extra.items() if takes_all or name in parameters}
    missing = [
        name
        for name, p in parameters.items()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and name not in extra
    ]
    if missing:
        raise ValueError(_missing_extras(getattr(f, "__name__", "this function"), missing))
    return f(*args, **extra)


def _missing_extras(function: str, missing: Sequence[str]) -> str:
    values = {"key": "jax.random.key(0)"}
    arguments = ", ".join(f"{name}={values.get(name, name)}" for name in missing)
    return (
        f"{function} needs {', '.join(missing)}: "
        f"give it to init and update, as init(params, {arguments})"
    )
