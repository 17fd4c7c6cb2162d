"""Blocks and layers that are left out: the small function is the one that was written without
them.
"""

import functools
import operator

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from tests.structure.models import MODELS, Scanned, linen
from tests.structure.test_architectures import distance

RNG = np.random.default_rng(5)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape) / max(1, shape[0]) ** 0.5, jnp.float32)


def jitted(f, *args):
    return jax.jit(f)(*args)


def only(score="cosine", **kw):
    return jp.Depth(score, only=True, **kw)


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def transformer(p, t, skip=()):
    """Pre-norm, causal, the head tied to the embedding; `skip` names blocks that are not there."""
    x = p["embedding"][t] + p["positions"][: t.shape[1]]
    for i in range(2):
        layer = p[f"layer{i}"]
        if f"attention{i}" not in skip:
            q, k, v = jnp.split(norm(layer["norm1"], x) @ layer["qkv"], 3, -1)
            scores = jnp.where(jnp.tril(jnp.ones((t.shape[1],) * 2, bool)), q @ k.mT, -1e9)
            x = x + jax.nn.softmax(scores) @ v @ layer["out"]
        if f"mlp{i}" not in skip:
            x = x + jax.nn.gelu(norm(layer["norm2"], x) @ layer["up"]) @ layer["down"]
    return norm(p["norm"], x) @ p["embedding"].T


def layers():
    def affine():
        return {"scale": 1 + 0.1 * draw(8), "bias": 0.1 * draw(8)}

    def layer():
        return {
            "norm1": affine(),
            "qkv": draw(8, 24),
            "out": draw(8, 8),
            "norm2": affine(),
            "up": draw(8, 16),
            "down": draw(16, 8),
        }

    ends = {"embedding": draw(11, 8), "positions": draw(6, 8), "norm": affine()}
    return ends | {f"layer{i}": layer() for i in range(2)}


def conv(w, x, stride=1):
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def resnet(p, x, skip=(), option="A"):
    x = jax.nn.relu(conv(p["stem"], x))
    for i, (width, stride) in enumerate(((4, 1), (8, 2), (8, 1))):
        more = width - x.shape[-1]
        s = jnp.pad(
            x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2))
        )
        if option == "B" and more:
            s = conv(p[f"short{i}"], x, stride)
        y = conv(p[f"b{i}"], jax.nn.relu(conv(p[f"a{i}"], x, stride)))
        x = jax.nn.relu(s if f"block{i}" in skip else y + s)
    return x.mean((1, 2)) @ p["head"]


def kernels(option="A"):
    p = {"stem": draw(3, 3, 3, 4), "head": draw(8, 5)}
    for i, (a, b) in enumerate(((4, 4), (4, 8), (8, 8))):
        p |= {f"a{i}": draw(3, 3, a, b) / 3, f"b{i}": draw(3, 3, b, b) / 3}
    return p | ({"short1": draw(1, 1, 4, 8)} if option == "B" else {})


PARAMS = layers()
TOKENS = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
KERNELS = kernels()
IMAGES = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
BLOCKS = {  # name -> what alone it uses
    **{
        f"attention{i}": {f"layer{i}/{n}" for n in ("norm1/bias", "norm1/scale", "qkv", "out")}
        for i in range(2)
    },
    **{
        f"mlp{i}": {f"layer{i}/{n}" for n in ("norm2/bias", "norm2/scale", "up", "down")}
        for i in range(2)
    },
}


def paths(tree):
    return {leaf_path(keys) for keys, _ in flatten_with_path(tree)[0]}


@pytest.mark.parametrize(
    "name, count",
    {"resnet B": 1, "encoder": 2, "densenet": 0, "experts": 1}.items(),
)
def test_what_can_be_left_out(name, count):
    f, params, args = MODELS[name]()
    found = jp.residual_blocks(f, params, *args)
    assert [u.block for u in found.units] == [True] * count
    assert all("models.py" in u.group.layers and 0.1 < u.share < 0.95 for u in found.units)


def test_blocks_of_a_transformer_by_their_params():
    found = jp.coupled_axes(transformer, PARAMS, TOKENS, depth=True).blocks
    assert [set(b.leaves) for b in found] == [
        BLOCKS[f"{kind}{i}"] for i in range(2) for kind in ("attention", "mlp")
    ]
    assert "test_depth.py" in found[0].place
    assert jp.coupled_axes(transformer, PARAMS, TOKENS).blocks == ()
    found = jp.coupled_axes(
        functools.partial(resnet, option="B"), kernels("B"), IMAGES, depth=True
    ).blocks
    assert [b.leaves for b in found] == [
        ("a0", "b0"),
        ("a2", "b2"),
    ]  # both sides of the other are more than a move


@pytest.mark.parametrize(
    "skip", [("attention0", "mlp1"), pytest.param(tuple(BLOCKS), marks=pytest.mark.slow)]
)
def test_it_is_the_function_without_them(skip):
    score = {".*": 9.0} | {path: 0.0 for name in skip for path in BLOCKS[name]}
    thin = (
        jp.shrink(transformer, PARAMS, TOKENS, ratio=1 - len(skip) / 4, depth=only(score))
        if len(skip) < 4
        else None
    )
    if thin is None:
        plan = jp.Plan(jp.shrink(transformer, PARAMS, TOKENS, ratio=1.0).plan.shapes, {})
        lost = {path: "float32" for leaves in BLOCKS.values() for path in leaves}
        plan = plan._replace(blocks=tuple(tuple(sorted(b)) for b in BLOCKS.values()), dropped=lost)
        thin = jp.shrink(transformer, PARAMS, TOKENS, plan=plan)
    gone = set().union(*(BLOCKS[name] for name in skip))
    assert paths(thin.params) == paths(PARAMS) - gone and set(thin.plan.dropped) == gone

    def truth(p, t):
        return transformer(p, t, skip)

    for t in (TOKENS, TOKENS[:1, :4]):  # and of another batch and length
        assert_array_equal(jitted(thin.apply, thin.params, t), jitted(truth, PARAMS, t))

    def loss(f):
        return lambda p: jnp.sum(jnp.sin(f(p, TOKENS)))

    ours, theirs = (
        jitted(jax.grad(loss(f)), p) for f, p in ((thin.apply, thin.params), (truth, PARAMS))
    )
    theirs = thin.cut(theirs)
    assert distance(theirs, ours) < 1e-6
    assert (
        thin.report.flops[1]
        == jp.flops(thin.apply, thin.params, TOKENS)
        == jp.flops(truth, PARAMS, TOKENS)
    )
    assert thin.report.params[1] == sum(x.size for x in jax.tree.leaves(thin.params))


@pytest.mark.parametrize(
    "skip", [pytest.param(("block0",), marks=pytest.mark.slow), ("block1", "block2")]
)
def test_shortcuts_that_are_padded(skip):
    score = {".*": 9.0} | {f"[ab]{name[-1]}": 0.0 for name in skip}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), KERNELS)
        x = IMAGES.astype(jnp.float64)
        thin = jp.shrink(resnet, wide, x, ratio=1 - len(skip) / 3, depth=only(score))
        assert (
            distance(
                jitted(functools.partial(resnet, skip=skip), wide, x),
                jitted(thin.apply, thin.params, x),
            )
            < 1e-14
            and thin.report.error < 1e-12
        )
    thin = jp.shrink(resnet, KERNELS, IMAGES, plan=thin.plan)
    truth = jitted(functools.partial(resnet, skip=skip), KERNELS, IMAGES)
    assert_allclose(jitted(thin.apply, thin.params, IMAGES), truth, rtol=1e-5, atol=1e-6)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), thin.params)
    assert jax.eval_shape(thin.apply, half, IMAGES.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_width_and_depth_under_one_budget():
    score = jax.tree.map(jnp.abs, PARAMS)
    thin = jp.shrink(transformer, PARAMS, TOKENS, flops=0.5, score=score, depth=True)
    before, after = thin.report.flops
    assert 0.4 < after / before <= 0.5 and after == jp.flops(thin.apply, thin.params, TOKENS)
    assert thin.plan.blocks and thin.plan.keep and not set(thin.plan.keep) & set(thin.plan.dropped)
    skip = [
        name
        for name, leaves in BLOCKS.items()
        if tuple(sorted(leaves)) in map(tuple, map(sorted, thin.plan.blocks))
    ]
    masked = thin.plan.mask(PARAMS)
    assert_allclose(
        thin.apply(thin.params, TOKENS), transformer(masked, TOKENS, skip), rtol=1e-4, atol=1e-5
    )
    assert "left out: the block of layer" in str(thin.report) and "gone" in str(thin.report)
    for scope in ("group", "isomorphic"):
        thin = jp.shrink(
            transformer, PARAMS, TOKENS, params=0.6, score=score, depth=True, scope=scope
        )
        assert thin.report.params[1] <= 0.6 * thin.report.params[0] and thin.report.error < 1e-5


def test_the_block_that_changes_the_stream_least_goes_first():
    params = {**PARAMS, "layer1": {**PARAMS["layer1"], "down": 1e-3 * PARAMS["layer1"]["down"]}}
    thin = jp.shrink(transformer, params, TOKENS, ratio=3 / 4, depth=only())
    assert [set(b) for b in thin.plan.blocks] == [BLOCKS["mlp1"]]
    labels = jnp.argmax(
        transformer(params, TOKENS, ("attention0",)), -1
    )  # the loss is least without it

    def loss(y):
        return -jnp.take_along_axis(jax.nn.log_softmax(y), labels[..., None], -1).mean()

    without = {
        n: loss(transformer(params, TOKENS, (n,))) - loss(transformer(params, TOKENS))
        for n in BLOCKS
    }
    thin = jp.shrink(transformer, params, TOKENS, ratio=2 / 4, depth=only(loss))
    assert {frozenset(b) for b in thin.plan.blocks} == {
        frozenset(BLOCKS[n]) for n in sorted(without, key=without.get)[:2]
    }


def test_influence_is_that_of_the_paper():
    from jaxprune.structure.choose.depth import chosen, scored

    found = jp.coupled_axes(transformer, PARAMS, TOKENS, depth=True)
    made = scored(found, chosen(found, jp.Depth()), jp.Depth(), PARAMS, [(transformer, (TOKENS,))])
    x = PARAMS["embedding"][TOKENS] + PARAMS["positions"]
    q, k, v = jnp.split(norm(PARAMS["layer0"]["norm1"], x) @ PARAMS["layer0"]["qkv"], 3, -1)
    a = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((6, 6), bool)), q @ k.mT, -1e9))
    y = x + a @ v @ PARAMS["layer0"]["out"]
    cosine = (x * y).sum(-1) / jnp.linalg.norm(x, axis=-1) / jnp.linalg.norm(y, axis=-1)
    assert_allclose(made[0][1], [1 - cosine.mean()], rtol=1e-4)


def scan_truth(variables, x, kept):
    """`Scanned`, its layers written one after another."""
    p = variables["params"]

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    x = dense(p["Dense_0"], x)
    for i in kept:
        layer = jax.tree.map(operator.itemgetter(i), p["ScanCheckpointScannedLayer_0"])
        x = x + dense(layer["Dense_0"], jax.nn.relu(dense(layer["Dense_1"], x)))
    x = jnp.where(x.sum() > 0, nn.tanh(x), 0.5 * x)
    for _ in range(3):
        x = jnp.sin(0.9 * x)
    return dense(p["Dense_1"], x)


@pytest.mark.parametrize("kept", [(0, 2), pytest.param((1,), marks=pytest.mark.slow)])
def test_layers_that_a_scan_runs_over(kept):
    f, params, (x,) = linen(Scanned(), jax.random.normal(jax.random.key(2), (4, 6)))
    [unit] = jp.residual_blocks(f, params, x).units
    assert unit.group.size == 3 and not unit.block and "scan at models.py" in unit.group.layers
    score = {".*Scan.*": [float(i in kept) for i in range(3)]}
    thin = jp.shrink(f, params, x, ratio=len(kept) / 3, depth=only(score))
    layer = thin.params["params"]["ScanCheckpointScannedLayer_0"]
    assert layer["Dense_0"]["kernel"].shape == (len(kept), 12, 8)
    assert_array_equal(thin.plan.keep["params/ScanCheckpointScannedLayer_0/Dense_0/bias"][0], kept)
    truth = jitted(lambda p, x: scan_truth(p, x, kept), params, x)
    assert_allclose(jitted(thin.apply, thin.params, x), truth, rtol=1e-5, atol=1e-6)

    def loss(f, *more):
        return lambda p: jnp.sum(jnp.sin(f(p, x, *more)))

    ours = jitted(jax.grad(loss(thin.apply)), thin.params)
    theirs = thin.cut(jitted(jax.grad(loss(scan_truth, kept)), params))
    assert (
        distance(theirs, ours) < 1e-5
        and thin.report.flops[1] < thin.report.flops[0] * (len(kept) + 0.5) / 3
    )
    assert "of 3 layers: scan" in str(thin.report)
    assert_array_equal(
        thin.expand(thin.params)["params"]["Dense_0"]["bias"], params["params"]["Dense_0"]["bias"]
    )


def test_layers_by_influence_and_with_widths():
    f, params, (x,) = linen(Scanned(), jax.random.normal(jax.random.key(2), (4, 6)))
    layer = params["params"]["ScanCheckpointScannedLayer_0"]["Dense_0"]
    weak = {
        "kernel": layer["kernel"].at[1].multiply(1e-3),
        "bias": layer["bias"].at[1].multiply(1e-3),
    }
    params["params"]["ScanCheckpointScannedLayer_0"]["Dense_0"] = weak
    thin = jp.shrink(f, params, x, ratio=2 / 3, depth=only())
    assert_array_equal(
        thin.plan.keep["params/ScanCheckpointScannedLayer_0/Dense_0/bias"][0], [0, 2]
    )
    thin = jp.shrink(f, params, x, flops=0.5, depth=True, scope="group", round_to=2)
    shape = thin.params["params"]["ScanCheckpointScannedLayer_0"]["Dense_0"]["kernel"].shape
    assert shape[0] < 3 and shape[1] < 12 and shape[1] % 2 == 0 and thin.report.error < 1e-5


def test_layers_take_their_random_keys_along():
    def f(p, x, key):
        def layer(x, now):
            w, key = now
            return x + jax.random.bernoulli(key, 0.5, (6,)) * jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, (p["w"], jax.random.split(key, 4)))[0] @ p["head"]

    p = {"w": draw(4, 6, 6), "head": draw(6, 2)}
    x = draw(6)
    key = jax.random.key(3)
    y = x
    keys = jax.random.split(key, 4)
    for i in (1, 3):
        y = y + jax.random.bernoulli(keys[i], 0.5, (6,)) * jnp.tanh(y @ p["w"][i])
    thin = jp.shrink(f, p, x, key, ratio=0.5, depth=only({"w": [0, 1, 0, 1]}))
    assert_allclose(thin.apply(thin.params, x, key), y @ p["head"], rtol=1e-5)


def decode(p, token, out="state"):
    """A step of decoding: a scan over layers with a cache of each."""

    def layer(x, now):
        w, cache = now
        cache = jnp.concatenate([cache[1:], (x @ w["k"])[None]])
        return x + jax.nn.softmax(cache @ x) @ cache @ w["o"], cache

    x, cache = jax.lax.scan(layer, token, (p["w"], p["cache"]))
    return (x @ p["head"], {"cache": cache}) if out == "state" else (x @ p["head"], cache.sum())


def test_a_cache_of_each_layer_is_state_or_keeps_the_layers():
    p = {"w": {"k": draw(4, 6, 6), "o": draw(4, 6, 6)}, "cache": draw(4, 3, 6), "head": draw(6, 2)}
    token = draw(6)
    score = {"cache": [1, 0, 1, 1]}
    thin = jp.shrink(decode, p, token, ratio=0.75, depth=only(score), state="1/cache")
    y, new = thin.apply(thin.params, token)
    at = np.array([0, 2, 3])
    z, old = decode(jax.tree.map(lambda w: w[at] if w.shape[0] == 4 else w, p), token)
    assert_allclose(y, z, rtol=1e-5)
    assert_allclose(new["cache"], old["cache"], rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"no block and no layer.*scan at .*: an output of the function"
    ):
        jp.shrink(decode, p, token, ratio=0.75, depth=only())
    found = jp.coupled_axes(functools.partial(decode, out="sum"), p, token, depth=True)
    assert all(g.approximate for g in found.groups if g.layers)  # a sum over the layers' caches


def stacked(body):
    def f(p, x):
        return jax.lax.scan(body, (x, jnp.zeros((), jnp.int32)), p["w"])[0][0] @ p["head"]

    return f


@pytest.mark.parametrize(
    "body",
    [
        lambda c, w: ((jnp.tanh(c[0] @ w), c[1]), None),  # not added to
        lambda c, w: ((c[0] + jnp.tanh(c[0] @ w) * c[1], c[1] + 1), None),  # counts its turns
        lambda c, w: ((2 * c[0] + jnp.tanh(c[0] @ w), c[1]), None),
    ],
)
def test_scans_that_are_more_than_layers_stay(body):
    p = {"w": draw(3, 5, 5), "head": draw(5, 2)}
    found = jp.coupled_axes(stacked(body), p, draw(5), depth=True)
    assert "more than additions to what it carries: scan at test_depth.py" in found.frozen["w[0]"]
    with pytest.raises(
        ValueError,
        match=r"no block and no layer can be left out: scan at test_depth.py.*: "
        "a scan runs along it, and is more",
    ):
        jp.shrink(stacked(body), p, draw(5), ratio=0.5, depth=True)


def test_a_scan_over_data_or_in_a_loop_stays():
    def body(c, w):
        return (c + jnp.tanh(c @ w), None)

    def over(p, x):
        return jax.lax.scan(lambda c, v: (c + jnp.tanh(v @ p["w"]), None), x[0], x)[0] @ p["head"]

    def twice(p, x):
        return (
            jax.lax.fori_loop(0, 2, lambda i, x: jax.lax.scan(body, x, p["ws"])[0], x) @ p["head"]
        )

    p = {"w": draw(5, 5), "ws": draw(3, 5, 5), "head": draw(5, 2)}
    assert not any(g.layers for g in jp.coupled_axes(over, p, draw(4, 5), depth=True).groups)
    assert (
        "a scan runs along it: scan"
        in jp.coupled_axes(twice, p, draw(5), depth=True).frozen["ws[0]"]
    )

    def once(p, x):
        return (
            jax.jit(jax.checkpoint(lambda x: jax.lax.scan(body, x, p["ws"], reverse=True)[0]))(x)
            @ p["head"]
        )

    thin = jp.shrink(once, p, draw(5), ratio=1 / 3, depth=only({"ws": [0, 1, 0]}))
    x = draw(5)
    assert_allclose(
        thin.apply(thin.params, x), (x + jnp.tanh(x @ p["ws"][1])) @ p["head"], rtol=1e-5
    )


def side_by_side(p, x, skip=()):
    """Two branches of one norm, each in a remat; then one inside a jit that is called twice with
    other params.
    """
    n = norm(p["norm"], x)
    a = jax.checkpoint(lambda w, n: jnp.tanh(n @ w))
    y = x
    for name in ("a", "b"):
        y = y if name in skip else y + a(p[name], n)
    for name in ("c", "d"):
        y = y if name in skip else _called(p[name], y)
    return y @ p["head"]


@jax.jit
def _called(w, y):
    return y + jnp.sin(y @ w)


@pytest.mark.parametrize("skip", ["c", "ab", "acd"])
def test_branches_side_by_side_and_inside_of_calls(skip):
    p = {"norm": {"scale": draw(6), "bias": draw(6)}, "head": draw(6, 3)} | {
        n: draw(6, 6) for n in "abcd"
    }
    x = draw(2, 6)
    assert [b.leaves for b in jp.coupled_axes(side_by_side, p, x, depth=True).blocks] == [
        ("a",),
        ("b",),
        ("c",),
        ("d",),
    ]
    score = {"[a-d]": 1.0} | dict.fromkeys(skip, 0.0)
    thin = jp.shrink(side_by_side, p, x, ratio=1 - len(skip) / 4, depth=only(score))
    # the norm goes with the last that reads it
    assert paths(thin.params) == paths(p) - set(skip) - (
        {"norm/scale", "norm/bias"} if {"a", "b"} <= set(skip) else set()
    )
    assert_allclose(
        thin.apply(thin.params, x), side_by_side(p, x, tuple(skip)), rtol=1e-5, atol=1e-6
    )


def test_params_of_two_blocks_stay():
    def f(p, x):
        for name in ("a", "b"):
            x = x + jnp.tanh(x @ p[name]) @ p["tied"]
        return x @ p["head"]

    p = {"a": draw(6, 6), "b": draw(6, 6), "tied": draw(6, 6), "head": draw(6, 2)}
    assert [b.leaves for b in jp.coupled_axes(f, p, draw(2, 6), depth=True).blocks] == [
        ("a",),
        ("b",),
    ]
    assert jp.shrink(f, p, draw(2, 6), ratio=0.5, depth=only()).params["tied"] is not None

    def same(p, x):
        return (y := x + jnp.tanh(x @ p["tied"])) + jnp.tanh(y @ p["tied"])

    with pytest.raises(ValueError, match="no branch that alone uses some params"):
        jp.shrink(same, {"tied": p["tied"]}, draw(2, 6), ratio=0.5, depth=True)


def test_what_looks_like_a_block_and_is_none():
    p = {n: draw(6, 6) for n in "abc"} | {"bias": draw(6)}
    x = draw(2, 6)
    for f in (
        lambda p, x: x @ p["a"] + p["bias"],  # a bias comes of nothing
        lambda p, x: x @ p["a"] + x @ p["b"],  # neither is made of the other
        lambda p, x: x @ p["a"] + (x @ p["b"]) @ p["c"],  # LoRA
        lambda p, x: x - jnp.tanh(x @ p["a"]),
        lambda p, x: (x + (h := x @ p["a"]), h),  # the branch is an output
        lambda p, x: 2 * x + jnp.tanh(x @ p["a"]),
    ):
        assert jp.coupled_axes(f, p, x, depth=True).blocks == ()


def test_a_plan_is_saved_and_serves_other_trees(tmp_path):
    thin = jp.shrink(transformer, PARAMS, TOKENS, flops=0.6, depth=only())
    thin.plan.save(tmp_path / "plan.json")
    plan = jp.Plan.load(tmp_path / "plan.json")
    again = jp.shrink(transformer, PARAMS, TOKENS, plan=plan)
    assert plan.blocks == thin.plan.blocks and paths(again.params) == paths(thin.params)
    assert again.report.flops == thin.report.flops
    full = thin.expand(thin.params)
    assert jax.tree.structure(full) == jax.tree.structure(PARAMS)
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(thin.plan.mask(PARAMS))):
        assert_array_equal(a, b)
    tx = optax.adam(0.1)
    opt = thin.cut(tx.init(PARAMS))
    grads = jitted(jax.grad(lambda p: thin.apply(p, TOKENS).sum()), thin.params)
    updates, opt = tx.update(grads, opt, thin.params)
    assert (
        jax.tree.structure(updates)
        == jax.tree.structure(opt[0].mu)
        == jax.tree.structure(thin.params)
    )
    assert jax.tree.structure(thin.expand(opt)) == jax.tree.structure(tx.init(PARAMS))
    twice = jp.shrink(thin.apply, thin.params, TOKENS, flops=0.8, depth=True)
    assert twice.report.error < 1e-5 and twice.report.flops[0] == thin.report.flops[1]
    assert jax.tree.structure(twice.expand(twice.params)) == jax.tree.structure(thin.params)
    with pytest.raises(ValueError, match="another model"):
        jp.shrink(resnet, KERNELS, IMAGES, plan=plan)
    with pytest.raises(ValueError, match="only one of them has"):
        thin.apply(PARAMS, TOKENS)


def test_plans_without_depth_are_read(tmp_path):
    old = (
        '{"format": "jaxprune plan 1", "shapes": {"v": [4, 2], "w": [6, 4]}, '
        '"keep": {"w": {"1": [1, 3]}}}'
    )
    (tmp_path / "plan.json").write_text(old)
    assert jp.Plan.load(tmp_path / "plan.json").dropped == {}
    odd = old[:-1] + ', "blocks": [["u"]], "dropped": {"u": "float32"}}'
    (tmp_path / "plan.json").write_text(odd)
    with pytest.raises(ValueError, match="'u' is left out, and has no shape or is cut"):
        jp.Plan.load(tmp_path / "plan.json")


class Trained(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            y = nn.BatchNorm(not self.train, name=None)(nn.Dense(6)(x))
            x = x + nn.Dropout(0.2, deterministic=not self.train)(nn.Dense(6)(nn.relu(y)))
        return nn.Dense(3)(x)


def test_training_and_evaluation_lose_the_same_blocks_and_their_statistics():
    x = jax.random.normal(jax.random.key(0), (6, 6))
    variables = Trained(False).init(jax.random.key(1), x)

    def evaluate(v, x):
        return Trained(False).apply(v, x)

    def train(v, x):
        return Trained(True).apply(
            v, x, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"]
        )

    state = "1/batch_stats/.*"
    found = jp.coupled_axes([train, evaluate], variables, x, state=state, depth=True)
    assert [len(b.leaves) for b in found.blocks] == [8, 8, 8]
    assert (
        jp.coupled_axes(train, variables, x, depth=True).blocks[0].leaves != found.blocks[0].leaves
    )
    thin = jp.shrink(
        [train, evaluate],
        variables,
        x,
        ratio=2 / 3,
        state=state,
        depth=only({".*BatchNorm_[02]/.*": 1.0, ".*BatchNorm_1/.*": 0.0}),
    )
    assert "BatchNorm_1" not in str(paths(thin.params)) and len(thin.plan.blocks) == 1
    _y, new = thin.apply(thin.params, x)
    assert paths(new) == {f"batch_stats/BatchNorm_{i}/{n}" for i in (0, 2) for n in ("mean", "var")}
    small = {"params": thin.params["params"], **new}
    assert jax.tree.structure(small) == jax.tree.structure(dict(thin.params))
    full = thin.expand(thin.params)
    assert_allclose(thin.of(evaluate)(thin.params, x), evaluate(full, x), rtol=1e-5, atol=1e-6)


def test_nnx_and_equinox():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(6, 8, rngs=rngs)
            self.b = nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x):
            return x + self.b(nnx.relu(self.a(x)))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one = Block(rngs)
            self.two = Block(rngs)
            self.head = nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.two(self.one(x)))

    x = jax.random.normal(jax.random.key(0), (4, 6))
    graph, state = nnx.split(Net(nnx.Rngs(0)))
    thin = jp.shrink(
        lambda s, x: nnx.merge(graph, s)(x),
        state,
        x,
        ratio=0.5,
        depth=only({"one/.*": 0.0, "two/.*": 1.0}),
    )
    assert isinstance(thin.params, nnx.State) and paths(thin.params) == {
        p for p in paths(state) if "one" not in p
    }
    net = nnx.merge(graph, state)
    assert_allclose(thin.apply(thin.params, x), net.head(net.two(x)), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(thin.expand(thin.params)) == jax.tree.structure(state)

    layers = [eqx.nn.MLP(6, 6, 8, 1, key=jax.random.key(i)) for i in range(2)]
    arrays, rest = eqx.partition(layers, eqx.is_array)

    def f(arrays, x):
        one, two = eqx.combine(arrays, rest)
        x = x + jax.vmap(one)(x)
        return x + jax.vmap(two)(x)

    thin = jp.shrink(f, arrays, x, ratio=0.5, depth=only({"0/.*": 1.0, "1/.*": 0.0}))
    assert_allclose(thin.apply(thin.params, x), x + jax.vmap(layers[0])(x), rtol=1e-5, atol=1e-6)
    assert jax.tree.leaves(thin.params[1]) == []


def test_limits_protect_blocks_and_shares_choose_them():
    keep = dict.fromkeys(("layer0/out",), 1)
    thin = jp.shrink(transformer, PARAMS, TOKENS, ratio=0.25, depth=only(), keep=keep)
    assert {frozenset(b) for b in thin.plan.blocks} == {
        frozenset(BLOCKS[n]) for n in ("mlp0", "attention1", "mlp1")
    }
    thin = jp.shrink(transformer, PARAMS, TOKENS, ratio=0.5, depth=only(), where=".*/up")
    assert {frozenset(b) for b in thin.plan.blocks} <= {
        frozenset(BLOCKS[f"mlp{i}"]) for i in range(2)
    }
    shares = {
        u.group.members[0].path: u.share
        for u in jp.residual_blocks(transformer, PARAMS, TOKENS).units
    }
    between = (min(shares.values()) + max(shares.values())) / 2
    for bound, fits in (("most", lambda s: s < between), ("least", lambda s: s > between)):
        thin = jp.shrink(transformer, PARAMS, TOKENS, ratio=0.5, depth=only(**{bound: between}))
        assert thin.plan.blocks and all(fits(shares[b[0]]) for b in thin.plan.blocks)


def deep(**kw):
    return jp.shrink(transformer, PARAMS, TOKENS, **{"ratio": 0.5, "depth": True, **kw})


WRONG = {
    "nothing": (
        lambda: jp.shrink(
            lambda p, x: x @ p["w"] @ p["v"],
            {"w": draw(3, 4), "v": draw(4, 2)},
            draw(1, 3),
            ratio=0.5,
            depth=True,
        ),
        "no block and no layer",
    ),
    "share": (lambda: deep(depth=only(least=0.9)), r"no block.*layer1/down and 3 more carries"),
    "shares": (lambda: deep(depth=only(least=0.9, most=0.1)), "0 <= least <= most"),
    "depth": (lambda: deep(depth="cosine"), "give True, or a jp.Depth"),
    "score": (lambda: deep(depth=only("sine")), "is none of"),
    "score of nothing": (
        lambda: deep(depth=only({"layer7/.*": 1.0})),
        r"matches no block. The nearest: 'layer",
    ),
    "loss": (lambda: deep(depth=only(lambda y: y)), "it must return one number"),
    "NaN": (lambda: deep(depth=only(lambda y: jnp.nan * y.sum())), "NaN or Inf"),
    "where": (
        lambda: deep(where="layer9", depth=only()),
        r"where='layer9' matches nothing in this tree. Nearest: layer0/up",
    ),
    "keep": (
        lambda: deep(keep={"layer9": 1}, depth=only()),
        "matches no leaf that can be cut. The nearest: 'layer",
    ),
    "budget": (lambda: deep(ratio=None, flops=1e-4, depth=only()), "cannot be met"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_plan_whose_blocks_the_function_does_not_have():
    plan = jp.shrink(
        transformer, PARAMS, TOKENS, ratio=3 / 4, depth=only({"layer0/.*": 0.0, ".*": 1.0})
    ).plan
    odd = plan._replace(blocks=(("layer0/up",),))
    with pytest.raises(
        ValueError, match="does not fit this function: the block of layer0/up is left out"
    ):
        jp.shrink(transformer, PARAMS, TOKENS, plan=odd)
