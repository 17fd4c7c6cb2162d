"""What a recipe does to a checkpoint, before anything is read: the rule of each leaf and the bytes
to expect.

Predicted is the fixed-length code of each leaf, its mask by its entropy:

    n H(s) + (1 − s) n b + codebooks, scales and factors          s: sparsity;  b: bits of an index,
        an integer, a float

An entropy coder comes below it where values are not spread evenly. Budgets that depend on the
weights (a threshold, an energy, a similarity) have no prediction, nor has `entropy_quantize`, whose
integers have no fixed length.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxprune.app.recipe import check, matched, one, taken_by, taker
from jaxprune.app.recipes.rules import (
    Cluster,
    EntropyQuantize,
    Factorize,
    Prune,
    Recipe,
    Rule,
    Share,
    words,
)
from jaxprune.core.arrays import Common, Masked, dtype_bits, fill_codebooks, is_code
from jaxprune.core.combinators import at
from jaxprune.core.leaves.layout import Axes, axes_of
from jaxprune.core.leaves.names import Surroundings
from jaxprune.core.where import is_float
from jaxprune.storage.checkpoints import layouts
from jaxprune.storage.checkpoints.tensors import Checkpoint, Tensor
from jaxprune.storage.streaming import nested


class Planned(NamedTuple):
    """One leaf: its tensor in JAX's order of axes, the rule that takes it (from 0, or None), the
    bytes to expect, and which axes of a kernel are its outputs.
    """

    path: str
    tensor: Tensor
    rule: int | None
    words: str
    predicted: int | None
    axes: Axes


class Plan(NamedTuple):
    """What happens to each leaf.

    Attributes:
      rules: of the recipe.
      layout: "jax" or "torch".
      guessed: whether the layout is a guess.
      leaves: in the order in which they are written.
      whole: why a rule needs all its leaves at once; "" when each leaf can go by itself.
    """

    rules: tuple[Rule, ...]
    layout: str
    guessed: bool
    leaves: tuple[Planned, ...]
    whole: str

    def compresses(self, leaf: Planned) -> bool:
        """Whether a rule changes the leaf; others are kept as they are."""
        return leaf.rule is not None and not self.rules[leaf.rule].keep

    @property
    def axes(self) -> dict[str, Axes]:
        """The axes of every leaf by its path, as a `layout` of what the rules work on: arrays in
        JAX's order.
        """
        return {re.escape(leaf.path): leaf.axes for leaf in self.leaves}

    def to_dict(self) -> dict[str, Any]:
        """Lists, dicts, strings and numbers only."""
        rows = [
            {
                "path": leaf.path,
                "shape": list(leaf.tensor.shape),
                "dtype": leaf.tensor.dtype.name,
                "rule": None if leaf.rule is None else leaf.rule + 1,
                "does": leaf.words,
                "dense_bytes": leaf.tensor.nbytes,
                "predicted_bytes": leaf.predicted,
                "axes": str(leaf.axes) if len(leaf.tensor.shape) >= 2 else "",
            }
            for leaf in self.leaves
        ]
        return {"layout": self.layout, "layout_guessed": self.guessed, "leaves": rows}


def plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan:
    """The plan of a recipe for a checkpoint.

    Raises:
      ValueError: a rule that takes no leaf, or that cannot work on one of its leaves; a checkpoint
        without arrays.
    """
    if not checkpoint.tensors:
        raise ValueError("the checkpoint holds no arrays")
    if any(not tensor.keys for tensor in checkpoint.tensors.values()):
        raise ValueError("the checkpoint is one array without a name: put it in a dict")
    rules = check(recipe.rule)
    matched(rules, {path: is_float(tensor) for path, tensor in checkpoint.tensors.items()})
    layout = recipe.layout or layouts.guess(checkpoint.tensors)
    axes = axes_of_all(checkpoint.tensors, layout, recipe.layout)
    known: dict[Any, int | None] = {}
    leaves = []
    for path, tensor in checkpoint.tensors.items():
        turned = layouts.to_jax(layout, tensor)
        rule = taker(rules, path, is_float(tensor))
        key = rule, turned.shape, turned.dtype.name, axes[path]
        if key not in known:
            known[key] = predicted(turned, rules, rule, {re.escape(path): axes[path]})
        leaves.append(
            Planned(path, turned, rule, _words(rules, rule, path), known[key], axes[path])
        )
    whole = next(filter(None, map(needs_tree, rules)), "")
    return Plan(rules, layout, recipe.layout is None, tuple(leaves), whole)


def axes_of_all(tensors: Mapping[str, Tensor], layout: str, given: str | None) -> dict[str, Axes]:
    """What the axes of every array are, once it has JAX's order: by the layout that is given, or by
    names and biases.

    Args:
      tensors: by path, as they are in the checkpoint.
      layout: by which arrays are turned to JAX's order.
      given: the layout that the recipe names, or None.
    """
    places = Surroundings(list(tensors), list(tensors.values())).places()
    axes = {}
    for place in places:
        tensor = tensors[place.path]
        one = axes_of(place, given)
        if layouts.is_reordered(layout, tensor.keys, tensor.shape):
            one = layouts.axes_to_jax(one, len(tensor.shape))
        axes[place.path] = one
    return axes


def _words(rules: tuple[Rule, ...], rule: int | None, path: str) -> str:
    """What becomes of a leaf."""
    if rule is not None:
        return words(rules[rule])
    return "kept" if taker(rules, path) is None else "kept (no floats)"


def needs_tree(rule: Rule) -> str:
    """Why a rule needs all its leaves at once; "" when it does not."""
    p = rule.prune
    e = rule.entropy_quantize
    name = f"the rule where = {rule.where!r}"
    if isinstance(rule.cluster, Cluster) and rule.cluster.scope == "tree":
        return f'{name} has one codebook for all its leaves (scope = "tree")'
    if isinstance(e, EntropyQuantize) and e.step is None:
        target = "sqnr" if e.sqnr is not None else "bits_per_weight"
        return f"{name} has one step for all its leaves (entropy_quantize, {target})"
    if isinstance(p, Prune) and p.pattern and p.pattern.startswith("channel"):
        return f"{name} prunes channels, and with them the biases beside the kernels"
    if isinstance(p, Prune) and (
        p.allocate == "lamp" or (p.allocate != "uniform" and not by_weight(p))
    ):
        return f'{name} shares its budget among leaves (allocate = "{p.allocate}")'
    return ""


def by_weight(p: Prune) -> bool:
    """Whether single weights go, those of the smallest magnitude."""
    return p.pattern is None and p.score == "magnitude"


# --- predictions
# ---------------------------------------------------------------------------------------


def predicted(
    tensor: Tensor, rules: tuple[Rule, ...], rule: int | None, layout: Any = None
) -> int | None:
    """Bytes of a leaf's fixed-length code; None where they depend on the weights. A rule that
    cannot work raises.
    """
    if rule is None or rules[rule].keep:
        return tensor.nbytes
    if depends_on_weights(rules[rule]):
        return None
    code = _code(tensor, rules, rule, layout)
    bits = _bits(code, sparsity(rules[rule]))
    return None if bits is None else math.ceil(bits / 8)


def depends_on_weights(rule: Rule) -> bool:
    """Whether the shape of the code, or the number of zeros, cannot be told from shapes alone."""
    return (
        (isinstance(rule.prune, Prune) and rule.prune.threshold is not None)
        or rule.entropy_quantize is not None
        or (isinstance(rule.factorize, Factorize) and rule.factorize.energy is not None)
        or (isinstance(rule.share, Share) and rule.share.similarity is not None)
    )


def sparsity(rule: Rule) -> float:
    """The fraction of zeros that a rule asks for."""
    p = rule.prune if isinstance(rule.prune, Prune) else Prune(sparsity=rule.prune)
    if p.pattern is not None and ":" in p.pattern:
        n, m = map(int, p.pattern.split(":"))
        return 1 - n / m
    return p.sparsity or 0.0


def _code(tensor: Tensor, rules: tuple[Rule, ...], rule: int, layout: Any) -> Any:
    """The code that the rule would make, without its numbers."""
    with wide(tensor):
        like = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
        make = at(
            taken_by(rules, rule),
            one(rules[rule], allocate=_evenly(sparsity(rules[rule])), layout=layout),
        ).init
        tree = jax.eval_shape(lambda x: make(nested(tensor.keys, x), key=jax.random.key(0)), like)
    if isinstance(tree, Common):
        tree = fill_codebooks(tree.tree, tree.codebook)
    return pick(tree, tensor.keys)


def pick(tree: Any, keys: tuple[str, ...]) -> Any:
    """What lies at some keys of a tree of dicts."""
    for key in keys:
        tree = tree[key]
    return tree


def _evenly(s: float) -> Any:
    """An allocation by sizes alone."""
    return lambda params, units, _: {
        key: round(s * x.size) for key, x in (params if units is None else units).items()
    }


def _bits(code: Any, s: float) -> float | None:
    if isinstance(code, Masked):
        n = math.prod(code.mask.shape)
        kept = round((1 - s) * n)
        inner = _plain_bits(code.values, kept)
        return None if inner is None else n * _entropy(kept / max(n, 1)) + inner
    return _plain_bits(code, None)


def _plain_bits(x: Any, kept: int | None) -> float | None:
    if not is_code(x):
        return (math.prod(x.shape) if kept is None else kept) * dtype_bits(x.dtype)
    hidden = any(
        isinstance(getattr(x, name), Masked) for name in x.fields()
    )  # how many are kept is not known
    return None if hidden else x.nbits(kept)


def _entropy(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def wide(tensor: Any) -> Any:
    """Lets JAX hold arrays of 64-bit numbers, whatever jax_enable_x64 says."""
    return jax.enable_x64(tensor.dtype.itemsize == 8 or jax.config.read("jax_enable_x64"))
