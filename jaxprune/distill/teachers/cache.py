"""A cached teacher: its logits on disk, written once and read in every later epoch.

    write_cache(folder, logits_of, examples, fingerprint=…)      the teacher runs once over the
        examples
    Cache.open(folder, fingerprint=…).read(indices)              rows, by the index of the example

A row belongs to the example's index and to the seed of an augmentation: what the teacher says of
one crop of an image is no target for another. Each seed has files of its own. The files are
described in `cache_files.py`.
"""

import os
from typing import Any

import numpy as np

from jaxprune.core.arguments import whole
from jaxprune.distill.teachers import cache_files, cache_forms
from jaxprune.distill.teachers.cache_files import Files
from jaxprune.distill.teachers.cache_forms import Form
from jaxprune.distill.teachers.fingerprints import fingerprint as hashed

Path = str | os.PathLike[str]


class Cache:
    """A teacher's logits on disk; made by `write_cache` and `Cache.open`. `len` is the number of
    examples.

    Attributes:
      folder: where it is.
      form: "float16", "float32" or `Top`.
      shape: of one example's logits; the last axis is the classes.
      fingerprint: of the teacher.
    """

    def __init__(self, files: Files):
        self._files = files
        self._whole: set[int] = set()
        self.folder = files.folder
        self.fingerprint = files.manifest.teacher
        self.form: Form = files.manifest.form
        self.shape = files.manifest.shape

    @classmethod
    def open(cls, folder: Path, *, fingerprint: str, examples: Any = None) -> "Cache":
        """The cache in a folder, if it is that teacher's.

        Args:
          folder: of `write_cache`.
          fingerprint: the teacher's, as it was given to `write_cache`.
          examples: the arrays that it was written for: given, they are compared too, which reads
            them all.

        Raises:
          ValueError: there is no cache, or that of another teacher or of other examples.
          FormatError: a `ValueError`: the manifest is damaged, foreign, or of another version.

        Example:
          >>> import os, tempfile, jax.numpy as jnp, jaxprune as jp
          >>> folder, w = os.path.join(tempfile.mkdtemp(), "teacher"), jnp.eye(3)
          >>> told = jp.distill.fingerprint(w)
          >>> _ = jp.distill.write_cache(folder, lambda x: x @ w, jnp.eye(3)[:2], fingerprint=told)
          >>> print(jp.distill.Cache.open(folder, fingerprint=told).read([1, 0, 1]))
          [[0. 1. 0.]
           [1. 0. 0.]
           [0. 1. 0.]]
        """
        said = cache_files.read_manifest(folder)
        if said is None:
            raise ValueError(
                f"{os.fspath(folder)} holds no cache: it has no {cache_files.MANIFEST}; "
                f"write_cache makes one"
            )
        cache_files.same(folder, "teacher", said.teacher, fingerprint)
        if examples is not None:
            cache_files.same(folder, "examples", said.examples, hashed(examples))
        return cls(Files(folder, said))

    def __len__(self) -> int:
        return self._files.manifest.count

    def __repr__(self) -> str:
        return f"Cache({self.folder!r}, {len(self)} examples of {self.shape}, {self.form})"

    @property
    def augmentations(self) -> tuple[int, ...]:
        """The seeds whose files are all there."""
        return tuple(
            a for a, shards in self._files.found().items() if len(shards) == self._files.shards
        )

    def read(self, indices: Any, augmentation: int = 0) -> Any:
        """What the teacher says of some examples.

        A shard is checked when it is first read; later reads take rows out of the mapped file.

        Args:
          indices: integers from 0 to len − 1, of any shape and in any order.
          augmentation: the seed.

        Returns:
          (*indices, *shape): a NumPy array of the stored dtype; for `Top` a `losses.TopK` of
            float32 and int32.

        Raises:
          ValueError: indices that are no integers or out of range; an augmentation that was not
            written.
          FormatError: a `ValueError`: a shard is missing, cut, damaged or foreign; the message
            names the file.
        """
        at = _indices(indices, len(self))
        self._written(augmentation)
        shard, row = np.divmod(at.reshape(-1), self._files.manifest.shard)
        parts = {int(i): self._files.records(augmentation, int(i)) for i in np.unique(shard)}
        out = np.empty(len(row), self._files.dtype)
        for i, records in parts.items():
            here = shard == i
            out[here] = records[row[here]]
        return cache_forms.decode(self.form, out.reshape(at.shape))

    def whole(self, augmentation: int = 0) -> Any:
        """What the teacher says of all examples, in order, as `read`: to put it on a device, if it
        fits there.
        """
        self._written(augmentation)
        parts = [self._files.records(augmentation, i) for i in range(self._files.shards)]
        return cache_forms.decode(self.form, np.concatenate(parts))

    def _written(self, augmentation: int) -> None:
        """Whether all shards are there, looked at once."""
        augmentation = whole("augmentation={}", augmentation, 0, 2**63 - 1)
        if augmentation in self._whole:
            return
        found = self._files.found()
        due = self._files.shards
        if len(found.get(augmentation, ())) != due:
            begun = [
                f"{a} ({len(shards)} of {due} shards)"
                for a, shards in found.items()
                if 0 < len(shards) < due
            ]
            raise ValueError(
                f"{self.folder}: augmentation {augmentation!r} is not written in full. Those that "
                f"are: {list(self.augmentations)}; begun: {', '.join(begun) or 'none'}. "
                "write_cache goes on where it ended"
            )
        self._whole.add(augmentation)


def _indices(indices: Any, count: int) -> np.ndarray:
    """Integers in 0 … count − 1."""
    at = np.asarray(indices)
    if at.dtype.kind not in "iu":
        raise ValueError(
            f"indices: dtype {at.dtype}, shape {at.shape}; give integers from 0 to {count - 1}"
        )
    wrong = at[(at < 0) | (at >= count)]
    if wrong.size:
        raise ValueError(
            f"indices: {wrong.flat[0]} is out of range; the cache holds examples 0 to {count - 1}"
        )
    return at.astype(np.int64)
