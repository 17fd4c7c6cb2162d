"""Python and recipes take the same words: expressions for paths, patterns, allocations and
scores."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.methods import allocate, scores
from tests.helpers import normal

PARAMS = {
    "dense": {"kernel": normal((8, 8)), "bias": jnp.ones(8)},
    "out": {"kernel": normal((8, 4), 1), "steps": jnp.arange(16).reshape(4, 4)},
}
KERNEL = "(.*/)?kernel"


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        np.testing.assert_array_equal(x, y)


VERBS = {
    "prune": lambda where: jp.prune(0.5, where=where),
    "prune, at": lambda where: jp.at(where, jp.prune(0.5)),
    "over": lambda where: jp.at(where, jp.over(0, jp.quantize(8, axis=None))),
    "cluster": lambda where: jp.cluster(4, where=where),
    "share": lambda where: jp.share(k=2, where=where),
    "quantize": lambda where: jp.quantize(4, where=where),
    "entropy_quantize": lambda where: jp.entropy_quantize(step=0.1, where=where),
    "factorize": lambda where: jp.factorize(rank=1, where=where),
    "chain": lambda where: jp.chain(jp.prune(0.5, where=where), jp.cluster(2, where=where)),
}


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_takes_an_expression_for_paths(name):
    by_text = VERBS[name](KERNEL).init(PARAMS)
    assert_same(by_text, VERBS[name](jp.where.path(KERNEL)).init(PARAMS))
    assert by_text["dense"]["bias"] is PARAMS["dense"]["bias"]
    # Text passes over leaves without floats, as a recipe does; a rule that names one is a mistake.
    everything = VERBS[name](".*/(kernel|steps)").init(PARAMS)
    assert everything["out"]["steps"] is PARAMS["out"]["steps"]
    with pytest.raises(ValueError, match=r"steps.*is not a float array"):
        VERBS[name](jp.where.path(".*/steps")).init(PARAMS)


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize(
    "where, message",
    [
        (
            "kernl",
            r"where='kernl' matches nothing.*Nearest: .*dense/kernel.*must match the whole path",
        ),
        (".*/steps", r"matches only leaves that hold no floats"),
        ("(", r"where='\(' is no regular expression"),
        (["kernel"], r"where=\['kernel'\].*give a regular expression for whole paths"),
        (0.5, "where=0.5.*give a regular expression"),
        ({"dense": {"kernel": "yes"}}, "dense/kernel is 'yes', not True or False"),
    ],
    ids=repr,
)
def test_a_where_that_selects_nothing_or_is_none(name, where, message):
    with pytest.raises(ValueError, match=message) as error:
        VERBS[name](where).init(PARAMS)
    assert "\n" not in str(error.value)


def test_text_beside_a_rule_is_a_rule():
    def paths(rule):
        return [slot for slot, hit in jax.tree.leaves_with_path(rule(PARAMS)) if hit]

    both = jp.where.weights & "out/.*"
    assert paths(both) == paths("out/.*" & jp.where.weights) == paths(jp.where.path("out/kernel"))
    assert paths("dense/bias" | both) == paths(jp.where.path("dense/bias|out/kernel"))
    for join in (lambda: jp.where.weights and both, lambda: not both):
        with pytest.raises(ValueError, match="join rules by &"):
            join()
    with pytest.raises(ValueError, match=r"give a rule of jp\.where, or a regular expression"):
        jp.where.weights & 3


def test_reports_and_transforms_take_expressions_too():
    assert [row.path for row in jp.summary(PARAMS, where=".*/(bias|steps)").rows] == [
        "dense/bias",
        "out/steps",
    ]
    assert jp.measure.density(PARAMS, where="dense/bias") == 1.0
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    half = jp.materialize(jp.prune(0.5, where="out/.*").init(PARAMS))
    masks = jp.keep_pruned(where="out/kernel").init(half).masks
    assert masks["dense"]["kernel"] is None and int(masks["out"]["kernel"].sum()) == 16
    penalty = jp.rate_penalty(1.0, where="out/kernel")
    added = penalty.update(zeros, penalty.init(PARAMS), PARAMS)[0]
    assert bool(added["out"]["kernel"].any()) and not added["dense"]["kernel"].any()
    assert jp.scores.only("out/kernel")(PARAMS)["dense"]["kernel"] is None
    nothing = [
        lambda: jp.summary(PARAMS, where="kernl"),
        lambda: jp.keep_pruned(where="kernl").init(PARAMS),
        lambda: jp.rate_penalty(1.0, where="kernl").init(PARAMS),
        lambda: jp.scores.only("kernl")(PARAMS),
    ]
    for call in nothing:
        with pytest.raises(ValueError, match=r"where='kernl' matches nothing.*Nearest: .*kernel"):
            call()


def test_transforms_work_where_their_compression_does():
    updates = jax.tree.map(jnp.zeros_like, PARAMS)
    for make in (lambda c: jp.project(c), lambda c: jp.attract(c, 1.0)):
        by_text = make(jp.prune(0.5, where="out/kernel"))
        by_rule = make(jp.prune(0.5, where=jp.where.path("out/kernel")))
        assert_same(
            by_text.update(updates, by_text.init(PARAMS), PARAMS)[0],
            by_rule.update(updates, by_rule.init(PARAMS), PARAMS)[0],
        )


WORDS = {
    "2:4": (jp.prune(pattern="2:4"), jp.prune(pattern=jp.patterns.n_m(2, 4))),
    "block 4x2": (
        jp.prune(0.5, pattern="block 4x2"),
        jp.prune(0.5, pattern=jp.patterns.block(4, 2)),
    ),
    "channel -1": (
        jp.prune(0.5, pattern="channel -1"),
        jp.prune(0.5, pattern=jp.patterns.channel(-1)),
    ),
    "channel": (jp.prune(0.5, pattern="channel"), jp.prune(0.5, pattern=jp.patterns.channel(-1))),
    "uniform": (jp.prune(0.5, allocate="uniform"), jp.prune(0.5)),
    "global": (jp.prune(0.5, allocate="global"), jp.prune(0.5, allocate=jp.allocate.global_)),
    "erk": (jp.prune(0.5, allocate="erk"), jp.prune(0.5, allocate=jp.allocate.erk)),
    "lamp": (jp.prune(0.5, allocate="lamp"), jp.prune(0.5, allocate=jp.allocate.lamp)),
    "magnitude": (jp.prune(0.5, score="magnitude"), jp.prune(0.5)),
    "random": (jp.prune(0.5, score="random"), jp.prune(0.5, score=jp.scores.random)),
    "lamp score": (jp.prune(0.5, score="lamp"), jp.prune(0.5, score=jp.scores.lamp)),
    "fpgm": (jp.prune(0.5, score="fpgm"), jp.prune(0.5, score=jp.scores.fpgm)),
    "saliency": (jp.prune(0.5, score="saliency"), jp.prune(0.5, score=jp.scores.saliency)),
    "bits": (jp.cluster(bits=3), jp.cluster(8)),
}


@pytest.mark.parametrize("name", WORDS)
def test_words_mean_what_the_functions_do(name):
    word, function = WORDS[name]
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    extra = {"key": jax.random.key(0), "grads": grads}
    assert_same(word.init(PARAMS, **extra), function.init(PARAMS, **extra))


RECIPES = {
    "2:4": {"pattern": "2:4"},
    "block 4x2": {"sparsity": 0.5, "pattern": "block 4x2"},
    "channel -1": {"sparsity": 0.5, "pattern": "channel -1"},
    **{word: {"sparsity": 0.5, "allocate": word} for word in get_args(allocate.Word)},
    **{f"score {word}": {"sparsity": 0.5, "score": word} for word in get_args(scores.Word)},
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_and_python_take_the_same_words(name):
    key = jax.random.key(0)
    by_recipe = jp.recipe([{"where": KERNEL, "prune": RECIPES[name]}]).init(PARAMS, key=key)
    assert_same(by_recipe, jp.prune(**RECIPES[name], where=KERNEL).init(PARAMS, key=key))


def test_all_words_of_recipes_have_a_meaning():
    assert set(get_args(allocate.Word)) == set(allocate.BY_WORD)
    assert set(get_args(scores.Word)) <= set(scores.BY_WORD)
    for word in get_args(allocate.Word):
        assert jp.recipe([{"where": ".*", "prune": {"sparsity": 0.5, "allocate": word}}])


UNKNOWN = {
    "pattern": (lambda: jp.prune(pattern="2-4"), r"prune\(pattern='2-4'\): choose one of '2:4', "),
    "pattern of another kind": (
        lambda: jp.prune(pattern=(2, 4)),
        r"prune\(pattern=\(2, 4\)\): choose one of",
    ),
    "allocate": (
        lambda: jp.prune(0.5, allocate="globl"),
        r"prune\(allocate='globl'\): choose one of 'global', ",
    ),
    "score": (
        lambda: jp.prune(0.5, score="randon"),
        r"prune\(score='randon'\): choose one of 'random', ",
    ),
    "score of data": (
        lambda: jp.prune(0.5, score="wanda"),
        r"made from data.*jp\.scores\.wanda\(jp\.input_rms",
    ),
    "curvature": (
        lambda: jp.cluster(4, curvature="magnitude"),
        r"cluster\(curvature='magnitude'\).*diagonal_fisher",
    ),
    "curvature of ranks": (
        lambda: jp.factorize(rank=1, curvature="fisher"),
        r"factorize\(curvature='fisher'\)",
    ),
    "key": (
        lambda: jp.prune(0.5, score="random").init(PARAMS),
        r"random needs key.*key=jax\.random\.key\(0\)",
    ),
    "grads": (
        lambda: jp.prune(0.5, score="saliency").init(PARAMS),
        r"saliency needs grads.*grads=grads",
    ),
    "init": (lambda: jp.cluster(4, init="kmeans"), r"cluster\(init='kmeans'\): choose one of"),
    "scope": (lambda: jp.cluster(4, scope="layer"), r"cluster\(scope='layer'\): choose one of"),
    "kind": (lambda: jp.quantize(kind="nf3"), r"quantize\(kind='nf3'\): choose one of 'nf4', "),
    "rounding": (lambda: jp.quantize(rounding="up"), r"quantize\(rounding='up'\): choose one of"),
    "range": (lambda: jp.quantize(range="min"), r"quantize\(range='min'\): choose one of"),
    "axis": (
        lambda: jp.quantize(axis="output"),
        r"quantize\(axis='output'\): choose one of 'outputs'",
    ),
    "layout": (
        lambda: jp.quantize(layout="pytorch"),
        r"quantize\(layout='pytorch'\): choose one of 'torch', 'jax'",
    ),
    "word for k": (lambda: jp.cluster(), "cluster takes one of k= and bits="),
    "two for k": (lambda: jp.cluster(4, bits=2), "cluster takes one of k= and bits="),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_words_list_the_nearest(name):
    make, message = UNKNOWN[name]
    with pytest.raises(ValueError, match=message):
        make()
