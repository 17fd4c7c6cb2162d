"""A `where` in any of its forms, made the slots that it selects: for all that take one.

text                          a regular expression of whole paths, as r"(.*/)?kernel"
a rule of `jp.where`          a predicate on slots, joined by & | ~
a tree of booleans            shaped like the params
a function                    of a tree of shapes, giving such a tree
None                          `jp.where.weights`
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.core.arrays import is_code, materialize
from jaxprune.core.guesses import refuse_no_tree
from jaxprune.core.hidden import zero_hidden
from jaxprune.core.trees.checks import check_weight
from jaxprune.core.trees.lookup import by_path
from jaxprune.core.trees.walk import IsSlot, never, slots, walk
from jaxprune.core.types import Compressed, Params, WhereLike
from jaxprune.core.where import (
    Slot,
    Where,
    as_rule,
    holds_floats,
    leaf_slots,
    weights,
    why_not,
)
from jaxprune.core.words import compiled

Test = Callable[[Slot], bool]


def selector(where: WhereLike, tree: Any) -> Test:
    """A `where` as a test of slots.

    Args:
      where: text, a rule of `jp.where`, a tree of booleans, a function making one of the tree's
        shapes; None: `jp.where.weights`.
      tree: that holds the slots.

    Raises:
      ValueError: something else.
    """
    if where is None:
        return weights.selects
    if isinstance(where, str):
        compiled("where", where)
    if isinstance(where, Where | str):
        return as_rule(where).selects
    flags = by_path(where(_shapes(tree)) if callable(where) else where, "where")
    for path, flag in flags.items():
        _check_flag(where, path, flag)

    def is_flagged(slot: Slot) -> bool:
        return slot.open and bool(flags.get(slot.path, False))

    return is_flagged


def _check_flag(where: Any, path: str, flag: Any) -> None:
    is_boolean = isinstance(flag, bool | np.bool_) or getattr(flag, "dtype", None) == np.bool_
    if not is_boolean:
        raise ValueError(
            f"where={where!r}: {path or 'it'} is {flag!r}, not True or False: give a regular "
            "expression for whole paths, as '(.*/)?kernel', a rule of jp.where, or a tree of "
            "booleans shaped like the params"
        )


def _shapes(tree: Any) -> Any:
    """The tree with shapes in place of its arrays and codes; functions and texts stay."""

    def shape(x: Any) -> Any:
        return jax.eval_shape(materialize, x) if is_code(x) or hasattr(x, "dtype") else x

    return jax.tree.map(shape, tree, is_leaf=is_code)


# --- leaves ---


def selected_leaves(where: WhereLike, tree: Params, *, of: Test = lambda slot: True) -> list[Slot]:
    """The leaves of a tree of dense weights that a `where` selects; there may be none.

    Args:
      where: in any form.
      tree: whose leaves are asked; a code is one leaf.
      of: which leaves count at all, as `is_float` of their values.
    """
    test = selector(where, tree)
    return [slot for slot in leaf_slots(tree)[0] if of(slot) and test(slot)]


# --- weights, and the way back into their tree ---


class Selection(NamedTuple):
    """The weights that a compression works on, and the tree that they are in.

    Attributes:
      slots: what was selected, in the order of `walk`.
      tree: that they are in.
      test: which slots of the tree these are.
      is_slot: which codes are one slot.
    """

    slots: list[Slot]
    tree: Compressed
    test: Test
    is_slot: IsSlot

    def replaced(self, codes: Sequence[Any]) -> Compressed:
        """The tree with these codes in the places of the slots; what a mask hides becomes +0.0."""
        hidden = (_hide(code, slot) for slot, code in zip(self.slots, codes, strict=True))

        def new_value(slot: Slot) -> Any:
            return next(hidden) if self.test(slot) else slot.value

        return walk(new_value, self.tree, self.is_slot)


def _hide(code: Any, slot: Slot) -> Any:
    return code if slot.mask is None else zero_hidden(code, slot.mask)


def select(where: WhereLike, tree: Compressed, is_slot: IsSlot = never) -> Selection:
    """The weights of a tree that a compression shall work on.

    Text passes over leaves that hold no floats, as in recipes; other forms must not name them.

    Raises:
      ValueError: what is no tree of weights; a `where` that selects nothing, with the nearest
        paths; a selected leaf that is no float array, or empty.
    """
    refuse_no_tree(tree)
    named = selector(where, tree)

    def named_float(slot: Slot) -> bool:
        return named(slot) and holds_floats(slot)

    test = named_float if isinstance(where, str) else named
    selected = [slot for slot in slots(tree, is_slot) if test(slot)]
    if not selected:
        raise no_match(where, tree, is_slot)
    for slot in selected:
        check_weight(slot)
    return Selection(selected, tree, test, is_slot)


# --- nothing selected ---


def no_match(where: WhereLike, tree: Any, is_slot: IsSlot = never) -> ValueError:
    """The error for a `where` that selects nothing: the nearest paths, and what may be meant."""
    text = where if isinstance(where, str) else getattr(where, "text", "")
    rule = _shown(where, text)
    by_key = {slot.key: slot for slot in slots(tree, is_slot)}
    likeness = {key: difflib.SequenceMatcher(None, text, key).ratio() for key in by_key}
    nearest_keys = sorted(by_key, key=lambda key: -likeness[key])[:8]
    near = ", ".join(_slot_and_reason(by_key[key], where) for key in nearest_keys)
    problem = f"{rule} matches nothing in this tree"
    problem += f". Nearest: {near}" if near else ", which has no leaves"
    hints = _hint_at_fields(tree)
    if isinstance(where, str) and any(as_rule(where).selects(slot) for slot in by_key.values()):
        problem = f"{rule} matches only leaves that hold no floats: {near}"
    elif text:
        hints.append(
            "A regular expression must match the whole path: "
            "'(.*/)?kernel' matches 'kernel' and 'a/kernel'"
        )
    return ValueError(". ".join([problem, *hints]))


def _shown(where: WhereLike, text: str) -> str:
    if where is None:
        return "where.weights"
    return f"where={where!r}" if text else "this `where`"


def _slot_and_reason(slot: Slot, where: WhereLike) -> str:
    """A slot in the list of the nearest ones, with the reason why the default rule skips it."""
    reason = why_not(slot) if slot.open else "a field: name it with where.field"
    return f"{slot} ({reason})" if where is None and reason else str(slot)


def _hint_at_fields(tree: Any) -> list[str]:
    """How to reach the parts of leaves that are codes already, if there are any."""
    codes = [slot for slot in slots(tree, is_code) if is_code(slot.value)]
    if not codes:
        return []
    kinds = ", ".join(f"{slot.path} is {type(slot.value).__name__}" for slot in codes[:3])
    field = codes[0].value.fields()[0]
    return [
        f"Leaves that are codes already ({kinds}) have parts: "
        f"reach them as jp.at(jp.where.field({field!r}), …)"
    ]
