"""The laws of a score, for every row of the table. A new score joins by one line there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import compiled_once, normal, same
from tests.scores_table import SCORES

every_score = pytest.mark.parametrize("row", SCORES, ids=lambda row: row.name)


def params_of(dtype=jnp.float32, seed=0):
    return {
        "conv": {"kernel": normal((3, 3, 8, 16), seed, dtype)},
        "dense": {"kernel": normal((16, 24), seed + 1, dtype)},
    }


def extras_of(row, params):
    grads = jax.tree.map(lambda x: normal(x.shape, 7, x.dtype), params)
    extras = {"grads": grads, "key": jax.random.key(3)}
    return {name: extras[name] for name in row.extras}


@every_score
@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
def test_scores_are_wide_floats_shaped_like_the_weights(row, dtype):
    params = params_of(dtype)
    scores = row.score(params, **extras_of(row, params))
    assert jax.tree.structure(scores) == jax.tree.structure(params)
    for w, s in zip(jax.tree.leaves(params), jax.tree.leaves(scores)):
        assert s.shape == w.shape and s.dtype == jnp.float32
        assert bool(jnp.all(jnp.isfinite(s)))


@pytest.mark.parametrize(
    "row", [r for r in SCORES if r.reference is not None], ids=lambda r: r.name
)
def test_scores_equal_the_formula_written_out(row):
    params = params_of()
    extras = extras_of(row, params)
    scores = row.score(params, **extras)
    grads = extras.get("grads", params)
    for w, g, s in zip(*map(jax.tree.leaves, (params, grads, scores))):
        want = row.reference(np.asarray(w, np.float64), np.asarray(g, np.float64))
        np.testing.assert_allclose(np.asarray(s), want, rtol=2e-5)


@every_score
def test_jit_equals_eager_and_compiles_once(row):
    params = params_of()
    extras = extras_of(row, params)
    run = compiled_once(jax.jit(lambda params, extras: row.score(params, **extras)))
    same(run(params, extras), row.score(params, **extras), exact=False)
    run(params_of(seed=20), extras)


@every_score
def test_pruning_by_a_score_keeps_the_largest_and_never_revives(row):
    params = params_of()
    extras = extras_of(row, params)
    scores = row.score(params, **extras)
    half = jp.prune(0.5, score=row.score).init(params, **extras)
    less = jp.prune(0.75, score=row.score).init(half, **extras)
    for name in params:
        kept = np.asarray(half[name]["kernel"].mask)
        s = np.asarray(scores[name]["kernel"])
        assert s[kept].min() >= s[~kept].max()
        assert not np.any(np.asarray(less[name]["kernel"].mask) & ~kept)
        assert int(less[name]["kernel"].mask.sum()) == kept.size - round(0.75 * kept.size)


@every_score
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)
def test_sharded_equals_unsharded(row, kind):
    if row.gathers and kind == AxisType.Explicit:
        pytest.skip(
            "a sort along a sharded axis is an error of JAX: gather the leaf, or use an Auto mesh"
        )
    params = {"kernel": normal((16, 24), 1)}
    extras = extras_of(row, params)
    alone = row.score(params, **extras)
    with jax.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(kind,))):
        sharded = jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(jax.sharding.get_mesh(), P("x", None))),
            params,
        )
        spread = extras_of(row, sharded)
        if "grads" in extras:
            spread["grads"] = jax.tree.map(
                lambda g, x: jax.device_put(g, x.sharding), extras["grads"], sharded
            )
        scores = jax.jit(lambda params, extras: row.score(params, **extras))(sharded, spread)
    np.testing.assert_allclose(np.asarray(scores["kernel"]), np.asarray(alone["kernel"]), rtol=2e-5)


def test_the_words_name_rows_of_the_table():
    assert set(jp.scores.BY_WORD) <= {row.name for row in SCORES}
