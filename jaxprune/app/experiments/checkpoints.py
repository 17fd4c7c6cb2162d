"""Checkpoints of a run: the whole state of a phase, so that a killed run goes on to the same bits.

Orbax stores the leaves by number; the structure comes from running the phase's `init` again, which
is deterministic. So a code needs no serialiser here, and one whose shapes depend on the weights
(`energy`, `similarity`) is no special case.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.distill.checkpoints import numbered, unnumbered


class Checkpoints:
    """The newest checkpoint of each phase of one seed, in a folder."""

    def __init__(self, folder: Path) -> None:
        import orbax.checkpoint as ocp

        self.folder = folder.absolute()
        self._store = ocp.StandardCheckpointer()

    def save(self, phase: int, epoch: int, state: Any) -> None:
        """Writes the state of a phase after an epoch, then drops its older ones; orbax renames when
        it is whole.
        """
        old = self._epochs(phase)
        self._store.save(self._path(phase, epoch), _arrays(state), force=True)
        self._store.wait_until_finished()
        for e in old:
            if e != epoch:
                shutil.rmtree(self._path(phase, e), ignore_errors=True)

    def restore(self, phase: int, like: Any) -> tuple[int, Any] | None:
        """The newest (epoch, state) of a phase, shaped like `like`; None when there is none."""
        epochs = self._epochs(phase)
        if not epochs:
            return None
        path = self._path(phase, epochs[-1])
        try:
            specs = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in _arrays(like).items()}
            found = self._store.restore(path, specs)
        except Exception as e:  # orbax raises what its parts raise
            message = (
                f"{path} cannot be read ({type(e).__name__}: {e}). Delete it to start the phase "
                f"again"
            )
            raise ValueError(message) from e

        # What was on the device goes back there: a file tells NumPy's arrays from JAX's.
        def put(x, was):
            return jnp.asarray(x) if isinstance(was, jax.Array) else x

        return epochs[-1], jax.tree.map(put, unnumbered(found, like), like)

    def close(self) -> None:
        """Waits for orbax's threads."""
        self._store.close()

    def _path(self, phase: int, epoch: int) -> Path:
        return self.folder / f"phase-{phase}-epoch-{epoch}"

    def _epochs(self, phase: int) -> list[int]:
        found = [p.name.rpartition("-")[2] for p in self.folder.glob(f"phase-{phase}-epoch-*")]
        return sorted(int(e) for e in found if e.isdigit())


def _arrays(state: Any) -> dict[str, Any]:
    """The leaves by number, on the host."""
    return {number: np.asarray(x) for number, x in numbered(state).items()}
