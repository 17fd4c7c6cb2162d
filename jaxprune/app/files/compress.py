"""Compressing a checkpoint leaf by leaf: read, encode, write, forget.

Memory is that of the largest leaf and of its encoder, whatever the size of the checkpoint. A budget
that leaves share by magnitude is found from histograms, in readings of its own; rules that need all
their leaves at once want `in_memory`.
"""

import gc
import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxprune.app.files.compression_plan import Plan, Planned, pick, wide
from jaxprune.app.recipes.recipe import one, recipe, taken_by
from jaxprune.app.recipes.rules import Prune
from jaxprune.core.arrays import Common, fill_codebooks, materialize
from jaxprune.core.compression import at
from jaxprune.methods import allocate
from jaxprune.numerics.select import key_dtype
from jaxprune.numerics.streamed import split_magnitudes
from jaxprune.report.differences import Difference, difference
from jaxprune.storage.checkpoints import layouts
from jaxprune.storage.checkpoints.formats import open_checkpoint
from jaxprune.storage.checkpoints.tensors import Checkpoint, blocks
from jaxprune.storage.files import save
from jaxprune.storage.format.words import FormatError
from jaxprune.storage.streaming import nested, streamed

Tick = Callable[[str, int], Any]  # (path of a leaf, bytes of it that were read)
Meant = dict[str, bytes]
BY_BLOCKS = {"prune", "cluster", "quantize"}  # verbs that take arrays of NumPy's and make no copies
SEED = 0  # of rules that draw: the same checkpoint gives the same file


def compress(
    checkpoint: Checkpoint,
    plan: Plan,
    out: Any,
    tick: Tick,
    *,
    in_memory: bool = False,
    meant: Meant | None = None,
) -> None:
    """Writes the jaxprune file of a checkpoint.

    Args:
      checkpoint: an open one.
      plan: of this checkpoint.
      out: the file's path; it appears whole or not at all.
      tick: is told of each leaf that is done.
      in_memory: hold the whole tree, as some rules need.
      meant: is filled with the fingerprint of each leaf's dense array, as it should be read back.

    Raises:
      ValueError: a rule needs the whole tree and `in_memory` is False.
    """
    if plan.whole and not in_memory:
        raise ValueError(f"{plan.whole}: that needs all of them in memory at once; add --in-memory")

    def note(leaf, code):
        return None if meant is None else meant.update({leaf.path: _digest_of(code, plan, leaf)})

    if in_memory:
        tree = whole_tree(checkpoint, plan, tick)
        for leaf in plan.leaves:
            note(leaf, _code_at(tree, leaf))
        save(out, tree, metadata=about(checkpoint, plan))
        return
    counts = shared_budgets(checkpoint, plan)
    with streamed(out, about(checkpoint, plan)) as file:
        for leaf in plan.leaves:
            code = encoded(checkpoint, plan, leaf, counts)
            _let_go()
            file.add(leaf.tensor.keys, code)
            note(leaf, code)
            del code  # before the next leaf is read
            _let_go()
            tick(leaf.path, leaf.tensor.nbytes)


def _let_go() -> None:
    """Frees the leaf that was read: JAX drops a buffer of NumPy's at its next call, or when Python
    collects garbage.
    """
    gc.collect(0)


def encoded(checkpoint: Checkpoint, plan: Plan, leaf: Planned, counts: Any) -> Any:
    """One leaf as its rule writes it."""
    with wide(leaf.tensor):
        verbs = plan.rules[leaf.rule].verbs if leaf.rule is not None else {}
        x = (
            read(checkpoint, plan, leaf)
            if verbs.keys() <= BY_BLOCKS
            else _to_jax(read(checkpoint, plan, leaf))
        )
        tree = nested(leaf.tensor.keys, x)
        if leaf.rule is not None and verbs:
            rule = one(
                plan.rules[leaf.rule],
                allocate=counts.get(leaf.rule),
                layout={re.escape(leaf.path): leaf.axes},
            )
            tree = at(taken_by(plan.rules, leaf.rule), rule).init(tree, key=jax.random.key(SEED))
        return jax.tree.map(_to_jax, pick(tree, leaf.tensor.keys))


def whole_tree(checkpoint: Checkpoint, plan: Plan, tick: Tick) -> Any:
    """All leaves, encoded together."""
    tree: dict[str, Any] = {}
    for leaf in plan.leaves:
        place = tree
        for key in leaf.tensor.keys[:-1]:
            place = place.setdefault(key, {})
        with wide(leaf.tensor):
            place[leaf.tensor.keys[-1]] = _to_jax(read(checkpoint, plan, leaf))
        tick(leaf.path, leaf.tensor.nbytes)
    taken = [leaf.tensor for leaf in plan.leaves if leaf.rule is not None]
    with wide(max(taken, key=lambda tensor: tensor.dtype.itemsize)):
        return recipe(plan.rules, layout=plan.axes).init(tree, key=jax.random.key(SEED))


def read(checkpoint: Checkpoint, plan: Plan, leaf: Planned) -> np.ndarray:
    """The leaf in JAX's order of axes."""
    return layouts.read_as_jax(
        checkpoint.read, leaf.path, plan.layout, checkpoint.tensors[leaf.path]
    )


def _to_jax(x: Any) -> Any:
    """The array as one of JAX's, without a second copy."""
    return jax.device_put(x, may_alias=True)


def about(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """What restoring needs to know."""
    said: dict[str, Any] = {"layout": plan.layout} if plan.layout != "jax" else {}
    said |= {"about": dict(checkpoint.about)} if checkpoint.about else {}
    boxed = [path for path, tensor in checkpoint.tensors.items() if tensor.boxed]
    if boxed:
        said["boxed"] = True if len(boxed) == len(checkpoint.tensors) else boxed
    return {"checkpoint": said} if said else {}


# --- budgets that leaves share
# ---------------------------------------------------------------------------------------


def shared_budgets(checkpoint: Checkpoint, plan: Plan) -> dict[int, Any]:
    """For each rule that spreads one sparsity over its leaves, the allocation that gives each its
    number.
    """
    return {
        i: _constant(
            _counts(checkpoint, plan, [leaf for leaf in plan.leaves if leaf.rule == i], rule.prune)
        )
        for i, rule in enumerate(plan.rules)
        if isinstance(rule.prune, Prune) and rule.prune.allocate != "uniform"
    }


def _constant(counts: dict[str, int]) -> Any:
    return lambda params, units, sparsity: {path: counts[path] for path in params}


def _counts(checkpoint: Checkpoint, plan: Plan, leaves: list[Planned], p: Prune) -> dict[str, int]:
    shapes = {
        leaf.path: jax.ShapeDtypeStruct(leaf.tensor.shape, leaf.tensor.dtype) for leaf in leaves
    }
    if p.allocate == "erk":
        return allocate.erk(shapes, None, p.sparsity)
    remove = allocate.total(p.sparsity, sum(x.size for x in shapes.values()))
    parts = [lambda leaf=leaf: blocks(read(checkpoint, plan, leaf)) for leaf in leaves]
    return dict(zip(shapes, split_magnitudes(parts, remove, key_dtype(list(shapes.values())))))


# --- what was meant
# ---------------------------------------------------------------------------------------


def digest(x: np.ndarray) -> bytes:
    """A fingerprint of an array's bits, dtype and shape."""
    found = hashlib.blake2b(f"{x.dtype.name}{x.shape}".encode(), digest_size=16)
    for block in blocks(x):
        found.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return found.digest()


def _digest_of(code: Any, plan: Plan, leaf: Planned) -> bytes:
    with wide(leaf.tensor):
        x = np.asarray(materialize(code))
    return digest(layouts.turned(x, plan.layout, leaf.tensor.keys))


def _code_at(tree: Any, leaf: Planned) -> Any:
    if isinstance(tree, Common):
        tree = fill_codebooks(tree.tree, tree.codebook)
    return pick(tree, leaf.tensor.keys)


def read_back(
    checkpoint: Checkpoint, out: Any, meant: Meant, tick: Tick
) -> tuple[list[Difference], list[str]]:
    """How each leaf of a written file differs from the checkpoint, and the paths of those that are
    not as meant.
    """
    rows = []
    damaged = []
    with open_checkpoint(
        out, max_bytes=2**63
    ) as written:  # what this process wrote asks for no more than it held
        for path, tensor in checkpoint.tensors.items():
            row, intact = _read_back(checkpoint, written, path, meant[path])
            rows.append(row)
            if not intact:
                damaged.append(path)
            tick(path, tensor.nbytes)
        damaged += [path for path in written.tensors if path not in checkpoint.tensors]
    return rows, damaged


def _read_back(
    checkpoint: Checkpoint, written: Checkpoint, path: str, meant: bytes
) -> tuple[Difference, bool]:
    """How one leaf differs, and whether it is as meant."""
    try:
        x = written.read(path)
    except (FormatError, KeyError) as e:
        return Difference(
            path, checkpoint.tensors[path].size, compared=False, note=f"cannot be read: {e}"
        ), False
    return difference(path, checkpoint.read(path), x), digest(x) == meant
