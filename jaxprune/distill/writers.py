"""Where `fit` writes its metrics: anything with `write_scalars(step, {name: number})`, which is
clu's protocol too.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxprune.storage.atomic import replacing


@runtime_checkable
class Writer(Protocol):
    """What `fit` asks of a writer; `clu.metric_writers` have it."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""


class Jsonl:
    """One JSON object a line, {"step": 50, "loss": 0.3, …}; a run that goes on cuts what came after
    its checkpoint.

    Args:
      path: of the file, made with its folder.

    Example:
      >>> import pathlib, tempfile, jaxprune as jp
      >>> path = pathlib.Path(tempfile.mkdtemp(), "metrics.jsonl")
      >>> writer = jp.distill.Jsonl(path)
      >>> for step in (1, 2, 3):
      ...     writer.write_scalars(step, {"loss": 1 / step})
      >>> writer.rewind(2)
      >>> print(path.read_text().strip())
      {"step": 1, "loss": 1.0}
      {"step": 2, "loss": 0.5}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends a line; NaN and infinities become null, which JSON has."""
        plain = {name: float(x) if math.isfinite(x) else None for name, x in scalars.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": int(step), **plain}) + "\n")

    def rewind(self, step: int) -> None:
        """Drops what was written of later steps, and a last line that a crash cut short."""
        if self._path.exists():
            lines = self._path.read_bytes().splitlines(keepends=True)
            with replacing(self._path) as file:
                file.writelines(line for line in lines if _up_to(line, step))


def _up_to(line: bytes, step: int) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(found, dict) and found.get("step", 0) <= step


class Tensorboard:
    """Writes for TensorBoard, through tensorboardX.

    Args:
      folder: of the event files.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._to: Any = SummaryWriter(os.fspath(folder))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        for name, x in scalars.items():
            self._to.add_scalar(name, float(x), int(step))
