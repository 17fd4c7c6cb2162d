"""A compression is two pure functions, and the combinators that join them: optax's design, for trees of weights.

`init` may change a tree's structure and runs once a phase; `update` never changes it and runs inside `jit`. Extras
(`step`, `grads`, `key`, `stats`) are keyword-only, and each compression ignores those it does not need.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
from jax import lax

from jaxprune.core.arguments import whole
from jaxprune.core.arrays import Stacked, is_code
from jaxprune.core.leaves import where as w
from jaxprune.core.leaves.companions import bias_of
from jaxprune.core.tree import join_arrays, map_slots, selector, slots, split_arrays, walk
from jaxprune.core.words import compiled


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
        raise ValueError("a Compression is a pair of functions: give compression.init(params), once, and update after")


def check_compression(call: str, x: Any) -> Compression:
    """x, if it is a compression.

    Args:
      call: that it is an argument of, as "jp.project(compression)".
      x: anything.

    Raises:
      ValueError: something else, with what is meant.
    """
    if isinstance(x, Compression) or (callable(getattr(x, "init", None)) and callable(getattr(x, "update", None))):
        return x
    if callable(x) and hasattr(x, "__name__"):
        raise ValueError(f"{call}: {x.__name__} is a function that makes a compression: call it, as jp.prune(0.9)")
    if isinstance(x, list | tuple):
        raise ValueError(f"{call}: a {type(x).__name__} is given, not a compression: join several by jp.chain(a, b)")
    raise ValueError(f"{call}: {x!r} is given, not a compression, as jp.prune(0.9)")


def _refuse_swapped(call: str, first: Any) -> None:
    """A compression comes last."""
    if isinstance(first, Compression):
        raise ValueError(f"{call}: a Compression is given as the first argument, and it comes last")


def keep(tree: Any, **extra: Any) -> Any:
    """The tree, unchanged."""
    return tree


identity = Compression(keep, keep)
"""Changes nothing: the unit of `chain`."""


def chain(*compressions: Compression) -> Compression:
    """One after another: each works on what those before it made.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> both = jp.chain(jp.prune(0.5), jp.cluster(k=1))
      >>> print(jp.materialize(both.init(jnp.array([[1.0, 5.0], [0.5, 7.0]]))))
      [[0. 6.]
       [0. 6.]]
    """

    for c in compressions:
        check_compression("chain(a, b)", c)

    def init(params: Any, **extra: Any) -> Any:
        for c in compressions:
            params = c.init(params, **extra)
        return params

    def update(tree: Any, **extra: Any) -> Any:
        for c in compressions:
            tree = c.update(tree, **extra)
        return tree

    return Compression(init, update)


def at(where: Any, compression: Compression) -> Compression:
    """The compression with its `where` replaced (the outermost `at` wins).

    Args:
      where: a regular expression for whole paths, a rule of `jp.where`, or a tree of booleans.
      compression: what happens there.

    Raises:
      ValueError: what is no compression; a text that is no regular expression.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> small = jp.at("a", jp.quantize(bits=8)).init({"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))})
      >>> type(small["a"]).__name__, type(small["b"]).__name__
      ('Quantized', 'ArrayImpl')
    """
    _refuse_swapped("at(where, compression)", where)
    check_compression("at(where, compression)", compression)
    if isinstance(where, str):
        compiled("where", where)
    return Compression(partial(compression.init, where=where), partial(compression.update, where=where))


def freeze(compression: Compression) -> Compression:
    """`init` of the compression; `update` changes nothing."""
    check_compression("freeze(compression)", compression)
    return Compression(compression.init, keep)


def every(n: int, compression: Compression) -> Compression:
    """Updates on the steps that n divides.

    Under `vmap` a `lax.cond` computes both branches: where updates are dear and steps are vmapped, call `update`
    outside.
    """
    _refuse_swapped("every(n, compression)", n)
    n = whole("every(n={})", n)
    check_compression("every(n, compression)", compression)
    return _when(lambda step: step % n == 0, compression)


def between(begin: int, end: int, compression: Compression) -> Compression:
    """Updates on the steps begin <= step <= end."""
    _refuse_swapped("between(begin, end, compression)", begin)
    begin = whole("between(begin={})", begin, 0)
    end = whole("between(end={})", end, 0)
    check_compression("between(begin, end, compression)", compression)
    if end < begin:
        raise ValueError(f"between(begin={begin}, end={end}): give begin <= end")
    return _when(lambda step: (step >= begin) & (step <= end), compression)


def _when(test: Callable[[Any], Any], compression: Compression) -> Compression:
    def update(tree: Any, *, step: Any, **extra: Any) -> Any:
        arrays, rest = split_arrays(tree)

        def changed(arrays: Any) -> Any:
            return split_arrays(compression.update(join_arrays(arrays, rest), step=step, **extra))[0]

        return join_arrays(lax.cond(test(step), changed, lambda arrays: arrays, arrays), rest)

    return Compression(compression.init, update)


def _name(slot: w.Slot) -> str:
    """The last part of a path: names tell the layout of a leaf, so that one layer keeps those of its stack."""
    name = slot.path.rpartition("/")[2]
    return name if name and "\\" not in name else "kernel"


def _named(name: str) -> w.Where:
    return w.Where(lambda slot: slot.path == name, f"the leaf {name}")


def over(axis: int, compression: Compression) -> Compression:
    """The compression of each slice of a stacked axis by itself: layers stacked by a scan, experts, heads.

    Args:
      axis: the stacked axis of every selected leaf.
      compression: what each slice gets; it must be traceable (budgets as `k=` or `rank=`, not `similarity=` or
        `energy=`).

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> layers = jnp.stack([jnp.eye(2), 5 * jnp.eye(2)])
      >>> print(jp.materialize(jp.over(0, jp.prune(0.75)).init(layers))[1])
      [[5. 0.]
       [0. 0.]]
    """

    _refuse_swapped("over(axis, compression)", axis)
    axis = whole("over(axis={})", axis, None)
    check_compression("over(axis, compression)", compression)

    def init(params: Any, *, where: Any = None, **extra: Any) -> Any:
        every = slots(params)
        companions: dict[str, Any] = {}  # biases that a weight takes along

        def one(slot: w.Slot) -> Any:
            rank = slot.value.ndim
            if not -rank <= axis < rank:
                raise ValueError(f"over(axis={axis}): {slot} has no axis {axis}")
            bias = bias_of(slot, every) if axis % rank == 0 else None
            stacked = bias is not None and bias.value.shape[0] == slot.value.shape[0]
            name = _name(slot)
            layer = {name: slot.value} | ({_name(bias): bias.value} if bias is not None and stacked else {})
            each = jax.vmap(lambda x: compression.init(x, where=_named(name), **extra), in_axes=axis)(layer)
            if bias is not None and is_code(each.get(_name(bias))):
                companions[bias.path] = each[_name(bias)]
            code = each[name]
            return code if axis % rank == 0 else Stacked(code, axis % rank - rank, rank)

        new = map_slots(one, params, where)
        return walk(lambda s: companions.get(s.path, s.value), new, whole=is_code)

    def update(tree: Any, *, where: Any = None, **extra: Any) -> Any:
        every = slots(tree, is_code)
        test = selector(where, tree)
        companions: dict[str, Any] = {}

        def one(slot: w.Slot) -> Any:
            code, name = slot.value, _name(slot)
            if isinstance(code, Stacked):
                return code.replace(each=layers(name, {name: code.each})[name])
            bias = bias_of(slot, every)
            layer = {name: code} | ({_name(bias): bias.value} if bias is not None and is_code(bias.value) else {})
            new = layers(name, layer)
            if bias is not None and _name(bias) in new:
                companions[bias.path] = new[_name(bias)]
            return new[name]

        def layers(name: str, layer: Any) -> Any:
            return jax.vmap(lambda t: compression.update(t, where=_named(name), **extra))(layer)

        new = walk(lambda s: one(s) if is_code(s.value) and test(s) else s.value, tree, whole=is_code)
        return walk(lambda s: companions.get(s.path, s.value), new, whole=is_code)

    return Compression(init, update)


def call(f: Callable[..., Any], *args: Any, **extra: Any) -> Any:
    """f(*args) with those extras that its signature names; a missing one is an error that says which."""
    named = inspect.signature(f).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in named.values())
    given = {k: v for k, v in extra.items() if takes_all or k in named}
    lacks = [k for k, p in named.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty and k not in given]
    if lacks:
        name = getattr(f, "__name__", "this function")
        values = {"key": "jax.random.key(0)"}
        given_as = ", ".join(f"{k}={values.get(k, k)}" for k in lacks)
        raise ValueError(f"{name} needs {', '.join(lacks)}: give it to init and update, as init(params, {given_as})")
    return f(*args, **given)
