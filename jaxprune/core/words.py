"""Words and regular expressions that are given as arguments: what is none is one line with the
nearest names."""

import difflib
import re
from collections.abc import Iterable
from typing import Any


def nearest(name: str, names: Any, n: int = 5) -> str:
    """The n names most like `name`, whatever their distance.

    Example:
      >>> nearest("kernl", ["bias", "kernel"])
      "'kernel', 'bias'"
    """
    like = sorted(names, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())[:n]
    return ", ".join(repr(x) for x in like) if like else "(there are none)"


def choice(what: str, x: Any, words: Iterable[str]) -> Any:
    """x, if it is one of the words.

    Args:
      what: how the error names it, with `{}` in the place of the value, as "quantize(kind={})".
      x: a word.
      words: all that are allowed.

    Raises:
      ValueError: another word, with the allowed ones from the nearest on; what is no text.

    Example:
      >>> choice("quantize(range={})", "mse", ["max", "mse"])
      'mse'
      >>> choice("quantize(range={})", "maximum", ["mse", "max"])
      Traceback (most recent call last):
      ValueError: quantize(range='maximum'): choose one of 'max', 'mse'
    """
    words = list(words)
    if isinstance(x, str) and x in words:
        return x
    name = x if isinstance(x, str) else ""
    raise ValueError(f"{what.format(repr(x))}: choose one of {nearest(name, words, len(words))}")


def compiled(what: str, pattern: Any) -> re.Pattern[str]:
    """A regular expression.

    Args:
      what: the name of the argument, as "where".
      pattern: text.

    Raises:
      ValueError: it is no regular expression, with the reason.

    Example:
      >>> compiled("where", "*kernel")
      Traceback (most recent call last):
      ValueError: where='*kernel' is no regular expression: nothing to repeat at position 0
    """
    if not isinstance(pattern, str):
        raise ValueError(
            f"{what}={pattern!r}: give a regular expression for whole paths, as "
            f"{what}='(.*/)?kernel'"
        )
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        text = repr(pattern) if len(pattern) <= 200 else f"{pattern[:200]!r}…"
        raise ValueError(f"{what}={text} is no regular expression: {error}") from None
