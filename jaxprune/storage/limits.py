"""How much memory a file may take, decided from what it says of itself before anything of that size
is made.

Every array of every format is asked for through `afford`. Where the caller gives no limit, one
array may take `allowance(size of the file)` bytes: real checkpoints are far below it, and a small
file cannot fill the memory.

The standard library only.
"""

from .format.words import FormatError

FREE = 1 << 30  # bytes that one array may take, whatever the size of its file
PER_BYTE = 1 << 10  # and for each byte of the file


def allowance(file_bytes: int) -> int:
    """Bytes that one array of a file may take when it is read, unless the caller says otherwise.

    >>> allowance(0), allowance(10_000_000)
    (1073741824, 11313741824)
    """
    return FREE + PER_BYTE * file_bytes


def afford(what: str, needed: int, most: int) -> None:
    """Raises a `FormatError` where more bytes are needed than may be taken.

    Args:
      what: the subject of the sentence, as "leaf 'w' takes".
      needed: bytes, from shapes alone.
      most: the limit.
    """
    if needed > most:
        raise FormatError(
            f"{what} {needed} bytes decoded, more than max_bytes={most} (of a command: "
            f"--max-memory {needed})"
        )
