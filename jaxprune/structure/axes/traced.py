"""A function of params traced at their shapes, ready to be walked."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.core.arrays import is_code
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.jaxprs.equations import of_arrays, open_jaxpr


class Traced(NamedTuple):
    """f(params, *args, **kw) as a jaxpr.

    Attributes:
      jaxpr, consts: of the function.
      inputs: how many arrays args and kw hold; they come after those of the params.
      paths: of the outputs.
      tree: the structure of the output.
    """

    jaxpr: Any
    consts: list[Any]
    inputs: int
    paths: list[str]
    tree: Any


def shapes_of(params: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """path -> shape and dtype of every leaf, in order.

    Raises:
      ValueError: compressed leaves, no leaves, two leaves of one path.
    """
    flat = flatten_with_path(params, is_leaf=is_code)[0]
    coded = [leaf_path(keys) for keys, x in flat if is_code(x)]
    if coded:
        raise ValueError(
            f"{coded[0]} is compressed: give jp.materialize(params), and compress what is left of "
            f"it"
        )
    odd = [
        leaf_path(keys)
        for keys, x in flat
        if not hasattr(x, "dtype") and not isinstance(x, int | float | complex)
    ]
    if odd:
        raise ValueError(
            f"{odd[0]} is no array: params are arrays and numbers; close f over all else"
        )
    found = {leaf_path(keys): _shape_of(x) for keys, x in flat}
    if len(found) < max(1, len(flat)):
        raise ValueError(
            f"params of {len(flat)} leaves have {len(found)} different paths: each leaf needs its "
            f"own"
        )
    return found


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    weak = getattr(
        x, "weak_type", not hasattr(x, "dtype")
    )  # a Python number takes the dtype of what it meets
    return jax.ShapeDtypeStruct(np.shape(x), jax.numpy.result_type(x), weak_type=weak)


def trace(f: Callable[..., Any], params: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Traced:
    """Traces f; whatever is not an array among its arguments is given to it as it is.

    Raises:
      ValueError: f cannot be traced, has side effects, or returns what is not an array.
    """
    like = jax.tree.unflatten(jax.tree.structure(params), list(shapes_of(params).values()))
    g, arrays = of_arrays(f, (like, *args), kw)
    inner = getattr(f, "func", f)  # of a functools.partial
    name = getattr(inner, "__name__", type(inner).__name__)
    try:
        closed, shape = jax.make_jaxpr(g, return_shape=True)(*arrays)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise ValueError(
            f"{name} cannot be traced: its shapes or its branches depend on values. {error}"
        ) from error
    except TypeError as error:
        if "not a valid JAX type" in str(error):
            raise ValueError(
                f"{name} returns what is not an array: return arrays only. {error}"
            ) from error
        if re.search(
            r"(missing \d+ required|unexpected keyword|takes .* arguments? but)", str(error)
        ):
            given = ", ".join(["params", *["…"] * len(args), *(f"{key}=" for key in kw)])
            raise ValueError(
                f"{name}({given}) cannot be called with the arguments that were given: {error}"
            ) from error
        raise
    jaxpr, consts = open_jaxpr(closed)
    if not all(isinstance(n, int) for v in jaxpr.invars for n in v.aval.shape):
        raise ValueError(
            f"{name} is traced with symbolic shapes, and what can be cut depends on sizes: give "
            f"numbers"
        )
    if jaxpr.effects:
        raise ValueError(
            f"{name} has side effects ({', '.join(map(str, jaxpr.effects))}): give it without them"
        )
    outs = flatten_with_path(shape)[0]
    return Traced(
        jaxpr,
        consts,
        len(arrays) - len(jax.tree.leaves(like)),
        [leaf_path(keys) for keys, _ in outs],
        jax.tree.structure(shape),
    )
