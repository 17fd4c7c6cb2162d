"""Folding batch norms into the weights before them, by reading the jaxpr: same f, same tree, fewer numbers to store.

A convolution or a dot y with the weight K, whose only use is a chain of affine maps with parameters of its own, is
z = a·y + b for each output channel: bias and eval-mode batch norm, z = (y + bias − mean)·scale / √(var + ε) + β.
Set the parameters that multiply (var, scale) to 1, those that add to 0; the chain then is z = a′·y + b′. So

    K ← K·a/a′,    β ← β + (b − b′)/(dz/dβ)

give the same z, where β is the last parameter that adds. All other arrays of the chain are constants, which a file
stores for nothing (Jacob et al. 2018, arXiv:1712.05877, fold at inference).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.core.where import is_float, leaf_path
from jaxprune.transforms.jaxpr import Equation, Program, evaluate, program

AFFINE = frozenset({"add", "sub", "mul", "div"})
LAYOUT = frozenset({"reshape", "transpose", "squeeze", "convert_element_type", "copy", "copy_p", "rev"})


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


def fold_batch_norm(f: Callable[..., Any], params: Any, *args: Any, tolerance: float = 1e-4) -> Folded:
    """Moves eval-mode batch norms into the convolutions and dots before them.

    Args:
      f: a pure function f(params, *args) in eval mode.
      params: all its arrays, statistics included: linen's `{"params": …, "batch_stats": …}`, an `nnx.State`, any tree.
      args: further arguments, as small as f takes (a batch of one or two); the result is checked on them.
      tolerance: the largest relative error of the outputs.

    Returns:
      `Folded`. What is followed by a nonlinearity first, shared, used twice or normalised by its own batch is left
      alone, and says why.

    Raises:
      ValueError: nothing to fold; params are traced; the outputs differ by more than the tolerance.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> f = lambda p, x: (x @ p["w"] - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]
      >>> one = jnp.ones(2)
      >>> p = {"w": jnp.eye(2), "mean": one, "var": 4 * one, "scale": one, "bias": 0 * one}
      >>> new = jp.fold_batch_norm(f, p, 3 * jnp.ones((1, 2))).params
      >>> print(jnp.round(new["w"], 3), jnp.round(new["bias"], 3), new["var"])
      [[0.5 0. ]
       [0.  0.5]] [-0.5 -0.5] [1. 1.]
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    if any(isinstance(x, Tracer) for _, x in leaves):
        raise ValueError("fold_batch_norm reads values, and params are traced: call it outside jit")
    graph = Graph(program(f, params, *args), [leaf_path(k) for k, _ in leaves], [x for _, x in leaves])
    folded, left = [], {}
    for eqn in graph.products():
        _fold(graph, eqn, folded, left)
    left |= graph.others({p for _, names in folded for p in names} | set(left))
    if not folded:
        why = "; ".join(f"{p}: {w}" for p, w in left.items()) or "no convolution or dot is followed by one"
        raise ValueError(f"fold_batch_norm finds nothing to fold in f. {why}")
    new = jax.tree.unflatten(tree, graph.leaves)
    error = _error(f(params, *args), f(new, *args))
    if not error <= tolerance:
        raise ValueError(f"fold_batch_norm changes f by {error:.2g}, relative to its largest output: see `tolerance`")
    return Folded(new, tuple(folded), tuple(left.items()), error)


class Graph:
    """A program, which values are made of parameters alone, and who uses what."""

    def __init__(self, code: Program, paths: list[str], leaves: list[Any]):
        self.code, self.paths, self.leaves = code, paths, list(leaves)
        self.leaf = dict(zip(code.inputs, range(len(leaves))))
        self.of = {i: frozenset() for i in code.constants} | {i: frozenset({n}) for i, n in self.leaf.items()}
        self.maker = {o: e for e in code.equations for o in e.outputs}
        self.users: dict[int, list[Any]] = {o: [None] for o in code.outputs}
        for e in code.equations:
            for i in e.inputs:
                self.users.setdefault(i, []).append(e)
            if all(i in self.of for i in e.inputs):
                self.of |= {o: frozenset().union(*(self.of[i] for i in e.inputs)) for o in e.outputs}

    def products(self) -> list[Equation]:
        """Convolutions and dots of data with something made of one parameter."""
        fit = lambda e: [len(self.of.get(i, ())) == 1 for i in e.inputs] in ([True, False], [False, True])
        names = ("conv_general_dilated", "dot_general")
        return [e for e in self.code.equations if e.primitive.name in names and fit(e)]

    def meets(self, n: int) -> list[Equation | None]:
        """Where a parameter meets data, or leaves the program."""
        made = [v for v, of in self.of.items() if n in of]
        return [e for v in made for e in self.users.get(v, ()) if e is None or e.outputs[0] not in self.of]

    def chain(self, y: int) -> list[Equation]:
        """The affine and layout equations that alone use y, one after another."""
        found = []
        while len(self.users.get(y, ())) == 1 and (e := self.users[y][0]) is not None:
            rest = [i for i in e.inputs if i != y]
            affine = e.primitive.name in AFFINE and len(rest) == 1 and rest[0] in self.of
            affine = affine and (e.primitive.name != "div" or e.inputs[0] == y)
            if not affine and e.primitive.name not in LAYOUT:
                break
            found.append(e)
            y = e.outputs[0]
        return found

    def values(self, wanted: set[int], changed: dict[int, Any]) -> dict[int, Any]:
        """Values made of parameters, with some of these changed."""
        need, made = set(wanted), []
        for e in reversed(self.code.equations):
            if need & set(e.outputs) and all(i in self.of for i in e.inputs):
                need |= set(e.inputs)
                made.append(e)
        start = {i: changed.get(n, self.leaves[n]) for i, n in self.leaf.items()}
        return evaluate(reversed(made), self.code.constants | start)

    def others(self, known: set[str]) -> dict[str, str]:
        """Parameters that multiply data elsewhere than in a product, and what they follow."""
        found = {}
        for e in self.code.equations:
            data = [i for i in e.inputs if i not in self.of]
            if e.primitive.name not in ("mul", "div") or len(data) != 1 or len(e.inputs) != 2:
                continue
            for n in sorted(frozenset().union(*(self.of[i] for i in e.inputs if i in self.of))):
                if self.paths[n] not in known:
                    found[self.paths[n]] = self._source(data[0])
        return found

    def _origin(self, v: int) -> str:
        """The primitive that made v, but for its layout."""
        while (e := self.maker.get(v)) is not None and e.primitive.name in LAYOUT | {"broadcast_in_dim"}:
            v = e.inputs[0]
        return "" if e is None else e.primitive.name

    def _source(self, v: int) -> str:
        while (e := self.maker.get(v)) is not None and e.primitive.name in AFFINE | LAYOUT:
            data = [i for i in e.inputs if i not in self.of]
            if len(data) != 1 or len(self.users[v]) > 1:
                break
            v = data[0]
        name = e.primitive.name if e is not None else "an argument"
        if {name, *map(self._origin, e.inputs if e is not None else ())} & {"rsqrt", "sqrt"}:
            return "it is normalised by statistics of its own input: use eval mode"
        if name in ("conv_general_dilated", "dot_general"):
            return f"the {name} before it has other uses, or more weights"
        return f"it follows {name}, not a convolution or dot"


def _fold(graph: Graph, eqn: Equation, folded: list[Any], left: dict[str, str]) -> None:
    """Folds the chain after one product into its weight, or says in `left` why not."""
    side = next(s for s, i in enumerate(eqn.inputs) if i in graph.of)
    chain = graph.chain(eqn.outputs[0])
    operands = [i for e in chain for i in e.inputs if i in graph.of]
    slopes = {i for e in chain if e.primitive.name in ("mul", "div") for i in e.inputs if i in graph.of}
    many = sorted(frozenset().union(*(graph.of[i] for i in slopes)))
    if not many:
        return
    adds = [n for i in operands for n in sorted(graph.of[i]) if n not in many]
    (weight,) = graph.of[eqn.inputs[side]]
    why = _obstacle(graph, weight, [*many, *adds], eqn, chain)
    if not why:
        why = _solve(graph, eqn, side, chain, set(operands), weight, many, list(dict.fromkeys(adds)))
    names = [graph.paths[n] for n in dict.fromkeys([*many, *adds])]
    if why:
        left.update({graph.paths[n]: why for n in many})
    else:
        folded.append((graph.paths[weight], tuple(names)))


def _obstacle(graph: Graph, weight: int, others: list[int], eqn: Equation, chain: list[Equation]) -> str:
    inside = {id(e) for e in chain}
    if [id(e) for e in graph.meets(weight)] != [id(eqn)]:
        return f"the weight {graph.paths[weight]} is used more than once"
    for n in others:
        if n == weight or any(id(e) not in inside for e in graph.meets(n)):
            return f"{graph.paths[n]} is used elsewhere as well"
        if not is_float(graph.leaves[n]):
            return f"{graph.paths[n]} is not a float array"
    return ""


def _solve(
    graph: Graph,
    eqn: Equation,
    side: int,
    chain: list[Equation],
    operands: set[int],
    weight: int,
    many: list[int],
    adds: list[int],
) -> str:
    """Puts the new arrays into `graph.leaves`; "" or why it cannot be done."""
    y = eqn.outputs[0]
    like = graph.code.shapes[y]

    def run(changed: dict[int, Any]) -> tuple[np.ndarray, np.ndarray]:
        known = graph.values(operands, changed)
        z = lambda x: evaluate(chain, known | {y: x})[chain[-1].outputs[0]]
        b, pull = jax.vjp(z, jnp.zeros(like.shape, like.dtype))
        return np.asarray(pull(jnp.ones_like(b))[0], np.float64), np.asarray(b, np.float64)

    a, b = run({})
    new = {n: jnp.ones_like(graph.leaves[n]) for n in many} | {n: jnp.zeros_like(graph.leaves[n]) for n in adds}
    a_new, b_new = run(new)
    if not np.all(np.isfinite(a_new)) or np.any(a_new == 0):
        return "it has no inverse where its scales are 1"
    for n in reversed(adds) if np.any(b != b_new) else ():
        slope = run(new | {n: jnp.ones_like(graph.leaves[n])})[1] - b_new
        index = run(new | {n: jnp.arange(graph.leaves[n].size).reshape(graph.leaves[n].shape).astype(like.dtype)})[1]
        if np.any(slope == 0):
            continue
        value = np.zeros(graph.leaves[n].size)
        value[np.round((index - b_new) / slope).astype(int).ravel()] = ((b - b_new) / slope).ravel()
        new[n] = jnp.asarray(value.reshape(graph.leaves[n].shape), graph.leaves[n].dtype)
        break
    kernel = _scaled(graph, eqn, side, weight, a / a_new)
    if kernel is None:
        return "it does not scale whole output channels"
    if np.max(abs(run(new)[1] - b), initial=0) > 1e-4 * max(np.max(abs(b), initial=0), 1e-30):
        return "no parameter can take its offset"
    for n, x in {**new, weight: kernel}.items():
        graph.leaves[n] = x
    return ""


def _scaled(graph: Graph, eqn: Equation, side: int, weight: int, ratio: np.ndarray) -> Any:
    """The weight with its output channels scaled; None where `ratio`, shaped as the output, is not one a channel."""
    p = eqn.params
    if eqn.primitive.name == "conv_general_dilated":
        d = p["dimension_numbers"]
        pairs = [(d.out_spec[1], d.rhs_spec[0])] if side == 1 and p["batch_group_count"] == 1 else []
    else:
        pairs = _dot_axes(p["dimension_numbers"], side, ratio.ndim, graph.code.shapes[eqn.inputs[side]].ndim)
    kept = [o for o, _ in pairs]
    first = ratio[tuple(slice(None) if o in kept else slice(0, 1) for o in range(ratio.ndim))]
    if not pairs or np.any(abs(ratio - first) > 1e-6 * abs(first)):
        return None
    operand = graph.code.shapes[eqn.inputs[side]]
    order = sorted(pairs, key=lambda pair: pair[1])
    thin = first.transpose([o for o, _ in order] + [o for o in range(ratio.ndim) if o not in kept])
    wide = thin.reshape([operand.shape[w] if w in [k for _, k in order] else 1 for w in range(operand.ndim)])
    see = lambda k: graph.values({eqn.inputs[side]}, {weight: k})[eqn.inputs[side]]
    old, pull = jax.vjp(see, graph.leaves[weight])
    share = np.asarray(pull(jnp.asarray(np.broadcast_to(wide, operand.shape), old.dtype))[0], np.float64)
    new = jnp.asarray(np.asarray(graph.leaves[weight], np.float64) * share, graph.leaves[weight].dtype)
    gap = np.max(abs(np.asarray(see(new), np.float64) - np.asarray(old, np.float64) * wide), initial=0)
    return new if gap <= 1e-2 * float(jnp.max(jnp.abs(new))) else None


def _dot_axes(numbers: Any, side: int, out: int, rank: int) -> list[tuple[int, int]]:
    """(axis of the output, axis of the weight) for what a weight does not contract."""
    contract, batch = (pair[side] for pair in numbers)
    free = [w for w in range(rank) if w not in contract and w not in batch]
    start = len(batch) if side == 0 else out - len(free)
    return [*enumerate(batch), *((start + i, w) for i, w in enumerate(free))]


def _error(old: Any, new: Any) -> float:
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(*map(jax.tree.leaves, (old, new)))]
    return max(float(np.max(abs(a - b), initial=0) / max(np.max(abs(a), initial=0), 1e-30)) for a, b in pairs)
