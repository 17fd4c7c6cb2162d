"""What a layer is fitted to: the way from its product to where the result counts, and back.

    y = X W,    z = a(y),    a: additions, scales and moves that params alone say

Adding a bias, a batch norm in eval mode, a reshape, and at last the addition to a residual stream
are such a way. The small network is right where z is what the large network has there, so y is
fitted to a⁻¹(z of the large network), which subtracts what the small network's stream has by now.
The first param that the way adds to all rows alike (a bias, the mean of a norm) can take a constant
over.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.numerics.precision import widen
from jaxprune.structure.repair.rows import kernel_groups, outputs
from jaxprune.structure.repair.steps import MOVES, SAME, SMALL, Equation, Join, Slice, Steps, Values

ADDS = frozenset({"add", "add_any", "sub"})


class Leaf(NamedTuple):
    """A param, or what one turn of a scan takes of it.

    Attributes:
      path: of the leaf.
      index: the turns, from the outside in; () for the whole leaf.
      number: of the value.
    """

    path: str
    index: tuple[int, ...]
    number: int


class Link(NamedTuple):
    """A step of the way: which operand of it we come from, and the number of the other one."""

    step: Any
    operand: int
    other: int | None


class Way(NamedTuple):
    """From a product to where its result counts.

    Attributes:
      links: the steps, in order.
      end: the number of the value at the end.
    """

    links: tuple[Link, ...]
    end: int


def moved_from(program: Steps, number: int) -> tuple[int, list[Equation]]:
    """What a value is but for moves, and these moves in order."""
    moves: list[Equation] = []
    while number in program.maker:
        step = program.steps[program.maker[number]]
        if not isinstance(step, Equation) or step.name not in MOVES:
            break
        moves.insert(0, step)
        number = step.ins[0]
    return number, moves


def leaf_of(program: Steps, number: int, paths: Sequence[str]) -> Leaf | None:
    """The param that a value is, through slices of scans and casts."""
    index: list[int] = []
    first = number
    while number >= len(paths):
        i = program.maker.get(number)
        step = None if i is None else program.steps[i]
        if isinstance(step, Slice) and step.live:
            index.insert(0, int(step.at[SMALL] or 0))
        elif not (isinstance(step, Equation) and step.name in SAME):
            return None
        number = step.ins[0]
    return Leaf(paths[number], tuple(index), first) if number < len(paths) else None


class Ways:
    """Finds ways in a program.

    Args:
      program: both programs.
      readers: of the small one, see `consumers`.
      constant: the values that params alone say.
    """

    def __init__(self, program: Steps, readers: Mapping[int, list[int]], constant: set[int]):
        self.program = program
        self.readers = readers
        self.constant = constant
        self.streams = True

    def follow(self, start: int, values: Values, busy: set[int]) -> Way:
        """The way from the result of a step, as far as it goes.

        Args:
          start: the index of the step.
          values: what is known by now; what the way needs from elsewhere is computed by whoever
            asked.
          busy: steps that are being fitted: nothing on the way may need them.
        """
        links: list[Link] = []
        [number] = self.program.steps[start].outs
        while (link := self._next(number, values, busy | {start})) is not None:
            links.append(link)
            [number] = link.step.outs
        return Way(tuple(links), number)

    def _next(self, number: int, values: Values, busy: set[int]) -> Link | None:
        readers = self.readers.get(number, [])
        if len(readers) != 1 or readers[0] < 0:
            return None
        step = self.program.steps[readers[0]]
        if isinstance(step, Join):
            return Link(step, SMALL, None)
        if not isinstance(step, Equation):
            return None
        if step.stream is not None:
            return Link(step, step.stream, None)
        operand = step.ins.index(number)
        if step.name in MOVES or step.name == "neg":
            before, after = (
                np.prod(v.aval.shape)
                for v in (step.record.eqn.invars[0], step.record.eqn.outvars[0])
            )
            return Link(step, operand, None) if before == after and _real(step) else None
        if step.name not in ADDS | {"mul", "div"}:
            return None
        other = step.ins[1 - operand]
        shapes = [
            v.aval.shape for v in (step.record.eqn.invars[operand], step.record.eqn.outvars[0])
        ]
        scales = step.name in ("mul", "div")
        fixed = scales or not self.streams
        if other == number or shapes[0] != shapes[1] or (fixed and other not in self.constant):
            return None
        if step.name == "div" and operand == 1:
            return None
        if busy.intersection(values.missing(other, SMALL)):
            return None
        return Link(step, operand, other)


def _real(step: Equation) -> bool:
    return jnp.issubdtype(step.record.eqn.outvars[0].aval.dtype, jnp.floating)


def back(
    way: Sequence[Link], z: Any, others: Sequence[Any], shapes: Sequence[tuple[int, ...]]
) -> Any:
    """a⁻¹(z), float32: what the product should be for z to come out; NaN where a scale of 0 hides
    it.

    Args:
      way: the links.
      z: what should come out of the last.
      others: the other operand of each link, None where it has one.
      shapes: of what goes into each link.
    """
    z = widen(z)
    for link, other, shape in reversed(list(zip(way, others, shapes))):
        name = link.step.name
        first = link.operand == 0
        if other is None:
            z = _unmoved(link, z, shape)
        elif name in ADDS - {"sub"}:
            z = z - widen(other)
        elif name == "sub":
            z = z + widen(other) if first else widen(other) - z
        elif name == "mul":
            scale = widen(other)
            z = jnp.where(scale == 0, jnp.nan, z / jnp.where(scale == 0, 1, scale))
        else:
            z = z * widen(other)
    return z


def slope_back(
    way: Sequence[Link], ones: Any, others: Sequence[Any], shapes: Sequence[tuple[int, ...]]
) -> Any:
    """The derivative of a⁻¹, at the product: `back` without what is added."""
    zeros = [
        jnp.zeros(()) if link.step.name in ADDS and other is not None else other
        for link, other in zip(way, others)
    ]
    return back(way, ones, zeros, shapes)


def moves_back(way: Sequence[Link], x: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
    """An array that lies as z does, as the product lies."""
    for link, shape in reversed(list(zip(way, shapes))):
        x = _unmoved(link, x, shape) if link.other is None and link.step.name != "neg" else x
    return x


def _unmoved(link: Link, z: Any, shape: tuple[int, ...]) -> Any:
    step = link.step
    if isinstance(step, Join) or step.stream is not None or step.name in SAME:
        return z
    if step.name == "neg":
        return -z
    if step.name == "transpose":
        return z.transpose(np.argsort(step.record.eqn.params["permutation"]))
    return z.reshape(shape)


def unmoved(moves: Sequence[Equation], x: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
    """An array in the shape that it had before some moves."""
    for step, shape in reversed(list(zip(moves, shapes))):
        x = _unmoved(Link(step, 0, None), x, shape)
    return x


class Layer(NamedTuple):
    """A product whose weights or bias are to be fitted.

    Attributes:
      step: the product.
      weight: which operand its weights are.
      way: from its result to where that counts.
      kernel: the shape of its weights, in the small program.
      groups: of it, as in `rows`.
      shapes: of what goes into each link of the way, in the small program.
      end: axes of the value at the end of the way.
    """

    step: Equation
    weight: int
    way: Way
    kernel: tuple[int, ...]
    groups: int
    shapes: tuple[tuple[int, ...], ...]
    end: Any

    @property
    def eqn(self) -> Any:
        return self.step.record.eqn

    def others(self, values: Values) -> list[list[Any] | None]:
        """The other operand of each link in the small program, over batches; None where a link has
        one.
        """
        return [
            None if link.other is None else values.memo[SMALL][link.other]
            for link in self.way.links
        ]

    def wanted(self, z: Any, others: Sequence[Any], made: Any) -> Any:
        """What the product should give for z to come out at the end; what it gives where a scale of
        0 hides it.
        """
        hidden = jnp.isnan(
            slope_back(self.way.links, jnp.ones(jnp.shape(z), jnp.float32), others, self.shapes)
        )
        return jnp.where(hidden, widen(made), back(self.way.links, z, others, self.shapes))


def layer_of(step: Equation, weight: int, way: Way, narrow: Any) -> Layer:
    """A product in a program of which `narrow` keeps a part."""
    record = step.record
    kernel = narrow.shape(record.ins[weight])
    if step.name == "dot_general":
        (_, _), batch = record.eqn.params["dimension_numbers"]
        groups = int(np.prod([kernel[axis] for axis in batch[weight]], dtype=int))
    else:
        groups = kernel_groups(record.eqn, narrow.shape(record.ins[1 - weight]), kernel)
    shapes = []
    end = record.outs[0]
    for link in way.links:
        inner = link.step.record if isinstance(link.step, Equation) else None
        shapes.append(narrow.shape(end if inner is None else inner.ins[link.operand]))
        end = end if inner is None else inner.outs[0]
    return Layer(step, weight, way, kernel, groups, tuple(shapes), end)


class Bias(NamedTuple):
    """A param that adds a constant to each output of a product.

    Attributes:
      leaf: the param.
      at: [groups, outputs], the position in the flat leaf that each output has.
      slope: [groups, outputs], the change of the leaf for a change of 1 of the output.
    """

    leaf: Leaf
    at: np.ndarray
    slope: np.ndarray


def bias_of(layer: Layer, values: Values, leaf_at: Callable[[int], Any]) -> Bias | None:
    """The first param on the way of a layer that can take over a constant for each output.

    Args:
      layer: of a program.
      values: of this program; what depends on params alone is known by now.
      leaf_at: number of a value -> the `Leaf` that it is, if it is one that may be changed.
    """
    narrow = values.narrows[SMALL]
    links = layer.way.links
    scales = [None if o is None else o[0] for o in layer.others(values)]
    for k, link in enumerate(links):
        if link.other is None or link.step.name not in ADDS:
            continue
        number, moves = moved_from(values.program, link.other)
        leaf = leaf_at(number)
        if leaf is None:
            continue
        shape = values.shape(number, SMALL)
        at = jnp.arange(np.prod(shape, dtype=int)).reshape(shape)
        for step in moves:
            at = at if step.name in SAME else narrow.results(step.record, [at], step.info)[0]
        at = jnp.broadcast_to(at, narrow.shape(link.step.record.outs[0]))
        positions = moves_back(links[:k], at, layer.shapes)
        slope = slope_back(links[:k], jnp.ones(at.shape, jnp.float32), scales, layer.shapes)
        rows = np.asarray(outputs(layer.eqn, positions, layer.weight, layer.groups))
        slopes = np.asarray(outputs(layer.eqn, slope, layer.weight, layer.groups))
        first = rows[:, 0]
        alike = bool((rows == rows[:, :1]).all())
        if (
            not alike
            or len(np.unique(first)) < first.size
            or not np.allclose(slopes, slopes[:, :1], rtol=1e-5)
        ):
            continue
        sign = -1.0 if link.step.name == "sub" and link.operand == 0 else 1.0
        return Bias(leaf, first, sign / slopes[:, 0])
    return None
