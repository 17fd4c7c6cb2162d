"""Checking a file from end to end: header, manifest, and for each leaf the checksum, the streams
and the values.
"""

import os
from typing import Any, NamedTuple

from jaxprune.app.progress import Bytes
from jaxprune.storage import limits
from jaxprune.storage.accounting import LeafMemory, leaves, shared
from jaxprune.storage.checkpoints import own
from jaxprune.storage.checkpoints.bounds import quoted
from jaxprune.storage.decoder import Decoder
from jaxprune.storage.format import manifest
from jaxprune.storage.format.words import FormatError, Group


class Checked(NamedTuple):
    """What was found: leaf -> reason for each damaged one; "" stands for header and manifest."""

    file: str
    leaves: int
    data: int
    damaged: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "fine": self.leaves - len(self.damaged)}

    def __str__(self) -> str:
        if not self.damaged:
            return (
                f"{self.file}: all {self.leaves} leaves are fine; {self.data:,} bytes of data "
                f"checked and decoded"
            )
        if "" in self.damaged:
            return f"{self.file}: DAMAGED, no leaf can be read: {self.damaged['']}"
        rest = self.leaves - len(self.damaged)
        lines = [
            f"{self.file}: {len(self.damaged)} of {self.leaves} leaves are DAMAGED, the other "
            f"{rest} are fine:"
        ]
        return "\n".join([*lines, *(f"  {reason}" for reason in self.damaged.values())])


def check(path: Any, max_bytes: int | None = None) -> Checked:
    """Reads and decodes a whole file, one leaf after another.

    Args:
      path: the file.
      max_bytes: the most that decoding one leaf may take; by default `limits.allowance` of the
        file's size.

    Raises:
      OSError: it cannot be opened.
      ValueError: it is no file of `save`, whole or damaged; a leaf that would take more than
        `max_bytes`.
    """
    name = os.fspath(path)
    if not _is_ours(path):
        raise ValueError(
            f"{name}: not a jaxprune file. What is verified is what `jaxprune compress` or "
            f"`jp.save` wrote"
        )
    with manifest.open_regular(path) as file:
        try:
            contents = manifest.contents(file)
        except FormatError as e:
            return Checked(name, 0, 0, {"": str(e)})
        memory = LeafMemory(contents)
        if max_bytes is None:
            max_bytes = limits.allowance(os.path.getsize(path))
        for leaf, _ in leaves(contents.tree):
            # A file that asks for too much is refused as a whole, before any of it is decoded.
            limits.afford(
                f"{name}: leaf {quoted(leaf.path)} takes", memory.decoded(leaf), max_bytes
            )
        decoder = Decoder(file, contents)
        damaged = {}
        with Bytes("verify", contents.data) as tick:
            for leaf, group in leaves(contents.tree):
                reason = _why_damaged(decoder, leaf, group)
                if reason:
                    damaged[leaf.path] = reason
                tick(leaf.path, leaf.length)
        return Checked(name, len(contents.leaves), contents.data, damaged)


def _is_ours(path: Any) -> bool:
    """Whether `save` wrote a file, of whose header some bytes may be damaged."""
    if not os.path.isfile(path) and os.path.exists(path):
        return False
    with open(path, "rb") as file:
        first = file.read(512)
    return own.is_own(first) or b'"jp.manifest"' in first or b'"jp.data"' in first


def _why_damaged(decoder: Decoder, leaf: Any, group: Group | None) -> str:
    try:
        decoder.read(leaf, shared(group))
    except FormatError as e:
        return str(e)
    return ""
