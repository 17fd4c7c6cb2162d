"""Folding batch norms into the weights before them, by reading the jaxpr: same f, same tree, fewer
numbers to store.

A convolution or a dot y with the weight K, whose only use is a chain of affine maps with parameters
of its own, is z = a·y + b for each output channel: bias and eval-mode batch norm, z = (y + bias −
mean)·scale / √(var + ε) + β. Set the parameters that multiply (var, scale) to 1, those that add to
0; the chain then is z = a′·y + b′. So

    K ← K·a/a′,    β ← β + (b − b′)/(dz/dβ)

give the same z, where β is the last parameter that adds. All other arrays of the chain are
constants, which a file stores for nothing (Jacob et al. 2018, arXiv:1712.05877, fold at inference).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.core.arguments import positive
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.core.where import is_float
from jaxprune.jaxprs.equations import Equation, evaluate, program
from jaxprune.jaxprs.graph import AFFINE, Graph


class Folded(NamedTuple):
    """What `fold_batch_norm` did.

    Attributes:
      params: the new tree, of the old structure, for the same f.
      folded: (weight's path, paths of the arrays that became constants or its bias).
      left: (path, why it was left alone).
      error: max |f(new) − f(old)| / max |f(old)| on the arguments given.
    """

    params: Any
    folded: tuple[tuple[str, tuple[str, ...]], ...]
    left: tuple[tuple[str, str], ...]
    error: float


def fold_batch_norm(
    f: Callable[..., Any], params: Any, *args: Any, tolerance: float = 1e-4
) -> Folded:
    """Moves eval-mode batch norms into the convolutions and dots before them.

    Args:
      f: a pure function f(params, *args) in eval mode.
      params: all its arrays, statistics included: linen's `{"params": …, "batch_stats": …}`, an
        `nnx.State`, any tree.
      args: further arguments, as small as f takes (a batch of one or two); the result is checked on
        them.
      tolerance: the largest relative error of the outputs.

    Returns:
      `Folded`. What is followed by a nonlinearity first, shared, used twice or normalised by its
      own batch is left alone, and says why.

    Raises:
      ValueError: nothing to fold; params are traced; the outputs differ by more than the tolerance.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def f(p, x):
      ...     normed = (x @ p["w"] - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5)
      ...     return normed * p["scale"] + p["bias"]
      >>> one = jnp.ones(2)
      >>> p = {"w": jnp.eye(2), "mean": one, "var": 4 * one, "scale": one, "bias": 0 * one}
      >>> new = jp.fold_batch_norm(f, p, 3 * jnp.ones((1, 2))).params
      >>> print(jnp.round(new["w"], 3), jnp.round(new["bias"], 3), new["var"])
      [[0.5 0. ]
       [0.  0.5]] [-0.5 -0.5] [1. 1.]
    """
    positive("fold_batch_norm(tolerance={})", tolerance)
    leaves, tree = flatten_with_path(params)
    if any(isinstance(x, Tracer) for _, x in leaves):
        raise ValueError("fold_batch_norm reads values, and params are traced: call it outside jit")
    graph = Graph(
        program(f, params, *args), [leaf_path(k) for k, _ in leaves], [x for _, x in leaves]
    )
    folded = []
    left = {}
    for eqn in graph.products():
        _fold(graph, eqn, folded, left)
    left |= graph.others({p for _, names in folded for p in names} | set(left))
    if not folded:
        why = (
            "; ".join(f"{p}: {w}" for p, w in left.items())
            or "no convolution or dot is followed by one"
        )
        raise ValueError(f"fold_batch_norm finds nothing to fold in f. {why}")
    new = jax.tree.unflatten(tree, graph.leaves)
    error = _error(f(params, *args), f(new, *args))
    if not error <= tolerance:
        raise ValueError(
            f"fold_batch_norm changes f by {error:.2g}, relative to its largest output: see "
            f"`tolerance`"
        )
    return Folded(new, tuple(folded), tuple(left.items()), error)


class Chain(NamedTuple):
    """A product of data with a weight, and the affine and layout equations that alone use it.

    Attributes:
      side: which operand of the product is made of the weight.
      weight: the number of the weight among the parameters.
      many, adds: the parameters that multiply along the chain, and the others, in order.
    """

    graph: Graph
    product: Equation
    side: int
    equations: list[Equation]
    weight: int
    many: tuple[int, ...]
    adds: tuple[int, ...]

    @property
    def operand(self) -> int:
        """The value that multiplies the data."""
        return self.product.inputs[self.side]

    def affine(self, changed: dict[int, Any]) -> tuple[np.ndarray, np.ndarray]:
        """a and b of z = a·y + b, shaped as y and z, with some parameters changed."""
        y = self.product.outputs[0]
        graph = self.graph
        wanted = {i for e in self.equations for i in e.inputs if i in graph.of}
        known = graph.values(wanted, changed)

        def z(x):
            return evaluate(self.equations, known | {y: x})[self.equations[-1].outputs[0]]

        like = graph.code.shapes[y]
        b, pull = jax.vjp(z, jnp.zeros(like.shape, like.dtype))
        return np.asarray(pull(jnp.ones_like(b))[0], np.float64), np.asarray(b, np.float64)


def _chain(graph: Graph, eqn: Equation) -> Chain | None:
    """The chain after a product, if parameters multiply along it."""
    side = next(s for s, i in enumerate(eqn.inputs) if i in graph.of)
    equations = graph.chain(eqn.outputs[0])

    def of(names):
        return [
            graph.of[i]
            for e in equations
            if e.primitive.name in names
            for i in e.inputs
            if i in graph.of
        ]

    many = tuple(sorted(frozenset().union(*of(("mul", "div")))))
    adds = dict.fromkeys(n for some in of(AFFINE) for n in sorted(some) if n not in many)
    (weight,) = graph.of[eqn.inputs[side]]
    return Chain(graph, eqn, side, equations, weight, many, tuple(adds)) if many else None


def _fold(graph: Graph, eqn: Equation, folded: list[Any], left: dict[str, str]) -> None:
    """Folds the chain after one product into its weight, or says in `left` why not."""
    chain = _chain(graph, eqn)
    if chain is None:
        return
    if why := _obstacle(chain) or _solve(chain):
        left.update({graph.paths[n]: why for n in chain.many})
    else:
        folded.append(
            (graph.paths[chain.weight], tuple(graph.paths[n] for n in (*chain.many, *chain.adds)))
        )


def _obstacle(chain: Chain) -> str:
    graph = chain.graph
    inside = {id(e) for e in chain.equations}
    if [id(e) for e in graph.meets(chain.weight)] != [id(chain.product)]:
        return f"the weight {graph.paths[chain.weight]} is used more than once"
    for n in (*chain.many, *chain.adds):
        if n == chain.weight or any(id(e) not in inside for e in graph.meets(n)):
            return f"{graph.paths[n]} is used elsewhere as well"
        if not is_float(graph.leaves[n]):
            return f"{graph.paths[n]} is not a float array"
    return ""


def _solve(chain: Chain) -> str:
    """Puts the new arrays into the graph's leaves; "" or why it cannot be done."""
    leaves = chain.graph.leaves
    a, b = chain.affine({})
    new = {n: jnp.ones_like(leaves[n]) for n in chain.many} | {
        n: jnp.zeros_like(leaves[n]) for n in chain.adds
    }
    a_new, b_new = chain.affine(new)
    if not np.all(np.isfinite(a_new)) or np.any(a_new == 0):
        return "it has no inverse where its scales are 1"
    kernel = _scaled(chain, a / a_new)
    if kernel is None:
        return "it does not scale whole output channels"
    new |= _offset(chain, new, b, b_new)
    near = max(1e-4, 16 * float(jnp.finfo(leaves[chain.weight].dtype).eps))
    if np.max(abs(chain.affine(new)[1] - b), initial=0) > near * max(
        np.max(abs(b), initial=0), 1e-30
    ):
        return "no parameter can take its offset"
    for n, x in {**new, chain.weight: kernel}.items():
        leaves[n] = x
    return ""


def _offset(chain: Chain, new: dict[int, Any], b: np.ndarray, b_new: np.ndarray) -> dict[int, Any]:
    """The last parameter that adds, made to give b."""
    for n in reversed(chain.adds) if np.any(b != b_new) else ():
        x = chain.graph.leaves[n]
        slope = chain.affine(new | {n: jnp.ones_like(x)})[1] - b_new
        if np.any(slope == 0):
            continue
        value = np.zeros(x.size)
        value[_places(chain, new, n, slope, b_new)] = ((b - b_new) / slope).ravel()
        return {n: jnp.asarray(value.reshape(x.shape), x.dtype)}
    return {}


def _places(
    chain: Chain, new: dict[int, Any], n: int, slope: np.ndarray, b_new: np.ndarray
) -> np.ndarray:
    """For each element of z, flat, which element of parameter n is added to it: read off by giving
    these their numbers, one hexadecimal digit at a time, which any dtype holds.
    """
    x = chain.graph.leaves[n]
    number = np.arange(x.size).reshape(x.shape)
    places = np.zeros(slope.size, int)
    for shift in range(0, x.size.bit_length(), 4):
        digit = jnp.asarray(number >> shift & 15, x.dtype)
        found = (chain.affine(new | {n: digit})[1] - b_new) / slope
        places += np.round(found).astype(int).ravel() << shift
    return places


def _scaled(chain: Chain, ratio: np.ndarray) -> Any:
    """The weight with its output channels scaled; None where `ratio`, shaped as the output, is not
    one a channel.
    """
    pairs = _channels(chain, ratio.ndim)
    kept = [o for o, _ in pairs]
    first = ratio[tuple(slice(None) if o in kept else slice(0, 1) for o in range(ratio.ndim))]
    if not pairs or np.any(abs(ratio - first) > 1e-6 * abs(first)):
        return None
    shape = chain.graph.code.shapes[chain.operand].shape
    order = sorted(pairs, key=lambda pair: pair[1])
    thin = first.transpose([o for o, _ in order] + [o for o in range(ratio.ndim) if o not in kept])
    return _through(
        chain,
        thin.reshape([shape[w] if w in [k for _, k in order] else 1 for w in range(len(shape))]),
    )


def _through(chain: Chain, factor: np.ndarray) -> Any:
    """The weight that makes the operand `factor` times what it is; None where none does (it is not
    a mere layout).
    """
    graph = chain.graph
    weight = chain.graph.leaves[chain.weight]

    def see(k):
        return graph.values({chain.operand}, {chain.weight: k})[chain.operand]

    old, pull = jax.vjp(see, weight)
    share = np.asarray(
        pull(jnp.asarray(np.broadcast_to(factor, old.shape), old.dtype))[0], np.float64
    )
    new = jnp.asarray(np.asarray(weight, np.float64) * share, weight.dtype)
    gap = np.max(
        abs(np.asarray(see(new), np.float64) - np.asarray(old, np.float64) * factor), initial=0
    )
    return new if gap <= 1e-2 * float(jnp.max(jnp.abs(new))) else None


def _channels(chain: Chain, rank: int) -> list[tuple[int, int]]:
    """(axis of the output, axis of the weight) for the output channels; empty where there are
    none.
    """
    eqn = chain.product
    side = chain.side
    if eqn.primitive.name != "conv_general_dilated":
        operand = chain.graph.code.shapes[chain.operand]
        return _dot_axes(eqn.params["dimension_numbers"], side, rank, operand.ndim)
    d = eqn.params["dimension_numbers"]
    return (
        [(d.out_spec[1], d.rhs_spec[0])]
        if side == 1 and eqn.params["batch_group_count"] == 1
        else []
    )


def _dot_axes(numbers: Any, side: int, out: int, rank: int) -> list[tuple[int, int]]:
    """(axis of the output, axis of the weight) for what a weight does not contract."""
    contract, batch = (pair[side] for pair in numbers)
    free = [w for w in range(rank) if w not in contract and w not in batch]
    start = len(batch) if side == 0 else out - len(free)
    return [*enumerate(batch), *((start + i, w) for i, w in enumerate(free))]


def _error(old: Any, new: Any) -> float:
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(*map(jax.tree.leaves, (old, new)))
    ]
    return max(
        float(np.max(abs(a - b), initial=0) / max(np.max(abs(a), initial=0), 1e-30))
        for a, b in pairs
    )
