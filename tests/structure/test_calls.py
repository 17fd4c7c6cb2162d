"""How `shrink` is called: natural guesses are right, or end in one line with a fix; and what
evaluation keeps alive.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import jaxprune as jp
from jaxprune.structure.apply.evaluate import Evaluation
from jaxprune.structure.apply.narrow import Narrow

X = jnp.ones((2, 4))
PARAMS = {"a": jnp.diag(jnp.arange(1.0, 5.0)), "b": jnp.ones((4, 2))}
LINEN = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
VARIABLES = LINEN.init(jax.random.key(0), X)
EQUINOX = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))


def line(p, x, train=True):
    return jax.nn.relu(x @ p["a"]) @ p["b"] * (1 if train else 2)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a = nnx.Linear(4, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.b = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(nnx.relu(self.a(x)), deterministic=True))


def test_an_nnx_module_is_refused_and_the_call_that_is_named_works():
    model = Net()
    with pytest.raises(ValueError, match="NNX module") as caught:
        jp.shrink(model, X, ratio=0.5)
    first, call = str(caught.value).split("asked for: ")[1].split("; ")
    names = {"nnx": nnx, "jp": jp, "model": model, "x": X}
    exec(first, names)
    thin = eval(call.removesuffix(")") + ", ratio=0.5)", names)
    assert thin.widths["a/kernel"] == (4, 4)


def test_an_equinox_module_is_refused_and_the_call_that_is_named_works():
    for wrong in (
        lambda: jp.shrink(EQUINOX, X[0], ratio=0.5),
        lambda: jp.shrink(lambda m, x: m(x), EQUINOX, X[0], ratio=0.5),
    ):
        with pytest.raises(ValueError, match="Equinox module") as caught:
            wrong()
        first, call = str(caught.value).split(": ", 2)[2].split("; ")
        names = {"eqx": eqx, "jp": jp, "model": EQUINOX, "x": X[0]}
        exec(first, names)
        thin = eval(call.removesuffix(")") + ", ratio=0.5)", names)
        assert thin.params.layers[0].weight.shape == (4, 4)


WRONG = {
    "swapped": (
        lambda: jp.shrink(PARAMS, line, X, ratio=0.5),
        r"the function comes first, jp.shrink\(f, params, x\)",
    ),
    "swapped axes": (
        lambda: jp.coupled_axes(PARAMS, line, X),
        r"the function comes first, jp.coupled_axes\(f, params, x\)",
    ),
    "a linen module": (
        lambda: jp.shrink(LINEN, VARIABLES, X, ratio=0.5),
        r"jp.shrink\(model.apply, variables, x\)",
    ),
    "no collection": (
        lambda: jp.shrink(LINEN.apply, VARIABLES["params"], X, ratio=0.5),
        r'give {"params": params}',
    ),
    "percent": (
        lambda: jp.shrink(line, PARAMS, X, flops=50),
        r"in \(0, 1\]: flops=0.5 is 50 percent",
    ),
    "text": (
        lambda: jp.shrink(line, PARAMS, X, flops="0.5"),
        r"flops='0.5': a budget is a fraction",
    ),
    "yes": (lambda: jp.shrink(line, PARAMS, X, flops=True), r"flops=True: a budget is a fraction"),
    "another word": (
        lambda: jp.shrink(line, PARAMS, X, sparsity=0.5),
        r"give a budget .*; sparsity is given to f",
    ),
    "unknown": (
        lambda: jp.shrink(line, PARAMS, X, ratio=0.5, sparsity=0.5),
        r"line\(params, …\) cannot be called.*sparsity",
    ),
    "no arguments": (
        lambda: jp.shrink(line, PARAMS, ratio=0.5),
        r"line\(params\) cannot be called.*'x'",
    ),
    "shapes": (
        lambda: jp.shrink(line, jax.eval_shape(lambda: PARAMS), X, ratio=0.5),
        r"a is a shape.*give arrays",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_guess_ends_in_one_line_with_the_fix(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_keywords_are_given_to_the_function():
    thin = jp.shrink(line, PARAMS, X, ratio=0.5, train=False)
    assert_allclose(
        thin.apply(thin.params, X, train=False), 2 * thin.apply(thin.params, X), rtol=1e-6
    )
    assert_allclose(thin.apply(thin.params, X), line(thin.plan.mask(PARAMS), X), rtol=1e-6)
    strict = jp.shrink(lambda p, x, *, train: line(p, x, train), PARAMS, X, ratio=0.5, train=True)
    assert strict.widths == thin.widths


def test_batches_are_trees_and_budgets_may_be_several():
    of_dict = jp.shrink(lambda p, batch: line(p, batch["x"]), PARAMS, {"x": X}, ratio=0.5)
    of_pair = jp.shrink(lambda p, batch: line(p, batch[0]), PARAMS, (X, None), ratio=0.5)
    both = jp.shrink(line, PARAMS, X, flops=0.9, params=0.5)
    of_shapes = jp.shrink(
        line, PARAMS, jax.ShapeDtypeStruct((2, 4), jnp.float32), ratio=np.float32(0.5)
    )
    assert of_dict.widths == of_pair.widths == both.widths == of_shapes.widths


WIDE = jnp.ones((64, 8))
CHAIN = [jnp.eye(8) for _ in range(12)]


def alive():
    """How many activations are held."""
    return sum(x.shape == WIDE.shape for x in jax.live_arrays())


def chain(params, x, see=lambda x: x):
    for w in params:
        x = see(jax.nn.relu(x @ w))
    return x


def test_activations_are_let_go_after_their_last_use(monkeypatch):
    """Outside of jit; inside, XLA does it."""
    seen = []

    def watched(method):
        def call(*args):
            seen.append(alive())
            return method(*args)

        return call

    monkeypatch.setattr(Narrow, "results", watched(Narrow.results))
    monkeypatch.setattr(Evaluation, "equation", watched(Evaluation.equation))
    thin = jp.shrink(chain, CHAIN, jnp.ones((1, 8)), ratio=0.99)
    seen.clear()
    thin.apply(thin.params, WIDE)
    assert len(seen) > 12 and max(seen) <= seen[0] + 3
    seen.clear()
    jp.input_rms(chain, CHAIN, [(WIDE,)])
    assert len(seen) > 12 and max(seen) <= seen[0] + 4


def test_taps_let_go_of_what_is_not_asked_for():
    seen = []

    def note(x):
        seen.append(alive())
        return x

    def f(params, x):
        return jp.tap(chain(params, chain(params, x, lambda x: jp.tap(x, "here"))), "end")

    jp.plant(f, {"here": note, "end": note})(CHAIN, WIDE)
    assert (
        len(seen) == 13 and seen[-1] <= seen[0] + 13
    )  # the taps are brought out; the other 24 values are not
