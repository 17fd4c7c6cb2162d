"""Which leaves a compression works on: predicates on one slot of the tree, joined by `&`, `|` and `~`.

A slot is a place that holds weights: a leaf of the user's tree, or a field of a code that stands
there. Its path is the leaf's, so a later stage of a chain uses the same rule. Fields that are not
weights again (codebooks, scales) are reached only by a rule
that names them: `field("codebook")`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.core.arguments import whole
from jaxprune.core.arrays import Masked, is_code
from jaxprune.core.leaves.names import Place, Surroundings, why_no_weight
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path, owners
from jaxprune.core.words import compiled


class Slot(NamedTuple):
    """A place in a tree.

    Attributes:
      path: of the leaf in the user's tree, its keys joined by "/".
      value: the array there, or a code.
      fields: the fields of codes on the way to it.
      mask: the mask over it, or None.
      open: whether it is a weight (False: a codebook, a scale).
      owner: the name of the class of the module that holds the leaf; "" of a dict.
      tree: the names and shapes of all leaves, which tell a bias from a matrix and a stack from a
        convolution.
    """

    path: str
    value: Any
    fields: tuple[str, ...] = ()
    mask: Any = None
    open: bool = True
    owner: str = ""
    tree: Surroundings | None = None

    @property
    def place(self) -> Place:
        """The leaf among its neighbours, for what goes by names and shapes."""
        return Place(self.path, shape_of(self.value), self.owner, self.tree)

    @property
    def key(self) -> str:
        """Unique in its tree: the path, and after a "." the fields that do not just hide the leaf under a mask."""
        return ".".join((self.path, *(f for f in self.fields if f != "values")))

    def __str__(self) -> str:
        what = f"{getattr(self.value, 'dtype', type(self.value).__name__)}{list(getattr(self.value, 'shape', ()))}"
        return f"{self.key or '(the array itself)'}: {what}"


@dataclasses.dataclass(frozen=True)
class Where:
    """A predicate on slots. `where(tree)` gives the tree of booleans it stands for.

    Rules are joined by `&`, `|` and `~`; text beside one stands for `path(text)`.
    """

    test: Callable[[Slot], bool]
    text: str

    def __and__(self, other: "Where | str") -> "Where":
        other = as_rule(other)
        return Where(lambda s: self.test(s) and other.test(s), f"({self.text} & {other.text})")

    def __or__(self, other: "Where | str") -> "Where":
        other = as_rule(other)
        return Where(lambda s: self.test(s) or other.test(s), f"({self.text} | {other.text})")

    __rand__, __ror__ = __and__, __or__

    def __bool__(self) -> bool:
        # `a and b` is b, silently: Python asks only whether a is true.
        raise ValueError(
            f"{self.text} is a rule, neither true nor false: join rules by &, | and ~, not and, or, not"
        )

    def __invert__(self) -> "Where":
        return Where(lambda s: not self.test(s), f"~{self.text}")

    def __call__(self, tree: Any) -> Any:
        slots, treedef = leaf_slots(tree)
        return jax.tree.unflatten(treedef, [self.test(slot) for slot in slots])

    def selects(self, slot: Slot) -> bool:
        """The rule at a slot; one inside a code that is not a weight must be named by its field."""
        if slot.open:
            return self.test(slot)
        return self.test(slot) and not self.test(slot._replace(fields=()))

    def __repr__(self) -> str:
        return self.text


def leaf_slots(tree: Any, at: Slot | None = None) -> tuple[list[Slot], Any]:
    """The slots of a tree's leaves, codes as one leaf each, and its treedef; `at` is the slot that the tree lies in."""
    flat, treedef = flatten_with_path(tree, is_leaf=is_code)
    above = "" if at is None else at.path
    paths = ["/".join(filter(None, (above, leaf_path(keys)))) for keys, _ in flat]
    classes = owners(flat, treedef)
    surroundings = Surroundings(paths, [x for _, x in flat], classes, shape_of)
    base = at or Slot("", None)
    slots = [
        base._replace(path=path, value=x, owner=owner, tree=surroundings)
        for path, (_, x), owner in zip(paths, flat, classes)
    ]
    return slots, treedef


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of a leaf; that of a mask is known without decoding what it hides."""
    return tuple(x.mask.shape if isinstance(x, Masked) else getattr(x, "shape", ()))


def is_float(x: Any) -> bool:
    """A float leaf whose numbers are weights (float8 numbers are codes)."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits > 8


def why_not(slot: Slot) -> str:
    """Why `weights` skips a slot; "" when it does not."""
    return why_no_weight(slot.place) if is_float(slot.value) else "not a float array"


weights = Where(lambda s: not why_not(s), "weights")
"""Float leaves that are kernels, the default everywhere: two or more axes longer than 1, and no bias, norm, embedding,
position table or running statistic, by name, by the names around, by the class of their module, and
by their siblings (a leaf beside a `kernel`, `weight` or `w` whose shape is that one's last axes is
a bias)."""

every_leaf = Where(lambda s: is_float(s.value), "every_leaf")
"""Every float leaf."""


def path(regex: str) -> Where:
    r"""Leaves whose whole path matches a regular expression (`re.fullmatch`).

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"dense": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
      >>> print(jp.where.path(r"(.*/)?kernel")(params))
      {'dense': {'bias': False, 'kernel': True}}
    """
    pattern = compiled("path", regex)
    return Where(lambda s: pattern.fullmatch(s.path) is not None, f"path({regex!r})")


def as_rule(where: "Where | str") -> Where:
    """A rule as it is; text as the rule `path(text)`."""
    if isinstance(where, Where):
        return where
    if isinstance(where, str):
        compiled("where", where)
        return path(where)
    raise ValueError(
        f"where={where!r}: give a rule of jp.where, or a regular expression for whole paths"
    )


def holds_floats(slot: Slot) -> bool:
    """Whether rules by name can work on a leaf: it holds floats, or is a code already. What is inside a code is no
    leaf."""
    is_leaf = slot.open and not slot.fields
    return not is_leaf or is_code(slot.value) or is_float(slot.value)


def ndim(n: int | None = None, *, min: int | None = None) -> Where:
    """Leaves with exactly n axes, or with at least `min`."""
    if (n is None) == (min is None):
        raise ValueError(
            "where.ndim takes one of: a number of axes, as ndim(2), or min=, as ndim(min=2)"
        )
    count = whole("ndim(min={})" if n is None else "ndim(n={})", min if n is None else n, 0)
    if n is None:
        return Where(lambda s: is_float(s.value) and s.value.ndim >= count, f"ndim(min={min})")
    return Where(lambda s: is_float(s.value) and s.value.ndim == count, f"ndim({n})")


def size(n: int | None = None, *, min: int | None = None) -> Where:
    """Leaves with exactly n weights, or with at least `min`."""
    if (n is None) == (min is None):
        raise ValueError(
            "where.size takes one of: a number of weights, as size(100), or min=, as size(min=100)"
        )
    count = whole("size(min={})" if n is None else "size(n={})", min if n is None else n, 0)
    if n is not None:
        return Where(lambda s: is_float(s.value) and s.value.size == count, f"size({n})")
    return Where(lambda s: is_float(s.value) and s.value.size >= count, f"size(min={min})")


def dtype(kind: Any) -> Where:
    """Leaves of one dtype: `where.dtype(jnp.bfloat16)`."""
    wanted = jnp.dtype(kind)
    return Where(lambda s: getattr(s.value, "dtype", None) == wanted, f"dtype({wanted.name})")


def field(name: str) -> Where:
    """Fields of codes by name: `where.field("codebook")` reaches the codebooks of `Clustered` leaves."""
    return Where(lambda s: name in s.fields and s.fields[-1] == name, f"field({name!r})")
