"""What a config's factory may make: a pair of functions, a Flax linen module or an NNX one."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Model(NamedTuple):
    """A network as a run takes it.

    Attributes:
      init: key -> params.
      apply: (params, x) -> logits.
      example: the shape of one input, without the batch.
    """

    init: Callable[[Any], Any]
    apply: Callable[[Any, Any], Any]
    example: tuple[int, ...]


def model_of(
    factory: Callable[..., Any], args: dict[str, Any], example: tuple[int, ...], dtype: Any
) -> Any:
    """factory(**args) as a `Model`; one that takes `rngs` makes an NNX module, anew for every key.

    Args:
      factory: the config's.
      args: its keywords.
      example, dtype: of one input of the data, for modules, which do not say theirs.

    Raises:
      ValueError: what it makes is none of these, or has variables that are no params (batch
        statistics, dropout).
    """
    call = (
        factory.__init__ if inspect.isclass(factory) else factory
    )  # NNX's classes hide their signature
    if "rngs" in inspect.signature(call).parameters and "rngs" not in args:
        return _nnx(factory, args, example)
    made = factory(**args)
    if all(hasattr(made, name) for name in ("init", "apply", "example")):
        return made
    if hasattr(made, "init") and hasattr(made, "apply"):
        return _linen(made, example, dtype)
    raise ValueError(
        f"the model is a {type(made).__name__}: give a factory of a linen module, one with rngs= "
        "of an NNX module, or one of something with init, apply and example"
    )


def _linen(module: Any, example: tuple[int, ...], dtype: Any) -> Model:
    def variables(key):
        return dict(module.init(key, jnp.zeros((1, *example), dtype)))

    _refuse([name for name in jax.eval_shape(variables, jax.random.key(0)) if name != "params"])

    def apply(params, x):
        return module.apply({"params": params}, x)

    return Model(lambda key: variables(key)["params"], apply, example)


def _nnx(factory: Callable[..., Any], args: dict[str, Any], example: tuple[int, ...]) -> Model:
    from flax import nnx

    def split(rngs):
        return nnx.split(factory(**args, rngs=rngs), nnx.Param, ...)

    graph, _, rest = split(nnx.Rngs(0))
    _refuse(sorted({"/".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)}))

    def apply(params, x):
        return nnx.merge(graph, params, rest)(x)

    return Model(lambda key: split(nnx.Rngs(key))[1], apply, example)


def _refuse(more: list[str]) -> None:
    if more:
        raise ValueError(
            f"the model has variables that are no params ({', '.join(more[:5])}), and a run trains "
            "params only: use jp.distill.fit, whose state holds them, or a module without them"
        )
