"""The loop that one writes first, on trees of codes: floats move, masks and integers stay, before
and after a file."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.core.hidden import zero_hidden
from tests.helpers import compiled_once, normal
from tests.storage.trees import codes


@pytest.fixture(autouse=True)
def standard_promotion():
    """What optax asks for, and what JAX does by default."""
    with jax.numpy_dtype_promotion("standard"):
        yield


PARAMS = {
    "a": {"kernel": normal((16, 8), 1)},
    "b": {"kernel": normal((8, 12), 2), "bias": jnp.ones(12)},
}
CODES = {
    "pruned": jp.prune(0.5),
    "clusters": jp.cluster(k=5),
    "pruned clusters": jp.chain(jp.prune(0.5), jp.cluster(k=5)),
    "8 bits": jp.quantize(bits=8),
    "4 bits, affine": jp.quantize(bits=4, kind="affine"),
    "binary": jp.quantize(bits=1),
    "prototypes": jp.share(k=3),
    "factors": jp.factorize(rank=2),
}
RAW = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1)),
    "rmsprop": optax.rmsprop(0.1),
    "accumulated": optax.MultiSteps(optax.adam(0.1), 2),
    "lion": optax.lion(0.1, weight_decay=0.0),
}
FLOATS_ONLY = RAW | {
    "adamw": optax.adamw(0.1, weight_decay=0.5),
    "lamb": optax.lamb(0.1, weight_decay=0.5),
    "lars": optax.lars(0.1, weight_decay=0.5),
    "lion": optax.lion(0.1, weight_decay=0.5),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=4),
    "masked": optax.masked(
        optax.adamw(0.1, weight_decay=0.5), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
}


def loss(params):
    return jnp.sum((params["a"]["kernel"] @ params["b"]["kernel"] + params["b"]["bias"]) ** 2)


def trained(tree, optimizer, steps=3):
    state = optimizer.init(tree)
    for _ in range(steps):
        _, gradient = jp.value_and_grad(loss)(tree)
        updates, state = optimizer.update(gradient, state, tree)
        tree = optax.apply_updates(tree, updates)
    return tree


def check_only_floats_moved(before, after):
    moved = 0
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if not jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_array_equal(x, y)
        moved += bool(jnp.any(x != y))
    assert moved


@pytest.mark.parametrize("code", ["pruned clusters", "8 bits", "prototypes"])
@pytest.mark.parametrize("name", RAW)
def test_the_loop_of_optax_works_on_a_compressed_tree(name, code):
    tree = CODES[code].init(PARAMS)
    check_only_floats_moved(tree, trained(tree, RAW[name], steps=2))


@pytest.mark.parametrize("code", ["pruned clusters", "4 bits, affine", "binary"])
@pytest.mark.parametrize("name", FLOATS_ONLY)
def test_with_floats_only_no_optimizer_moves_an_integer(name, code):
    tree = CODES[code].init(PARAMS)
    check_only_floats_moved(tree, trained(tree, jp.floats_only(FLOATS_ONLY[name])))


def test_float8_codes_stay_too():
    tree = jp.quantize(kind="float8_e4m3").init(PARAMS)
    after = trained(tree, jp.floats_only(optax.adamw(0.1)))
    assert after["a"]["kernel"].q.dtype == tree["a"]["kernel"].q.dtype
    assert after["a"]["kernel"].q.tobytes() == tree["a"]["kernel"].q.tobytes()


def test_the_whole_tree_and_its_free_part_train_alike():
    tree = CODES["pruned clusters"].init(PARAMS)
    optimizer = optax.adam(0.1)
    free, fixed = jp.partition(tree)
    state = optimizer.init(free)
    for _ in range(3):
        _, gradient = jp.value_and_grad(loss)(jp.combine(free, fixed))
        updates, state = optimizer.update(gradient, state, free)
        free = optax.apply_updates(free, updates)
    for x, y in zip(
        jax.tree.leaves(jp.combine(free, fixed)), jax.tree.leaves(trained(tree, optimizer))
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_a_compiled_step_keeps_its_types_and_scans():
    optimizer = jp.floats_only(optax.adamw(0.1))

    def step(carry, _):
        tree, state = carry
        value, gradient = jp.value_and_grad(loss)(tree)
        updates, state = optimizer.update(gradient, state, tree)
        return (optax.apply_updates(tree, updates), state), value

    tree = CODES["pruned clusters"].init(PARAMS)
    start = tree, optimizer.init(tree)
    (last, _), values = jax.lax.scan(step, start, None, length=3)
    assert values[2] < values[0]
    compiled = compiled_once(jax.jit(step))
    carry = start
    for _ in range(3):
        carry, _ = compiled(carry, None)
    for x, y in zip(jax.tree.leaves(carry[0]), jax.tree.leaves(last)):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def test_without_params_it_says_what_it_needs():
    tree = CODES["pruned"].init(PARAMS)
    optimizer = jp.floats_only(optax.sgd(0.1))
    with pytest.raises(ValueError, match="give the params too"):
        optimizer.update(jp.value_and_grad(loss)(tree)[1], optimizer.init(tree))


# --- what a mask hides
# ---------------------------------------------------------------------------------------

SCHEDULE = jp.prune(lambda step: 0.25 + 0.05 * step)
HIDING = {
    "pruned": jp.prune(0.5),
    "global": jp.prune(0.5, allocate=jp.allocate.global_),
    "2:4": jp.prune(pattern=jp.patterns.n_m(2, 4)),
    "channels": jp.prune(0.5, pattern=jp.patterns.channel(-1)),
    "pruned clusters": CODES["pruned clusters"],
    "pruned integers": jp.chain(jp.prune(0.5), jp.quantize(bits=8)),
    "pruned small integers": jp.chain(jp.prune(0.5), jp.quantize(bits=3)),
    "pruned binary": jp.chain(jp.prune(0.5), jp.quantize(bits=1)),
    "clusters pruned": jp.chain(jp.cluster(k=5), jp.prune(0.5)),
    "pruned twice": jp.chain(jp.prune(0.3), jp.prune(0.6)),
    "stacked": jp.over(1, jp.prune(0.5)),
    "one step": jp.chain(jp.prune(0.5), jp.entropy_quantize(step=0.2)),
}


@pytest.mark.parametrize("name", HIDING)
def test_codes_in_memory_are_those_of_a_file(name, tmp_path):
    tree = HIDING[name].init(PARAMS)
    jp.save(tmp_path / "x", tree)
    back = jp.load(tmp_path / "x")
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert jp.distill.fingerprint(tree) == jp.distill.fingerprint(back)


def test_an_update_hides_zeros_too():
    tree = SCHEDULE.update(SCHEDULE.init(PARAMS, step=0), step=8)
    compiled = jax.jit(lambda t: SCHEDULE.update(t, step=8))(SCHEDULE.init(PARAMS, step=0))
    for code in (tree["a"]["kernel"], compiled["a"]["kernel"]):
        assert (
            not np.any(np.asarray(code.values)[~np.asarray(code.mask)])
            and np.mean(np.asarray(code.mask)) < 0.5
        )


@pytest.mark.parametrize("name", codes())
def test_what_a_file_does_not_hold_is_zero(name, tmp_path):
    """Codes that somebody made by hand: their fingerprint is that of the file."""
    tree = {"x": codes()[name]}
    jp.save(tmp_path / "x", tree)
    assert jp.distill.fingerprint(zero_hidden(tree, host=True)) == jp.distill.fingerprint(
        jp.load(tmp_path / "x")
    )


@pytest.mark.parametrize("name", ["lamb", "lars", "adafactor"])
def test_norms_are_the_same_before_and_after_a_file(name, tmp_path):
    tree = jp.prune(0.9).init(PARAMS)
    jp.save(tmp_path / "x", tree)
    before, after = (
        trained(t, jp.floats_only(FLOATS_ONLY[name])) for t in (tree, jp.load(tmp_path / "x"))
    )
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
        np.testing.assert_array_equal(x, y)
