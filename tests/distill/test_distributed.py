"""Two real processes that speak over the loopback do what one does."""

import os
import socket
import subprocess
import sys

import numpy as np
import optax
from numpy.testing import assert_allclose

import jaxprune as jp
from tests.distill.toy import DATA, NET, TEACHER, start

SCRIPT = """
import sys
import jax
index, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import jaxprune as jp
from tests.distill.test_distributed import distiller
from tests.distill.toy import DATA, NET, TEACHER, start
assert jax.process_count() == 2 and len(jax.devices()) == 4 and len(jax.local_devices()) == 2
sharding = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
d = distiller()
def go(steps):
    return jp.distill.fit(
        d, start(d), jp.distill.Shuffled(DATA, 16), TEACHER, steps=steps, sharding=sharding,
        inner_steps=4, evaluate=jp.distill.Evaluator(NET, DATA), evaluate_every=4,
        folder=folder, progress=False)
go(4)
found = go(8)
if index == 0:
    params = {k: np.asarray(v) for k, v in found.state.params.items()}
    np.savez(folder + "/found.npz", score=found.score, **params)
jax.distributed.shutdown()
"""


def distiller():
    """A relational loss: a mean over each process's part would be another."""
    L = jp.distill.losses
    terms = [jp.distill.match(L.rkd_distance, "hidden"), jp.distill.match(L.soft_targets)]
    return jp.distill.distiller(NET, terms, optax.sgd(0.1), labels=0.5)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_do_what_one_does(tmp_path):
    flags = "--xla_force_host_platform_device_count=2"
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
    }
    args = [str(free_port()), str(tmp_path)]

    def command(i):
        return [sys.executable, "-c", SCRIPT, str(i), *args]

    both = [
        subprocess.Popen(command(i), env=env, stderr=subprocess.PIPE, text=True) for i in range(2)
    ]
    said = [p.communicate(timeout=240)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said[0][-2000:]
    d = distiller()
    one = jp.distill.fit(
        d, start(d), jp.distill.Shuffled(DATA, 16), TEACHER, steps=8, progress=False
    )
    with np.load(tmp_path / "found.npz") as found:
        for name in ("a", "b"):
            assert_allclose(found[name], one.state.params[name], rtol=1e-4, atol=1e-5)
        assert 0.3 < found["score"] <= 1
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 4  # one of them writes
