"""The fixed-length code of each leaf of a file, to compare its stored bytes with; from the manifest
alone.

    n b + codebooks, scales and factors, + n for a mask        b: bits of an index, an integer, a
        float

A manifest does not say how many entries a mask keeps, so all n are counted: `nbits` of the code,
were nothing pruned.
"""

import math
from typing import Any

from jaxprune.core.arrays import index_bits
from jaxprune.storage.accounting import leaves, shared
from jaxprune.storage.format import manifest
from jaxprune.storage.format.shapes import dense
from jaxprune.storage.format.words import DTYPES, KINDS, Code, Row


def fixed_bytes(path: Any) -> dict[str, int]:
    """leaf -> bytes of its fixed-length code; a number has none.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, tempfile, os
      >>> path = os.path.join(tempfile.mkdtemp(), "model.jpz")
      >>> jp.save(path, {"w": jp.Clustered(jnp.arange(4.0), jnp.zeros((8, 8), jnp.uint8))})
      >>> fixed_bytes(path)                   # 64 indices of 2 bits, and 4 values of 32
      {'w': 32}
    """
    with manifest.open_regular(path) as file:
        found = manifest.contents(file)

    def k(group):
        return None if group is None else math.prod((shared(group) or ((),))[0])

    return {leaf.path: -(-_bits(leaf.node, k(group)) // 8) for leaf, group in leaves(found.tree)}


def _bits(node: Any, k: int | None) -> int:
    """Bits of a node; k: the entries of the codebook that a `Common` shares."""
    if isinstance(node, Row):
        return math.prod(node.shape) * (1 if node.dtype == "?" else 8 * DTYPES[node.dtype].itemsize)
    if not isinstance(node, Code):
        return 0
    parts = dict(zip(KINDS[node.tag].fields, node.parts))
    if node.tag == "C":
        k = k if parts["codebook"] is None else dense(parts["codebook"])[0][-1]
        return _size(parts.pop("indices")) * index_bits(k or 1) + _bits(parts["codebook"], None)
    name = {"P": "words", "Q": "q"}.get(node.tag)
    integers = _size(parts.pop(name)) * node.statics[0] if name else 0
    return integers + sum(_bits(part, k) for part in parts.values())


def _size(node: Any) -> int:
    return math.prod(dense(node)[0])
