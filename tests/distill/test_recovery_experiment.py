"""The experiment of recovery at toy size: what it trains keeps its code, and what it caches is what
was asked.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments import resnet
from experiments.distillation import recovery
from experiments.distillation import recovery_task as task

SMALL = recovery.SETTINGS | {
    "images": 12,
    "tuning_images": 8,
    "validation_images": 5,
    "batch": 4,
    "seeds": [0, 1],
    "control_seeds": [0],
    "rates": {"prune": [0.01, 0.03], "quantize": [0.01, 0.03]},
    "attention": 30.0,
}


def net(blocks: int, seed: int, width: int = 4) -> dict[str, dict[str, jax.Array]]:
    """A ResNet of 6 · blocks + 2 layers."""
    rng = np.random.default_rng(seed)

    def he(*shape):
        return jnp.asarray(rng.normal(size=shape) * (2 / np.prod(shape[:-1])) ** 0.5, jnp.float32)

    def norm(c):
        return {
            "scale": jnp.ones(c),
            "bias": jnp.zeros(c),
            "mean": jnp.zeros(c),
            "var": jnp.ones(c),
        }

    params = {"conv1": {"kernel": he(3, 3, 3, width)}, "bn1": norm(width)}
    last = width
    for stage in (1, 2, 3):
        c = width * 2 ** (stage - 1)
        for i in range(blocks):
            at = f"layer{stage}.{i}."
            ins = (last, c)
            for j in (0, 1):
                params |= {
                    f"{at}conv{j + 1}": {"kernel": he(3, 3, ins[j], c)},
                    f"{at}bn{j + 1}": norm(c),
                }
            last = c
    return params | {"linear": {"kernel": he(last, 10), "bias": jnp.zeros(10)}}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)

    def pair(n):
        return (
            rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
            rng.integers(0, 10, n).astype(np.int32),
        )

    return {"train": pair(20), "test": pair(3)}


def kernels(params):
    return {name: np.asarray(p["kernel"]) for name, p in params.items() if "kernel" in p}


def test_pruned_weights_stay_zero_and_what_is_taught_reaches_the_others(data, tmp_path):
    dense, (x, y) = net(1, 0), data["train"]
    soft = task.cached(tmp_path / "teacher", net(2, 1), x, 7, 12)
    seen = {"x": task.augmented(x[:12], np.arange(12), 7), "y": y[:12], "teacher": soft}
    after = task.recovered(dense, "prune", "at_kd", 0.9, 0.01, seen, SMALL, seed=0)
    before = jp.materialize(task.compression("prune", SMALL).init(dense))
    zeros = {name: w == 0 for name, w in kernels(before).items()}
    assert sum(z.sum() for z in zeros.values()) == round(0.9 * sum(z.size for z in zeros.values()))
    assert all(np.array_equal(w == 0, zeros[name]) for name, w in kernels(after).items())
    assert not np.array_equal(after["conv1"]["kernel"], before["conv1"]["kernel"])
    assert not np.array_equal(after["bn1"]["mean"], dense["bn1"]["mean"])
    assert task.costs(after, "prune", SMALL)["density"] == pytest.approx(0.1, abs=1e-3)


def test_a_quantised_kernel_is_on_its_grid_after_training_too(data):
    x, y = data["train"]
    after = task.recovered(
        net(1, 0), "quantize", "labels", 0.9, 0.01, {"x": x, "y": y}, SMALL, seed=0
    )
    before = kernels(net(1, 0))
    for name, w in kernels(after).items():
        steps = 3 * w / np.abs(w).max(tuple(range(w.ndim - 1)))
        assert (
            np.allclose(steps, np.round(steps), atol=1e-5)
            and np.abs(w - before[name]).max() < np.abs(w).max()
        )


def test_the_cached_maps_cost_what_the_activations_themselves_do(data, tmp_path):
    teacher = net(2, 1)
    x = data["train"][0][:6]
    row = task.cached(tmp_path / "teacher", teacher, x, 7, 6)
    moved = resnet.normalised(task.augmented(x, np.arange(6), 7))
    z, whole = jp.reap(resnet.apply, "stage.")(teacher, moved)
    said = task.told({"teacher": jnp.asarray(row)}, None)
    assert np.allclose(said["output"], z, atol=1e-2)
    _, ours = jp.reap(resnet.apply, "stage.")(net(1, 0), moved)
    for name, maps in whole.items():
        both = [jp.distill.losses.attention_transfer(ours[name], t) for t in (said[name], maps)]
        assert np.allclose(*both, rtol=0.02) and np.min(both) > 0


def test_an_image_is_moved_and_mirrored_as_its_index_says():
    x = np.zeros((40, 32, 32, 3), np.uint8)
    x[:, 10:14, 5, :] = 9
    a = task.augmented(x, np.arange(40), 7)
    b = task.augmented(x[5:], np.arange(5, 40), 7)
    assert np.array_equal(a[5:], b) and not np.array_equal(a, task.augmented(x, np.arange(40), 8))
    rows, columns = (np.array([np.argwhere(i[..., 0])[0, k] for i in a]) for k in (0, 1))
    assert (
        rows.min() >= 6
        and rows.max() <= 14
        and len(np.unique(rows)) > 5
        and (a == 9).sum() == (x == 9).sum()
    )
    assert 5 < np.sum(columns > 15) < 35


def test_training_mode_uses_the_batch_and_moves_the_stored_moments():
    dense = net(1, 0)
    x = np.random.default_rng(0).normal(3, 2, (5, 32, 32, 3)).astype(np.float32)
    params, moments = resnet.parted(dense)
    assert jax.tree.structure(resnet.joined(params, moments)) == jax.tree.structure(dense)
    once, after = jax.jit(lambda m, x: resnet.training(params, m, x, momentum=1.0))(moments, x)
    assert np.allclose(once, jax.jit(resnet.apply)(resnet.joined(params, after), x), atol=1e-4)
    first = jax.lax.conv_general_dilated(
        x, dense["conv1"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert np.allclose(after["bn1"]["var"], np.asarray(first).var((0, 1, 2)), rtol=1e-3)


def test_the_validation_split_chooses_and_the_test_set_is_looked_at_once(
    data, tmp_path, monkeypatch
):
    gain = {"labels": 0.0, "kd": 3.0, "at_kd": 1.0}
    asked = []
    looks = []

    def recovered(dense, kind, arm, soft, rate, seen, settings, seed):
        asked.append((kind, arm, soft, rate, len(seen["x"]), seed))
        best = 0.03 if arm == "kd" else 0.01
        return dense | {
            "right": gain[arm] + 5 * (soft == 1.0) - 100 * abs(rate - best) + 0.5 * seed
        }

    monkeypatch.setattr(recovery, "recovered", recovered)

    def accuracy(params, x, y):
        looks.append(len(x))
        return params.get("right", 0.0) + len(x)

    monkeypatch.setattr(recovery.resnet, "accuracy", accuracy)
    for name, cheap in (
        ("costs", {}),
        ("cached", np.zeros((12, 1354))),
        ("renormed", {}),
        ("compression", jp.identity),
    ):
        monkeypatch.setattr(recovery, name, lambda *args, cheap=cheap: cheap)
    found = recovery.measured(SMALL, data, {}, {}, tmp_path)
    json.dumps(found)
    assert looks.count(5) == 2 * 7 and looks.count(3) == 2 * 6 + 1 + 8  # 8: nothing is trained
    assert found["prune"]["tuning"]["rates"] == {"labels": 0.01, "kd": 0.03, "at_kd": 0.01}
    assert found["prune"]["kd"]["values"] == [3 + 3 + 5, 3 + 3 + 5 + 0.5]
    assert (
        found["quantize"]["gain"]["at_kd"]["values"] == [1.0, 1.0]
        and found["prune"]["gain"]["kd"]["mean"] == 3.0
    )
    assert {seed for *_, n, seed in asked if n == 8} == {9} and {
        seed for *_, n, seed in asked if n == 12
    } == {0, 1}
    assert len(asked) == len(set(asked)) == 2 * 7 + 2 * 6 + 1
    assert recovery.measured(SMALL, data, {}, {}, tmp_path)["prune"] == found["prune"]
    assert len(asked) == 27
