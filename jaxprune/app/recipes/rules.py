"""Rules: what a recipe says, as settings, and as TOML text.

[[rule]]
where = "(.*/)?kernel"                  a regular expression for the whole path of a leaf
prune = 0.9                             or a table, as { sparsity = 0.9, allocate = "global" }
cluster = 32
codebook_bits = 8
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from jaxprune.app.recipes.strict import Settings, convert, parse_toml, read_toml
from jaxprune.methods.allocate import Word as Allocation
from jaxprune.methods.cluster import Init
from jaxprune.methods.quantize_arguments import Kind, Range, Rounding
from jaxprune.methods.scores import Word as ScoreWord

VERBS = ("prune", "factorize", "share", "cluster", "quantize", "entropy_quantize", "codebook_bits")


class Prune(Settings, frozen=True):
    """`prune = 0.9`, or a table: one of sparsity, threshold and an N:M pattern."""

    sparsity: float | None = None
    threshold: float | None = None
    pattern: str | None = None  # "2:4", "block 4x4", "channel"
    allocate: Allocation = "uniform"
    score: ScoreWord = "magnitude"


class Cluster(Settings, frozen=True):
    """`cluster = 32`, or a table with one of k and bits."""

    k: int | None = None
    bits: int | None = None
    scope: Literal["leaf", "tree"] = "leaf"
    init: Init = "optimal"


class Share(Settings, frozen=True):
    """`share = { similarity = 0.9 }` or `share = { k = 64 }`."""

    similarity: float | None = None
    k: int | None = None
    axis: int | Literal["outputs"] = "outputs"


class Quantize(Settings, frozen=True):
    """`quantize = 8`, or a table."""

    bits: int | None = None
    axis: int | Literal["outputs"] = "outputs"
    group: int | None = None
    kind: Kind = "symmetric"
    rounding: Rounding = "nearest"
    range: Range = "max"


class EntropyQuantize(Settings, frozen=True):
    """`entropy_quantize = { step = 0.01 }`, or { sqnr = 25 }, or { bits_per_weight = 3 }, of all
    the rule's leaves.
    """

    step: float | None = None
    sqnr: float | None = None
    bits_per_weight: float | None = None


class Factorize(Settings, frozen=True):
    """`factorize = 16` (the rank), or `factorize = { energy = 0.95 }`."""

    rank: int | None = None
    energy: float | None = None


class Rule(Settings, frozen=True):
    """What happens to the leaves whose whole path matches `where`."""

    where: str
    prune: float | Prune | None = None
    factorize: int | Factorize | None = None
    share: Share | None = None
    cluster: int | Cluster | None = None
    quantize: int | Quantize | None = None
    entropy_quantize: EntropyQuantize | None = None
    codebook_bits: int | None = None
    keep: bool = False

    @property
    def verbs(self) -> dict[str, Any]:
        """What the rule does, in the order it does it."""
        return {verb: getattr(self, verb) for verb in VERBS if getattr(self, verb) is not None}


class Recipe(Settings, frozen=True):
    """A file of rules; `layout` is the order of axes in the checkpoints that it is for (trees in
    memory have JAX's).
    """

    rule: tuple[Rule, ...]
    layout: Literal["jax", "torch"] | None = None


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file."""
    return convert(read_toml(path), Recipe, str(path))


def read(rules: Any) -> tuple[Rule, ...]:
    """Rules from a list of dicts (or `Rule`s), TOML text, or the path of a TOML file."""
    if isinstance(rules, Path) or (
        isinstance(rules, str) and "\n" not in rules and rules.endswith(".toml")
    ):
        return read_recipe(Path(rules)).rule
    if isinstance(rules, str | Mapping):
        return convert(
            parse_toml(rules, "the recipe") if isinstance(rules, str) else dict(rules),
            Recipe,
            "the recipe",
        ).rule
    return tuple(
        r if isinstance(r, Rule) else convert(r, Rule, f"rule {i + 1}") for i, r in enumerate(rules)
    )


def to_toml(rules: Any) -> str:
    """The rules as TOML text, which `recipe` reads back.

    Example:
      >>> from jaxprune.app.recipes.rules import to_toml
      >>> print(to_toml([{"where": "kernel", "prune": {"sparsity": 0.9, "allocate": "global"}}]))
      [[rule]]
      where = "kernel"
      prune = { sparsity = 0.9, allocate = "global" }
    """
    tables = [msgspec.to_builtins(rule) for rule in read(rules)]
    return "\n\n".join(
        "\n".join(["[[rule]]", *(f"{k} = {_value(v)}" for k, v in t.items())]) for t in tables
    )


def words(rule: Rule) -> str:
    """What a rule does, in a line.

    Example:
      >>> from jaxprune.app.recipes.rules import Rule, words
      >>> words(Rule(where="kernel", prune=0.9, cluster=32))
      'prune 0.9, cluster 32'
    """
    done = {k: v for k, v in msgspec.to_builtins(rule).items() if k in VERBS}
    return ", ".join(f"{k} {_value(v).strip('{ }')}" for k, v in done.items()) or "keep"


def _value(x: Any) -> str:
    if isinstance(x, dict):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in x.items()) + " }"
    # JSON's strings, numbers and booleans are TOML's too.
    return msgspec.json.encode(x).decode()
