"""Trees with the outputs first give exactly the transpose of what trees with the outputs last
give."""

import math
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.core.factors import Tucker
from jaxprune.core.leaves.layout import Axes
from jaxprune.methods.quantize_arguments import Kind
from tests.helpers import normal

SHAPES = {"dense": (8, 6), "convolution": (3, 3, 4, 8)}


def outputs_first(w):
    """(I, O) -> (O, I) and HWIO -> OIHW."""
    return jnp.moveaxis(w, (-1, -2), (0, 1))


def trees(shape, layout=None):
    """One layer with its outputs last, and with its outputs first; with a layout, names are those
    of the other order.

    The convolutions have biases, which tell their window from a stack.
    """
    kernel = normal(shape, 1) / math.prod(shape[:-1])  # Σ|w| of a unit is about 0.8
    bias = normal(shape[-1:], 2)
    names = ("kernel", "weight") if layout is None else ("weight", "kernel")
    last, first = (
        {"conv": {name: w, "bias": bias}} for name, w in zip(names, (kernel, outputs_first(kernel)))
    )
    return last, first


def weight(tree):
    (leaf,) = (w for name, w in tree["conv"].items() if name != "bias")
    return np.asarray(leaf)


def _groups(kind: Kind):
    return lambda **kw: jp.quantize(kind=kind, group=2, **kw)


CALLS = {
    "channel": lambda **kw: jp.prune(0.5, pattern=jp.patterns.channel(), **kw),
    "channel by a word": lambda **kw: jp.prune(0.5, pattern="channel", **kw),
    "channel below a threshold": lambda **kw: jp.prune(
        threshold=0.8, pattern=jp.patterns.channel(), **kw
    ),
    "channel by path": lambda **kw: jp.prune(
        {".*(kernel|weight)": 0.5}, pattern=jp.patterns.channel(), **kw
    ),
    "channel of all leaves": lambda **kw: jp.prune(0.5, pattern="channel", allocate="global", **kw),
    "channel by a schedule": lambda **kw: jp.prune(lambda step: 0.5, pattern="channel", **kw),
    "channel by distances": lambda **kw: jp.prune(0.5, pattern="channel", score="fpgm", **kw),
    "block": lambda **kw: jp.prune(0.5, pattern=jp.patterns.block(4, 2), **kw),
    "block of outputs": lambda **kw: jp.prune(0.5, pattern="block 2", **kw),
    "n:m": lambda **kw: jp.prune(pattern="2:4", **kw),
    "share": lambda **kw: jp.share(k=3, **kw),
    "quantize": lambda **kw: jp.quantize(4, **kw),
    "factorize": lambda **kw: jp.factorize(rank=2, **kw),
    **{f"groups of {kind}": _groups(kind) for kind in get_args(Kind)},
    "groups with the least error": lambda **kw: jp.quantize(3, group=4, range="mse", **kw),
    "groups under a mask": lambda **kw: jp.chain(jp.prune(0.5), jp.quantize(3, group=4, **kw)),
}


CONVOLUTIONS = (
    "channel",
    "channel below a threshold",
    "block",
    "n:m",
    "groups of affine",
    "groups of binary",
)
GIVEN = ("channel by path", "channel by distances", "block", "n:m", "factorize", "groups of nf4")
CASES = [
    *((name, "dense", None) for name in CALLS),
    *((name, "convolution", None) for name in CONVOLUTIONS),
    *((name, "dense", "given") for name in GIVEN),
]
SUMMED = (
    "factorize",
    "share",
    "groups of binary",
    "groups of ternary",
)  # in another order: equal up to rounding


@pytest.mark.parametrize(("name", "shape", "layout"), CASES)
def test_outputs_first_gives_the_transpose_of_outputs_last(name, shape, layout):
    last, first = trees(SHAPES[shape], layout)
    words = ({}, {}) if layout is None else ({"layout": "jax"}, {"layout": "torch"})
    of_last = jp.materialize(CALLS[name](**words[0]).init(last))
    of_first = jp.materialize(CALLS[name](**words[1]).init(first))
    tolerance = 1e-5 if name in SUMMED else 0
    expected = np.asarray(outputs_first(weight(of_last)))
    np.testing.assert_allclose(weight(of_first), expected, rtol=tolerance, atol=tolerance)
    assert not np.array_equal(weight(of_last), weight(last))
    np.testing.assert_array_equal(of_first["conv"]["bias"], of_last["conv"]["bias"])


def test_removed_outputs_take_their_biases_along_in_both_orders():
    for tree in trees((8, 6)):
        pruned = jp.materialize(jp.prune(0.5, pattern="channel").init(tree))["conv"]
        w = next(np.asarray(w) for name, w in pruned.items() if name != "bias")
        outputs = w if "weight" in pruned else w.T
        np.testing.assert_array_equal(np.all(outputs == 0, 1), np.asarray(pruned["bias"]) == 0)
        assert np.sum(np.asarray(pruned["bias"]) == 0) == 3


def test_a_given_layout_decides_which_biases_go_along():
    tree = {"layer": {"kernel": normal((6, 6), 1), "bias": normal((6,), 2)}}
    for layout in ("torch", {".*/kernel": 0}):
        pruned = jp.materialize(jp.prune(0.5, pattern="channel", layout=layout).init(tree))["layer"]
        np.testing.assert_array_equal(
            np.all(np.asarray(pruned["kernel"]) == 0, 1), np.asarray(pruned["bias"]) == 0
        )
        assert np.sum(np.asarray(pruned["bias"]) == 0) == 3


def test_an_axis_that_is_given_stays_what_it_says():
    w = normal((8, 6), 1)
    by_axis = jp.prune(0.5, pattern=jp.patterns.channel(-1)).init({"weight": w})["weight"].mask
    np.testing.assert_array_equal(by_axis.any(0), by_axis.all(0))
    assert by_axis.any(0).sum() == 3
    assert jp.quantize(4, axis=-1, group=4).init({"weight": w})["weight"].scale.shape == (2, 6)
    assert jp.quantize(4, axis=None, group=3).init({"weight": w})["weight"].scale.shape == (1, 2)


def test_the_outputs_of_attention_are_its_heads_and_their_dimensions():
    tree = {"query": {"kernel": normal((8, 2, 3), 1), "bias": normal((2, 3), 2)}}
    pruned = jp.materialize(jp.prune(0.5, pattern="channel").init(tree))["query"]
    gone = np.all(np.asarray(pruned["kernel"]) == 0, 0)
    assert gone.sum() == 3
    np.testing.assert_array_equal(np.asarray(pruned["bias"]) == 0, gone)
    assert jp.quantize(4, group=4).init(tree)["query"]["kernel"].scale.shape == (2, 2, 3)


def test_groups_run_along_the_inputs_of_each_order():
    def scale(name, shape, group=2, **tree):
        return (
            jp.quantize(4, group=group)
            .init({"m": {name: normal(shape, 1), **tree}})["m"][name]
            .scale.shape
        )

    assert scale("weight", (8, 6)) == (8, 3)
    assert scale("weight", (8, 4, 3, 3), bias=jnp.ones(8)) == (8, 2, 1, 1)
    assert scale("kernel", (3, 3, 4, 8)) == (1, 1, 2, 8)


def test_groups_of_a_module_that_may_be_a_stack_or_a_convolution():
    class Unknown(eqx.Module):
        weight: jax.Array

    def scale(shape, group):
        return jp.quantize(4, group=group).init(Unknown(normal(shape, 1))).weight.scale.shape

    assert scale((3, 4, 6), 2) == (3, 4, 3)  # layers, outputs, inputs
    assert scale((8, 4, 3), 4) == (8, 1, 1)  # outputs, inputs, window


def test_files_hold_groups_of_outputs_first(tmp_path):
    tree = jp.quantize(4, kind="affine", group=2).init(trees((3, 3, 4, 8))[1])
    jp.save(tmp_path / "f.jp", tree)
    np.testing.assert_array_equal(
        weight(jp.materialize(jp.load(tmp_path / "f.jp"))), weight(jp.materialize(tree))
    )


def test_a_score_weighs_the_inputs_of_each_order():
    last, first = trees((8, 6))
    h = jnp.linspace(0, 1, 8)[:, None] * jnp.ones((8, 6))
    code = jp.factorize(rank=2, curvature={"conv": {"kernel": h, "bias": None}}).init(last)
    turned = jp.factorize(rank=2, curvature={"conv": {"weight": h.T, "bias": None}}).init(first)
    assert turned["conv"]["weight"].u.shape == (6, 2)
    np.testing.assert_allclose(
        weight(jp.materialize(turned)), weight(jp.materialize(code)).T, atol=1e-5
    )
    plain = jp.materialize(jp.factorize(rank=2).init(last))
    assert not np.allclose(weight(plain), weight(jp.materialize(code)), atol=1e-2)


def test_stacks_of_outputs_first_have_their_ranks_turned():
    stack = normal((4, 8, 16), 1)
    axes = {"w": Axes((-1,), (-2,), (-3,)), "v": Axes((-2,), (-1,), (-3,))}
    tree = {"w": stack, "v": jnp.matrix_transpose(stack)}
    code = jp.factorize(rank=(2, 3), layout=axes).init(tree)
    assert code["v"].core.shape == (4, 3, 2) and code["w"].core.shape == (4, 2, 3)
    dense = jp.materialize(code)
    np.testing.assert_allclose(dense["v"], jnp.matrix_transpose(dense["w"]), atol=1e-5)


def test_convolutions_with_the_window_last_are_refused_by_factorize():
    first = trees((3, 3, 4, 8))[1]
    with pytest.raises(
        ValueError, match=r"conv/weight: float32\[8, 4, 3, 3\].*axis -4.*jnp.moveaxis"
    ):
        jp.factorize(rank=2).init(first)
    moved = {"conv": {"weight": jnp.moveaxis(first["conv"]["weight"], (0, 1), (-1, -2))}}
    assert isinstance(jp.factorize(rank=2, layout="jax").init(moved)["conv"]["weight"], Tucker)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_price_of_a_weight_is_that_of_its_input_and_output(shape):
    def slopes(params):
        tx = jp.rate_penalty(1.0)
        return tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]

    last, first = trees(SHAPES[shape])
    np.testing.assert_allclose(
        weight(slopes(first)), outputs_first(weight(slopes(last))), rtol=2e-5
    )


def test_recipes_hand_the_layout_to_every_verb():
    last, first = trees((8, 6), "given")
    for verb in (
        {"prune": {"sparsity": 0.5, "pattern": "channel"}},
        {"prune": {"pattern": "2:4"}},
        {"quantize": {"bits": 4, "group": 4}},
        {"share": {"k": 3}},
    ):
        rules = [{"where": "conv/(kernel|weight)", **verb}]
        expected = weight(jp.materialize(jp.recipe(rules, layout="jax").init(last))).T
        np.testing.assert_allclose(
            weight(jp.materialize(jp.recipe(rules, layout="torch").init(first))),
            expected,
            atol=1e-5,
        )


@pytest.mark.parametrize("call", [jp.prune, jp.factorize, jp.share, jp.rate_penalty])
def test_an_unknown_layout_is_refused_by_the_name_of_the_call(call):
    arguments = {jp.prune: {"sparsity": 0.5}, jp.factorize: {"rank": 2}, jp.share: {"k": 2}}
    given = arguments.get(call, {"strength": 0.1})
    with pytest.raises(ValueError, match=rf"{call.__name__}\(layout='pytorch'\): choose one of"):
        call(**given, layout="pytorch")
