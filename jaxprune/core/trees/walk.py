"""Walking a tree of weights: a slot for every leaf, and for every field of a code."""

from collections.abc import Callable
from typing import Any

import jax

from jaxprune.core.arrays import Masked, is_code
from jaxprune.core.where import Slot, leaf_slots

IsSlot = Callable[[Any], bool]
"""Whether a code is one slot as it stands; else each of its fields is."""


def never(code: Any) -> bool:
    """No code is one slot: its fields are. The default of every walk."""
    return False


def walk(f: Callable[[Slot], Any], tree: Any, is_slot: IsSlot = never) -> Any:
    """The tree with f(slot) in the place of every slot.

    Args:
      f: of a slot; gives what stands there afterwards.
      tree: any pytree, with or without codes.
      is_slot: which codes are one slot as they stand.
    """
    return _walk_below(tree, Slot("", None), f, is_slot)


# Functions of the module and no closures: closures that call one another are a cycle of references,
# which keeps the leaves alive until Python collects garbage.


def _walk_below(tree: Any, holder: Slot, f: Callable[[Slot], Any], is_slot: IsSlot) -> Any:
    leaves, treedef = leaf_slots(tree, holder)
    is_field = bool(holder.fields)
    if is_field and leaves and leaves[0].path == holder.path:
        # An array or a code that is itself the field of a code: it has the code's place, path and
        # owner.
        leaves = [holder._replace(value=tree)]
    return jax.tree.unflatten(treedef, [_walk_slot(slot, f, is_slot) for slot in leaves])


def _walk_slot(slot: Slot, f: Callable[[Slot], Any], is_slot: IsSlot) -> Any:
    code = slot.value
    if not is_code(code) or is_slot(code):
        return f(slot)
    fields = {}
    for name in code.fields():
        fields[name] = _walk_below(getattr(code, name), _field_slot(slot, name), f, is_slot)
    return code.replace(**fields)


def _field_slot(slot: Slot, name: str) -> Slot:
    """The slot of a code's field; its value is set by the walk."""
    code = slot.value
    mask = code.mask if isinstance(code, Masked) and name == "values" else None
    holds_weights = slot.open and name in code.payload
    return slot._replace(fields=(*slot.fields, name), mask=mask, open=holds_weights)


def slots(tree: Any, is_slot: IsSlot = never) -> list[Slot]:
    """All slots of a tree, in the order of `walk`."""
    collected: list[Slot] = []

    def collect(slot: Slot) -> Any:
        collected.append(slot)
        return slot.value

    walk(collect, tree, is_slot)
    return collected
