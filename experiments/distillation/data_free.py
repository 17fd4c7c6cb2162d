"""A student of MNIST that never sees an image of it (after Chen et al. 2019, arXiv:1904.01186).

The teacher, LeNet-5, learns from real images. The student, LeNet-5 with half the channels and
units, learns from what generators make against that teacher, by one setting each:

    competing   with Adaptive DeepInversion's competition (Yin et al. 2020, arXiv:1912.08795)
    dafl        one-hot, information entropy and activation alone, as DAFL; of the first seed
    noise       no generator: images of independent normal pixels, for as many steps

Pixels lie in [0, 1]; nothing else is told of the data. The last step counts. Validation images only
show the progress.

python -m experiments.distillation.data_free
"""

import json
import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

import jaxprune as jp
from experiments.benchmarks.common import machine
from experiments.data import mnist
from experiments.distillation.common import logits, nobody, wrong
from experiments.models import lenet5
from experiments.results import run_file
from jaxprune.app.experiments.results import write_json

SETTINGS = {
    "seeds": [0, 1, 2],
    "teacher": {"width": 1.0, "epochs": 3, "batch": 128, "learning_rate": 1e-3},
    "student": {"width": 0.5, "learning_rate": 2e-3, "temperature": 4.0},
    "generator": {"latent": 100, "channels": 16, "learning_rate": 2e-3, "b1": 0.5},
    "competing": {"one_hot": 0.1, "entropy": 5.0, "competition": 5.0},
    "dafl": {"one_hot": 1.0, "entropy": 5.0, "features": "features", "activation": 0.1},
    "steps": 1200,
    "batch": 128,
    "looks": 8,
}
LETTERS = ("NHWC", "HWIO", "NHWC")


def generator_init(key: Array, inputs: int, channels: int) -> Any:
    """Params of a generator that makes 28×28 pixels of vectors."""
    draws = jax.random.split(key, 3)

    def normal(i, *shape):
        return jax.random.normal(draws[i], shape, jnp.float32) / np.sqrt(np.prod(shape[:-1]))

    unit = {"scale": jnp.ones(channels, jnp.float32), "bias": jnp.zeros(channels, jnp.float32)}
    return {
        "dense": normal(0, inputs, 49 * channels),
        "norm1": unit,
        "conv1": normal(1, 3, 3, channels, channels),
        "norm2": jax.tree.map(jnp.copy, unit),
        "conv2": normal(2, 3, 3, channels, 4),
        "bias": jnp.zeros((), jnp.float32),
    }


def generator(params: Any, z: Array) -> Array:
    """7×7 -> 14×14 -> four channels, woven into 28×28 and blurred by (1, 2, 1)/4 each way -> a
    sigmoid.

    Batch norms see the batch at all times. The sigmoid starts out dark, as the teacher's images
    are.
    """
    x = _norm(params["norm1"], (z @ params["dense"]).reshape(len(z), 7, 7, -1))
    x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    x = jax.nn.leaky_relu(_norm(params["norm2"], _conv(params["conv1"], x)), 0.2)
    x = (
        _conv(params["conv2"], x)
        .reshape(len(z), 14, 14, 2, 2)
        .transpose(0, 1, 3, 2, 4)
        .reshape(len(z), 28, 28, 1)
    )
    for axis in (1, 2):
        x = (jnp.roll(x, 1, axis) + 2 * x + jnp.roll(x, -1, axis)) / 4
    return jax.nn.sigmoid(2 * x + params["bias"] - 2)


def _conv(kernel: Array, x: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LETTERS)


def _norm(params: Any, x: Array) -> Array:
    mean = x.mean((0, 1, 2))
    var = x.var((0, 1, 2))
    return (x - mean) * lax.rsqrt(var + 1e-5) * params["scale"] + params["bias"]


def accuracy(apply: Callable[..., Array], params: Any, pair: Any) -> float:
    """The share of right answers."""
    return 1 - wrong(logits(apply, params, pair[0]), pair[1]) / len(pair[1])


def taught_by_data(settings: Any, pair: Any, seed: int) -> Any:
    """The teacher's params, from labels."""
    (x, y), how = pair, settings["teacher"]
    model = lenet5(how["width"])
    n = len(x) // how["batch"]
    rate = optax.cosine_decay_schedule(how["learning_rate"], how["epochs"] * n)
    d = jp.distill.distiller(jp.distill.plain(model.apply), [], optax.adam(rate), labels=1.0)
    key = jax.random.key(seed)
    rng = np.random.default_rng(seed)
    state = d.init(model.init(key), {"x": x[:1], "y": y[:1]}, nobody, key=key)
    step = jax.jit(d.step, donate_argnums=0)
    for _ in range(how["epochs"]):
        for rows in rng.permutation(len(x))[: n * how["batch"]].reshape(n, -1):
            state, _ = step(state, {"x": x[rows], "y": y[rows]}, nobody)
    return state.params


def student_of(settings: Any) -> tuple[Any, Any]:
    """The student's model, and its distiller: soft targets alone."""
    how = settings["student"]
    model = lenet5(how["width"])
    soft = jp.distill.match(partial(jp.distill.losses.soft_targets, temperature=how["temperature"]))
    rate = optax.cosine_decay_schedule(how["learning_rate"], settings["steps"])
    return model, jp.distill.distiller(jp.distill.plain(model.apply), [soft], optax.adam(rate))


def from_noise(settings: Any, teacher: Any, seed: int, look: Callable[..., None]) -> Any:
    """The student's params after all steps on images of normal pixels."""
    model, d = student_of(settings)
    start, key = jax.random.split(jax.random.key(seed))

    def images(i):
        return jax.random.normal(jax.random.fold_in(key, i), (settings["batch"], *model.example))

    state = d.init(model.init(start), {"x": images(0)}, teacher, key=key)
    step = jax.jit(lambda s, i, t: d.step(s, {"x": images(i)}, t), donate_argnums=0)
    for i in range(settings["steps"]):
        state, metrics = step(state, i, teacher)
        look(i, state.params, metrics)
    return state.params


def from_generator(
    settings: Any, weights: Any, teacher: Any, seed: int, look: Callable[..., None]
) -> tuple[Any, Any]:
    """The student's params after all steps on what a generator makes, and 10 of its images a
    class.
    """
    (model, d), how, latent = (
        student_of(settings),
        settings["generator"],
        settings["generator"]["latent"],
    )
    rival = jp.distill.plain(model.apply) if "competition" in weights else None
    free = jp.distill.data_free(
        d,
        jp.distill.plain(generator),
        optax.adam(how["learning_rate"], how["b1"]),
        classes=10,
        latent=latent,
        batch=settings["batch"],
        student=rival,
        **weights,
    )
    start, made, key, show = jax.random.split(jax.random.key(seed), 4)
    params = generator_init(made, latent + 10, how["channels"])
    x = jax.ShapeDtypeStruct((1, *model.example), jnp.float32)
    state = free.init(model.init(start), x, teacher, key=key, generator_params=params)
    step = jax.jit(free.step, donate_argnums=0)
    for i in range(settings["steps"]):
        state, metrics = step(state, {}, teacher)
        look(i, state.student.params, metrics)
    z = jax.random.normal(show, (100, latent), jnp.float32)
    labels = jax.nn.one_hot(jnp.arange(100) // 10, 10, dtype=jnp.float32)
    return state.student.params, generator(state.generator, jnp.concatenate([z, labels], -1))


def measured(
    settings: Any, data: Any, save: Callable[..., None] = lambda *_: None, found: Any = None
) -> dict[str, Any]:
    """Every figure; `save` is given them after each student, with the images of the last generator
    or None.

    `found` is what an earlier call found by the same settings: its students are not trained again.
    """
    found = found or {"teacher": {}, "competing": {}, "noise": {}, "dafl": {}}
    for seed in map(str, settings["seeds"]):
        arms = (
            ("competing", "noise", "dafl")
            if seed == str(settings["seeds"][0])
            else ("competing", "noise")
        )
        missing = [arm for arm in arms if seed not in found[arm]]
        if not missing:
            continue
        clock = _clock()
        params = taught_by_data(settings, data.train, int(seed))
        right = accuracy(lenet5(settings["teacher"]["width"]).apply, params, data.test)
        found["teacher"][seed] = {"accuracy": right, **_clock(clock)}
        print(f"seed {seed}, teacher: {right:.4f}", flush=True)
        network = jp.distill.plain(lenet5(settings["teacher"]["width"]).apply)
        teacher = jp.distill.Online(network, params)
        for arm in missing:
            found[arm][seed], images = _student(settings, arm, teacher, int(seed), data)
            save(found, arm, images)
    return found


def _student(
    settings: Any, arm: str, teacher: Any, seed: int, data: Any
) -> tuple[dict[str, Any], Any]:
    model = lenet5(settings["student"]["width"])
    curve = []
    clock = _clock()
    steps = settings["steps"]
    every = max(1, settings["steps"] // settings["looks"])

    def look(i: int, params: Any, metrics: Any) -> None:
        if (i + 1) % every == 0:
            right = accuracy(model.apply, params, data.validation)
            curve.append(
                {"step": i + 1, "validation": right, **{k: float(v) for k, v in metrics.items()}}
            )
            left = _clock(clock)["wall_s"] * (steps - i - 1) / (i + 1)
            print(
                f"seed {seed}, {arm}: {i + 1}/{steps}, validation {right:.4f}, {left:.0f} s left",
                flush=True,
            )

    if arm == "noise":
        params = from_noise(settings, teacher, seed, look)
        images = None
    else:
        params, images = from_generator(settings, settings[arm], teacher, seed, look)
    took = _clock(clock)
    right = accuracy(model.apply, params, data.test)
    print(f"seed {seed}, {arm}: test {right:.4f}", flush=True)
    return {"accuracy": right, **took, "curve": curve}, images


def _clock(since: dict[str, float] | None = None) -> dict[str, float]:
    """Seconds, of the wall and of this process."""
    since = since or {"wall_s": 0.0, "cpu_s": 0.0}
    return {
        "wall_s": time.perf_counter() - since["wall_s"],
        "cpu_s": time.process_time() - since["cpu_s"],
    }


def summary(found: Any) -> dict[str, Any]:
    """Mean, standard deviation (n − 1) and values of each arm's accuracy on the test split."""
    values = {
        arm: [run["accuracy"] for run in runs.values()] for arm, runs in found.items() if runs
    }

    def std(v):
        return float(np.std(v, ddof=1)) if len(v) > 1 else None

    return {
        arm: {"mean": float(np.mean(v)), "std": std(v), "values": v} for arm, v in values.items()
    }


def earlier(path: pathlib.Path) -> Any:
    """The runs of a results.json with these settings; None if there are none."""
    past = json.loads(path.read_text()) if path.exists() else {}
    return past["runs"] if past.get("settings") == SETTINGS else None


def draw(panels: dict[str, Any], path: pathlib.Path) -> None:
    """Ten images of each class, a row a class, of each generator."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5.3), squeeze=False)
    for axis, (title, images) in zip(axes[0], panels.items()):
        grid = np.asarray(images).reshape(10, 10, 28, 28).transpose(0, 2, 1, 3).reshape(280, 280)
        axis.imshow(grid, cmap="gray", vmin=0, vmax=1)
        axis.set(title=title, xticks=[], yticks=np.arange(14, 280, 28), yticklabels=range(10))
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    out = run_file("distillation", "data_free")
    panels: dict[str, Any] = {}

    def save(found: Any, arm: str, images: Any) -> None:
        about = {"jaxprune": jp.__version__, "optax": optax.__version__, "machine": machine()}
        write_json(out, {**about, "settings": SETTINGS, "results": summary(found), "runs": found})
        if images is not None and not drawn:
            panels.setdefault(arm, images)
            draw(panels, out.with_name("digits.png"))

    drawn = (found := earlier(out)) is not None
    for arm, row in summary(measured(SETTINGS, mnist(), save, found)).items():
        print(f"{arm:>10}: {row['mean']:.4f}, {[round(v, 4) for v in row['values']]}")


if __name__ == "__main__":
    main()
