"""The experiments on LeNet-5 and on characters at a small size, and what they share."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments.data import Data
from experiments.models import mlp
from experiments.structured import arms, char_lm, lenet5, measures, training
from tests.helpers import digit_images


@pytest.mark.slow
def test_lenet5_is_cut_trained_and_compared(tmp_path):
    tiny = {
        "seeds": [0],
        "width": 0.2,
        "batch": 8,
        "steps": 2,
        "budgets": {"0.3": [0.6, 0.3]},
        "speed_batch": 4,
    }
    tiny |= {
        "recovery": [1, 2],
        "fisher": {"batches": 2, "batch": 4},
        "arms": ["fisher", "scratch"],
    }
    settings = lenet5.SETTINGS | tiny
    data = Data(digit_images(16, 0), digit_images(8, 1), digit_images(8, 2))
    run = lenet5.control(lenet5.one_seed(settings, data, 0))
    found = measures.averaged([run, run])
    json.dumps(found)
    arm = run["0.3"]["fisher"]
    assert (
        arm["flops"] <= 0.3 * run["dense"]["flops"]
        and len(arm["path"]) == 2
        and arm["path"][1]["check"] < 1e-5
    )
    assert (
        arm["path"][1]["trained"]
        == arm["end"]
        != arm["path"][1]["cut"]
        != run["0.3"]["scratch"]["end"]
    )
    assert (
        run["control"] != run["dense"]["end"]
        and found["dense"]["flops"]["values"] == [run["dense"]["flops"]] * 2
    )
    lenet5.plot(tmp_path / "error.png", found, settings, 2)
    assert (tmp_path / "error.png").stat().st_size > 1000


def test_copies_are_moved_and_keep_their_labels():
    x, y = digit_images(4, 0)
    task = lenet5.with_copies(
        arms.task(lenet5.SETTINGS, mlp((784, 10)), Data((x, y), (x, y), (x, y))), 2
    )
    assert task.data["x"].shape == (12, 28, 28, 1) and task.data["y"].tolist() == y.tolist() * 3
    parts = np.split(np.asarray(task.data["x"]), 3)
    np.testing.assert_array_equal(parts[0], x)
    around = [np.roll(x, (i, j), (1, 2))[:, 1:-1, 1:-1] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    for part in parts[1:]:
        same = np.stack([np.all(part[:, 1:-1, 1:-1] == one, (1, 2, 3)) for one in around])
        assert same.any(0).all() and not np.array_equal(part, x)
    assert not np.array_equal(parts[1], parts[2])


@pytest.mark.slow
def test_every_arm_starts_from_its_own_network_and_is_trained():
    settings = lenet5.SETTINGS | {
        "batch": 8,
        "steps": 3,
        "recovery": [1, 2],
        "fisher": {"batches": 2, "batch": 4},
    }
    settings |= {"cut": {}, "arms": ["fisher", "labels", "scratch"], "speed_batch": 4}
    rng = np.random.default_rng(0)

    def split(n):
        return (rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 3, n).astype(np.int32))

    task = arms.task(settings, mlp((6, 12, 3)), Data(split(16), split(8), split(8)))
    whole = arms.dense(task, 0)
    task = arms.taught_by(task, whole)
    found = arms.budgeted(task, whole, [0.6, 0.3], 0)
    dense = task.costs(task.net.apply, whole)["flops"]
    for arm in ("fisher", "labels"):
        first, last = found[arm]["path"]
        assert (
            found[arm]["flops"] <= 0.3 * dense
            and last["check"] < 1e-5
            and last["trained"] == found[arm]["end"]
        )
        assert (
            len({one[when]["test"]["loss"] for one in (first, last) for when in ("cut", "trained")})
            == 4
        )
    units = found["fisher"]["shapes"]["dense1/bias"][0]
    assert units * (2 * 6 + 2 * 3 + 2) <= 0.3 * dense < (units + 2) * (2 * 6 + 2 * 3 + 2)
    ends = [found[arm]["end"]["test"]["loss"] for arm in settings["arms"]]
    ends.append(arms.trained_on(task, whole, 0)["end"]["test"]["loss"])
    assert (
        len(set(ends)) == 4
        and found["fisher"]["path"][0]["cut"] == found["labels"]["path"][0]["cut"]
    )
    assert found["speed"]["times_faster"] > 0


def text(n, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 9, (n, 7)).astype(np.int32)
    return ids[:, :-1], ids[:, 1:]


TINY = {
    "seeds": [0],
    "vocabulary": 9,
    "length": 6,
    "batch": 2,
    "steps": 2,
    "recovery": [2],
    "speed_batch": 2,
}
TINY |= {
    "models": {
        "transformer": {"layers": 1, "width": 8, "heads": 2},
        "gru": {"embedding": 4, "width": 8},
    }
}
TINY |= {
    "dense_seed": 0,
    "fisher": {"batches": 2, "batch": 1},
    "arms": ["fisher", "scratch"],
    "warmup": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "gru"])
def test_a_character_model_is_cut_trained_and_compared(name, tmp_path):
    settings = char_lm.SETTINGS | TINY
    settings["cuts"] = {k: settings["cuts"][k] for k in ("global", "group, stream")}
    found = char_lm.model(name, settings, Data(text(8, 0), text(4, 1), text(4, 2)))
    json.dumps(found)
    losses = found["0.5"]["loss_after_each_cut"]["fisher"]
    assert found["0.5"]["cut"]["fisher"] == min(losses, key=losses.get)
    assert set(losses) == (
        {"global"} if name == "gru" else set(settings["cuts"])
    )  # a GRU has no stream
    arm = found["0.5"]["fisher"]
    assert arm["path"][0]["cut"]["validation"]["loss"]["mean"] == pytest.approx(
        min(losses.values()), rel=1e-6
    )
    assert arm["flops"]["mean"] <= 0.5 * found["dense"]["flops"] and len(arm["path"]) == 1
    assert arm["end"] != found["0.5"]["scratch"]["end"] != found["control"]["end"]
    char_lm.plot(tmp_path / "loss.png", {name: found}, settings)
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_a_tree_is_kept_and_read_again(tmp_path):
    made = training.fresh({"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}, 0.1)
    blank = jax.tree.map(jnp.zeros_like, made)
    first = training.kept(tmp_path / "x.npz", blank, lambda: made)
    again = training.kept(tmp_path / "x.npz", blank, lambda: pytest.fail("made anew"))
    assert jax.tree.structure(first) == jax.tree.structure(again)
    assert all(
        np.array_equal(*pair) for pair in zip(jax.tree.leaves(first), jax.tree.leaves(again))
    )
    assert training.kept(None, blank, lambda: made) is made


@pytest.mark.slow
def test_the_recurrent_network_that_is_left_is_a_flax_module_of_its_widths():
    net = char_lm.gru(4, 8, 9, 6)
    params = net.init(jax.random.key(0))
    x = text(2, 0)[0]
    thin = jp.shrink(net.apply, params, x, flops=0.5)
    module = char_lm.rebuilt(thin.params, 9, 6)
    assert jax.tree.map(jnp.shape, module.init(jax.random.key(1))) == jax.tree.map(
        jnp.shape, thin.params
    )
    np.testing.assert_allclose(
        module.apply(thin.params, x), thin.apply(thin.params, x), rtol=1e-5, atol=1e-6
    )


def linear(n=40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray((x[:, 0] > 0).astype(np.int32))}


def test_a_fit_is_adamw_on_the_loss_it_says():
    import optax

    def apply(p, x):
        return x @ p["kernel"]

    data = linear()
    data["teacher"] = jnp.asarray(np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32))
    start = training.fresh({"kernel": jnp.ones((3, 2))}, 0.1)
    found = training.fitted(
        apply,
        start,
        data,
        np.array([0.1, 0.05]),
        batch=40,
        seed=3,
        decay=0.1,
        soft=0.25,
        temperature=2.0,
    )

    def loss(p):
        q = jax.nn.log_softmax(apply(p, data["x"]))
        t = jax.nn.log_softmax(data["teacher"] / 2)
        hard = -jnp.take_along_axis(q, data["y"][:, None], 1).mean()
        soft = 4 * (jnp.exp(t) * (t - jax.nn.log_softmax(apply(p, data["x"]) / 2))).sum(1).mean()
        return 0.75 * hard + 0.25 * soft

    params = {"kernel": jnp.ones((3, 2))}
    tx = optax.adamw(lambda count: jnp.array([0.1, 0.05])[count], weight_decay=0.1)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(found.params["kernel"], params["kernel"], rtol=1e-5)


def test_a_new_network_has_the_variance_of_its_own_fan_in():
    init = {
        "a": {"kernel": jnp.full((3, 3, 8, 4), 1.0), "bias": jnp.zeros(4)},
        "embedding": jnp.ones((5, 8)),
    }
    small = {
        "a": {"kernel": jnp.zeros((3, 3, 2, 3)), "bias": jnp.zeros(3)},
        "embedding": jnp.zeros((5, 2)),
    }
    found = training.anew(init, small)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, small)
    assert found["a"]["kernel"] == pytest.approx(2.0) and found["embedding"] == pytest.approx(1.0)


def test_rates_and_orders():
    rates = training.cosine(0.1, 10, warmup=2)
    np.testing.assert_allclose(rates[:3], [0.05, 0.1, 0.1])
    assert np.all(np.diff(rates[2:]) < 0) and 0 < rates[-1] < 0.01
    batches = training.order(7, 3, 0)
    first = np.concatenate([next(batches) for _ in range(2)])
    second = np.concatenate([next(batches) for _ in range(2)])
    assert len(set(first)) == len(set(second)) == 6 and list(first) != list(second)


def test_losses_are_those_of_the_labels():
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    y = np.array([1, 1, 0])
    found = measures.judged(lambda p, x: p * x, jnp.float32(2.0), {"test": (x, y)}, batch=2)["test"]
    assert found["error"] == pytest.approx(100 / 3)
    assert found["loss"] == pytest.approx(
        (2 * np.log1p(np.exp(-2)) + np.log1p(np.exp(2))) / 3, rel=1e-5
    )
