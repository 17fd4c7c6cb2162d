"""How large what a weight is multiplied with is, on data: √E[x²].

Of y = Σᵢ xᵢ wᵢⱼ, taking unit i away changes yⱼ by xᵢ wᵢⱼ, on average by wᵢⱼ √E[xᵢ²] (Wanda, Sun et
al. 2023, arXiv:2306.11695); √E[xᵢ²] alone is how active the unit is (Molchanov et al. 2017,
arXiv:1611.06440, compare such criteria).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.structure.apply.evaluate import Evaluation, Value, bind, given
from jaxprune.structure.axes.traced import shapes_of, trace
from jaxprune.structure.axes.walk import Record, Walk, axes_of


def input_rms(f: Callable[..., Any], params: Any, batches: Iterable[tuple[Any, ...]]) -> Any:
    """√E[x²] of what every weight is multiplied with, over examples, positions and all uses of the
    weight.

    Args:
      f: a pure function f(params, *batch).
      params: concrete arrays.
      batches: tuples of the arguments after params.

    Returns:
      A tree like the params: for leaves that enter a matrix product or a convolution with values of
        the function, one
      number a weight; None for the others. As `score=` of `jp.shrink` with reduce="mean" it ranks
      units by how active they are; `jp.scores.wanda` of it by what they contribute.

    Raises:
      ValueError: no batches, or no weight that is multiplied with anything.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"w": jnp.ones((2, 1)), "b": jnp.ones(1)}
      >>> x = jnp.array([[1.0, 2.0], [-7.0, 2.0]])
      >>> # √(50 / 2), 2
      >>> print(jp.input_rms(lambda p, x: x @ p["w"] + p["b"], params, [(x,)])["w"].T)
      [[5. 2.]]
    """
    shapes = shapes_of(params)
    programs = {}
    seen = _Inputs({path: math.prod(s.shape) for path, s in shapes.items()})
    for batch in batches:
        arrays = [x for x in jax.tree.leaves(batch) if hasattr(x, "dtype")]
        key = tuple((x.shape, str(x.dtype)) for x in arrays)
        if key not in programs:
            traced = trace(f, params, tuple(batch), {})
            programs[key] = Walk().program(
                traced.jaxpr, traced.consts, [axes_of(v) for v in traced.jaxpr.invars]
            )
        seen.run(programs[key], given(params, list(shapes), batch))
    if not any(n.any() for n in seen.counts.values()):
        raise ValueError(
            "input_rms: no batches, or none of the params enters a matrix product or a convolution"
        )

    def root(path, shape):
        return np.sqrt(seen.sums[path] / np.maximum(seen.counts[path], 1)).reshape(shape)

    found = [
        jnp.asarray(root(p, s.shape), jnp.float32) if seen.counts[p].any() else None
        for p, s in shapes.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), found)


class _Inputs(Evaluation):
    """Sums x² over all x that a weight is multiplied with, and counts them.

    Σ x² is the derivative of Σ y by w, for y the product of x² and w: whatever the dimension
    numbers, the padding and the groups are.
    """

    def __init__(self, sizes: Mapping[str, int]):
        self.sums = {path: np.zeros(n) for path, n in sizes.items()}
        self.counts = {path: np.zeros(n) for path, n in sizes.items()}

    def equation(self, r: Record, ins: list[Value]) -> list[Value]:
        if r.eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            for k in (0, 1):
                if ins[k].source is not None and ins[1 - k].source is None:
                    self._add(r, k, ins[k].source, jnp.asarray(ins[1 - k].x, jnp.float32))
        return super().equation(r, ins)

    def _add(self, r: Record, k: int, source: Any, x: jax.Array) -> None:
        for totals, factor in ((self.sums, jnp.square(x)), (self.counts, jnp.ones_like(x))):
            np.add.at(
                totals[source.path],
                source.at,
                np.asarray(_slope(r, k, factor, source.at.shape), np.float64),
            )


def _slope(r: Record, k: int, factor: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The derivative of Σ (product of w and the factor) by w, the operand k."""

    def product(w):
        return bind(r, [w, factor] if k == 0 else [factor, w], preferred_element_type=jnp.float32)[
            0
        ].sum()

    return jax.grad(product)(jnp.zeros(shape, jnp.float32))
