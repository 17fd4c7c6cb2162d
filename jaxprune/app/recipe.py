"""Recipes: the compression that rules stand for, and which leaves each rule takes.

The first rule that matches a leaf takes it; leaves of integers, bools and other numbers that are no
floats are passed over by rules that change leaves. Within a rule the verbs work in one order:
prune, factorize, share, cluster, quantize, entropy_quantize, codebook_bits. A rule that takes
nothing, an unknown key and a verb without its budget are errors.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from jaxprune.app.recipes.rules import VERBS, Prune, Rule, read
from jaxprune.app.recipes.strict import Settings
from jaxprune.core.arguments import fraction
from jaxprune.core.arrays import Common
from jaxprune.core.combinators import at, chain, identity
from jaxprune.core.compression import Compression
from jaxprune.core.trees.walk import slots
from jaxprune.core.where import Slot, Where, field, holds_floats
from jaxprune.core.words import compiled, nearest
from jaxprune.methods.cluster import cluster
from jaxprune.methods.entropy_quantize import entropy_quantize
from jaxprune.methods.factorize import factorize
from jaxprune.methods.prune import prune
from jaxprune.methods.quantize import quantize
from jaxprune.methods.share import share


class Match(NamedTuple):
    """A rule and the paths of the leaves it takes."""

    rule: Rule
    paths: tuple[str, ...]


Schedule = Callable[[float], Any]


def recipe(rules: Any, *, schedule: Schedule | None = None, layout: Any = None) -> Compression:
    """The compression that rules stand for.

    Args:
      rules: a list of dicts, TOML text with [[rule]] tables, or the path of a TOML file.
      schedule: sparsity -> (step -> sparsity), to make the pruning gradual: `lambda s:
        jp.schedules.cubic(s, 0, 1000)`.
      layout: which axes are the outputs, as in `jp.quantize`: "jax" (last), "torch" (first), or a
        dict of path regex -> axis; names and biases tell by default.

    Returns:
      A `Compression`. `init` checks that every rule takes a leaf. The first rule that matches a
      leaf takes it.

    Raises:
      ValueError: for an unknown key (with the nearest), a rule that takes nothing (with the nearest
        paths), a verb without its budget.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> rules = [{"where": "out/.*", "keep": True}, {"where": "(.*/)?kernel", "prune": 0.5}]
      >>> tree = jp.recipe(rules).init({"out": {"kernel": jnp.ones((2, 2))},
      ...     "dense": {"kernel": jnp.ones((2, 2))}})
      >>> type(tree["out"]["kernel"]).__name__, type(tree["dense"]["kernel"]).__name__
      ('ArrayImpl', 'Masked')
    """
    parsed = parse(rules)
    working = [(i, rule) for i, rule in enumerate(parsed) if rule.verbs]
    whole = chain(
        *(at(taken_by(parsed, i), one(rule, schedule, layout=layout)) for i, rule in working)
    )

    def init(params: Any, **extra: Any) -> Any:
        describe(parsed, params)
        return whole.init(params, **extra)

    return Compression(init, whole.update)


def one(
    rule: Rule, schedule: Schedule | None = None, allocate: Any = None, layout: Any = None
) -> Compression:
    """The compression of one rule, before it knows its leaves; `allocate` stands in for the rule's
    own.
    """
    make = {
        "prune": lambda p: _prune(p, schedule, allocate, layout),
        "factorize": lambda f: factorize(**_given(f, "rank"), layout=layout),
        "share": lambda s: share(**_given(s, "k"), layout=layout),
        "cluster": lambda c: cluster(**_given(c, "k")),
        "quantize": lambda q: quantize(**_given(q, "bits"), layout=layout),
        "entropy_quantize": lambda e: entropy_quantize(**_given(e, "step")),
        "codebook_bits": lambda b: quantize(bits=b),
    }
    return (
        chain(*(_placed(verb, make[verb](value)) for verb, value in rule.verbs.items()))
        if rule.verbs
        else identity
    )


def parse(rules: Any) -> tuple[Rule, ...]:
    """Rules from a list of dicts (or `Rule`s), TOML text, or the path of a TOML file; checked."""
    return check(read(rules))


def check(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules, if each does something and its verbs have their budgets."""
    for i, rule in enumerate(rules):
        name = f"rule {i + 1} (where = {rule.where!r})"
        try:
            compiled("where", rule.where)
            one(rule)
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from None
        if bool(rule.verbs) == rule.keep:
            what = "keeps its leaves and changes them too" if rule.keep else "does nothing"
            raise ValueError(f"{name} {what}: give it keep = true, or one of {', '.join(VERBS)}")
    return tuple(rules)


def describe(rules: Any, params: Any) -> tuple[Match, ...]:
    """Which leaves each rule takes.

    Raises:
      ValueError: for a rule that takes none; it lists the nearest paths.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.app.recipe import describe
      >>> describe([{"where": "a|b", "cluster": 2}],
      ...     {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))})[0].paths
      ('a', 'b')
    """
    return matched(parse(rules), {slot.path: holds_floats(slot) for slot in _leaf_slots(params)})


def matched(parsed: Sequence[Rule], leaves: Mapping[str, bool]) -> tuple[Match, ...]:
    """Which leaves each rule takes; one that takes none is an error.

    Args:
      parsed: the rules.
      leaves: path -> whether the leaf holds floats: rules that change leaves pass over the others.
    """
    takers = {path: taker(parsed, path, floats) for path, floats in leaves.items()}
    matches = []
    for i, rule in enumerate(parsed):
        paths = tuple(path for path, taken in takers.items() if taken == i)
        if not paths:
            raise ValueError(
                f"rule {i + 1} (where = {rule.where!r}) {_why_none(parsed, rule, leaves)}"
            )
        matches.append(Match(rule, paths))
    return tuple(matches)


def leaf_paths(params: Any) -> list[str]:
    """The paths of the leaves of the user's tree, codes counted as one leaf."""
    return [slot.path for slot in _leaf_slots(params)]


def _leaf_slots(params: Any) -> list[Slot]:
    # which holds a tree of leaves
    def whole(code):
        return not isinstance(code, Common)

    return [slot for slot in slots(params, whole) if slot.open]


def taker(rules: Sequence[Rule], path: str, floats: bool = True) -> int | None:
    """The index of the first rule that matches a path; one that changes leaves passes over integers
    and the like.
    """
    return next(
        (i for i, r in enumerate(rules) if (floats or not r.verbs) and re.fullmatch(r.where, path)),
        None,
    )


def taken_by(rules: Sequence[Rule], i: int) -> Where:
    """The leaves that the i-th rule takes."""
    return Where(lambda s: taker(rules, s.path, holds_floats(s)) == i, f"path({rules[i].where!r})")


def _placed(verb: str, compression: Compression) -> Compression:
    """A codebook is reached by its field, whatever leaves the rule takes."""
    if verb != "codebook_bits":
        return compression

    def init(params: Any, *, where: Where, **extra: Any) -> Any:
        return compression.init(params, where=where & field("codebook"), **extra)

    return Compression(init, compression.update)


def _given(settings: Any, short: str) -> dict[str, Any]:
    """The keywords of a verb, which may be a bare number for its first one."""
    return msgspec.structs.asdict(settings) if isinstance(settings, Settings) else {short: settings}


def _prune(
    settings: float | Prune, schedule: Schedule | None, allocate: Any, layout: Any
) -> Compression:
    p = settings if isinstance(settings, Prune) else Prune(sparsity=settings)
    if p.sparsity is not None:
        fraction("prune (sparsity = {})", p.sparsity)
    return prune(
        p.sparsity if schedule is None or p.sparsity is None else schedule(p.sparsity),
        threshold=p.threshold,
        pattern=p.pattern,
        score=p.score,
        allocate=p.allocate if allocate is None else allocate,
        layout=layout,
    )


def _why_none(rules: Sequence[Rule], rule: Rule, leaves: Mapping[str, bool]) -> str:
    alike = [path for path in leaves if re.fullmatch(rule.where, path)]
    if not alike:
        return (
            f"matches no leaf: a rule must match the whole path. Nearest: "
            f"{nearest(rule.where, list(leaves))}"
        )
    takers = [taker(rules, path, leaves[path]) for path in alike]
    first = next((taken for taken in takers if taken is not None), None)
    if first is None:
        more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        return (
            f"matches only leaves that hold no floats, as {alike[0]!r}{more}: give them keep = true"
        )
    return (
        f"takes no leaf: rule {first + 1} takes all of them first. Put it before, or leave it out"
    )
