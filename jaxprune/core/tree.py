"""Walking trees of weights: slots in, slots out, and the split that training needs."""

import difflib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.core.arrays import Masked, is_code, materialize
from jaxprune.core.guesses import refuse_no_tree
from jaxprune.core.hidden import zero_hidden
from jaxprune.core.leaves import where as w
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.core.leaves.where import Slot, Where
from jaxprune.core.words import compiled, nearest
from jaxprune.numerics.placement import not_finite
from jaxprune.numerics.precision import widen

Whole = Callable[[Any], bool]
Rewrite = Callable[[list[Slot]], Sequence[Any]]


def walk(f: Callable[[Slot], Any], tree: Any, whole: Whole = lambda code: False) -> Any:
    """The tree with f(slot) at every slot; a code for which `whole` holds is one slot, else its fields are."""
    return _below(tree, Slot("", None), f, whole)


# Functions of the module, not closures: closures that call one another are a cycle, which keeps leaves alive.


def _below(tree: Any, at: Slot, f: Callable[[Slot], Any], whole: Whole) -> Any:
    found, treedef = w.leaf_slots(tree, at)
    if at.fields and found and found[0].path == at.path:
        found = [at._replace(value=tree)]  # a field of a code: it is where the code is
    return jax.tree.unflatten(treedef, [_at_slot(slot, f, whole) for slot in found])


def _at_slot(slot: Slot, f: Callable[[Slot], Any], whole: Whole) -> Any:
    code = slot.value
    if not is_code(code) or whole(code):
        return f(slot)
    fields = {name: _below(getattr(code, name), _inside(slot, name), f, whole) for name in code.fields()}
    return code.replace(**fields)


def _inside(slot: Slot, name: str) -> Slot:
    """The slot of a code's field, its value still to be set."""
    x = slot.value
    mask = x.mask if isinstance(x, Masked) and name == "values" else None
    return slot._replace(fields=(*slot.fields, name), mask=mask, open=slot.open and name in x.payload)


def slots(tree: Any, whole: Whole = lambda code: False) -> list[Slot]:
    """All slots of a tree, in the order of `walk`."""
    found: list[Slot] = []
    walk(lambda s: found.append(s) or s.value, tree, whole)
    return found


def rewrite(f: Rewrite, tree: Any, where: Any = None, whole: Whole = lambda code: False) -> Any:
    """The tree with f(selected slots) in their places; selecting nothing is an error that lists the nearest paths."""
    refuse_no_tree(tree)
    test = _weight_selector(where, tree)
    chosen = [s for s in slots(tree, whole) if test(s)]
    if not chosen:
        raise no_match(where, tree, whole)
    for slot in chosen:
        check_weight(slot)
    codes = [x if slot.mask is None else zero_hidden(x, slot.mask) for slot, x in zip(chosen, f(chosen))]
    new = iter(codes)
    return walk(lambda s: next(new) if test(s) else s.value, tree, whole)


def map_slots(f: Callable[[Slot], Any], tree: Any, where: Any = None, whole: Whole = lambda code: False) -> Any:
    """The tree with f(slot) at every selected slot."""
    return rewrite(lambda chosen: [f(s) for s in chosen], tree, where, whole)


def selector(where: Any, tree: Any) -> Callable[[Slot], bool]:
    """A `where` as a test of slots.

    Args:
      where: text (a regular expression for whole paths), a rule of `jp.where`, a tree of booleans shaped like the
        params, or a function making one of the tree's shapes; None: `weights`.
      tree: that holds the slots.

    Raises:
      ValueError: something else.
    """
    if where is None:
        return w.weights.selects
    if isinstance(where, str):
        compiled("where", where)
    if isinstance(where, Where | str):
        return w.as_rule(where).selects
    flags = by_path(where(_shapes(tree)) if callable(where) else where, "where")
    for path, flag in flags.items():
        if not isinstance(flag, bool | np.bool_) and getattr(flag, "dtype", None) != np.bool_:
            raise ValueError(
                f"where={where!r}: {path or 'it'} is {flag!r}, not True or False: give a regular expression for whole "
                "paths, as '(.*/)?kernel', a rule of jp.where, or a tree of booleans shaped like the params"
            )
    return lambda s: s.open and bool(flags.get(s.path, False))


def _weight_selector(where: Any, tree: Any) -> Callable[[Slot], bool]:
    """The selector of what gets compressed: text passes over leaves that hold no floats, as in recipes."""
    test = selector(where, tree)
    if not isinstance(where, str):
        return test
    return lambda slot: test(slot) and w.holds_floats(slot)


def _shapes(tree: Any) -> Any:
    """The tree with shapes in place of its arrays and codes; functions and texts stay."""
    return jax.tree.map(
        lambda x: jax.eval_shape(materialize, x) if is_code(x) or hasattr(x, "dtype") else x, tree, is_leaf=is_code
    )


def by_path(tree: Any, what: str) -> dict[str, Any]:
    """A tree's leaves by path."""
    leaves = flatten_with_path(tree, is_leaf=is_code)[0]
    named = {leaf_path(keys): x for keys, x in leaves}
    if len(named) != len(leaves):
        raise ValueError(f"the {what} tree has two leaves with one path")
    return named


def look_up(tree: Any, chosen: Sequence[Slot], what: str, shapes: bool = True) -> list[Any]:
    """The leaves of another tree (scores, gradients, counts) that belong to slots, by key or else by path."""
    named = by_path(tree, what)
    found = []
    for slot in chosen:
        key = next((key for key in (slot.key, slot.path) if key in named), None)
        if key is None:
            raise ValueError(f"the {what} tree has no leaf {slot.key!r}. Nearest: {nearest(slot.key, named)}")
        found.append(named[key])
        if shapes and np.shape(named[key]) != slot.value.shape:
            raise ValueError(f"{what} of {slot} has the shape {np.shape(named[key])}; it must be {slot.value.shape}")
    return found


def refuse_word(call: str, curvature: Any) -> None:
    """Refuses a word for the weights h of a distortion: they are a curvature, which needs data."""
    if isinstance(curvature, str):
        raise ValueError(
            f"{call}(curvature={curvature!r}): a curvature needs data: give a tree like the params, as "
            "curvature=jp.scores.diagonal_fisher(loss, params, batches)"
        )


def there(slot: Slot) -> jax.Array:
    """The weights of a slot in float32 or wider, 0 under a mask: what a code has to write."""
    x = widen(materialize(slot.value))
    return x if slot.mask is None else jnp.where(slot.mask, x, jnp.zeros((), x.dtype))


def check_weight(slot: Slot) -> None:
    """Refuses what cannot be compressed."""
    if not w.is_float(slot.value):
        raise ValueError(f"{slot} is not a float array: only weights can be compressed. Exclude it with `where`")
    if slot.value.size == 0:
        raise ValueError(f"{slot} is empty. Exclude it with `where`, as where=jp.where.weights & jp.where.size(min=1)")


def check_finite(slot: Slot) -> None:
    """Refuses NaN and infinities that no mask hides; nothing is known of a traced leaf."""
    x = materialize(slot.value)
    if isinstance(x, Tracer) or isinstance(slot.mask, Tracer):
        return
    bad = not_finite(x, slot.mask)
    if bad:
        raise ValueError(
            f"{slot} has {bad} NaN or infinite weights, which no scale can hold; fix them, or prune them first"
        )


def check_decoded(slot: Slot, code: Any) -> None:
    """Refuses a code of finite weights that decodes to infinities; nothing is known of a traced leaf.

    A product of factors may exceed the largest float where the weights are near it.

    Raises:
      ValueError: with path, count and the fix.
    """
    dense = materialize(code)
    if isinstance(dense, Tracer):
        return
    bad = not_finite(dense, slot.mask)
    if bad:
        raise ValueError(
            f"{slot} is near the largest {dense.dtype}, and {bad} entries of its code decode to infinity: divide the "
            "weights by a power of two"
        )


def fold_path(key: jax.Array, path: str) -> jax.Array:
    """A key of a leaf's own: one more leaf in the tree changes no other's noise."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def no_match(where: Any, tree: Any, whole: Whole = lambda code: False) -> ValueError:
    """The error for a `where` that selects nothing: the nearest paths, and what may have been meant."""
    text = where if isinstance(where, str) else getattr(where, "text", "")
    rule = "where.weights" if where is None else f"where={where!r}" if text else "this `where`"
    by_key = {slot.key: slot for slot in slots(tree, whole)}
    order = sorted(by_key, key=lambda key: -difflib.SequenceMatcher(None, text, key).ratio())
    near = ", ".join(_near_slot(by_key[key], where) for key in order[:8])
    hints = [f"{rule} matches nothing in this tree" + (f". Nearest: {near}" if near else ", which has no leaves")]
    codes = [slot for slot in slots(tree, is_code) if is_code(slot.value)]
    if codes:
        kinds = ", ".join(f"{slot.path} is {type(slot.value).__name__}" for slot in codes[:3])
        field = codes[0].value.fields()[0]
        hints.append(
            f"Leaves that are codes already ({kinds}) have parts: reach them as jp.at(jp.where.field({field!r}), …)"
        )
    if isinstance(where, str) and any(w.as_rule(where).selects(slot) for slot in by_key.values()):
        hints[0] = f"{rule} matches only leaves that hold no floats: {near}"
    elif text:
        hints.append("A regular expression must match the whole path: '(.*/)?kernel' matches 'kernel' and 'a/kernel'")
    return ValueError(". ".join(hints))


def _near_slot(slot: Slot, where: Any) -> str:
    """A slot in a list of the nearest ones, with the reason why the default rule skips it."""
    reason = w.why_not(slot) if slot.open else "a field: name it with where.field"
    return f"{slot} ({reason})" if where is None and reason else str(slot)


def split_arrays(tree: Any) -> tuple[Any, Any]:
    """(arrays, rest), each shaped like the tree, with None where a leaf went to the other: `jit` and `cond` take arrays
    only, and a tree may hold functions, texts and Python numbers too."""
    is_array = lambda x: isinstance(x, jax.Array | np.ndarray | np.generic)
    return jax.tree.map(lambda x: x if is_array(x) else None, tree), jax.tree.map(
        lambda x: None if is_array(x) else x, tree
    )


def join_arrays(arrays: Any, rest: Any) -> Any:
    """The tree that `split_arrays` split."""
    return jax.tree.map(lambda a, b: b if a is None else a, arrays, rest, is_leaf=lambda x: x is None)


def partition(tree: Any) -> tuple[Any, Any]:
    """Splits a tree of codes into what a gradient may move and the rest.

    Args:
      tree: any pytree, with or without compressed arrays.

    Returns:
      (free, fixed), each shaped like the tree: float leaves (values, codebooks, scales, factors) in the first,
      integers, masks and float8 codes in the second, None where a leaf went to the other. In `free` a scalar 0.0 stands
      for the masks and integers *of a code*, so that one gradient fits `free` and the whole tree.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> free, fixed = jp.partition({"w": jnp.ones(2), "steps": jnp.array(3)})
      >>> free["steps"] is None, fixed["w"] is None
      (True, True)
      >>> free, fixed = jp.partition(jp.prune(0.5).init(jnp.eye(2)))
      >>> print(free.values.shape, free.mask, fixed.values, fixed.mask.shape)
      (2, 2) 0.0 None (2, 2)
    """
    refuse_no_tree(tree)
    free = jax.tree.map(_free, tree, is_leaf=is_code)
    fixed = jax.tree.map(lambda x: None if w.is_float(x) else x, tree)
    return free, fixed


def _free(x: Any) -> Any:
    """The float arrays of a leaf, or of a code, with a scalar zero for the code's other arrays."""
    if not is_code(x):
        return x if w.is_float(x) else None
    return jax.tree.map(lambda part: part if w.is_float(part) else jnp.zeros(()), x)


def combine(free: Any, fixed: Any) -> Any:
    """The tree that `partition` split: the inverse.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> tree = {"w": jnp.ones(2), "steps": jnp.array(3)}
      >>> sorted(jp.combine(*jp.partition(tree)))
      ['steps', 'w']
    """
    return jax.tree.map(lambda a, b: a if b is None else b, free, fixed, is_leaf=lambda x: x is None)


def value_and_grad(loss: Callable[..., Any], *, has_aux: bool = False, dense: bool = False) -> Callable[..., Any]:
    """Trains the code: the value of loss(materialize(tree), …) and its gradient in the code's float leaves.

    Args:
      loss: a function of dense params and further arguments, giving a scalar (and, with `has_aux`, something more).
      has_aux: as in `jax.value_and_grad`.
      dense: also return the gradient with respect to `materialize(tree)`, which is not masked: growing and moving masks
        need it.

    Returns:
      f(tree, *args) -> (value, gradient), or (value, gradient, dense gradient). The gradient is shaped like
      `partition(tree)[0]`: masks and integers of codes have the gradient 0.0, a scalar. So it goes into optax with the
      tree as well:

          updates, state = optimizer.update(gradient, state, tree)      # state = optimizer.init(tree)
          tree = optax.apply_updates(tree, updates)

      where masks and integers stay as they are, but for optimizers that decay weights (or look at shapes, as Adafactor
      does): these take every leaf for a weight. `jp.floats_only(optimizer)` shows them the floats alone.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> tree = {"w": jp.Clustered(jnp.array([1.0, 2.0]), jnp.array([0, 1, 1, 0], jnp.uint8))}
      >>> value, grad = jp.value_and_grad(lambda p: jnp.sum(p["w"] ** 2))(tree)
      >>> print(value, grad["w"].codebook)      # the gradients of the weights that share a value are summed
      10.0 [4. 8.]
    """

    def f(tree: Any, *args: Any) -> tuple[Any, ...]:
        free, fixed = partition(tree)
        params, pull = jax.vjp(lambda x: partition(materialize(combine(x, fixed)))[0], free)
        rest = partition(materialize(tree))[1]
        value, grads = jax.value_and_grad(lambda p: loss(combine(p, rest), *args), has_aux=has_aux)(params)
        return (value, pull(grads)[0], grads) if dense else (value, pull(grads)[0])

    return f
