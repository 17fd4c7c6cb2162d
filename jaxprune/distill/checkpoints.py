"""Checkpoints of `fit`: the whole state, the best so far and what the loop knows, appearing
together or not at all.

Orbax stores leaves by number and renames a folder when it is whole; the structure comes from the
state that the resumed run starts with. The teacher is not stored: its fingerprint is, and so are
the names, shapes and dtypes of the student.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np


class Found(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      state: of the loop.
      best: what the best evaluation saw.
      about: what the loop knew, as JSON.
    """

    state: Any
    best: Any
    about: dict[str, Any]


class Checkpoints:
    """The newest checkpoint in a folder; the one before it goes when the next one is whole.

    Args:
      folder: made if needed.
      identity: {"student": …, "teacher": …}, by which a checkpoint of another run is told.
    """

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        import orbax.checkpoint as ocp

        self.folder = Path(folder).absolute()
        self._ocp = ocp
        self._identity = identity
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, item_names=("state", "best", "about")
        )

    def save(self, step: int, state: Any, best: Any, about: dict[str, Any]) -> None:
        """Writes the checkpoint of a step.

        Raises:
          OSError: a full disk, and where; the checkpoint before stays.
        """
        args = self._ocp.args
        items = {
            "state": args.StandardSave(numbered(state)),
            "best": args.StandardSave(numbered(best)),
        }
        known = args.JsonSave(about | {"identity": self._identity})
        try:
            self._manager.save(step, args=args.Composite(about=known, **items), force=True)
        except Exception as e:  # orbax and tensorstore raise what their parts raise
            kept = self._manager.latest_step()
            message = (
                f"the checkpoint of step {step} in {self.folder} was not written; that of step "
                f"{kept} stays"
            )
            raise OSError(f"{message} ({type(e).__name__}: {str(e)[:300]})") from e

    def restore(self, state: Any, best: Any) -> Found | None:
        """The newest checkpoint, shaped and placed like the arguments; None where there is none.

        Raises:
          ValueError: it is of another student or teacher, or cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        self._same(self._read(step, about=self._ocp.args.JsonRestore())["about"])
        like = {"state": _specs(state), "best": _specs(best)}
        items = {name: self._ocp.args.StandardRestore(x) for name, x in like.items()}
        found = self._read(step, about=self._ocp.args.JsonRestore(), **items)
        return Found(
            unnumbered(found["state"], state), unnumbered(found["best"], best), dict(found["about"])
        )

    def close(self) -> None:
        """Waits for orbax's threads."""
        self._manager.close()

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=self._ocp.args.Composite(**items))
        except Exception as e:  # as above
            path = self.folder / str(step)
            said = f"{type(e).__name__}: {str(e)[:300]}"
            raise ValueError(f"{path} cannot be read ({said}). Delete it to start again") from e

    def _same(self, about: dict[str, Any]) -> None:
        theirs = about.get("identity", {})
        for what, mine in self._identity.items():
            if theirs.get(what) != mine:
                raise ValueError(
                    f"{self.folder} holds a checkpoint of another {what} ({theirs.get(what)}; this "
                    f"one is {mine}). Give another folder, or delete it"
                )


def numbered(tree: Any) -> dict[str, Any]:
    """The leaves by number. Orbax refuses arrays without elements; they hold nothing to restore."""
    return {str(i): x for i, x in enumerate(jax.tree.leaves(tree)) if np.size(x)} or {
        "none": np.zeros(1)
    }


def structure(tree: Any) -> str:
    """A hash of paths, shapes and dtypes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    said = [
        (jax.tree_util.keystr(k), np.shape(x), str(getattr(x, "dtype", type(x)))) for k, x in leaves
    ]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _specs(tree: Any) -> dict[str, Any]:
    return jax.tree.map(_spec, numbered(tree))


def _spec(x: Any) -> Any:
    return (
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        if isinstance(x, jax.Array)
        else x
    )


def unnumbered(found: dict[str, Any], like: Any) -> Any:
    """The tree of the leaves that were read: the inverse of `numbered`."""
    leaves, treedef = jax.tree.flatten(like)
    return jax.tree.unflatten(treedef, [found.get(str(i), x) for i, x in enumerate(leaves)])
