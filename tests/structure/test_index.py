"""The algebra of axes: what is unified is cut alike, whatever is cut; and it stays as fine as it
can be.
"""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxprune.structure.apply.assign import assign
from jaxprune.structure.axes.expressions import (
    Prod,
    Sum,
    concatenated,
    freeze,
    fresh,
    is_frozen,
    pieces,
    product,
    reason,
    size,
    split,
    unify,
    variables,
)
from jaxprune.structure.axes.masks import mask, positions


@st.composite
def axes_of(draw, n, depth=3):
    """An expression of size n."""
    factors = [d for d in range(2, n) if n % d == 0]
    kind = draw(st.sampled_from(["var", "sum", "prod"])) if depth and n > 1 else "var"
    if kind == "sum":
        a = draw(st.integers(1, n - 1))
        return concatenated([draw(axes_of(a, depth - 1)), draw(axes_of(n - a, depth - 1))])
    if kind == "prod" and factors:
        d = draw(st.sampled_from(factors))
        return product([draw(axes_of(d, depth - 1)), draw(axes_of(n // d, depth - 1))])
    return fresh(n, "said so" if draw(st.integers(0, 9)) == 0 else None)


def kept(e, rng, others=()):
    """A random choice for all variables that may be cut."""
    free = dict.fromkeys(v for x in (e, *others) for v in variables(x) if v.why is None)
    return {
        v: (rng.random(v.size) < 0.6) | (np.arange(v.size) == rng.integers(v.size)) for v in free
    }


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from([6, 12, 16, 24, 36]).flatmap(lambda n: st.tuples(*[axes_of(n)] * 3)),
    st.integers(0, 99),
)
def test_what_is_unified_is_cut_alike(three, seed):
    a, b, c = three
    unify(a, b, "no")
    unify(b, c, "no")
    keep = kept(a, np.random.default_rng(seed), (b, c))
    assert np.array_equal(mask(a, keep), mask(b, keep)) and np.array_equal(
        mask(b, keep), mask(c, keep)
    )
    assert size(a) == size(b) == len(mask(a, keep))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from([6, 12, 24]).flatmap(axes_of),
    st.lists(st.integers(0, 8), max_size=4),
    st.integers(0, 99),
)
def test_pieces_are_cut_as_the_whole_is(e, sizes, seed):
    sizes = [n for n in sizes if n <= size(e)]
    while sum(sizes) > size(e):
        sizes.pop()
    sizes = [*sizes, size(e) - sum(sizes)]
    parts = pieces(e, sizes, "no")
    keep = kept(e, np.random.default_rng(seed), parts)
    assert [size(p) for p in parts] == sizes
    assert np.array_equal(np.concatenate([mask(p, keep) for p in parts]), mask(e, keep))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from([6, 12, 24]).flatmap(axes_of), st.integers(0, 99))
def test_a_mask_can_be_read_back_and_positions_tell_it(e, seed):
    keep = kept(e, np.random.default_rng(seed))
    back = {}
    whole = mask(e, keep)
    there = np.ones(size(e), bool)
    for v, m in keep.items():
        for at in positions(e, v):
            there &= np.where(at < 0, True, m[at])
    assert np.array_equal(there, whole)
    assign([e], {0: np.nonzero(whole)[0]}, back)
    assert np.array_equal(mask(e, back), whole)


def test_a_reshape_is_split_as_finely_as_it_can_be():
    a = fresh(24)
    b = product([fresh(2), fresh(3), fresh(4)])
    unify(a, b, "no")
    assert [v.size for v in variables(a)] == [2, 3, 4]
    c = product([fresh(6), fresh(4)])
    unify(c, a, "no")
    assert [v.size for v in variables(c)] == [2, 3, 4] and not is_frozen(c)
    d = product([fresh(8), fresh(3)])  # 8 = 2 · 4 does not line up with 2 · 3 · 4
    unify(d, a, "no")
    assert "no" in {v.why for v in variables(d)}


def test_concatenations_with_other_borders_share_their_pieces():
    a = concatenated([fresh(8), fresh(4)])
    b = concatenated([fresh(6), fresh(6)])
    unify(a, b, "no")
    assert [v.size for v in variables(a)] == [v.size for v in variables(b)] == [6, 2, 4]
    assert all(x is y for x, y in zip(variables(a), variables(b)))


def test_positions_of_a_factor():
    rows = fresh(2)
    columns = fresh(3)
    e = concatenated([product([rows, columns]), fresh(2)])
    assert positions(e, rows)[0].tolist() == [0, 0, 0, 1, 1, 1, -1, -1]
    assert positions(e, columns)[0].tolist() == [0, 1, 2, 0, 1, 2, -1, -1]
    assert [p.tolist() for p in positions(concatenated([rows, rows]), rows)] == [
        [0, 1, -1, -1],
        [-1, -1, 0, 1],
    ]


def test_what_cannot_be_is_said():
    rows = fresh(2)
    columns = fresh(3)
    with pytest.raises(ValueError, match="whole rows and columns"):
        assign([product([rows, columns])], {0: np.arange(5)}, {})
    v = fresh(4)
    freeze(v, "an output")
    with pytest.raises(ValueError, match="an output"):
        assign([v], {0: np.arange(3)}, {})
    with pytest.raises(ValueError, match="other positions"):
        assign([concatenated([rows, rows])], {0: np.array([0, 3])}, {})
    assert split(product([fresh(2), fresh(3)]), 2) is None
    assert reason(concatenated([v, fresh(2)])) == "an output"
    assert repr(Sum([Prod([rows, columns]), v])) == "((2 · 3) + frozen 4)"
