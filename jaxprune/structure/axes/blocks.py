"""What can be left out whole: residual blocks, and iterations of a scan over stacked layers.

    y = s + b(s, θ)    a block: an addition one of whose operands, the branch b, depends on the
                       other, the stream s, and
                       that alone uses some params θ. Without it y = s, whatever computed b is dead
                       code, and θ goes.
    h ← h + b(h, θᵢ)   a layer: a turn of a scan whose carry is only added to. Without it h stays.

The stream may have been moved on its way (sliced, padded, reshaped: the shortcut of a ResNet whose
width changes), and blocks may lie side by side on it: s + a(s) + b(s). A block is known by θ: the
params that would be used by nothing. Its switch is an index variable of one position, so a plan
that leaves it out is one that does not keep this position.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxprune.structure.axes.expressions import Var, free, freeze, names, settled, unify
from jaxprune.structure.axes.flat import Flat, Node, flat
from jaxprune.structure.axes.places import place
from jaxprune.structure.axes.rules.shapes import IDENTITY

SAME = IDENTITY | names("convert_element_type reduce_precision")
MOVES = SAME | names("slice pad reshape transpose squeeze broadcast_in_dim rev")


class Block(NamedTuple):
    """A block that can be left out.

    Attributes:
      leaves: paths of the params that nothing else uses.
      switch: a variable of one position; frozen if the block cannot be left out.
      outs: which results of the program are new values of these params, and go with them.
      place: of the addition.
    """

    leaves: tuple[str, ...]
    switch: Var
    outs: tuple[int, ...]
    place: str


class Switch(NamedTuple):
    """What the record of a block's addition remembers: its variable, and which operand is the
    stream.
    """

    variable: Var
    stream: int


def residual_blocks(
    program: Any, paths: Sequence[str], replaced: Sequence[str | None]
) -> list[Block]:
    """The blocks of a walked program, in order; the records of their additions are given their
    switch.

    Args:
      program: whose first inputs are the params.
      paths: of the params.
      replaced: for each result, the param whose new value it is.
    """
    code = _Uses(flat(program), paths, replaced)
    found = {}
    for node in code.flat.nodes:
        if (
            node.name == "add"
            and node.outs[0] in code.live
            and (side := code.stream_of(node)) is not None
        ):
            leaves, outs = code.alone(node.ins[1 - side])
            if leaves and leaves not in found:
                found[leaves] = Block(leaves, free(1), outs, place(node.record.eqn, *node.outer))
                node.records[node.index] = node.record._replace(
                    extra=Switch(found[leaves].switch, side)
                )
    return list(found.values())


class _Uses:
    """Who uses what in a program."""

    def __init__(self, code: Flat, paths: Sequence[str], replaced: Sequence[str | None]):
        self.flat = code
        self.paths = list(paths)
        self.replaced = list(replaced)
        self.streams: dict[int, int] = {}
        roots = [o for o, leaf in zip(code.outputs, replaced) if leaf is None]
        self.live = self._behind(roots, frozenset())
        uses = (i for node in code.nodes if node.outs[0] in self.live for i in node.ins)
        self.uses = Counter([*uses, *roots])
        # of each new value of a param: what it is made of, down to what the other results use too
        self.made_of = {
            k: self._behind([code.outputs[k]], self.live) for k, leaf in enumerate(replaced) if leaf
        }

    def _behind(self, values: Iterable[int], known: Iterable[int]) -> set[int]:
        """These values and all that they are made of; what is known is not looked behind."""
        stack = list(values)
        seen = set()
        while stack:
            if (v := stack.pop()) not in seen:
                seen.add(v)
                node = self.flat.maker.get(v) if v not in known else None
                if node is not None:
                    stack.extend(node.ins)
                    seen.update(node.outs)
        return seen

    def stream_of(self, node: Node) -> int | None:
        """Which operand of an addition the other one is a branch of."""
        eqn = node.record.eqn

        def like(v):
            return (v.aval.shape, v.aval.dtype) == (
                eqn.outvars[0].aval.shape,
                eqn.outvars[0].aval.dtype,
            )

        for side, branch in ((0, node.ins[1]), (1, node.ins[0])):
            if like(eqn.invars[side]) and any(
                self._reaches(branch, s) for s in self._sources(node.ins[side])
            ):
                self.streams[node.outs[0]] = node.ins[side]
                return side
        return None

    def _sources(self, v: int) -> Iterator[int]:
        """What the stream was before it was moved, or added to; only what others use too, as a
        branch must.
        """
        while v not in self.flat.known:
            if self.uses[v] > 1:
                yield v
            node = self.flat.maker.get(v)
            if v in self.streams:
                v = self.streams[v]
            elif node is not None and node.name in MOVES:
                v = node.ins[node.outs.index(v)]
            else:
                return

    def _reaches(self, v: int, source: int) -> bool:
        stack = [v]
        seen = {v}
        while stack:
            node = self.flat.maker.get(stack.pop())
            for i in node.ins if node is not None else ():
                if i == source:
                    return True
                if i > source and i not in seen:
                    seen.add(i)
                    stack.append(i)
        return False

    def alone(self, branch: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The params that nothing uses without one use of the branch, and the results that go with
        them.
        """
        gone = Counter([branch])
        stack = [branch]
        dead = set()
        while stack:
            v = stack.pop()
            node = self.flat.maker.get(v)
            outs = (v,) if node is None else node.outs
            if outs[0] in dead or any(gone[o] != self.uses[o] for o in outs):
                continue
            dead.update(outs)
            for i in node.ins if node is not None else ():
                gone[i] += 1
                stack.append(i)
        return self._with_state(dead)

    def _with_state(self, dead: set[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """A new value of a param that is made of what is dead goes, and the param too; nothing
        does, if it has uses.
        """
        outs = tuple(k for k, seen in self.made_of.items() if seen & dead)
        number = {path: n for n, path in enumerate(self.paths)}
        lost = {number[path] for k in outs if (path := self.replaced[k]) is not None}
        rest = [seen for k, seen in self.made_of.items() if k not in outs]
        if lost & (self.live - dead) or any(lost & seen for seen in rest):
            return (), ()
        leaves = lost | {v for v in dead if v < len(self.paths)}
        return tuple(self.paths[n] for n in sorted(leaves)), outs


def used(program: Any, paths: Sequence[str]) -> set[str]:
    """The params that a program uses."""
    code = _Uses(flat(program), paths, [None] * len(program.jaxpr.outvars))
    return {path for n, path in enumerate(paths) if n in code.live}


def joined(programs: Sequence[Any], paths: Sequence[str]) -> tuple[Block, ...]:
    """The blocks of functions that share the params; one that is no block of all that use its
    params is frozen.
    """
    uses = [used(p, paths) for p in programs] if len(programs) > 1 else []
    for i, one in enumerate(programs):
        for j, other in enumerate(programs):
            for a in one.blocks if i != j else ():
                there = set(a.leaves) & uses[j]
                same = [b for b in other.blocks if set(b.leaves) & uses[i] == there]
                if there and same:
                    unify(a.switch, same[0].switch, "")
                elif there:
                    freeze(a.switch, "another function uses its params elsewhere")
    found: dict[Var, Block] = {}
    for b in (b for p in programs for b in p.blocks):
        v = settled(b.switch)
        if v.why is None:
            old = found.setdefault(v, b._replace(switch=v))
            both = set(old.leaves) | set(b.leaves)
            found[v] = old._replace(leaves=tuple(p for p in paths if p in both))
    return tuple(found.values())


def why_not_layers(inner: Any, consts: int, carry: int) -> str | None:
    """Why the turns of a scan are no layers that can be left out; None if its carry is only added
    to.

    Args:
      inner: its walked body.
      consts, carry: how many of the body's inputs are constants, and how many are carried.
    """
    code = flat(inner)
    turning = set(range(consts, len(inner.jaxpr.invars)))  # what differs from turn to turn
    for node in code.nodes:
        if turning.intersection(node.ins):
            turning.update(node.outs)
    for k in range(carry):
        if not _only_added_to(code, code.outputs[k], consts + k, turning):
            return "a scan runs along it, and is more than additions to what it carries"
    return None


def _only_added_to(code: Flat, out: int, start: int, turning: set[int]) -> bool:
    """Whether `out` is `start` plus what differs from turn to turn (a counter adds the same every
    turn).
    """
    stack = [out]
    seen = set()
    while stack:
        if (v := stack.pop()) == start:
            return True
        node = code.maker.get(v)
        if node is None or v in seen:
            continue
        seen.add(v)
        if node.name == "add":
            stack += [i for i, other in (node.ins, node.ins[::-1]) if other in turning]
        elif node.name in SAME:
            stack.append(node.ins[node.outs.index(v)])
    return False
