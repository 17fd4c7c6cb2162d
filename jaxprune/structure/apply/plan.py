"""A plan: what is kept of every leaf, and what follows from it for any tree that is shaped like the
params.

cut      params -> smaller params; also gradients, Adam's moments, masks, another checkpoint
expand   smaller params -> params of the old shapes, zeros where something was cut
mask     params -> params of the old shapes, with zeros there

Where a block was left out, a leaf that nothing uses any more is None in the smaller params: they
are a tree without it.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from jaxprune.core.leaves.paths import flatten_with_path, leaf_path, map_with_path
from jaxprune.core.where import is_float
from jaxprune.core.words import nearest
from jaxprune.structure.axes.selection import in_turn, mesh, take

FORMAT = "jaxprune plan 1"


class Plan(NamedTuple):
    """What is kept.

    Attributes:
      shapes: path -> the shape of the leaf before, for all leaves.
      keep: path -> axis -> the positions that stay, in order; only axes that are cut. They are one
        row; or, where they differ along other axes, an array of the leaf's rank: as many at each
        position that those keep (`uneven=True`).
      blocks: that are left out, each by the paths of the params that it alone uses.
      dropped: path -> dtype of the leaves that nothing uses any more.
    """

    shapes: Mapping[str, tuple[int, ...]]
    keep: Mapping[str, Mapping[int, np.ndarray]]
    blocks: tuple[tuple[str, ...], ...] = ()
    dropped: Mapping[str, Any] = {}

    def cut(self, tree: Any) -> Any:
        """A smaller copy of a tree whose leaves are params, or are named as they are
        (`opt_state[0].mu["dense"]`).

        A leaf is cut if its path ends with that of a param, or with what follows the collection of
        it: the plan of Flax variables names `params/dense/kernel`, Adam's moments end with
        `dense/kernel`. Scalars stay, and so do leaves with other names.

        Raises:
          ValueError: a leaf of another shape than its param; a leaf that is named as no param and
            has the shape of one that is cut, for it would stay as it is; a tree with no leaf of the
            params' names.
        """

        return self._over(self.cut_one, tree, lambda path: self.shapes[path])

    def expand(self, tree: Any) -> Any:
        """A tree of the old shapes: zeros where something was cut."""

        def one(x: Any, path: str) -> Any:
            shape = self.shapes[path]
            keep = self.keep.get(path, {})
            if x is None:
                return jnp.zeros(shape, self.dtype(path, tree))
            if not keep:
                return x
            return jnp.zeros(shape, jnp.result_type(x)).at[tuple(mesh(shape, keep))].set(x)

        return self._over(one, tree, self.small)

    def cut_one(self, x: Any, path: str) -> Any:
        """What is kept of an array of the shape of the param at this path; None of one that is
        dropped.
        """
        keep = self.keep.get(path)
        return None if path in self.dropped else take(jnp.asarray(x), keep, jnp) if keep else x

    def cut_here(self, path: str, x: np.ndarray) -> np.ndarray:
        """`cut_one` of an array of the host; empty of one that is dropped."""
        if path in self.dropped:
            return x[:0]
        return take(x, self.keep.get(path, {}), np)

    def mask(self, tree: Any) -> Any:
        """A tree of the old shapes, with zeros where a plan cuts."""

        def one(x: Any, path: str) -> Any:
            if path in self.dropped:
                return jnp.zeros_like(x)
            keep = self.keep.get(path, {})
            even = all(np.ndim(at) == 1 for at in keep.values())
            for some in ({k: at} for k, at in keep.items()) if even else [keep]:
                there = np.zeros(
                    [n if k in some or not even else 1 for k, n in enumerate(x.shape)], bool
                )
                there[tuple(mesh(there.shape, some))] = True
                x = jnp.where(there, x, jnp.zeros_like(x))
            return x

        return self._over(one, tree, lambda path: self.shapes[path])

    def filled(self, tree: Any) -> Any:
        """The smaller params with the shapes of the leaves that are dropped, in place of None."""

        def one(keys: Any, x: Any) -> Any:
            gone = x is None and (path := leaf_path(keys)) in self.dropped
            return jax.ShapeDtypeStruct(self.shapes[path], self.dtype(path, tree)) if gone else x

        return map_with_path(one, tree, is_leaf=lambda x: x is None)

    def dtype(self, path: str, tree: Any) -> Any:
        """Of a leaf that is dropped, if it were in this tree: a float is as all the others, where
        these are alike.
        """
        own = jnp.dtype(self.dropped[path])
        others = {jnp.result_type(x) for x in jax.tree.leaves(tree) if is_float(x)}
        return others.pop() if len(others) == 1 and jnp.issubdtype(own, jnp.floating) else own

    def small(self, path: str) -> tuple[int, ...] | None:
        """The shape of a leaf after the cut; None if it is dropped."""
        if path in self.dropped:
            return None
        keep = self.keep.get(path, {})
        left = {k: len(at) if np.ndim(at) == 1 else np.shape(at)[k] for k, at in keep.items()}
        return tuple(left.get(k, n) for k, n in enumerate(self.shapes[path]))

    def _over(
        self, one: Callable[..., Any], tree: Any, shape_of: Callable[[str], tuple[int, ...] | None]
    ) -> Any:
        met: list[str] = []
        others: list[tuple[str, tuple[int, ...]]] = []

        def leaf(keys: Any, x: Any) -> Any:
            name = leaf_path(keys)
            path = self.named(name)
            if path is None:
                others.append((name, np.shape(x)))
            if path is None or (x is None and path not in self.dropped):
                return x
            if x is not None and np.ndim(x) == 0 and self.shapes[path]:
                return x
            if x is not None and np.shape(x) != shape_of(path):
                raise ValueError(
                    f"plan: {name} is {np.shape(x)}, and the plan is for {shape_of(path)}: give a "
                    f"tree without it"
                )
            met.append(path)
            return one(x, path)

        made = map_with_path(leaf, tree, is_leaf=lambda x: x is None)
        if self.shapes and not met:
            names = [leaf_path(keys) for keys, _ in flatten_with_path(tree)[0]]
            raise ValueError(
                f"plan: no leaf is named as a param of the plan. It has {nearest('', names)}"
            )
        self._refuse_namesakes(others, shape_of)
        return made

    def _refuse_namesakes(
        self, others: list[tuple[str, Any]], shape_of: Callable[[str], Any]
    ) -> None:
        """Refuses leaves that are named as no param and yet seem to be one that is cut: they would
        stay whole.
        """
        changed = [*self.keep, *self.dropped]
        for name, shape in others:
            for path in changed:
                same_name = name.rpartition("/")[2] == path.rpartition("/")[2]
                if shape and shape == shape_of(path) and (len(shape) > 1 or same_name):
                    raise ValueError(
                        f"plan: {name} is {shape} as {path} is, which is cut, but is not named so: "
                        f"it would stay as it "
                        f"is. Give a tree in which its path ends with {path}, or one without it"
                    )
            if changed and shape in self._flat_shapes(shape_of):
                raise ValueError(
                    f"plan: {name} is {shape}: all params in one vector, which cannot be cut by "
                    f"name. Give a tree of "
                    f"the params' structure (an optimizer without optax.flatten), or one without it"
                )

    def _flat_shapes(self, shape_of: Callable[[str], Any]) -> set[tuple[int]]:
        """The shape of a vector of all params, and of those of each collection."""
        sizes: dict[str, int] = {}
        for path in self.shapes:
            size = int(np.prod(shape_of(path) or (), dtype=np.int64))
            for part in ("", path.partition("/")[0]) if self._has_collections() else ("",):
                sizes[part] = sizes.get(part, 0) + size
        return {(n,) for n in sizes.values()} if len(self.shapes) > 1 else set()

    def named(self, name: str) -> str | None:
        """The param whose path a leaf's name ends with, the longest one; with or without its
        collection.

        Raises:
          ValueError: without a collection it could be of several.
        """
        parts = name.split("/")
        ends = ["/".join(parts[i:]) for i in range(len(parts) + 1)]
        whole = next((end for end in ends if end in self.shapes), None)
        if whole is not None or not self._has_collections():
            return whole
        collections = dict.fromkeys(path.partition("/")[0] for path in self.shapes)
        for end in ends:
            same = [path for c in collections if end and (path := f"{c}/{end}") in self.shapes]
            if len(same) > 1:
                raise ValueError(
                    f"plan: {name} could be any of {', '.join(same)}: name it with its collection"
                )
            if same:
                return same[0]
        return None

    def _has_collections(self) -> bool:
        """Whether the params are variables of Flax linen: {"params": …, "batch_stats": …}."""
        return any(path.startswith("params/") for path in self.shapes)

    def save(self, path: Any) -> None:
        """Writes a JSON file."""
        keep = {
            p: {str(k): np.asarray(kept).tolist() for k, kept in axes.items()}
            for p, axes in self.keep.items()
        }
        dropped = {p: jnp.dtype(dtype).name for p, dtype in self.dropped.items()}
        deep = {"blocks": self.blocks, "dropped": dropped} if self.blocks else {}
        text = msgspec.json.encode(
            {"format": FORMAT, "shapes": dict(self.shapes), "keep": keep} | deep
        )
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
        keep = {
            p: {k: _positions(path, p, k, kept) for k, kept in axes.items()}
            for p, axes in file.keep.items()
        }
        plan = cls(
            {p: tuple(s) for p, s in file.shapes.items()},
            keep,
            tuple(map(tuple, file.blocks)),
            file.dropped,
        )
        plan.check(str(path))
        return plan

    def check(self, where: str = "plan") -> None:
        """Refuses a plan that contradicts itself."""
        gone = {*self.dropped, *(path for leaves in self.blocks for path in leaves)}
        odd = [path for path in gone if path not in self.shapes or path in self.keep]
        if odd:
            raise ValueError(f"{where}: {odd[0]!r} is left out, and has no shape or is cut")
        for path, axes in self.keep.items():
            if path not in self.shapes:
                raise ValueError(f"{where}: {path!r} is cut and has no shape")
            for k, kept in ((k, np.asarray(kept)) for k, kept in axes.items()):
                rank = len(self.shapes[path])
                n = self.shapes[path][k] if 0 <= k < rank else 0
                order = (
                    np.diff(kept, axis=k if kept.ndim > 1 else 0)
                    if n and kept.ndim in (1, rank)
                    else np.zeros(1)
                )
                if not kept.size or kept.min() < 0 or kept.max() >= n or (order <= 0).any():
                    raise ValueError(
                        f"{where}: {path}[{k}] of {n} positions cannot keep "
                        f"{kept.ravel()[:8].tolist()}"
                    )
            try:
                in_turn(axes)
                np.broadcast_shapes(
                    self.small(path) or (), *(x.shape for x in mesh(self.shapes[path], axes))
                )
            except ValueError as error:
                raise ValueError(f"{where}: {path}: {error}") from None


def _positions(file: Any, path: str, axis: int, kept: list[Any]) -> np.ndarray:
    try:
        found = np.array(kept)
    except ValueError:
        found = np.array("ragged")
    if found.size and found.dtype.kind != "i":
        raise ValueError(
            f"{file}: {path}[{axis}] keeps {str(kept)[:80]}: give rows of positions, all of one "
            f"length"
        )
    return found


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    shapes: dict[str, list[int]]
    keep: dict[str, dict[int, list[Any]]]
    blocks: list[list[str]] = []
    dropped: dict[str, str] = {}
