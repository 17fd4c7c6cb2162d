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
from jaxprune.app.recipe import one, recipe, taken_by
from jaxprune.app.recipes.rules import Prune
from jaxprune.core.arrays import Common, fill_codebooks, materialize
from jaxprune.core.combinators import at
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
Fingerprints = dict[str, bytes]  # path -> digest of the dense array, as it should be read back
BY_BLOCKS = {"prune", "cluster", "quantize"}  # verbs that take arrays of NumPy's and make no copies
SEED = 0  # of rules that draw: the same checkpoint gives the same file


def compress(
    checkpoint: Checkpoint,
    plan: Plan,
    out: Any,
    tick: Tick,
    *,
    in_memory: bool = False,
    fingerprint: bool = False,
) -> Fingerprints | None:
    """Writes the jaxprune file of a checkpoint.

    Args:
      checkpoint: an open one.
      plan: of this checkpoint.
      out: the file's path; it appears whole or not at all.
      tick: is told of each leaf that is done.
      in_memory: hold the whole tree, as some rules need.
      fingerprint: whether to return the fingerprints of the dense arrays, for `read_back`.

    Raises:
      ValueError: a rule needs the whole tree and `in_memory` is False.
    """
    if plan.whole and not in_memory:
        raise ValueError(f"{plan.whole}: that needs all of them in memory at once; add --in-memory")
    fingerprints: Fingerprints = {}
    metadata = checkpoint_metadata(checkpoint, plan)
    if in_memory:
        tree = encode_tree(checkpoint, plan, tick)
        if fingerprint:
            for leaf in plan.leaves:
                fingerprints[leaf.path] = _code_digest(_code_at(tree, leaf), plan, leaf)
        save(out, tree, metadata=metadata)
        return fingerprints if fingerprint else None
    allocations = shared_budgets(checkpoint, plan)
    with streamed(out, metadata) as file:
        for leaf in plan.leaves:
            allocation = None if leaf.rule is None else allocations.get(leaf.rule)
            code = encode_leaf(checkpoint, plan, leaf, allocation)
            _free_arrays()
            file.add(leaf.tensor.keys, code)
            if fingerprint:
                fingerprints[leaf.path] = _code_digest(code, plan, leaf)
            del code  # before the next leaf is read
            _free_arrays()
            tick(leaf.path, leaf.tensor.nbytes)
    return fingerprints if fingerprint else None


def _free_arrays() -> None:
    """Frees the leaf that was read: JAX drops a buffer of NumPy's at its next call, or when Python
    collects garbage."""
    gc.collect(0)


def encode_leaf(checkpoint: Checkpoint, plan: Plan, leaf: Planned, allocation: Any) -> Any:
    """One leaf as its rule writes it; `allocation` is the rule's, where its leaves share a
    budget."""
    with wide(leaf.tensor):
        rule = None if leaf.rule is None else plan.rules[leaf.rule]
        array: Any = read(checkpoint, plan, leaf)
        if rule is None or leaf.rule is None or not rule.verbs:
            return _to_jax(array)
        if not rule.verbs.keys() <= BY_BLOCKS:
            array = _to_jax(array)
        layout = {re.escape(leaf.path): leaf.axes}
        compression = at(
            taken_by(plan.rules, leaf.rule), one(rule, allocate=allocation, layout=layout)
        )
        tree = compression.init(nested(leaf.tensor.keys, array), key=jax.random.key(SEED))
        return jax.tree.map(_to_jax, pick(tree, leaf.tensor.keys))


def encode_tree(checkpoint: Checkpoint, plan: Plan, tick: Tick) -> Any:
    """All leaves, encoded together."""
    tree: dict[str, Any] = {}
    for leaf in plan.leaves:
        parent = tree
        for key in leaf.tensor.keys[:-1]:
            parent = parent.setdefault(key, {})
        with wide(leaf.tensor):
            parent[leaf.tensor.keys[-1]] = _to_jax(read(checkpoint, plan, leaf))
        tick(leaf.path, leaf.tensor.nbytes)
    tensors = [leaf.tensor for leaf in plan.leaves if leaf.rule is not None]
    widest = max(tensors, key=lambda tensor: tensor.dtype.itemsize)
    with wide(widest):
        return recipe(plan.rules, layout=plan.axes).init(tree, key=jax.random.key(SEED))


def read(checkpoint: Checkpoint, plan: Plan, leaf: Planned) -> np.ndarray:
    """The leaf in JAX's order of axes."""
    return layouts.read_as_jax(
        checkpoint.read, leaf.path, plan.layout, checkpoint.tensors[leaf.path]
    )


def _to_jax(x: Any) -> Any:
    """The array as one of JAX's, without a second copy."""
    return jax.device_put(x, may_alias=True)


def checkpoint_metadata(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """What restoring needs to know, as the metadata of the file."""
    origin: dict[str, Any] = {}
    if plan.layout != "jax":
        origin["layout"] = plan.layout
    if checkpoint.about:
        origin["about"] = dict(checkpoint.about)
    boxed = [path for path, tensor in checkpoint.tensors.items() if tensor.boxed]
    if boxed:
        origin["boxed"] = True if len(boxed) == len(checkpoint.tensors) else boxed
    return {"checkpoint": origin} if origin else {}


# --- budgets that leaves share
# ---------------------------------------------------------------------------------------


def shared_budgets(checkpoint: Checkpoint, plan: Plan) -> dict[int, Any]:
    """For each rule that spreads one sparsity over its leaves, the allocation that gives each its
    number."""
    allocations = {}
    for i, rule in enumerate(plan.rules):
        if isinstance(rule.prune, Prune) and rule.prune.allocate != "uniform":
            leaves = [leaf for leaf in plan.leaves if leaf.rule == i]
            num_removed = _num_removed(checkpoint, plan, leaves, rule.prune)
            allocations[i] = _fixed_allocation(num_removed)
    return allocations


def _fixed_allocation(num_removed: dict[str, int]) -> Any:
    def allocation(params: Any, units: Any, sparsity: Any) -> dict[str, int]:
        return {path: num_removed[path] for path in params}

    return allocation


def _num_removed(
    checkpoint: Checkpoint, plan: Plan, leaves: list[Planned], settings: Prune
) -> dict[str, int]:
    """How many weights of each leaf a rule prunes."""
    shapes = {
        leaf.path: jax.ShapeDtypeStruct(leaf.tensor.shape, leaf.tensor.dtype) for leaf in leaves
    }
    assert settings.sparsity is not None
    if settings.allocate == "erk":
        return allocate.erk(shapes, None, settings.sparsity)
    total = allocate.total(settings.sparsity, sum(x.size for x in shapes.values()))
    # Each leaf is read again for each pass over the magnitudes: it is not held.
    readers = [lambda leaf=leaf: blocks(read(checkpoint, plan, leaf)) for leaf in leaves]
    counts = split_magnitudes(readers, total, key_dtype(list(shapes.values())))
    return dict(zip(shapes, counts))


# --- fingerprints
# ---------------------------------------------------------------------------------------


def digest(x: np.ndarray) -> bytes:
    """A fingerprint of an array's bits, dtype and shape."""
    fingerprint = hashlib.blake2b(f"{x.dtype.name}{x.shape}".encode(), digest_size=16)
    for block in blocks(x):
        fingerprint.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return fingerprint.digest()


def _code_digest(code: Any, plan: Plan, leaf: Planned) -> bytes:
    with wide(leaf.tensor):
        array = np.asarray(materialize(code))
    return digest(layouts.from_jax(array, plan.layout, leaf.tensor.keys))


def _code_at(tree: Any, leaf: Planned) -> Any:
    if isinstance(tree, Common):
        tree = fill_codebooks(tree.tree, tree.codebook)
    return pick(tree, leaf.tensor.keys)


def read_back(
    checkpoint: Checkpoint, out: Any, fingerprints: Fingerprints, tick: Tick
) -> tuple[list[Difference], list[str]]:
    """How each leaf of a written file differs from the checkpoint, and the paths of the damaged
    ones."""
    rows = []
    damaged = []
    # Without a limit: what this process wrote asks for no more memory than it held.
    with open_checkpoint(out, max_bytes=2**63) as written:
        for path, tensor in checkpoint.tensors.items():
            row, intact = _read_leaf_back(checkpoint, written, path, fingerprints[path])
            rows.append(row)
            if not intact:
                damaged.append(path)
            tick(path, tensor.nbytes)
        damaged += [path for path in written.tensors if path not in checkpoint.tensors]
    return rows, damaged


def _read_leaf_back(
    checkpoint: Checkpoint, written: Checkpoint, path: str, fingerprint: bytes
) -> tuple[Difference, bool]:
    """How one leaf differs, and whether it has the fingerprint that it should have."""
    try:
        array = written.read(path)
    except (FormatError, KeyError) as e:
        size = checkpoint.tensors[path].size
        return Difference(path, size, compared=False, note=f"cannot be read: {e}"), False
    return difference(path, checkpoint.read(path), array), digest(array) == fingerprint
