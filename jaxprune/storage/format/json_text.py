"""JSON that a file holds, read with bounds: untrusted text of known size becomes plain Python, or a
`FormatError`.

The standard library only.
"""

import json
import math
import re
from typing import Any

from .words import MAX_TOKENS, FormatError

LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # half of a pair, or a whole pair: worth a look


def parse_json(raw: bytes, what: str, max_tokens: int = MAX_TOKENS) -> Any:
    """The value of a JSON text.

    Args:
      raw: the text in UTF-8.
      what: how errors call it, as "header".
      max_tokens: the most commas and brackets, which bound the memory that the parser takes.

    Raises:
      FormatError: it is no JSON, has a key twice, NaN or infinity, half of a surrogate pair, or too
        many parts.

    >>> parse_json(b'{"a": [1, 2]}', "header")
    {'a': [1, 2]}
    """
    if sum(map(raw.count, (b",", b"[", b"{"))) > max_tokens:
        raise FormatError(f"the {what} has more than {max_tokens} parts")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise FormatError(f"the {what} has a key twice")
        return found

    def finite(text: str) -> float:
        if not math.isfinite(float(text)):
            raise FormatError(f"the {what} has the number {text[:20]}")
        return float(text)

    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=finite, parse_float=finite)
        if LONE_SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except FormatError:
        raise
    except (ValueError, RecursionError) as e:
        raise FormatError(f"the {what} is not JSON: {type(e).__name__}") from None
