"""What single equations take on this device, measured: a table that can be kept.

Operations do not say how long they take: on one CPU a convolution of 13 channels takes longer than
one of 16. So each equation is run by itself at the shapes that a plan would leave, as in the tables
of NetAdapt (Yang et al. 2018, arXiv:1804.03230). What is written down is the shortest of some
rounds: all else that a machine does only adds to it.
"""

import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np

FORMAT = "jaxprune timings 1"
TOGETHER = 16  # calls that take turns
ROUNDS = 7, 50  # at least and at most,
SECONDS = 0.3  # and about so long in all


class Call(NamedTuple):
    """What is timed: f(*args).

    Attributes:
      f: compiled when it is first called.
      args: trees of arrays, or of their shapes.
    """

    f: Callable[..., Any]
    args: tuple[Any, ...]


Clock = Callable[[Sequence[Call]], np.ndarray]
"""Calls -> seconds, [rounds, calls]; those of a round were taken right after one another."""


def race(calls: Sequence[Call], now: Callable[[], float] = time.perf_counter) -> np.ndarray:
    """Seconds of every call in rounds in which each has its turn, after one round that compiles and
    one that warms.

    Args:
      calls: what is timed.
      now: a clock. `time.process_time` sees less of what else a busy machine does, and counts all
        threads together.
    """
    ready = [(f, jax.tree.map(_ones, args)) for f, args in calls]

    def seconds(f: Callable[..., Any], args: tuple[Any, ...]) -> float:
        began = now()
        jax.block_until_ready(f(*args))
        return now() - began

    for f, args in ready:
        jax.block_until_ready(f(*args))
    once = sum(seconds(f, args) for f, args in ready)
    rounds = int(np.clip(SECONDS / max(once, 1e-9), *ROUNDS))
    return np.array([[seconds(f, args) for f, args in ready] for _ in range(rounds)])


def _ones(x: Any) -> Any:
    """Where only a shape is given; made by NumPy, so that nothing is compiled for it."""
    return jax.device_put(np.ones(x.shape, x.dtype)) if isinstance(x, jax.ShapeDtypeStruct) else x


class Timings(NamedTuple):
    """A table of measured times, for `jp.shrink(..., latency=, timings=)`; one that is empty grows
    there.

    Attributes:
      seconds: what is measured -> how long it took.
      device: where; empty for this device.
      clock: how what is missing is measured; [rounds, calls] seconds from functions and their
        arguments.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, jaxprune as jp
      >>> f = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
      >>> p, x = {"w": jnp.ones((8, 32)), "v": jnp.ones((32, 4))}, jnp.ones((16, 8))
      >>> reads = lambda calls: np.array([[float(sum(x.size for x in jax.tree.leaves(args))) for f,
      ...     args in calls]])
      >>> # a made-up clock
      >>> thin = jp.shrink(f, p, x, latency=0.5, timings=jp.Timings(clock=reads))
      >>> print(thin.report.latency, thin.params["w"].shape, len(thin.report.timings.seconds))
      (512.0, 224.0) (8, 8) 16
    """

    seconds: Mapping[str, float] = {}
    device: str = ""
    clock: Clock = race

    def extended(self, calls: Mapping[str, Call]) -> "Timings":
        """With what was missing."""
        found = dict(self.seconds)
        missing = [key for key in calls if key not in self.seconds]
        for some in (missing[i : i + TOGETHER] for i in range(0, len(missing), TOGETHER)):
            found.update(zip(some, map(float, self.clock([calls[key] for key in some]).min(0))))
        return self._replace(seconds=found, device=self.device or device())

    def save(self, path: Any) -> None:
        """Writes a JSON file."""
        file = {"format": FORMAT, "device": self.device or device(), "seconds": dict(self.seconds)}
        pathlib.Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=1))

    @classmethod
    def load(cls, path: Any) -> "Timings":
        """Reads what `save` wrote.

        Raises:
          ValueError: no table, or one of another device or version of JAX.
        """
        try:
            file = msgspec.json.decode(pathlib.Path(path).read_bytes(), type=_File)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path} holds no timings: {error}") from error
        if file.format != FORMAT:
            raise ValueError(
                f"{path} holds no timings: its format is {file.format!r}, not {FORMAT!r}"
            )
        odd = [key for key, s in file.seconds.items() if not 0 < s < np.inf]
        if odd:
            raise ValueError(f"{path}: {odd[0]} took {file.seconds[odd[0]]} seconds: measure anew")
        return cls(file.seconds, file.device).here(str(path))

    def here(self, name: str = "timings") -> "Timings":
        """Itself, if it is of this device.

        Raises:
          ValueError: it is not.
        """
        if self.device not in ("", device()):
            raise ValueError(
                f"{name}: measured on {self.device!r}, and this is {device()!r}: measure anew here"
            )
        return self


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    device: str
    seconds: dict[str, float]


def device() -> str:
    """What times depend on: the device, how many cores may be used, the version of JAX."""
    one = jax.local_devices()[0]
    kind = (
        f"{one.device_kind} {_processor()}, {_cores()} cores"
        if one.platform == "cpu"
        else one.device_kind
    )
    return f"{kind}, jax {jax.__version__}"


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def equation(eqn: Any) -> tuple[str, Call]:
    """An equation's name in a table, and the equation by itself."""
    like = tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars)
    params = ", ".join(f"{name}={value}" for name, value in sorted(eqn.params.items()))
    name = f"{eqn.primitive.name}({', '.join(_written(like))}; {params})"
    return name, Call(jax.jit(lambda *xs: eqn.primitive.bind(*xs, **eqn.params)), like)


def _written(arrays: Iterable[Any]) -> list[str]:
    return [f"{x.dtype}{list(x.shape)}" for x in arrays]
