"""Strict settings: TOML and dicts into frozen structs; an unknown key is an error that names the
nearest one.
"""

import difflib
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

import msgspec

from jaxprune.core.words import nearest
from jaxprune.storage.format.manifest import open_regular
from jaxprune.storage.format.words import FormatError

MAX_TEXT = 1 << 24  # bytes of a recipe, a config or a file of results


class Settings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """A table of a config: frozen; unknown keys are refused; what equals its default is not
    written.
    """


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        near = closest(
            path.name, [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        )
        raise ValueError(f"{path} does not exist{near}") from None
    return parse_toml(text, str(path))


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """TOML text as a dict; `source` is what the error calls it."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"{source} has {len(text)} letters; at most {MAX_TEXT} are read")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{source} is not whole TOML: {one_line(e)}") from None
    except RecursionError:
        raise ValueError(f"{source} is not whole TOML: its brackets nest too deep") from None
    except ValueError as e:
        raise ValueError(f"{source} is not whole TOML: {one_line(e)}") from None


def read_text(path: Path) -> str:
    """The text of a regular file of bounded size: a pipe would hang, a device has no end.

    Raises:
      FileNotFoundError: there is none.
      ValueError: anything else, in one line.
    """
    try:
        with open_regular(path) as file:
            octets = file.read(MAX_TEXT + 1)
    except FileNotFoundError:
        raise
    except FormatError as e:
        raise ValueError(f"{path} cannot be read: {e}") from None
    except OSError as e:
        raise ValueError(f"{path} cannot be read: {e.strerror}") from None
    if len(octets) > MAX_TEXT:
        raise ValueError(f"{path} is longer than {MAX_TEXT} bytes: a file of settings is not")
    try:
        return octets.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} cannot be read: byte {e.start} is not UTF-8") from None


def one_line(error: Exception) -> str:
    """What an error says, in a line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}…"


def convert(raw: Any, to: Any, source: str) -> Any:
    """`raw` as the type `to`.

    Args:
      raw: dicts, lists and numbers, as TOML gives them.
      to: a type; its structs are `Settings`.
      source: what the error calls it, as the path of the file.

    Raises:
      ValueError: names the source, the key, what was expected, and for an unknown key the nearest.
    """
    try:
        return msgspec.convert(raw, to)
    except msgspec.ValidationError as e:
        raise ValueError(f"{source}: {_explain(str(e), to)}") from None


def closest(name: str, names: Any) -> str:
    """'. Did you mean …?' with the nearest of the names, or nothing when there are none."""
    names = list(names)

    def ratio(other):
        return difflib.SequenceMatcher(None, name, other).ratio()

    return f". Did you mean {max(names, key=ratio)!r}?" if names else ""


def _explain(message: str, to: Any) -> str:
    unknown = re.match(r"Object contains unknown field `(.*?)`(?: - at `\$(.*)`)?", message)
    word = re.match(r"Invalid enum value '(.*)' - at `\$\.(.*)`", message)
    if word and words_at(to, word[2]):
        return (
            f"{_numbered(word[2])} = {word[1]!r}: choose one of "
            f"{nearest(word[1], words_at(to, word[2]), 20)}"
        )
    if not unknown:
        text = (
            message.replace("`$.", "`")
            .replace("Object missing", "missing")
            .replace(" - at `$`", "")
        )
        return _numbered(text)
    name = unknown[1]
    place = (unknown[2] or "").lstrip(".")
    known = fields_at(to, place)
    where = f" in {_numbered(place)}" if place else ""
    return f"unknown key {name!r}{where}{closest(name, known)} Known: {', '.join(known)}"


def _numbered(place: str) -> str:
    """A place like `phase[0].rule[1].prune` as `phase 1, rule 2, prune`: tables are counted from 1,
    as in plans.
    """
    place = re.sub(r"(phase|rule)\[(\d+)\]", lambda match: f"{match[1]} {int(match[2]) + 1}", place)
    return re.sub(r"((?:phase|rule) \d+)\.", r"\1, ", place)


def fields_at(to: Any, place: str) -> list[str]:
    """The keys of the struct at a place like `phase[0].rule[1].prune`."""
    found = _structs(_type_at(to, place))
    return list(found[0].__struct_fields__) if found else []


def words_at(to: Any, place: str) -> list[str]:
    """The words that are allowed at a place like `phase[0].rule[1].prune.allocate`."""
    kind = _type_at(to, place)
    kinds = [kind, *typing.get_args(kind)]
    return [
        word
        for one in kinds
        if typing.get_origin(one) is typing.Literal
        for word in typing.get_args(one)
    ]


def _type_at(to: Any, place: str) -> Any:
    """The type of what stands at a place."""
    for part in re.findall(r"[^.\[\]]+|\[[^\]]*\]", place):
        inner = _structs(to)
        hints = typing.get_type_hints(inner[0]) if inner else {}
        to = to if part.startswith("[") else hints.get(part, to)
    return to


def _structs(to: Any) -> list[Any]:
    """The structs inside a type: of `tuple[Rule, ...]` and `Rule | None`, Rule."""
    if (
        isinstance(to, type)
        and not isinstance(to, types.GenericAlias)
        and issubclass(to, msgspec.Struct)
    ):
        return [to]
    return [s for inner in typing.get_args(to) for s in _structs(inner)]
