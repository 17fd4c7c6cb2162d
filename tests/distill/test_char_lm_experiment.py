"""The character model at a small size, and its transformer against a slow one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments.data import Data
from experiments.distillation import char_lm as experiment
from experiments.transformer import transformer

SMALL = experiment.SETTINGS | {
    "seeds": [0],
    "width": 8,
    "heads": 2,
    "vocabulary": 7,
    "length": 6,
    "teacher_layers": 2,
    "kept": [1],
    "batch": 4,
    "teacher_steps": 3,
    "steps": 2,
    "warmup": 1,
    "weights": {"labels": [0.0], "jsd": [4.0, 16.0]},
}


def windows(n, seed):
    ids = np.cumsum(np.random.default_rng(seed).integers(0, 2, (n, 7)), 1) % 7
    return ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32)


def test_every_arm_is_measured_and_taken_over_after_a_kill(cheap, tmp_path, monkeypatch):
    data = Data(windows(16, 0), windows(5, 1), windows(6, 2))
    path = tmp_path / "runs.json"
    found = experiment.measured(SMALL, data, path)
    assert found["jsd"]["weight"] == (4.0, 16.0)[int(np.argmin(found["jsd"]["tried"]))]
    for split in ("validation", "test"):
        less = np.subtract(found["labels"][split]["values"], found["jsd"][split]["values"])
        assert_allclose(found["less_than_labels"]["jsd"][split]["values"], less)
        assert less.any()
    monkeypatch.setattr(experiment, "fitted", lambda *_: pytest.fail("it was there"))
    again = experiment.measured(SMALL, data, path)
    assert json.dumps(again | {"wall_s": 0}) == json.dumps(found | {"wall_s": 0})


def test_the_terms_compare_every_position():
    s, t = np.float32(np.random.default_rng(0).normal(size=(2, 3, 4, 5)))
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (t, s))
    m = (p + q) / 2

    def kl(a, b):
        return (a * np.log(a / b)).sum(-1)

    kd, jsd = (experiment.term(arm, 3.0, SMALL)[0] for arm in ("kd", "jsd"))
    assert_allclose(kd.loss(s, t), kl(p, q), rtol=1e-4)
    assert_allclose(jsd.loss(s, t), (kl(p, m) + kl(q, m)) / 2, rtol=1e-4)
    assert kd.weight == jsd.weight == 3.0 and experiment.term("labels", 0.0, SMALL) == []


def test_a_student_begins_as_blocks_of_its_teacher():
    net = transformer(3, 8, 2, 7, 6)
    params = net.init(jax.random.key(0))
    student = experiment.thinned(params, [0, 2])
    assert set(student) == {"embedding", "positions", "norm", "block0", "block1"}
    assert np.array_equal(student["block1"]["up"]["kernel"], params["block2"]["up"]["kernel"])
    x, y = windows(5, 0)
    z = np.asarray(transformer(2, 8, 2, 7, 6).apply(student, jnp.asarray(x)), np.float64)
    log_q = z - np.log(np.exp(z).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_q, y[..., None], -1).mean()
    judged = experiment.judge(transformer(2, 8, 2, 7, 6), {"all": (x, y), "one": (x[:1], y[:1])})(
        student
    )
    assert_allclose(judged["all"], expected, rtol=1e-5)
    assert judged["one"] != judged["all"]


def slow(params, x, layers, heads):
    """One sequence, position by position, in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(layer, h):
        return (h - h.mean()) / np.sqrt(h.var() + 1e-5) * layer["scale"] + layer["bias"]

    def dense(layer, h):
        return h @ layer["kernel"] + layer["bias"]

    def gelu(h):
        return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))

    hidden = [p["embedding"][c] + p["positions"][i] for i, c in enumerate(x)]
    for b in (p[f"block{i}"] for i in range(layers)):
        q, k, v = np.split(np.stack([dense(b["qkv"], norm(b["norm1"], h)) for h in hidden]), 3, -1)
        d = q.shape[1] // heads
        for i in range(len(x)):
            mixed = []
            for part in (slice(j * d, (j + 1) * d) for j in range(heads)):
                e = np.exp([q[i, part] @ k[j, part] / np.sqrt(d) for j in range(i + 1)])
                mixed.append(sum(w * v[j, part] for j, w in enumerate(e / e.sum())))
            hidden[i] = hidden[i] + dense(b["out"], np.concatenate(mixed))
        hidden = [h + dense(b["down"], gelu(dense(b["up"], norm(b["norm2"], h)))) for h in hidden]
    return np.stack([norm(p["norm"], h) @ p["embedding"].T for h in hidden])


def test_the_transformer_is_the_slow_one():
    net = transformer(2, 8, 2, vocabulary=7, length=6)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: a + 0.3 * draw.normal(size=a.shape), net.init(jax.random.key(0))
    )
    x, _ = windows(3, 1)
    assert_allclose(
        net.apply(params, jnp.asarray(x))[2], slow(params, x[2], 2, 2), rtol=1e-4, atol=1e-4
    )
    assert net.apply(params, jnp.asarray(x[:, :3])).shape == (3, 3, 7)


def test_the_transformer_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="heads=3"):
        transformer(2, 8, 3)
    net = transformer(1, 8, 2, vocabulary=7, length=6)
    with pytest.raises(ValueError, match="7 tokens: this transformer has 6 positions"):
        net.apply(net.init(jax.random.key(0)), jnp.zeros((1, 7), jnp.int32))
