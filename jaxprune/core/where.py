"""Which leaves a compression works on: predicates on a slot of the tree, joined by `&`, `|`, `~`.

A slot is a place that holds weights: a leaf of the user's tree, or a field of a code that stands
there. Its path is the leaf's, so a later stage of a chain uses the same rule. Fields that are not
weights again (codebooks, scales) are reached only by a rule that names them: `field("codebook")`.
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
        """Unique in its tree: the path, and after a "." the fields of codes on the way.

        `values` is left out: a mask over a leaf does not change its key.
        """
        fields = [name for name in self.fields if name != "values"]
        return ".".join([self.path, *fields])

    def __str__(self) -> str:
        kind = getattr(self.value, "dtype", type(self.value).__name__)
        shape = list(getattr(self.value, "shape", ()))
        return f"{self.key or '(the array itself)'}: {kind}{shape}"


@dataclasses.dataclass(frozen=True)
class Where:
    """A predicate on slots. `where(tree)` gives the tree of booleans it stands for.

    Rules are joined by `&`, `|` and `~`; text beside one stands for `path(text)`.
    """

    test: Callable[[Slot], bool]
    text: str

    def __and__(self, other: "Where | str") -> "Where":
        rule = as_rule(other)

        def test(slot: Slot) -> bool:
            return self.test(slot) and rule.test(slot)

        return Where(test, f"({self.text} & {rule.text})")

    def __or__(self, other: "Where | str") -> "Where":
        rule = as_rule(other)

        def test(slot: Slot) -> bool:
            return self.test(slot) or rule.test(slot)

        return Where(test, f"({self.text} | {rule.text})")

    __rand__ = __and__
    __ror__ = __or__

    def __bool__(self) -> bool:
        # `a and b` is b, silently: Python asks only whether a is true.
        raise ValueError(
            f"{self.text} is a rule, neither true nor false: join rules by &, | and ~, not and, "
            f"or, not"
        )

    def __invert__(self) -> "Where":
        return Where(lambda slot: not self.test(slot), f"~{self.text}")

    def __call__(self, tree: Any) -> Any:
        """The tree of booleans that the rule stands for."""
        slots, treedef = leaf_slots(tree)
        return jax.tree.unflatten(treedef, [self.test(slot) for slot in slots])

    def selects(self, slot: Slot) -> bool:
        """The rule at a slot; one inside a code that is not a weight must be named by its field."""
        if slot.open:
            return self.test(slot)
        return self.test(slot) and not self.test(slot._replace(fields=()))

    def __repr__(self) -> str:
        return self.text


def leaf_slots(tree: Any, holder: Slot | None = None) -> tuple[list[Slot], Any]:
    """The slots of a tree's leaves, codes as one leaf each, and its treedef.

    Args:
      tree: any pytree.
      holder: the slot that the tree lies in, if it is a field of a code; None for a whole tree.
    """
    leaves, treedef = flatten_with_path(tree, is_leaf=is_code)
    base = Slot("", None) if holder is None else holder
    paths = [_below(base.path, leaf_path(keys)) for keys, _ in leaves]
    classes = owners(leaves, treedef)
    surroundings = Surroundings(paths, [x for _, x in leaves], classes, shape_of)
    slots = []
    for path, (_, x), owner in zip(paths, leaves, classes):
        slots.append(base._replace(path=path, value=x, owner=owner, tree=surroundings))
    return slots, treedef


def _below(above: str, path: str) -> str:
    return "/".join(part for part in (above, path) if part)


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of a leaf; that of a mask is known without decoding what it hides."""
    if isinstance(x, Masked):
        return tuple(x.mask.shape)
    return tuple(getattr(x, "shape", ()))


def is_float(x: Any) -> bool:
    """A float leaf whose numbers are weights (float8 numbers are codes)."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits > 8


def why_not(slot: Slot) -> str:
    """Why `weights` skips a slot; "" when it does not."""
    return why_no_weight(slot.place) if is_float(slot.value) else "not a float array"


weights = Where(lambda s: not why_not(s), "weights")
"""Float leaves that are kernels, the default everywhere: two or more axes longer than 1, and no
bias, norm, embedding, position table or running statistic, by name, by the names around, by the
class of their module, and by their siblings (a leaf beside a `kernel`, `weight` or `w` whose shape
is that one's last axes is a bias)."""

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
    """Whether rules by name can work on a leaf: it holds floats, or is a code already.

    What is inside a code is no leaf, and passes.
    """
    is_leaf = slot.open and not slot.fields
    return not is_leaf or is_code(slot.value) or is_float(slot.value)


def ndim(n: int | None = None, *, min: int | None = None) -> Where:
    """Leaves with exactly n axes, or with at least `min`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.where.ndim(min=2)({"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)})
      {'bias': False, 'kernel': True}
    """
    if (n is None) == (min is None):
        raise ValueError(
            "where.ndim takes one of: a number of axes, as ndim(2), or min=, as ndim(min=2)"
        )
    return _by_number("ndim", lambda x: x.ndim, n, min)


def size(n: int | None = None, *, min: int | None = None) -> Where:
    """Leaves with exactly n weights, or with at least `min`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.where.size(min=4)({"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)})
      {'bias': False, 'kernel': True}
    """
    if (n is None) == (min is None):
        raise ValueError(
            "where.size takes one of: a number of weights, as size(100), or min=, as size(min=100)"
        )
    return _by_number("size", lambda x: x.size, n, min)


def _by_number(
    name: str, number_of: Callable[[Any], int], exact: int | None, least: int | None
) -> Where:
    """Float leaves of which a number is exactly one, or at least another."""
    if exact is not None:
        number = whole(f"{name}(n={{}})", exact, 0)
        return Where(
            lambda s: is_float(s.value) and number_of(s.value) == number, f"{name}({exact})"
        )
    number = whole(f"{name}(min={{}})", least, 0)
    return Where(
        lambda s: is_float(s.value) and number_of(s.value) >= number, f"{name}(min={least})"
    )


def dtype(kind: Any) -> Where:
    """Leaves of one dtype.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.where.dtype(jnp.bfloat16)({"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(2)})
      {'a': True, 'b': False}
    """
    wanted = jnp.dtype(kind)
    return Where(lambda slot: getattr(slot.value, "dtype", None) == wanted, f"dtype({wanted.name})")


def field(name: str) -> Where:
    """Fields of codes by name, as the codebooks of `Clustered` leaves.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> shared = jp.cluster(2).init({"kernel": jnp.arange(4.0).reshape(2, 2)})
      >>> small = jp.at(jp.where.field("codebook"), jp.quantize(8)).init(shared)
      >>> type(small["kernel"].codebook).__name__
      'Quantized'
    """
    return Where(lambda slot: slot.fields[-1:] == (name,), f"field({name!r})")
