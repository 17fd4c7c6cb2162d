"""Killed at a random moment twenty times: does the run end at the bits of one that nothing
interrupted?

A child process distils; SIGKILL comes after a random number of steps, and the next child goes on in
the same folder. The final states, optimizer and keys included, are compared byte by byte.

python -m experiments.distillation.resume
"""

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.distillation.common import save, show
from experiments.models import mlp

SETTINGS: dict[str, Any] = {
    "kills": 20,
    "steps": 3000,
    "inner_steps": 25,
    "checkpoint_every": 100,
    "batch": 32,
    "seed": 0,
}


class Said:
    """Prints each step that is written, so that the parent knows when to kill."""

    def write_scalars(self, step: int, scalars: Any) -> None:
        """A line."""
        print(step, flush=True)


def child(folder: str, steps: int) -> None:
    """Distils in a folder and prints the hash of the final state."""
    rng = np.random.default_rng(0)
    teacher = jp.distill.Online(
        jp.distill.plain(mlp((20, 64, 5)).apply), mlp((20, 64, 5)).init(jax.random.key(1))
    )
    x = rng.normal(size=(2000, 20)).astype(np.float32)
    net = jp.distill.plain(mlp((20, 32, 5)).apply)
    d = jp.distill.distiller(
        net, [jp.distill.match(jp.distill.losses.soft_targets)], optax.adam(1e-2), ema=0.99
    )
    state = d.init(
        mlp((20, 32, 5)).init(jax.random.key(2)), {"x": x[:1]}, teacher, key=jax.random.key(3)
    )
    loop: Any = {name: SETTINGS[name] for name in ("inner_steps", "checkpoint_every")}
    batches = jp.distill.Shuffled({"x": x}, SETTINGS["batch"])
    found = jp.distill.fit(
        d,
        state,
        batches,
        teacher,
        steps=steps,
        folder=folder or None,
        writer=Said(),
        progress=False,
        **loop,
    )
    print("final", digest(found.state), flush=True)


def digest(state: Any) -> str:
    """sha256 of all bytes of a state."""

    def is_key(x):
        return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)

    leaves = [
        np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(state)
    ]
    return hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()


def started(folder: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "experiments.distillation.resume",
        "child",
        folder,
        str(SETTINGS["steps"]),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy())


def finished(folder: str) -> str:
    """The hash that an undisturbed child gives."""
    out, _ = started(folder).communicate()
    return out.split("final ")[1].strip()


def killed(folder: str, after: int, wait: float) -> int | None:
    """Runs a child and kills it once it has written so many more lines, and a moment later; its
    last step.
    """
    process = started(folder)
    step = None
    assert process.stdout
    for n, line in enumerate(process.stdout):
        if line.startswith("final"):
            break
        step = int(line)
        if n >= after:
            time.sleep(wait)
            process.kill()
            break
    process.wait()
    process.stdout.close()
    return step


def main() -> None:
    draw = random.Random(SETTINGS["seed"])
    rows = []
    whole = finished("")
    per = SETTINGS["steps"] // SETTINGS["inner_steps"]
    for i in range(SETTINGS["kills"]):
        with tempfile.TemporaryDirectory() as folder:
            step = killed(folder, draw.randrange(per), draw.random() * 0.05)
            same = finished(folder) == whole
        rows.append({"killed_after_step": step, "bit_equal": same})
        print(
            f"{i + 1}/{SETTINGS['kills']}: killed after step {step}: "
            f"{'equal' if same else 'DIFFERENT'}",
            file=sys.stderr,
        )
    equal = sum(r["bit_equal"] for r in rows)
    path = save(
        "resume", SETTINGS, {"runs": rows, "bit_equal": equal, "of": len(rows), "sha256": whole}
    )
    show("Killed and resumed", ["runs", "bit-equal", "goal"], [(len(rows), equal, len(rows))])
    print(path)


if __name__ == "__main__":
    child(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["child"] else main()
