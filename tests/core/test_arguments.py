"""Numbers given as arguments, leaves that are no arrays, weights that are no numbers: each is right
or one line."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.helpers import normal

W = normal((8, 6))
BAD_FRACTIONS = [
    1.5,
    -0.1,
    float("nan"),
    "0.5",
    "50%",
    True,
    np.float32(1),
    np.array(-1.0),
    jnp.float32(jnp.nan),
    [0.5],
]
BAD_COUNTS = [0, -1, 4.0, 2.5, True, "4", None, np.float32(4), jnp.float32(4), np.array([4])]


@pytest.mark.parametrize("x", BAD_FRACTIONS, ids=repr)
def test_a_sparsity_that_is_none(x):
    for make in (
        lambda: jp.prune(x),
        lambda: jp.prune({".*": x}),
        lambda: jp.prune(lambda step: x),
    ):
        with pytest.raises(ValueError, match=r"in \[0, 1\)"):
            make().init({"kernel": W})


@pytest.mark.parametrize("x", [0.5, np.float64(0.5), np.array(0.5), jnp.float32(0.5), 0])
def test_sparsities_of_all_types(x):
    for tree in (jp.prune(x), jp.prune({".*": x}), jp.prune(lambda step: x)):
        assert int(jnp.sum(~tree.init({"kernel": W})["kernel"].mask)) == round(float(x) * 48)


@pytest.mark.parametrize("x", BAD_COUNTS, ids=repr)
def test_a_count_that_is_none(x):
    made = [lambda: jp.cluster(x), lambda: jp.every(x, jp.identity)]
    made += [] if x is None else [lambda: jp.share(k=x), lambda: jp.factorize(rank=x)]
    for make in made:
        with pytest.raises(
            ValueError, match=r"give an integer of at least 1|takes one of|one rank"
        ):
            make()


@pytest.mark.parametrize(
    "k", [4, np.int64(4), np.uint8(4), jnp.int32(4)], ids=lambda k: type(k).__name__
)
def test_counts_of_all_types(k):
    assert jp.cluster(k).init(W).codebook.shape == (4,)
    assert jp.factorize(rank=k).init(normal((20, 30))).u.shape == (20, 4)


@pytest.mark.parametrize("threshold", ["0.1", float("nan"), float("inf"), [0.1], True])
def test_a_threshold_that_is_none(threshold):
    with pytest.raises(ValueError, match="one finite number"):
        jp.prune(threshold=threshold)


VERBS = {
    "cluster": jp.cluster(4),
    "one codebook": jp.cluster(4, scope="tree"),
    "tiles": jp.cluster(4, scope=(4,)),
    "rank": jp.factorize(rank=1),
    "energy": jp.factorize(energy=0.9),
    "prototypes": jp.share(k=2),
    "similar": jp.share(similarity=0.9),
    "8 bits": jp.quantize(),
    "one step": jp.entropy_quantize(step=0.1),
}


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("name", VERBS)
def test_weights_that_are_no_numbers_are_told_with_path_and_count(name, bad):
    with pytest.raises(ValueError, match=r"kernel.*has 2 NaN or infinite weights"):
        VERBS[name].init({"a": W, "kernel": W.at[0, :2].set(bad)})


def test_scores_that_are_no_numbers():
    with pytest.raises(ValueError, match=r"the score of kernel.* has 1 NaN"):
        jp.prune(0.5, score={"kernel": jnp.abs(W).at[0, 0].set(jnp.nan)}).init({"kernel": W})


NET = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
RISING = jp.prune(jp.schedules.cubic(0.9, 0, 10))
TREE = RISING.init(NET)
UPDATES = {
    "every": jp.every(2, RISING),
    "between": jp.between(0, 5, RISING),
    "both": jp.every(2, jp.between(0, 5, RISING)),
    "chain": jp.chain(RISING, jp.identity),
    "frozen": jp.freeze(RISING),
}


@pytest.mark.parametrize("name", UPDATES)
def test_functions_in_a_module_pass_through_updates(name):
    after = UPDATES[name].update(TREE, step=4)
    assert after.activation is NET.activation
    expected = TREE if name == "frozen" else RISING.update(TREE, step=4)
    for x, y in zip(
        jax.tree.leaves(eqx.filter(after, eqx.is_array)),
        jax.tree.leaves(eqx.filter(expected, eqx.is_array)),
    ):
        np.testing.assert_array_equal(x, y)


def test_functions_and_texts_pass_through_straight_through():
    params = {
        "kernel": W,
        "name": "a layer",
        "steps": 3,
        "act": jax.nn.relu,
        "none": None,
        "key": jax.random.key(0),
    }
    out = jp.straight_through(jp.quantize(bits=4))(params)
    assert (
        out["name"] == "a layer"
        and out["act"] is jax.nn.relu
        and out["steps"] == 3
        and out["kernel"].shape == (8, 6)
    )
    assert jp.straight_through(jp.quantize(bits=4))(NET)(jnp.ones(4)).shape == (2,)


# --- layers that vanish
# ---------------------------------------------------------------------------------------

STEM = {"stem": {"kernel": normal((3, 3, 3, 4), 1)}, "body": {"kernel": normal((3, 3, 4, 64), 2)}}
ALLOCATIONS = {
    "uniform": None,
    "global": jp.allocate.global_,
    "erk": jp.allocate.erk,
    "lamp": jp.allocate.lamp,
    "by hand": {"stem": {"kernel": 4}, "body": {"kernel": 60}},
}


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_no_layer_loses_its_last_channel(name):
    small = {"stem": {"kernel": 1e-6 * STEM["stem"]["kernel"]}, "body": STEM["body"]}
    tree = jp.prune(0.9, pattern=jp.patterns.channel(-1), allocate=ALLOCATIONS[name]).init(small)
    kept = tree["stem"]["kernel"].mask.any((0, 1, 2))
    assert int(kept.sum()) >= 1
    strongest = int(jnp.argmax(jnp.sum(jnp.abs(STEM["stem"]["kernel"]), (0, 1, 2))))
    assert bool(kept[strongest])


def test_nor_its_last_weight_traced_or_not():
    w = jnp.arange(1.0, 5.0).reshape(2, 2)
    assert jp.prune(0.9).init(w).mask.sum() == 1
    assert jax.jit(lambda s: jp.prune(s).init(w).mask)(0.99).sum() == 1
    assert (
        jp.prune(0.99, allocate=jp.allocate.global_)
        .init({"a": w, "b": 100 * normal((30, 30))})["a"]
        .mask.sum()
        == 1
    )
