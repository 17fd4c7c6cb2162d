"""What a program does with its parameters: which values are made of them alone, and who uses
what.
"""

from typing import Any

from jaxprune.jaxprs.equations import Equation, Program, evaluate

AFFINE = frozenset({"add", "sub", "mul", "div"})
LAYOUT = frozenset(
    {"reshape", "transpose", "squeeze", "convert_element_type", "copy", "copy_p", "rev"}
)


class Graph:
    """A program, which values are made of parameters alone, and who uses what."""

    def __init__(self, code: Program, paths: list[str], leaves: list[Any]):
        self.code = code
        self.paths = paths
        self.leaves = list(leaves)
        self.leaf = dict(zip(code.inputs, range(len(leaves))))
        self.of = {i: frozenset() for i in code.constants} | {
            i: frozenset({n}) for i, n in self.leaf.items()
        }
        self.maker = {o: e for e in code.equations for o in e.outputs}
        self.users: dict[int, list[Any]] = {o: [None] for o in code.outputs}
        for e in code.equations:
            for i in e.inputs:
                self.users.setdefault(i, []).append(e)
            if all(i in self.of for i in e.inputs):
                self.of |= {
                    o: frozenset().union(*(self.of[i] for i in e.inputs)) for o in e.outputs
                }

    def products(self) -> list[Equation]:
        """Convolutions and dots of data with something made of one parameter."""

        def fit(e):
            return [len(self.of.get(i, ())) == 1 for i in e.inputs] in (
                [True, False],
                [False, True],
            )

        names = ("conv_general_dilated", "dot_general")
        return [e for e in self.code.equations if e.primitive.name in names and fit(e)]

    def meets(self, n: int) -> list[Equation | None]:
        """Where a parameter meets data, or leaves the program."""
        made = [v for v, of in self.of.items() if n in of]
        return [
            e
            for v in made
            for e in self.users.get(v, ())
            if e is None or e.outputs[0] not in self.of
        ]

    def chain(self, y: int) -> list[Equation]:
        """The affine and layout equations that alone use y, one after another."""
        found = []
        while len(self.users.get(y, ())) == 1 and (e := self.users[y][0]) is not None:
            rest = [i for i in e.inputs if i != y]
            affine = e.primitive.name in AFFINE and len(rest) == 1 and rest[0] in self.of
            affine = affine and (e.primitive.name != "div" or e.inputs[0] == y)
            if not affine and e.primitive.name not in LAYOUT:
                break
            found.append(e)
            y = e.outputs[0]
        return found

    def values(self, wanted: set[int], changed: dict[int, Any]) -> dict[int, Any]:
        """Values made of parameters, with some of these changed."""
        need = set(wanted)
        made = []
        for e in reversed(self.code.equations):
            if need & set(e.outputs) and all(i in self.of for i in e.inputs):
                need |= set(e.inputs)
                made.append(e)
        start = {i: changed.get(n, self.leaves[n]) for i, n in self.leaf.items()}
        return evaluate(reversed(made), self.code.constants | start)

    def others(self, known: set[str]) -> dict[str, str]:
        """Parameters that multiply data elsewhere than in a product, and what they follow."""
        found = {}
        for e in self.code.equations:
            data = [i for i in e.inputs if i not in self.of]
            if e.primitive.name not in ("mul", "div") or len(data) != 1 or len(e.inputs) != 2:
                continue
            for n in sorted(frozenset().union(*(self.of[i] for i in e.inputs if i in self.of))):
                if self.paths[n] not in known:
                    found[self.paths[n]] = self._source(data[0])
        return found

    def _origin(self, v: int) -> str:
        """The primitive that made v, but for its layout."""
        while (e := self.maker.get(v)) is not None and e.primitive.name in LAYOUT | {
            "broadcast_in_dim"
        }:
            v = e.inputs[0]
        return "" if e is None else e.primitive.name

    def _source(self, v: int) -> str:
        while (e := self.maker.get(v)) is not None and e.primitive.name in AFFINE | LAYOUT:
            data = [i for i in e.inputs if i not in self.of]
            if len(data) != 1 or len(self.users[v]) > 1:
                break
            v = data[0]
        name = e.primitive.name if e is not None else "an argument"
        if {name, *map(self._origin, e.inputs if e is not None else ())} & {"rsqrt", "sqrt"}:
            return "it is normalised by statistics of its own input: use eval mode"
        if name in ("conv_general_dilated", "dot_general"):
            return f"the {name} before it has other uses, or more weights"
        return f"it follows {name}, not a convolution or dot"
