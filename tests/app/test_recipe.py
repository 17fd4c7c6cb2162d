"""Recipes: what the rules stand for, who takes which leaf, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.app.recipe import describe, one, parse, recipe
from jaxprune.app.recipes.rules import to_toml
from jaxprune.report.measure import density

KERNEL = "(.*/)?kernel"


@pytest.fixture
def params():
    draw = np.random.default_rng(0)

    def layer(n, m):
        return {"kernel": jnp.asarray(draw.normal(size=(n, m)), jnp.float32), "bias": jnp.zeros(m)}

    return {"dense1": layer(8, 16), "dense2": layer(16, 16), "out": layer(16, 4)}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


VERBS = [
    ({"prune": 0.75}, jp.prune(0.75)),
    (
        {"prune": {"sparsity": 0.9, "allocate": "global"}},
        jp.prune(0.9, allocate=jp.allocate.global_),
    ),
    ({"prune": {"sparsity": 0.9, "allocate": "erk"}}, jp.prune(0.9, allocate=jp.allocate.erk)),
    ({"prune": {"threshold": 0.5}}, jp.prune(threshold=0.5)),
    ({"prune": {"pattern": "2:4"}}, jp.prune(pattern=jp.patterns.n_m(2, 4))),
    (
        {"prune": {"sparsity": 0.5, "pattern": "block 4x4"}},
        jp.prune(0.5, pattern=jp.patterns.block(4, 4)),
    ),
    (
        {"prune": {"sparsity": 0.5, "pattern": "channel -1"}},
        jp.prune(0.5, pattern=jp.patterns.channel(-1)),
    ),
    ({"cluster": 4}, jp.cluster(k=4)),
    ({"cluster": {"k": 4, "init": "linear"}}, jp.cluster(k=4, init="linear")),
    ({"quantize": 8}, jp.quantize(bits=8)),
    ({"quantize": {"bits": 4, "kind": "affine"}}, jp.quantize(bits=4, kind="affine")),
    ({"entropy_quantize": {"step": 0.1}}, jp.entropy_quantize(step=0.1)),
    ({"entropy_quantize": {"sqnr": 20}}, jp.entropy_quantize(sqnr=20)),
    ({"entropy_quantize": {"bits_per_weight": 2}}, jp.entropy_quantize(bits_per_weight=2)),
    ({"factorize": 2}, jp.factorize(rank=2)),
    ({"factorize": {"energy": 0.9}}, jp.factorize(energy=0.9)),
    ({"share": {"k": 2}}, jp.share(k=2)),
]


@pytest.mark.parametrize("verb, expected", VERBS, ids=[str(v) for v, _ in VERBS])
def test_each_verb_is_the_function_of_its_name(verb, expected, params):
    same(
        recipe([{"where": KERNEL, **verb}]).init(params),
        jp.at(jp.where.path(KERNEL), expected).init(params),
    )


def test_verbs_of_a_rule_are_a_chain(params):
    made = recipe([{"where": KERNEL, "codebook_bits": 8, "cluster": 4, "prune": 0.5}]).init(params)
    stages = jp.chain(
        jp.prune(0.5), jp.cluster(k=4), jp.at(jp.where.field("codebook"), jp.quantize(bits=8))
    )
    same(made, stages.init(params))


def test_first_match_wins(params):
    keep = {"where": "out/.*", "keep": True}
    prune = {"where": "dense1/kernel", "prune": 0.5}
    rules = [keep, prune, {"where": KERNEL, "cluster": 4}]
    tree = recipe(rules).init(params)
    assert isinstance(tree["out"]["kernel"], jax.Array)
    assert isinstance(tree["dense1"]["kernel"], jp.Masked)
    assert isinstance(tree["dense2"]["kernel"], jp.Clustered)
    taken = [("out/bias", "out/kernel"), ("dense1/kernel",), ("dense2/kernel",)]
    assert [m.paths for m in describe(rules, params)] == taken


def test_a_later_recipe_works_on_codes(params):
    sparse = recipe([{"where": KERNEL, "prune": 0.5}]).init(params)
    tree = recipe([{"where": KERNEL, "cluster": 4}]).init(sparse)
    tree = recipe([{"where": KERNEL, "codebook_bits": 8}]).init(tree)
    assert isinstance(tree["out"]["kernel"].values.codebook, jp.Quantized)
    same(sparse["out"]["kernel"].mask, tree["out"]["kernel"].mask)


def test_a_schedule_makes_pruning_gradual(params):
    c = recipe([{"where": KERNEL, "prune": 0.8}], schedule=lambda s: jp.schedules.cubic(s, 0, 10))
    tree = c.init(params, step=0)
    assert np.asarray(tree["dense1"]["kernel"].mask).all()
    end = jax.jit(c.update)(tree, step=jnp.int32(10))
    assert density(end, where=jp.where.path(KERNEL)) == pytest.approx(0.2, abs=0.01)


def test_toml_and_back():
    text = to_toml(
        [r for verb, _ in VERBS for r in [{"where": 'a"b\\d', **verb}]]
        + [{"where": "x", "keep": True}]
    )
    assert to_toml(text) == text
    assert parse(text) == parse(to_toml(parse(text)))


def test_a_file_is_a_recipe(tmp_path, params):
    path = tmp_path / "recipe.toml"
    path.write_text('[[rule]]\nwhere = "(.*/)?kernel"\nprune = 0.5\n')
    same(recipe(path).init(params), recipe(path.read_text()).init(params))
    same(recipe(str(path)).init(params), recipe(path).init(params))


WRONG = [
    ([{"where": "dense3/kernel", "prune": 0.5}], "dense1/kernel"),
    ([{"where": ".*", "keep": True}, {"where": "out/kernel", "prune": 0.5}], "rule 1 takes all"),
    ([{"where": KERNEL, "pruen": 0.5}], "Did you mean 'prune'"),
    ([{"where": KERNEL, "prune": {"sparsty": 0.5}}], "Did you mean 'sparsity'"),
    ([{"where": KERNEL, "cluster": {"n": 4}}], "Did you mean"),
    ([{"where": KERNEL}], "does nothing"),
    ([{"where": KERNEL, "prune": 0.5, "keep": True}], "keeps its leaves and changes them"),
    ([{"where": KERNEL, "entropy_quantize": {}}], "one of step="),
    ([{"where": KERNEL, "entropy_quantize": {"step": 0.1, "sqnr": 20}}], "one of step="),
    ([{"where": KERNEL, "entropy_quantize": {"sqnr": -1}}], "positive"),
    ([{"where": KERNEL, "entropy_quantize": 25}], "entropy_quantize"),
    ([{"where": KERNEL, "prune": 1.0}], r"\[0, 1\)"),
    ([{"where": KERNEL, "prune": {}}], "sparsity="),
    ([{"where": KERNEL, "prune": {"pattern": "2-4"}}], "choose one of '2:4'"),
    ([{"where": KERNEL, "prune": {"sparsity": 0.5, "allocate": "glbal"}}], "glbal"),
    ([{"where": "(", "prune": 0.5}], "rule 1"),
    ([{"prune": 0.5}], "where"),
    ('[[rule]]\nwhere = "a"\nprune = ', "not whole TOML"),
]


@pytest.mark.parametrize("rules, message", WRONG, ids=[m for _, m in WRONG])
def test_what_is_refused(rules, message, params):
    with pytest.raises(ValueError, match=message):
        recipe(rules).init(params)


def test_misspelt_paths_list_five_neighbours(params):
    with pytest.raises(ValueError) as e:
        recipe([{"where": "dense1/kernal", "prune": 0.5}]).init(params)
    assert len(re.findall(r"'[\w/]+(?:kernel|bias)'", str(e.value).split("Nearest")[1])) >= 5


def test_a_rule_that_keeps_is_the_identity(params):
    same(one(parse([{"where": ".*", "keep": True}])[0]).init(params), params)
