"""What an axis indexes: expressions over variables, and how two of them are made the same.

    e  ::=  v  |  e · e · …  |  e + e + …        a variable; a row-major product (reshape); a
                                                 concatenation

Every axis of every value of a function carries one. Where an equation ties two axes together they
are unified: a variable is bound to an expression, a long factor or term is split to fit a short
one, and what does not fit is frozen with its reason. What is left after a whole function are
classes of axes: an unfrozen variable is a group of positions, which can be cut from all arrays that
it indexes at once. An element of an axis goes when any of its variables' does.
"""

import math
from collections.abc import Sequence
from typing import Any

Axis = Any
"""A `Var`, a `Prod` or a `Sum`."""
UNIT = "size 1"


class Var:
    """A variable: a number of positions, bound to an expression later, or frozen for a reason."""

    __slots__ = ("bound", "size", "why")

    def __init__(self, size: int, why: str | None = None):
        self.size = int(size)
        self.why = why
        self.bound: Axis = None

    def __repr__(self) -> str:
        return f"{'frozen ' if self.why else ''}{self.size}"


class Prod:
    """Factors in row-major order: position i·n + j for position i of the first and j of a second of
    size n.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Axis]):
        self.parts = tuple(parts)

    def __repr__(self) -> str:
        return "(" + " · ".join(map(repr, self.parts)) + ")"


class Sum:
    """Terms one after another."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Axis]):
        self.parts = tuple(parts)

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.parts)) + ")"


ONE = Var(1, UNIT)


def names(text: str) -> frozenset[str]:
    """Words, as a set."""
    return frozenset(text.split())


def fresh(size: int, why: str | None = None) -> Var:
    """A new variable; one of size 1 is frozen, for there is nothing to cut."""
    return Var(size, why or (UNIT if size == 1 else None))


def free(size: int) -> Var:
    """A new variable that may be cut whatever its size, as what padding adds."""
    return Var(size)


def size(e: Axis) -> int:
    """How many positions."""
    if isinstance(e, Var):
        return e.size
    return math.prod(map(size, e.parts)) if isinstance(e, Prod) else sum(map(size, e.parts))


def settled(e: Axis) -> Axis:
    """The expression with bound variables replaced, at least on top."""
    trail = []
    while isinstance(e, Var) and e.bound is not None:
        trail.append(e)
        e = e.bound
    if not isinstance(e, Var):
        e = concatenated(e.parts) if isinstance(e, Sum) else product(e.parts)
    for v in trail:
        v.bound = e
    return e


def concatenated(terms: Sequence[Axis]) -> Axis:
    """e + e + …, flat and without empty terms."""
    flat = []
    for t in map(settled, terms):
        if size(t):
            flat.extend(t.parts if isinstance(t, Sum) else [t])
    return flat[0] if len(flat) == 1 else Sum(flat)


def product(factors: Sequence[Axis]) -> Axis:
    """e · e · …, flat and without units, which stay; a sum in front of others is multiplied out."""
    tail = None
    for f in reversed(factors):
        if size(f) == 1:
            freeze(f, UNIT)
        else:
            tail = _times(settled(f), tail)
    return ONE if tail is None else tail


def _times(f: Axis, tail: Axis | None) -> Axis:
    if tail is None:
        return f
    if isinstance(f, Sum):
        return concatenated([_times(t, tail) for t in f.parts])
    if isinstance(f, Prod):
        for g in reversed(f.parts):
            tail = _times(g, tail)
        return tail
    return Prod((f, *tail.parts) if isinstance(tail, Prod) else (f, tail))


def variables(e: Axis) -> list[Var]:
    """The variables that an expression is made of, in order; one may come several times."""
    e = settled(e)
    return [e] if isinstance(e, Var) else [v for part in e.parts for v in variables(part)]


def is_frozen(e: Axis) -> bool:
    """Whether nothing of it can be cut."""
    return all(v.why for v in variables(e))


def freeze(e: Axis, why: str) -> None:
    """Nothing of it can be cut from now on."""
    for v in variables(e):
        v.why = v.why or why


def reason(e: Axis) -> str:
    """Why a frozen expression is frozen."""
    return next((v.why for v in variables(e) if v.why and v.why != UNIT), UNIT)


def unify(a: Axis, b: Axis, why: str) -> None:
    """Ties two axes of one size together; `why` is the reason where they cannot be, and both are
    frozen.
    """
    a = settled(a)
    b = settled(b)
    if _same(a, b):
        return
    if is_frozen(a) or is_frozen(b):
        one, other = (a, b) if is_frozen(a) else (b, a)
        freeze(other, reason(one))
        if isinstance(one, Var) and isinstance(other, Var) and one.size > 1:
            other.bound = one  # still the same positions, for what they carry (`carriers`)
    elif isinstance(b, Var):
        b.bound = a
    elif isinstance(a, Var):
        a.bound = b
    elif isinstance(a, Prod) and isinstance(b, Prod):
        _unify_products(a, b, why)
    else:
        _unify_sums(a, b, why)


def _same(a: Axis, b: Axis) -> bool:
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, Var) or len(a.parts) != len(b.parts):
        return False
    return all(_same(settled(x), settled(y)) for x, y in zip(a.parts, b.parts))


def _unify_products(a: Prod, b: Prod, why: str) -> None:
    """First factor with first factor; a longer one is split where the shorter divides it."""
    x = a.parts[0]
    y = b.parts[0]
    if size(x) < size(y):
        a, b, x, y = b, a, y, x
    if size(x) == size(y):
        unify(x, y, why)
        unify(product(a.parts[1:]), product(b.parts[1:]), why)
    elif isinstance(x, Var) and size(x) % size(y) == 0:
        x.bound = Prod((fresh(size(y), x.why), fresh(size(x) // size(y), x.why)))
        unify(product(a.parts), product(b.parts), why)
    else:
        freeze(a, why)
        freeze(b, why)


def _unify_sums(a: Axis, b: Axis, why: str) -> None:
    """Term by term; a longer one is split where the shorter ends."""
    left, right = ([*e.parts] if isinstance(e, Sum) else [e] for e in (a, b))
    while left and right:
        x = settled(left.pop(0))
        y = settled(right.pop(0))
        if isinstance(x, Sum) or isinstance(y, Sum):
            left[:0], right[:0] = (z.parts if isinstance(z, Sum) else [z] for z in (x, y))
        elif size(x) == size(y):
            unify(x, y, why)
        else:
            longer, shorter, rest = (x, y, left) if size(x) > size(y) else (y, x, right)
            halves = split(longer, size(shorter))
            if halves is None:
                freeze(a, why)
                freeze(b, why)
                return
            unify(halves[0], shorter, why)
            rest.insert(0, halves[1])


def split(e: Axis, at: int) -> tuple[Axis, Axis] | None:
    """The positions before and after `at`, 0 < at < size; None where a factor would have to be cut
    in the middle.
    """
    e = settled(e)
    if is_frozen(e):
        return fresh(at, reason(e)), fresh(size(e) - at, reason(e))
    if isinstance(e, Var):
        e.bound = Sum((fresh(at), fresh(e.size - at)))
        return e.bound.parts
    if isinstance(e, Sum):
        return _split_sum(e, at)
    inner = math.prod(map(size, e.parts[1:]))
    halves = split(e.parts[0], at // inner) if at % inner == 0 else None
    return halves and (product((halves[0], *e.parts[1:])), product((halves[1], *e.parts[1:])))


def _split_sum(e: Sum, at: int) -> tuple[Axis, Axis] | None:
    before = 0
    for i, term in enumerate(e.parts):
        if before == at:
            return concatenated(e.parts[:i]), concatenated(e.parts[i:])
        if at < before + size(term):
            halves = split(term, at - before)
            return halves and (
                concatenated((*e.parts[:i], halves[0])),
                concatenated((halves[1], *e.parts[i + 1 :])),
            )
        before += size(term)
    return None


def pieces(e: Axis, sizes: Sequence[int], why: str) -> list[Axis]:
    """Consecutive pieces of these sizes; frozen, `e` with them, where it cannot be cut there."""
    found = []
    rest = e
    for n in sizes:
        if n == 0:
            found.append(Var(0, "empty"))
        elif n == size(rest):
            found.append(settled(rest))
            rest = Var(0, "empty")
        else:
            halves = split(rest, n)
            if halves is None:
                freeze(e, why)
                return [fresh(m, why) if m else Var(0, "empty") for m in sizes]
            found.append(halves[0])
            rest = halves[1]
    return found
