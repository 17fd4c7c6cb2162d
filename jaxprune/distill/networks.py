"""Networks: what the loop asks of a model, whatever wrote it.

    network(params, state, x, key) -> (outputs, state)          a student, or a teacher's body

`state` is what a forward pass changes (batch statistics); {} for most.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from jaxprune.distill.terms import OUTPUT
from jaxprune.jaxprs.taps import reap, tap_modules


class Network(NamedTuple):
    """A model as one function.

    Attributes:
      apply: (params, state, x, key) -> (outputs, state); the key is for dropout.
    """

    apply: Callable[[Any, Any, Any, Any], tuple[Any, Any]]


class Parts(NamedTuple):
    """A network and its variables."""

    network: Network
    params: Any
    state: Any


def plain(f: Callable[..., Any]) -> Network:
    """A network from f(params, x) -> outputs.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> net = jp.distill.plain(lambda w, x: x @ w)
      >>> net.apply(jnp.ones((3, 2)), {}, jnp.ones((1, 3)), None)
      (Array([[3., 3.]], dtype=float32), {})
    """
    return Network(lambda params, state, x, key: (f(params, x), state))


def linen(module: Any, **kw: Any) -> Network:
    """A network from a Flax linen module; params are variables["params"], the state is every other
    collection.

    Args:
      module: its `__call__` takes x.
      kw: further keywords of the call, as `train=True`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxprune as jp
      >>> module, x = nn.BatchNorm(use_running_average=False), jnp.ones((2, 3))
      >>> variables = dict(module.init(jax.random.key(0), x))
      >>> params = variables.pop("params")
      >>> _, state = jp.distill.linen(module).apply(params, variables, x, jax.random.key(1))
      >>> print(state["batch_stats"]["mean"])
      [0.01 0.01 0.01]
    """

    def apply(params: Any, state: Any, x: Any, key: Any) -> tuple[Any, Any]:
        rngs = None if key is None else {"dropout": key}
        variables = {"params": params, **state}
        if not state:
            return module.apply(variables, x, rngs=rngs, **kw), state
        out, changed = module.apply(variables, x, rngs=rngs, mutable=list(state), **kw)
        return out, {**state, **changed}

    return Network(apply)


def nnx(model: Any) -> Parts:
    """The parts of an NNX module: its `nnx.Param`s are the params, all other variables the state.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> net, params, state = jp.distill.nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
      >>> net.apply(params, state, jnp.ones((1, 3)), None)[0].shape
      (1, 2)
    """
    from flax import nnx as flax_nnx

    inner = any(path for path, _ in flax_nnx.iter_modules(model))
    graph, params, state = flax_nnx.split(
        tap_modules(model) if inner else model, flax_nnx.Param, ...
    )

    def apply(params: Any, state: Any, x: Any, key: Any) -> tuple[Any, Any]:
        # Variables made anew belong to this trace, where the module may change them.
        params, state = jax.tree.map(lambda x: x, (params, state))
        merged = flax_nnx.merge(graph, params, state)
        out = merged(x)
        return out, flax_nnx.split(merged, flax_nnx.Param, ...)[2]

    return Parts(Network(apply), params, state)


def outputs(
    network: Network, params: Any, state: Any, x: Any, key: Any, where: str | None
) -> tuple[dict[str, Any], Any]:
    """{"output": what the network returns, and its taps that match `where`}, and the state."""
    if where is None:
        out, state = network.apply(params, state, x, key)
        return {OUTPUT: out}, state
    (out, state), taps = reap(network.apply, where)(params, state, x, key)
    return {OUTPUT: out, **taps}, state


def either(patterns: Iterable[str | None]) -> str | None:
    """One pattern for whatever matches any of these; None if there are none."""
    given = [f"(?:{p})" for p in dict.fromkeys(patterns) if p is not None]
    return "|".join(given) or None
