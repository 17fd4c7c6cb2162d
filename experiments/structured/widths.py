"""How long a 3 × 3 convolution of n channels to n takes on this CPU: not in the order of n.

The shapes are those of the three stages of a CIFAR ResNet, a batch of 128. All widths of a stage
take turns in one process; the figure is the shortest of the rounds, in CPU time, which sees less of
what else runs on a machine than wall time does.

python -m experiments.structured.widths
"""

import os
import time
from typing import Any

import jax
import numpy as np
from jax import lax

from experiments.distillation.common import save, show
from jaxprune.structure.time.timings import Call, race

SETTINGS: dict[str, Any] = {
    "batch": 128,
    "stages": {
        "32": [8, 10, 12, 13, 14, 15, 16],
        "16": [16, 20, 24, 28, 30, 32],
        "8": [32, 40, 48, 52, 56, 60, 64],
    },
}


def convolution(batch: int, side: int, channels: int) -> Call:
    """Of `channels` to as many."""

    def f(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = (batch, side, side, channels), (3, 3, channels, channels)
    return Call(jax.jit(f), tuple(jax.ShapeDtypeStruct(s, np.float32) for s in shapes))


def measured(settings: Any) -> dict[str, dict[str, float]]:
    """Milliseconds by image side and channels."""
    found = {}
    for side, widths in settings["stages"].items():
        times = race(
            [convolution(settings["batch"], int(side), n) for n in widths], time.process_time
        )
        found[side] = {str(n): 1e3 * float(t) for n, t in zip(widths, times.min(0))}
    return found


def main() -> None:
    found = measured(SETTINGS)
    path = save("widths", SETTINGS | {"load": os.getloadavg()}, {"cpu_ms": found}, "structured")
    rows = [
        (f"{side}×{side}", n, f"{t:.2f}") for side, times in found.items() for n, t in times.items()
    ]
    show("3 × 3 convolutions, batch of 128", ["image", "channels", "CPU, ms"], rows)
    print(path)


if __name__ == "__main__":
    main()
