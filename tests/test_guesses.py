"""What is typed first either works or ends in one line that says what to write."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp
from tests.helpers import normal

PARAMS = {"kernel": normal((8, 8)), "bias": jnp.ones(8)}
DENSE = nn.Dense(3)
X = jnp.ones((1, 8))
VARIABLES = DENSE.init(jax.random.key(0), X)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("guesses") / "model.jp"
    jp.save(path, PARAMS)
    return path


def test_load_takes_the_template_as_its_second_argument(path):
    assert set(jp.load(path, PARAMS)) == set(jp.load(str(path), like=PARAMS)) == {"kernel", "bias"}


HALF = jp.prune(0.5)
NETWORK = jp.distill.linen(DENSE)
TEACHER = jp.distill.Online(NETWORK, VARIABLES["params"])
DISTILLER = jp.distill.distiller(NETWORK, jp.distill.losses.forward_kl, optax.sgd(0.1))

LINES = {
    "bits as a dtype": (lambda _: jp.quantize("int8"), r"quantize\(8\)"),
    "bits as a dtype of jax": (lambda _: jp.quantize(jnp.int8), r"quantize\(8\)"),
    "bits as a dtype of numpy": (lambda _: jp.quantize(np.dtype("int4")), r"quantize\(4\)"),
    "bits in words": (lambda _: jp.quantize("4 bit"), r"quantize\(4\)"),
    "a kind for bits": (lambda _: jp.quantize("nf4"), r"quantize\(kind='nf4'\)"),
    "no kind for bits": (lambda _: jp.quantize("fp8"), r"quantize\(kind='nf4'\).*'float8_e4m3'"),
    "a compression called": (lambda _: HALF(PARAMS), r"compression\.init\(params\)"),
    "axis of over": (lambda _: jp.over(0.5, HALF), r"over\(axis=0\.5\): give an integer"),
    "over swapped": (lambda _: jp.over(HALF, 0), "comes last"),
    "every swapped": (lambda _: jp.every(HALF, 2), "comes last"),
    "between swapped": (lambda _: jp.between(HALF, 0, 2), "comes last"),
    "at swapped": (lambda _: jp.at(HALF, "kernel"), "comes last"),
    "a chain of a list": (lambda _: jp.chain([HALF, jp.cluster(2)]), r"jp\.chain\(a, b\)"),
    "a chain of a verb": (lambda _: jp.chain(jp.prune, jp.cluster(2)), "call it"),
    "a frozen number": (lambda _: jp.freeze(0.5), "not a compression"),
    "a projected verb": (lambda _: jp.project(jp.prune), "call it"),
    "an attracting number": (lambda _: jp.attract(0.5, HALF), "attract.*not a compression"),
    "a number straight through": (lambda _: jp.straight_through(0.5), "not a compression"),
    "materialize a method": (lambda _: jp.materialize(HALF), r"compression\.init\(params\)"),
    "materialize its init": (lambda _: jp.materialize(HALF.init), r"compression\.init\(params\)"),
    "materialize a module": (lambda _: jp.materialize(DENSE), r"model\.init\(key, x\)"),
    "bits of a method": (lambda _: jp.nbits(HALF), r"compression\.init\(params\)"),
    "parts of a module": (lambda _: jp.partition(DENSE), r"model\.init\(key, x\)"),
    "summary of a module": (lambda _: jp.summary(DENSE), r"model\.init\(key, x\)"),
    "summary of an optimizer": (
        lambda _: jp.summary(optax.sgd(0.1)),
        "in place of a tree of weights",
    ),
    "density of a function": (
        lambda _: jp.measure.density(jnp.sin),
        "in place of a tree of weights",
    ),
    "a module compressed": (lambda _: HALF.init(DENSE), r"model\.init\(key, x\)"),
    "nothing compressed": (lambda _: HALF.init(None), "has no leaves"),
    "a path compressed": (lambda path: HALF.init(str(path)), "matches nothing"),
    "save swapped": (
        lambda path: jp.save(PARAMS, path),
        r"jp\.save\('model\.jpz', params\).*swapped",
    ),
    "save a module": (lambda path: jp.save(path, DENSE), r"model\.init\(key, x\)"),
    "save a method": (lambda path: jp.save(path, HALF), r"compression\.init\(params\)"),
    "load swapped": (
        lambda path: jp.load(PARAMS, path),
        r"jp\.load\('model\.jpz', like=params\).*swapped",
    ),
    "load nothing": (lambda _: jp.load(None), r"jp\.load\('model\.jpz'"),
    "load into a module": (lambda path: jp.load(path, DENSE), r"model\.init\(key, x\)"),
    "load a choice that is none": (
        lambda path: jp.load(path, as_="jax"),
        r"load\(as_='jax'\): choose one of",
    ),
    "load an expression that is none": (
        lambda path: jp.load(path, only="("),
        "no regular expression",
    ),
    "inspect params": (lambda _: jp.inspect(PARAMS), r"jp\.inspect\('model\.jpz'\)"),
    "reap a path that is none": (lambda _: jp.reap(jnp.sin, "("), "no regular expression"),
    "shrink swapped": (
        lambda _: jp.shrink(VARIABLES, DENSE.apply, X),
        r"jp\.shrink\(f, params, x\)",
    ),
    "shrink a module": (
        lambda _: jp.shrink(nnx.Linear(8, 3, rngs=nnx.Rngs(0)), X),
        r"nnx\.split\(model\); jp\.shrink\(lambda params, x",
    ),
    "shrink by a score with a key": (
        lambda _: jp.shrink(DENSE.apply, VARIABLES, X, score="random", flops=0.5),
        r"score=jp\.scores\.random\(params, key=jax\.random\.key\(0\)\)",
    ),
    "shrink where nothing is": (
        lambda _: jp.shrink(DENSE.apply, VARIABLES, X, where="kernl", flops=0.5),
        "where='kernl' matches nothing.*Nearest: params/kernel",
    ),
    "shrink without a budget": (
        lambda _: jp.shrink(DENSE.apply, VARIABLES, X, train=False),
        "give a budget.*train is given to f",
    ),
    "a batch that is a pair": (
        lambda _: DISTILLER.step(
            DISTILLER.init(VARIABLES["params"], {"x": X}, TEACHER, key=jax.random.key(0)),
            (X, X),
            TEACHER,
        ),
        "give {'x': inputs, 'y': labels}",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_guesses_end_in_one_line_with_the_fix(name, path):
    guess, message = LINES[name]
    with pytest.raises(ValueError, match=message) as error:
        guess(path)
    assert "\n" not in str(error.value)


# --- masked arrays of NumPy
# ---------------------------------------------------------------------------------------

HIDDEN = {
    "layer": {"kernel": np.ma.masked_array(np.ones((4, 4), np.float32), mask=np.eye(4, dtype=bool))}
}
TAKERS = {
    "prune": jp.prune(0.5).init,
    "cluster": jp.cluster(2).init,
    "one codebook": jp.cluster(2, scope="tree").init,
    "share": jp.share(k=2).init,
    "quantize": jp.quantize(8).init,
    "entropy_quantize": jp.entropy_quantize(step=0.1).init,
    "factorize": jp.factorize(rank=1).init,
    "over": jp.over(0, jp.quantize(8, axis=None)).init,
    "straight_through": jp.straight_through(jp.quantize(8)),
    "summary": jp.summary,
    "sizes": jp.measure.sizes,
    "shrink": lambda tree: jp.shrink(
        lambda p, x: x @ p["layer"]["kernel"], tree, jnp.ones((1, 4)), flops=0.5
    ),
    "keep_pruned": jp.keep_pruned().init,
}


@pytest.mark.parametrize("name", TAKERS)
def test_masked_arrays_are_refused_with_path_and_fix(name):
    with pytest.raises(ValueError, match=r"layer/kernel is a masked array.*\.filled\(0\)"):
        TAKERS[name](HIDDEN)
    filled = {"layer": {"kernel": HIDDEN["layer"]["kernel"].filled(0)}}
    if name != "shrink":
        TAKERS[name](filled)


def test_masked_arrays_are_not_saved(path):
    with pytest.raises(ValueError, match=r"layer/kernel is a masked array.*\.filled\(0\)"):
        jp.save(path.with_name("masked.jp"), HIDDEN)


def test_weights_of_an_error_are_finite_and_not_negative():
    for make in (lambda h: jp.cluster(2, curvature=h), lambda h: jp.factorize(rank=1, curvature=h)):
        for bad, words in (
            (jnp.nan, "3 NaN or infinite"),
            (jnp.inf, "3 NaN or infinite"),
            (-1.0, "3 negative"),
        ):
            h = {"kernel": jnp.ones((8, 8)).at[0, :3].set(bad)}
            with pytest.raises(ValueError, match=rf"the curvature of kernel.*has {words} entries"):
                make(h).init({"kernel": PARAMS["kernel"]})
    hidden = jp.prune(0.5).init({"kernel": PARAMS["kernel"]})
    h = {"kernel": jnp.where(hidden["kernel"].mask, 1.0, jnp.nan)}
    assert jp.cluster(2, curvature=h).init(hidden)["kernel"].values.codebook.shape == (2,)
