"""Every optax transform of the library, one line each: the laws of
`tests/training/test_transform_laws.py` run over it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from tests.helpers import normal


class Transform(NamedTuple):
    """A transform and what the laws may ask of it.

    Attributes:
      name: of the row.
      make: where -> the transform; of those without a `where` it is passed over.
      takes_where: whether it has a `where`.
      holds_zeros: whether weights that are zero at `init` stay so.
      last: whether it is the last link of a chain; else the first.
    """

    name: str
    make: Callable[[Any], optax.GradientTransformation]
    takes_where: bool = False
    holds_zeros: bool = False
    last: bool = False


def network(params, x):
    return jax.nn.relu(x @ params["up"]["kernel"] + params["up"]["bias"]) @ params["down"]["kernel"]


def params_of(dtype=jnp.float32, seed=0):
    """A network of two layers, half of whose weights are zero."""
    up = normal((16, 8), seed, dtype)
    down = normal((8, 16), seed + 1, dtype)

    def half(w):
        return jnp.where(jnp.abs(w) > 0.67, w, jnp.zeros((), dtype))

    return {
        "up": {"kernel": half(up), "bias": normal(8, seed + 2, dtype)},
        "down": {"kernel": half(down)},
    }


GROUPS = jp.coupled_axes(network, params_of(), jnp.ones((1, 16))).groups


def no_where(transform):
    return lambda where: transform


TRANSFORMS = [
    Transform("attract", no_where(jp.attract(jp.prune(0.5), 0.3))),
    Transform(
        "attract, schedule",
        no_where(jp.attract(jp.quantize(4), optax.linear_schedule(0.0, 1.0, 4))),
    ),
    Transform("project", no_where(jp.project(jp.prune(0.5))), holds_zeros=False, last=True),
    Transform("project, every 2", no_where(jp.project(jp.quantize(4), every=2)), last=True),
    Transform(
        "keep_pruned", lambda where: jp.keep_pruned(where=where), True, holds_zeros=True, last=True
    ),
    Transform(
        "group lasso", lambda where: jp.group_penalty(GROUPS, 0.1, kind="lasso", where=where), True
    ),
    Transform("group penalty", lambda where: jp.group_penalty(GROUPS, 0.1, where=where), True),
    Transform("rate_penalty", lambda where: jp.rate_penalty(1e-3, where=where), True),
    Transform("floats_only", no_where(jp.floats_only(optax.adamw(1e-2)))),
]
