"""Budgets of time for blocks, layers and widths at once. Seconds are made up from shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.structure.axes.expressions import settled
from jaxprune.structure.time.latency import Model
from tests.structure.test_latency import Fake

RNG = np.random.default_rng(11)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape) / shape[0] ** 0.5, jnp.float32)


X = draw(5, 6)


def flat(k, n):
    return 1e-3 * k * n


def block(x, p):
    return x + jax.nn.relu(x @ p["up"]) @ p["down"]


def streams(p, x):
    """Blocks as they are, in a jit, rematerialised in a jit; one in another."""
    x = block(x, p["a"])
    x = jax.jit(block)(x, p["b"])
    x = jax.jit(jax.checkpoint(block))(x, p["c"])
    x = x + jax.nn.relu(block(x, p["d"]["in"]) @ p["d"]["up"]) @ p["d"]["down"]
    return x @ p["end"]


def pair(scale=1.0, wide=8):
    return {"up": draw(6, wide), "down": scale * draw(wide, 6)}


STREAMS = {
    "a": pair(0.01),
    "b": pair(),
    "c": pair(0.03),
    "d": pair(0.3) | {"in": pair(0.002)},
    "end": draw(6, 3),
}


def scanned(p, x):
    """Layers that a scan runs over, and a block."""
    x, _ = jax.lax.scan(lambda c, w: (block(c, w), None), x, p["layers"])
    return block(x, p["a"]) @ p["end"]


LAYERS = jax.tree.map(lambda *w: jnp.stack(w), *(pair(s) for s in (0.5, 0.01, 0.2, 0.05)))
CASES = {
    "blocks": (streams, STREAMS),
    "layers": (scanned, {"layers": LAYERS, "a": pair(0.1), "end": draw(6, 3)}),
}


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [0.75, 0.5, 0.4])
def test_times_add_up_to_those_of_the_program_that_is_left(case, only, share):
    f, params = CASES[case]
    clock = Fake(lambda k, n: 1e-3 * k * n)
    thin = jp.shrink(f, params, X, latency=share, depth=jp.Depth(only=only), timings=clock.table)
    left = thin.plan.blocks or any(
        0 in axes for path, axes in thin.plan.keep.items() if path.startswith("layers")
    )
    assert left and thin.report.latency[1] <= share * thin.report.latency[0]
    assert thin.report.pace.predicted == pytest.approx(thin.report.latency)
    assert not (only and thin.report.groups and case == "blocks")


def test_blocks_go_by_what_they_change_for_the_time_they_take():
    """All change as much; one takes four times as long."""
    p = {"a": pair(), "b": pair(wide=32), "c": pair(), "end": draw(6, 3)}

    def f(p, x):
        for name in "abc":
            x = block(x, p[name])
        return x @ p["end"]

    same = jp.Depth(score={"a/up": 1.0, "b/up": 1.0, "c/up": 1.0}, only=True)
    thin = jp.shrink(f, p, X, latency=0.9, depth=same, timings=Fake(flat).table)
    assert thin.plan.blocks == (("b/down", "b/up"),)
    less = jp.Depth(score={"a/up": 0.2, "b/up": 1.0, "c/up": 1.0}, only=True)
    thin = jp.shrink(f, p, X, latency=0.9, depth=less, timings=Fake(flat).table)
    assert thin.plan.blocks == (("a/down", "a/up"),)


def test_what_is_left_out_saves_nothing_twice():
    """Units of a block that is gone are not cut for the time that they no longer take."""
    thin = jp.shrink(streams, STREAMS, X, latency=0.45, depth=True, timings=Fake(flat).table)
    gone = {path for leaves in thin.plan.blocks for path in leaves}
    assert gone and not gone & set(thin.plan.keep)
    there = {leaf_path(keys) for keys, _ in flatten_with_path(thin.params)[0]}
    assert there == {leaf_path(keys) for keys, _ in flatten_with_path(STREAMS)[0]} - gone


def test_losses_are_ranked_with_losses():
    """With normalize="none" the loss that a block costs and that of units are compared as they
    are.
    """
    p = {"a": pair(0.1, 2), "b": pair(1.0, 2), "end": draw(6, 3)}

    def f(p, x):
        return block(block(x, p["a"]), p["b"]) @ p["end"]

    units = jax.tree.map(lambda w: jnp.full(w.shape, 1e-3), p)
    how = {"score": units, "reduce": "l1", "normalize": "none", "ratio": 0.9}
    dear = jp.shrink(f, p, X, depth=jp.Depth(score={"a/up": 0.02, "b/up": 7.0}), **how)
    cheap = jp.shrink(f, p, X, depth=jp.Depth(score={"a/up": 1e-4, "b/up": 7.0}), **how)
    assert not dear.plan.blocks and cheap.plan.blocks == (("a/down", "a/up"),)


def test_device_widths_with_blocks():
    clock = Fake(lambda k, n: 1e-3 * (-(-k // 4) * 4) * (-(-n // 4) * 4))  # four at a time
    thin = jp.shrink(
        streams, STREAMS, X, flops=0.5, round_to="device", depth=True, timings=clock.table
    )
    assert thin.plan.blocks and thin.report.flops[1] <= 0.5 * thin.report.flops[0]
    assert all(
        thin.widths[f"{name}/up"][1] % 4 == 0 for name in "abc" if f"{name}/up" in thin.widths
    )


def test_a_block_takes_its_additions_along():
    """All but the products takes 10 s, and all of that is in the block: without it the last product
    is left.
    """
    p = {"a": pair(wide=8), "end": draw(6, 3)}
    found = jp.coupled_axes(lambda p, x: block(x, p["a"]) @ p["end"], p, X, depth=True)
    [switch] = [settled(b.switch) for b in found.blocks]
    model = Model(
        found.programs[0],
        [switch],
        [np.ones(1)],
        Fake(flat).table,
        10 + flat(6, 8) + flat(8, 6) + flat(6, 3),
    )
    assert model.total((1,)) == pytest.approx(10 + flat(6, 8) + flat(8, 6) + flat(6, 3))
    assert model.total((0,)) == pytest.approx(flat(6, 3))
