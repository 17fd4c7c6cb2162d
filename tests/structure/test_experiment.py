"""The experiments of `experiments/structured` at a small size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments import resnet
from experiments.structured import reconstruction, resnet56, resnet56_recovery, speed, widths


def network(widths=(4, 8, 16), seed=0):
    """A ResNet-8 of the shapes that `resnet.load` gives."""
    rng = np.random.default_rng(seed)

    def kernel(*s):
        return {"kernel": jnp.asarray(rng.normal(size=s) / np.prod(s[:-1]) ** 0.5, jnp.float32)}

    def unit(n):
        return {
            k: jnp.asarray(rng.random(n) + 0.5, jnp.float32)
            for k in ("scale", "bias", "mean", "var")
        }

    params = {"conv1": kernel(3, 3, 3, widths[0]), "bn1": unit(widths[0])}
    for stage, (a, b) in enumerate(zip((widths[0], *widths), widths), 1):
        at = f"layer{stage}.0."
        params |= {at + "conv1": kernel(3, 3, a, b), at + "bn1": unit(b)}
        params |= {at + "conv2": kernel(3, 3, b, b), at + "bn2": unit(b)}
    return params | {"linear": kernel(widths[-1], 10) | {"bias": jnp.zeros(10)}}


def images(n, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 8, 8, 3), np.uint8), rng.integers(0, 10, n)


SMALL = {"flops": 0.6, "images": 16, "batch": 8, "train_images": 32}


@pytest.mark.slow
def test_every_arm_is_cut_repaired_and_counted(tmp_path):
    settings = resnet56.SETTINGS | SMALL | {"seeds": [0]}
    data = images(16, 1), images(20, 2)
    found = resnet56.measured(settings, network(), data, tmp_path / "cut.json")
    assert [arm["arm"] for arm in found["arms"]] == [
        "fisher inside",
        "l2 inside",
        "l2",
        "random inside",
    ]
    for arm in found["arms"]:
        assert arm["flops"][1] <= 0.6 * arm["flops"][0] and arm["error"] < 1e-5
        assert set(arm["accuracy"]) == {"cut", "settled", "fitted"}
        left = arm["xla_flops"]["program"] / found["dense_xla_flops"]["program"]
        assert (
            abs(left * arm["flops"][0] / arm["flops"][1] - 1) < 0.05
        )  # small images: more padding
    assert resnet56.measured(settings, network(), data, tmp_path / "cut.json") == json.loads(
        json.dumps(found)
    )
    resnet56.plot(found, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes()[:4] == b"\x89PNG"


def test_streams_stay_whole():
    params, (x, y) = network(), images(8, 3)
    thin = resnet56.shrunk("l2 inside", params, resnet.normalised(x), y, resnet56.SETTINGS | SMALL)
    assert thin.plan.keep and all(".conv" in path or ".bn1" in path for path in thin.plan.keep)
    np.testing.assert_allclose(  # the smaller params are a ResNet's of other widths
        resnet.apply(thin.params, resnet.normalised(x)),
        thin.apply(thin.params, resnet.normalised(x)),
        1e-4,
        1e-4,
    )


@pytest.mark.slow
def test_recovery_runs_and_goes_on(tmp_path):
    settings = resnet56_recovery.SETTINGS | SMALL | {"seeds": [0, 1], "rate": 0.1}
    data = {"train": images(32, 3), "test": images(20, 4)}
    found = resnet56_recovery.measured(settings, network(), data, tmp_path)
    assert len(found["runs"]) == 2 and found["flops"][1] <= 0.6 * found["flops"][0]
    assert resnet56_recovery.measured(settings, network(), data, tmp_path)["runs"] == found["runs"]


def test_settled_moments_are_means_over_batches():
    params, moments = resnet.parted(network())
    x = images(24, 5)[0]

    def one(part):
        return resnet.training(params, moments, resnet.normalised(part), momentum=1.0)[1]

    want = jax.tree.map(lambda *each: np.mean(each, 0), *map(one, np.split(x, 3)))
    found = resnet56_recovery.settled(params, moments, x, batch=8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, want)


def test_what_the_teacher_says_is_told_apart():
    x = images(4, 6)[0]
    row = resnet56_recovery.spoken(network(), x)
    told = resnet56_recovery.told({"teacher": row}, None)
    np.testing.assert_allclose(
        told["output"], resnet.apply(network(), resnet.normalised(x)), rtol=1e-5, atol=1e-5
    )
    head = network()["linear"]
    logits = told["features"] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, told["output"], rtol=1e-4, atol=1e-4)
    assert resnet56_recovery.told({}, None) == {}


def test_statistics_are_those_of_the_images_that_are_given():
    params = network()
    x = resnet.normalised(images(16, 3)[0])
    logits, seen = jax.jit(resnet56.with_statistics)(params, x)
    settled = resnet.joined(params, seen)
    assert set(seen) == {name for name in params if ".bn" in name or name == "bn1"}
    np.testing.assert_allclose(resnet.apply(settled, x), logits, rtol=1e-4, atol=1e-4)
    assert jp.coupled_axes(resnet56.with_statistics, params, x, state=".*/(mean|var)").groups


@pytest.mark.slow
def test_budgets_of_time_and_of_operations_are_compared(tmp_path, monkeypatch):
    def reads(calls):
        return np.array([[float(sum(x.size for x in jax.tree.leaves(args))) for _, args in calls]])

    monkeypatch.setattr(
        speed, "table", lambda folder: jp.Timings(clock=reads)
    )  # seconds are made up
    settings = speed.SETTINGS | {
        "images": 16,
        "batch": 8,
        "flops": [0.6],
        "latency": [0.8],
        "rounds": 2,
    }
    data = images(16, 1), images(20, 2)
    found = speed.measured(settings, network(), data, tmp_path)
    arms = {one["arm"]: one for one in found["arms"]}
    assert list(arms) == [
        "time, blocks",
        "time",
        "device widths, blocks",
        "device widths",
        "operations",
    ]
    measured = [arms[name].get("measured", 0) for name in arms]
    assert all(after <= 0.8 * before for before, after in measured[:2]) and measured[2:] == [
        None,
        None,
        0,
    ]
    assert all(
        one["flops"][1] <= 0.6 * one["flops"][0]
        for one in found["arms"]
        if not one["arm"].startswith("time")
    )
    assert arms["device widths, blocks"]["blocks"] and not any(
        one["blocks"] for n, one in arms.items() if "," not in n
    )
    assert all(one["faster"]["wall"] > 0 and one["error"] < 1e-5 for one in found["arms"])
    assert speed.measured(settings, network(), data, tmp_path) == json.loads(json.dumps(found))
    speed.plot(found, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 1000


@pytest.mark.slow
def test_every_part_of_the_repair_is_measured(tmp_path):
    settings = reconstruction.SETTINGS | {
        "flops": 0.6,
        "images": 16,
        "batch": 8,
        "draws": [0, 1],
        "examples": 8,
    }
    net = reconstruction.Network(
        resnet.apply, network(), images(32, 1), images(20, 2), r".*\.bn1/scale", True
    )
    found = reconstruction.measured("small", net, settings, tmp_path / "small.json")
    assert list(found) == ["dense", *(f"{units} {repair}" for units, repair in zip(*NAMES))]
    assert all(
        one["flops"][1] <= 0.6 * one["flops"][0] for name in list(found)[1:] for one in found[name]
    )
    assert [len(found[name]) for name in list(found)[1:]] == [1, 2, 2, 1, 1, 1, 1]
    assert json.loads(
        json.dumps(reconstruction.measured("small", net, settings, tmp_path / "small.json"))
    )


NAMES = (
    ["magnitude", "magnitude", "contribution", "magnitude", "magnitude", "random", "blocks"],
    ["cut", "streams", "streams", "weights", "biases", "streams", "streams"],
)


def test_every_width_is_timed():
    found = widths.measured({"batch": 1, "stages": {"4": [1, 2]}})
    assert list(found["4"]) == ["1", "2"] and min(found["4"].values()) > 0
