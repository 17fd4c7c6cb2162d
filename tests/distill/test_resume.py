"""A run that was stopped goes on to the bits of one that was not: calls, sources with a state,
signals, kills.
"""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from numpy.testing import assert_array_equal

import jaxprune as jp
from jaxprune.distill import losses
from jaxprune.distill.signals import Signals
from tests.distill.toy import DATA, KEY, TEACHER, X, distiller, same, start

fit = jp.distill.fit
Shuffled = jp.distill.Shuffled
QUIET = {"progress": False}
EVALUATE = jp.distill.Evaluator(
    jp.distill.plain(lambda p, x: np.tanh(1.0) * (x @ p["a"] @ p["b"])), DATA
)


def run(steps, folder=None, batches=None, d=None, **kw):
    d = distiller() if d is None else d
    batches = Shuffled(DATA, 16) if batches is None else batches
    said = (
        {"evaluate": EVALUATE, "evaluate_every": 7, "inner_steps": 5, "folder": folder} | QUIET | kw
    )
    return fit(d, start(d), batches, TEACHER, steps=steps, **said)


@pytest.mark.parametrize("inner", ["python", "scan"])
def test_in_two_calls_or_in_one(tmp_path, inner):
    whole = run(30, tmp_path / "a", inner=inner)
    for n in (7, 14, 30):
        found = run(n, tmp_path / "b", inner=inner)
    assert same(found.state, whole.state) and same(found.best, whole.best)
    assert (found.best_step, found.score) == (whole.best_step, whole.score)
    assert found.evaluations[2:] == whole.evaluations[2:]
    done = run(30, tmp_path / "b", inner=inner)  # nothing is left to do
    assert same(done.state, whole.state) and done.evaluations == found.evaluations


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


@pytest.mark.slow
def test_dropout_statistics_memories_averages_and_compressed_arrays_too(tmp_path):
    module = Net()
    variables = dict(module.init({"params": KEY, "dropout": KEY}, X))
    codes = jp.prune(0.5).init(variables.pop("params"))
    terms = [
        jp.distill.match(losses.soft_targets),
        jp.distill.match(jp.distill.dino_loss(), name="centre", weight=0.0),
    ]
    views = jp.distill.Online(jp.distill.plain(lambda w, x: x @ w), np.ones((4, 3), np.float32))
    d = jp.distill.distiller(
        jp.distill.linen(module), terms[:1], optax.adam(0.01), labels=1.0, ema=0.9
    )
    state = d.init(codes, DATA, views, key=KEY, model_state=variables)

    def go(n, folder):
        return fit(d, state, Shuffled(DATA, 16), views, steps=n, folder=folder, **QUIET)

    whole = go(12, tmp_path / "a")
    go(5, tmp_path / "b")
    assert same(go(12, tmp_path / "b").state, whole.state)


class Stateful:
    """As grain's iterators: a place that can be asked for and set, and an order that never
    repeats.
    """

    def __init__(self):
        self.rng = np.random.Generator(np.random.PCG64(3))
        self.asked = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.asked += 1
        rows = self.rng.integers(0, 96, 16)
        return {name: x[rows] for name, x in DATA.items()}

    def get_state(self):
        return self.rng.bit_generator.state

    def set_state(self, state):
        self.rng.bit_generator.state = state


class InBytes(Stateful):
    """As the iterator of grain's `DataLoader`, which says its place in bytes."""

    def get_state(self):
        return json.dumps(super().get_state()).encode()

    def set_state(self, state):
        super().set_state(json.loads(state))


@pytest.mark.parametrize("kind", [Stateful, InBytes])
def test_a_source_with_a_state_is_set_to_its_place_not_read_again(tmp_path, kind):
    whole = run(21, batches=kind())
    run(14, tmp_path, batches=kind())
    source = kind()
    assert same(run(21, tmp_path, batches=source).state, whole.state)
    assert source.asked == 7


def test_a_list_is_read_up_to_its_place(tmp_path):
    listed = [Shuffled(DATA, 16).at(i) for i in range(5)]
    whole = run(21, batches=listed)
    run(14, tmp_path, batches=listed)
    assert same(run(21, tmp_path, batches=listed).state, whole.state)


def test_metrics_after_the_checkpoint_are_written_once(tmp_path):
    run(14, tmp_path / "a")
    path = tmp_path / "a" / "metrics.jsonl"
    with open(path, "a") as file:
        file.write(
            json.dumps({"step": 15, "loss": 1.0}) + '\n{"step": 16, "lo'
        )  # written, then killed
    run(21, tmp_path / "a")
    run(21, tmp_path / "b")

    def rows(p):
        return [(r["step"], r.get("loss")) for r in map(json.loads, p.read_text().splitlines())]

    assert [r for r in rows(path) if r[0] > 14] == [
        r for r in rows(tmp_path / "b" / "metrics.jsonl") if r[0] > 14
    ]
    assert len(set(rows(path))) == len(rows(path))


SCRIPT = """
import os, sys, time
import numpy as np
import jaxprune as jp
from tests.distill.toy import DATA, TEACHER, distiller, start
d = distiller()
class Slow:
    def write_scalars(self, step, scalars):
        print(step, flush=True)
        time.sleep(0.05)
found = jp.distill.fit(
    d, start(d), jp.distill.Shuffled(DATA, 16), TEACHER, steps=int(sys.argv[2]), inner_steps=5,
    checkpoint_every=int(sys.argv[3]), folder=sys.argv[1], writer=Slow(), progress=False)
print("done", flush=True)
"""


def child(*args):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, args)], stdout=subprocess.PIPE, text=True, env=env
    )


def wait_for(process, step):
    for line in process.stdout:
        if line.strip() == "done" or int(line) >= step:
            return


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_at_any_time_loses_nothing(tmp_path, how):
    process = child(tmp_path, 1000, 20)
    wait_for(process, 55)
    time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(60) == -how
    process.stdout.close()
    d = distiller()
    kept = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    # A SIGTERM waits for the chunk in hand, which need not be where a checkpoint is due.
    assert kept >= 55 if how == signal.SIGTERM else kept % 20 == 0

    def go(folder):
        return fit(
            d,
            start(d),
            Shuffled(DATA, 16),
            TEACHER,
            steps=100,
            inner_steps=5,
            checkpoint_every=20,
            folder=folder,
            **QUIET,
        )

    found = go(tmp_path)
    whole = go(None)
    assert same(found.state, whole.state)


def test_outside_of_fit_a_signal_is_what_it_was():
    seen = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, _: seen.append(number)) for number in numbers]
    try:
        run(3)
        for number in numbers:
            signal.raise_signal(number)
        assert seen == list(numbers)
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def test_ctrl_c_is_noted_and_raises_where_it_is_obeyed_or_comes_again():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.came == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signals.obey()
        with Signals():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_state_restored_is_on_the_device_and_typed(tmp_path):
    run(7, tmp_path)
    found = run(14, tmp_path).state
    assert isinstance(found.params["a"], jax.Array) and jax.dtypes.issubdtype(
        found.key.dtype, jax.dtypes.prng_key
    )
    assert_array_equal(jax.random.key_data(found.key), jax.random.key_data(start(distiller()).key))
