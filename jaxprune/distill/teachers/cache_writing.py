"""Writing a cache: the teacher runs over the examples that no shard holds yet, one batch at a
time.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.core.arguments import whole
from jaxprune.distill.teachers import cache_files, cache_forms
from jaxprune.distill.teachers.cache import Cache, Path
from jaxprune.distill.teachers.cache_files import Files, Manifest
from jaxprune.distill.teachers.cache_forms import Form, Top
from jaxprune.distill.teachers.fingerprints import fingerprint as hashed
from jaxprune.storage import atomic

SHARD = 1 << 24  # bytes of a shard, or
MOST_SHARDS = 256  # that many shards: each that is read holds a file descriptor


def write_cache(
    folder: Path,
    logits_of: Callable[[Any], Any],
    examples: Any,
    *,
    fingerprint: str,
    form: Form = "float16",
    augmentation: int = 0,
    batch: int = 1000,
    shard: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cache:
    """Writes what a teacher says of each example, as far as it is not there: call it before every
    run.

    The logits go to shards, each of which appears whole, checked and flushed to the disk, or not at
    all. After a crash, a full disk or an interrupt the same call does what is missing; with the
    same `batch` the bytes are those of a write that nothing stopped. Two processes may write one
    cache at once. Of the logits, one batch at a time is in memory.

    Args:
      folder: made if need be. It holds one teacher's logits of one set of examples, in one form.
      logits_of: examples[i:j] -> logits (j − i, *positions, classes), floats; jit it.
      examples: an array, or a pytree of arrays, whose first axis is the examples; memory maps are
        read piece by piece. Add `numpy.arange(n)` to the tree if an augmentation depends on the
        index.
      fingerprint: the teacher's, of `jp.distill.fingerprint`: what it computes with, and what tells
        it apart.
      form: "float16", "float32", or `jp.distill.Top(k, temperature)`.
      augmentation: a seed, 0 or more, with files of its own. It is `logits_of` that augments: the
        examples are the same for all seeds, which is checked.
      batch: how many examples at a time.
      shard: how many examples a file; by default whole batches of 16 MiB, or as many as make 256
        files.
      progress: called with (done, all) examples after every batch.

    Returns:
      The `Cache`.

    Raises:
      ValueError: no examples, or arrays of unequal lengths; logits of another shape, or that are no
        floats; NaN, +inf or more than float16 has room for, with the index of the example; the
        folder holds another teacher's cache, or one of other examples or of another form, or a
        damaged file.
      OSError: the disk is full; the message says what was kept.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, jaxprune as jp
      >>> folder, w = os.path.join(tempfile.mkdtemp(), "teacher"), jnp.eye(3)
      >>> cache = jp.distill.write_cache(folder, lambda x: x @ w, jnp.eye(3),
      ...     fingerprint=jp.distill.fingerprint(w),
      ...                                form=jp.distill.Top(1, temperature=2.0))
      >>> cache.augmentations, cache.read([2]).indices
      ((0,), array([[2]], dtype=int32))
    """
    augmentation = whole("write_cache(augmentation={})", augmentation, 0, 2**63 - 1)
    batch = whole("write_cache(batch={})", batch, 1, 2**63 - 1)
    if shard is not None:
        shard = whole("write_cache(shard={})", shard, 1, 2**63 - 1)
    source = _Source(logits_of, examples, batch)
    said = _manifest(folder, source, fingerprint, _plain(form), shard)
    files = Files(folder, said)
    for i in range(files.shards):
        if os.path.lexists(files.path(augmentation, i)):
            files.records(augmentation, i)
            if progress is not None:
                progress(files.span(i)[1], said.count)
        else:
            _write(files, augmentation, i, source, progress)
    files.tidy(augmentation)
    return Cache(files)


class _Source:
    """The examples, and what the teacher says of them."""

    def __init__(self, logits_of: Callable[[Any], Any], examples: Any, batch: int):
        self.logits_of = logits_of
        self.examples = examples
        self.batch = batch
        shapes = {np.shape(x)[:1] for x in jax.tree.leaves(examples)}
        if len(shapes) != 1 or shapes in ({()}, {(0,)}):
            found = [np.shape(x) for x in jax.tree.leaves(examples)][:5]
            raise ValueError(
                f"examples of shapes {found}: give arrays of one length, 1 or more, on their first "
                f"axis"
            )
        self.count: int = shapes.pop()[0]
        self._first: dict[tuple[int, int], Any] = {}

    def shape(self) -> tuple[int, ...]:
        """The shape of one example's logits. The teacher runs on the first batch, whose logits are
        kept for later.
        """
        i = 0
        j = min(self.batch, self.count)
        self._first[i, j] = found = self.logits(i, j)
        return tuple(found.shape[1:])

    def logits(self, i: int, j: int) -> Any:
        """(j − i, *shape), floats."""
        if (i, j) in self._first:
            return self._first.pop((i, j))
        found = self.logits_of(jax.tree.map(lambda x: _part(x, i, j), self.examples))
        shape = np.shape(found)
        dtype = getattr(found, "dtype", None)
        if (
            len(shape) < 2
            or shape[0] != j - i
            or dtype is None
            or not jnp.issubdtype(dtype, jnp.floating)
        ):
            raise ValueError(
                f"logits_of gives {dtype or type(found).__name__}{list(shape)} for {j - i} "
                f"examples: it shall give floats of shape ({j - i}, *positions, classes)"
            )
        return found


def _part(x: Any, i: int, j: int) -> Any:
    # A slice of a JAX array compiles for every i.
    return lax.dynamic_slice_in_dim(x, i, j - i) if isinstance(x, jax.Array) else x[i:j]


def _manifest(
    folder: Path, source: _Source, fingerprint: str, form: Form, shard: int | None
) -> Manifest:
    """The manifest that is there, if it is of all these; else a new one."""
    examples = hashed(source.examples)
    said = cache_files.read_manifest(folder)
    if said is None:
        return _new(folder, source, (fingerprint, examples), form, shard)
    cache_files.same(folder, "teacher", said.teacher, fingerprint)
    cache_files.same(folder, "examples", said.examples, examples)
    cache_files.same(folder, "form", said.form, form)
    if shard is not None:
        cache_files.same(folder, "shard", said.shard, min(shard, source.count))
    return said


def _new(
    folder: Path, source: _Source, told: tuple[str, str], form: Form, shard: int | None
) -> Manifest:
    shape = source.shape()
    n = source.count
    cache_forms.check(form, shape)
    size = _shard(cache_forms.record_bytes(form, shape), source) if shard is None else shard
    said = Manifest(cache_files.FORMAT, cache_files.VERSION, *told, form, n, shape, min(size, n))
    cache_files.check(said)
    cache_files.publish(folder, said)
    return said


def _plain(form: Any) -> Form:
    """A form as JSON gives it back."""
    return Top(form.k, float(form.temperature)) if isinstance(form, Top) else form


def _shard(record: int, source: _Source) -> int:
    """Examples a file: whole batches."""
    rows = max(SHARD // record, -(-source.count // MOST_SHARDS))
    return -(-rows // source.batch) * source.batch


def _write(files: Files, augmentation: int, i: int, source: _Source, progress: Any) -> None:
    """One shard, batch by batch."""
    try:
        files.write(augmentation, i, _records(files, i, source, progress))
    except OSError as e:
        if e.errno not in atomic.FULL:
            raise
        kept = len(files.found().get(augmentation, ()))
        why = os.strerror(e.errno or 0)
        told = (
            f"{why}; {kept} of {files.shards} shards are kept, and the same call goes on from there"
        )
        raise OSError(e.errno, told, files.path(augmentation, i)) from e


def _records(files: Files, i: int, source: _Source, progress: Any) -> Iterator[np.ndarray]:
    said, (first, end) = files.manifest, files.span(i)
    for b in range(first, end, source.batch):
        c = min(b + source.batch, end)
        logits = source.logits(b, c)
        if logits.shape[1:] != said.shape:
            raise ValueError(
                f"example {b}: logits of shape {logits.shape[1:]}; the cache holds {said.shape}"
            )
        yield cache_forms.encode(said.form, logits, b)
        if progress is not None:
            progress(c, said.count)
