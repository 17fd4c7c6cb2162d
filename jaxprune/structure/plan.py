"""A plan: what is kept of every leaf, and what follows from it for any tree that is shaped like the params.

cut      params -> smaller params; also gradients, Adam's moments, masks, another checkpoint
expand   smaller params -> params of the old shapes, zeros where something was cut
mask     params -> params of the old shapes, with zeros there
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from jaxprune.core.tree import nearest
from jaxprune.core.where import leaf_path

FORMAT = "jaxprune plan 1"


class Plan(NamedTuple):
    """What is kept.

    Attributes:
      shapes: path -> the shape of the leaf before, for all leaves.
      keep: path -> axis -> the positions that stay, in order; only axes that are cut.
    """

    shapes: Mapping[str, tuple[int, ...]]
    keep: Mapping[str, Mapping[int, np.ndarray]]

    def cut(self, tree: Any) -> Any:
        """A smaller copy of a tree whose leaves are params, or are named as they are (`opt_state[0].mu["dense"]`).

        A leaf is cut if its path ends with that of a param; scalars stay, and so do leaves with other names.

        Raises:
          ValueError: a leaf of another shape than its param, or a tree with no leaf of the params' names.
        """

        return self._over(self.cut_one, tree, lambda path: self.shapes[path])

    def expand(self, tree: Any) -> Any:
        """A tree of the old shapes: zeros where something was cut."""

        def one(x: Any, path: str) -> Any:
            shape, keep = self.shapes[path], self.keep.get(path, {})
            if not keep:
                return x
            full = jnp.zeros(shape, jnp.result_type(x))
            return full.at[np.ix_(*(keep.get(k, np.arange(n)) for k, n in enumerate(shape)))].set(x)

        return self._over(one, tree, self.small)

    def cut_one(self, x: Any, path: str) -> Any:
        """What is kept of an array of the shape of the param at this path."""
        for axis, kept in self.keep.get(path, {}).items():
            x = jnp.take(jnp.asarray(x), np.asarray(kept), axis=axis)
        return x

    def mask(self, tree: Any) -> Any:
        """A tree of the old shapes, with zeros where a plan cuts."""

        def one(x: Any, path: str) -> Any:
            for axis, kept in self.keep.get(path, {}).items():
                there = np.zeros(x.shape[axis], bool)
                there[kept] = True
                x = jnp.where(there.reshape([-1 if k == axis else 1 for k in range(x.ndim)]), x, jnp.zeros_like(x))
            return x

        return self._over(one, tree, lambda path: self.shapes[path])

    def small(self, path: str) -> tuple[int, ...]:
        """The shape of a leaf after the cut."""
        keep = self.keep.get(path, {})
        return tuple(len(keep[k]) if k in keep else n for k, n in enumerate(self.shapes[path]))

    def _over(self, one: Callable[..., Any], tree: Any, shape_of: Callable[[str], tuple[int, ...]]) -> Any:
        met = []

        def leaf(keys: Any, x: Any) -> Any:
            name = leaf_path(keys)
            path = self.named(name)
            if path is None or (np.ndim(x) == 0 and self.shapes[path]):
                return x
            if np.shape(x) != shape_of(path):
                raise ValueError(
                    f"plan: {name} is {np.shape(x)}, and the plan is for {shape_of(path)}: give a tree without it"
                )
            met.append(path)
            return one(x, path)

        made = jax.tree_util.tree_map_with_path(leaf, tree)
        if self.shapes and not met:
            names = [leaf_path(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
            raise ValueError(f"plan: no leaf is named as a param of the plan. It has {nearest('', names)}")
        return made

    def named(self, name: str) -> str | None:
        """The param whose path a leaf's name ends with; the longest one."""
        parts = name.split("/")
        return next((p for i in range(len(parts) + 1) if (p := "/".join(parts[i:])) in self.shapes), None)

    def save(self, path: Any) -> None:
        """Writes a JSON file."""
        keep = {p: {str(k): [int(i) for i in kept] for k, kept in axes.items()} for p, axes in self.keep.items()}
        text = msgspec.json.encode({"format": FORMAT, "shapes": dict(self.shapes), "keep": keep})
        pathlib.Path(path).write_bytes(msgspec.json.format(text, indent=0))

    @classmethod
    def load(cls, path: Any) -> "Plan":
        """Reads what `save` wrote.

        Raises:
          ValueError: not a plan, or one that contradicts itself.
        """
        try:
            file = msgspec.json.decode(pathlib.Path(path).read_bytes(), type=_File)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path} is not a plan: {error}") from error
        if file.format != FORMAT:
            raise ValueError(f"{path} is not a plan: its format is {file.format!r}, not {FORMAT!r}")
        keep = {p: {k: np.array(kept, int) for k, kept in axes.items()} for p, axes in file.keep.items()}
        plan = cls({p: tuple(shape) for p, shape in file.shapes.items()}, keep)
        plan.check(str(path))
        return plan

    def check(self, where: str = "plan") -> None:
        """Refuses a plan that contradicts itself."""
        for path, axes in self.keep.items():
            if path not in self.shapes:
                raise ValueError(f"{where}: {path!r} is cut and has no shape")
            for k, kept in ((k, np.asarray(kept)) for k, kept in axes.items()):
                n = self.shapes[path][k] if 0 <= k < len(self.shapes[path]) else 0
                if not len(kept) or kept.min() < 0 or kept.max() >= n or (np.diff(kept) <= 0).any():
                    raise ValueError(f"{where}: {path}[{k}] of {n} positions cannot keep {kept[:8].tolist()}")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    shapes: dict[str, list[int]]
    keep: dict[str, dict[int, list[int]]]
