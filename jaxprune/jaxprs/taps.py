"""Taps: values inside a function, read (`reap`) or replaced (`plant`) by name, without editing the
function.

    tap     x -> x, with a name; the identity in everything, and nothing once compiled
    reap    f -> f', which returns the tapped values too
    plant   f -> f', where tapped values are replaced

Every module of Flax linen that runs inside the function is tapped under its path, as
"encoder/layer_3/attention"; `tap_modules` does it for NNX; elsewhere `tap` is called by hand. The
function's jaxpr is evaluated anew, and jit, remat, scan and cond are entered where they hold a tap,
so that one under a scan comes out stacked on a leading axis. The names are those of
`jax.ad_checkpoint.checkpoint_name`. Prior art: Oryx's harvest, with sow, reap and plant.
"""

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from jaxprune.core.leaves.paths import leaf_path, map_with_path
from jaxprune.core.words import compiled, nearest
from jaxprune.jaxprs.equations import of_arrays, open_jaxpr
from jaxprune.jaxprs.tap_visitor import PREFIX, names_in, run_with


def tap(x: Any, name: str) -> Any:
    """Names a value, so that `reap` finds it; a leaf of a tree is named "name/its/path".

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> f = lambda w, x: jp.tap(jnp.tanh(x @ w), "hidden").sum()
      >>> jp.reap(f, "hidden")(jnp.zeros((3, 2)), jnp.ones((1, 3)))
      (Array(0., dtype=float32), {'hidden': Array([[0., 0.]], dtype=float32)})
    """
    if not name:
        raise ValueError("tap(x, ''): a tap needs a name, to be found by")

    def one(keys: Any, leaf: Any) -> Any:
        path = "/".join(p for p in (name, leaf_path(keys)) if p)
        return checkpoint_name(leaf, PREFIX + path) if hasattr(leaf, "dtype") else leaf

    return map_with_path(one, x)


def reap(f: Callable[..., Any], where: str) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """f, which returns (what f returns, {name: value}) for all taps whose whole name matches a
    regular expression.

    Works under jit, grad, vmap and sharding. A name that is met several times gives a tuple of
    values in order; one under a scan gives them stacked on axis 0.

    Args:
      f: a pure function. Arrays among its arguments are traced; all else (`train=False`) is given
        as it is.
      where: matched against whole names, as in `jp.where.path`.

    Returns:
      A function with the arguments of f.

    Raises:
      ValueError: no tap matches (the nearest names are listed); a tap inside a while loop or a
        custom derivative.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxprune as jp
      >>> model, x = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), jnp.ones((1, 3))
      >>> params = model.init(jax.random.key(0), x)
      >>> {name: value.shape for name,
      ...     value in jp.reap(model.apply, r"layers_\\d")(params, x)[1].items()}
      {'layers_0': (1, 4), 'layers_2': (1, 2)}
    """
    return _interpreted(f, compiled("where", where), {}, lambda out, taps: (out, taps))


def plant(f: Callable[..., Any], values: dict[str, Any]) -> Callable[..., Any]:
    """f, where tapped values are replaced.

    Args:
      f: as in `reap`.
      values: name -> the new value, of the tap's shape and dtype (stacked where it is under a scan;
        a tuple where it is met several times), or a function of the old value.

    Returns:
      A function with the arguments and the results of f.

    Raises:
      ValueError: no such tap; a value of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> f = lambda x: 10 * jp.tap(x + 1, "hidden")
      >>> print(jp.plant(f, {"hidden": lambda h: -h})(jnp.ones(1)),
      ...     jp.plant(f, {"hidden": jnp.ones(1)})(jnp.zeros(1)))
      [-20.] [10.]
    """
    return _interpreted(
        f, re.compile("|".join(map(re.escape, values))), values, lambda out, taps: out
    )


def tap_names(f: Callable[..., Any], *args: Any, **kw: Any) -> dict[str, Any]:
    """Name -> shape and dtype of everything that `reap` could find in f(*args); nothing is run.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.tap_names(lambda x: jp.tap(2 * x, "twice"), jnp.ones(3))
      {'twice': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """
    everything = _interpreted(f, re.compile(".*", re.S), {}, lambda out, taps: taps, anything=True)
    return jax.eval_shape(lambda: everything(*args, **kw))


def tap_modules(model: Any, where: str = ".*") -> Any:
    """A copy of an NNX module, whose matching submodules tap what they return under their path.

    The copy's modules have classes of their own, made here, so that the path travels in the graph
    definition through `nnx.split`, scan, vmap and remat. The model that is given, and its classes,
    stay as they are.

    Args:
      model: an `nnx.Module`.
      where: matched against whole paths, as "blocks/0/attention".

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu,
      ...     nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
      >>> graph, state = nnx.split(jp.tap_modules(model))
      >>> f = lambda state, x: nnx.merge(graph, state)(x)
      >>> {name: value.shape for name,
      ...     value in jp.reap(f, r"layers/\\d")(state, jnp.ones((1, 3)))[1].items()}
      {'layers/0': (1, 4), 'layers/2': (1, 2)}
    """
    from flax import nnx

    compiled("where", where)
    copy = nnx.clone(model)
    found = []
    for keys, module in list(nnx.iter_modules(copy)):
        path = "/".join(map(str, keys))
        if path and callable(module) and (found.append(path) or re.fullmatch(where, path)):
            object.__setattr__(module, "__class__", _tapped(type(module), path))
    if not any(re.fullmatch(where, path) for path in found):
        raise ValueError(
            f"tap_modules({where!r}) matches no module. The nearest: {nearest(where, found)}"
        )
    return copy


def _tapped(kind: type, path: str) -> type:
    def call(self: Any, *args: Any, **kw: Any) -> Any:
        return tap(kind.__call__(self, *args, **kw), path)

    return type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def _interpreted(
    f: Callable[..., Any],
    where: Any,
    values: dict[str, Any],
    result: Callable[[Any, Any], Any],
    anything: bool = False,
) -> Callable[..., Any]:
    @functools.wraps(f)
    def again(*args: Any, **kw: Any) -> Any:
        def tapping(*args: Any, **kw: Any) -> Any:
            with _linen_modules_tap():
                return f(*args, **kw)

        g, arrays = of_arrays(tapping, args, kw)
        closed, shape = jax.make_jaxpr(g, return_shape=True)(*arrays)
        jaxpr, consts = open_jaxpr(closed)
        names = names_in(jaxpr, where)
        _refuse_unknown(where, values, names, jaxpr, anything)
        edits = {name: v for name, v in values.items() if callable(v)}
        given = {name: _as_list(name, v, names) for name, v in values.items() if name not in edits}
        outs, taps = run_with(jaxpr, consts, arrays, where, edits, given)
        single = {
            name: found[0] if len(found) == 1 else tuple(found) for name, found in taps.items()
        }
        return result(jax.tree.unflatten(jax.tree.structure(shape), outs), single)

    return again


def _as_list(name: str, value: Any, names: list[str]) -> list[Any]:
    times = names.count(name)
    if times == 1:
        return [value]
    if not isinstance(value, tuple) or len(value) != times:
        raise ValueError(
            f"plant: {name!r} is met {times} times: give a tuple of {times} values, or a function"
        )
    return list(value)


def _refuse_unknown(
    where: Any, values: dict[str, Any], names: list[str], jaxpr: Any, anything: bool
) -> None:
    missing = [name for name in values if name not in names] or (
        [] if names or anything else [where.pattern]
    )
    if missing:
        known = dict.fromkeys(names_in(jaxpr, re.compile(".*", re.S)))
        hint = (
            ""
            if known
            else ". A function that was jitted before keeps its old trace: give the one beneath "
            "the jit"
        )
        raise ValueError(
            f"no tap matches {missing[0]!r}. The nearest: {nearest(missing[0], known)}{hint}"
        )


@contextlib.contextmanager
def _linen_modules_tap() -> Iterator[None]:
    """Modules of Flax linen tap what they return; nothing where linen is not in use."""
    linen = sys.modules.get("flax.linen")
    if linen is None:
        yield
        return

    def intercept(call: Any, args: Any, kw: Any, context: Any) -> Any:
        out = call(*args, **kw)
        path = "/".join(context.module.path)
        return tap(out, path) if context.method_name == "__call__" and path else out

    with linen.intercept_methods(intercept):
        yield
