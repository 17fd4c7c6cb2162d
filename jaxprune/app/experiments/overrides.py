"""Dotted keys: `--set train.batch=32`, and the keys of a sweep."""

import re
import tomllib
from typing import Any

from jaxprune.app.recipes.strict import closest, fields_at, one_line


def toml_value(text: str) -> Any:
    """What stands right of `key =` in TOML; a bare word is a string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError) as e:
        raise ValueError(f"--set …={text[:60]}: {one_line(e)}") from None


def assign(raw: Any, key: str, value: Any, source: str, to: Any) -> None:
    """Sets a dotted key; items of a list go by name, or by number from 1, as
    phase.prune.rule.1.cluster.

    Args:
      raw: nested dicts and lists, changed in place.
      key: with dots.
      value: to set.
      source: what errors call it.
      to: the type that `raw` will become: it knows the keys.
    """
    *parents, last = key.split(".")
    place = ""
    for part in parents:
        raw, place = _enter(raw, part, place, key, source, to)
    if isinstance(raw, list):
        raw[_index(raw, last, source)] = value
        return
    _known(last, place, key, source, to)
    raw[last] = value


def _enter(raw: Any, part: str, place: str, key: str, source: str, to: Any) -> tuple[Any, str]:
    if isinstance(raw, list):
        return raw[_index(raw, part, source)], f"{place}[...]"
    _known(part, place, key, source, to)
    inside = raw.setdefault(part, {})
    if not isinstance(inside, (dict, list)):
        raise ValueError(
            f"{source}: {part!r} is {inside!r}, not a table: set it as a whole, as {part}={{ ... }}"
        )
    return inside, f"{place}.{part}"


def _known(part: str, place: str, key: str, source: str, to: Any) -> None:
    known = fields_at(to, place)
    if known and part not in known:
        raise ValueError(f"{source}: unknown key {part!r} of {key!r}{closest(part, known)}")


def _index(items: list[Any], part: str, source: str) -> int:
    names = [x.get("name") for x in items if isinstance(x, dict)]
    if re.fullmatch(r"[0-9]{1,9}", part):
        if part in names:
            raise ValueError(
                f"{source}: {part} is the name of an item here, and the number of one: rename it"
            )
        if int(part) == 0:
            raise ValueError(
                f"{source}: items are counted from 1, as in the plan: there is no item 0, the "
                f"first is 1"
            )
        if int(part) > len(items):
            raise ValueError(f"{source}: there is no item {part}, only {len(items)}")
        return int(part) - 1
    if names.count(part) > 1:
        raise ValueError(
            f"{source}: {names.count(part)} items here are named {part!r}: give a number, from 1 on"
        )
    if part in names:
        return names.index(part)
    raise ValueError(
        f"{source}: nothing here is named {part!r}{closest(part, [n for n in names if n])}"
    )
