"""The one loop over the equations of a jaxpr: what computes, cuts, counts or renames says what one
equation does.

    interpret   equations in order, each visited with the values of its operands
    last_uses   when a value can be let go
    equations   all equations, those that others call among them

A value is whatever the visitor works with: arrays, tracers, axes, densities, the numbers of values
in a list. Nothing here reads the parameters of an equation: what one calls is in `calls`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jax.extend import core as jex

Visit = Callable[[Any, list[Any]], Iterable[Any]]
"""(step, values of its operands) -> values of its results."""


@runtime_checkable
class Step(Protocol):
    """An equation of JAX, a run of equations, or a record of one: variables out of variables and
    literals.
    """

    @property
    def invars(self) -> Sequence[Any]: ...

    @property
    def outvars(self) -> Sequence[Any]: ...


class _Missing(NamedTuple):
    """In the place of a value for unknown variables: there is none, and reading one is an error."""


MISSING = _Missing()


def literal_value(literal: Any) -> Any:
    """The number that a literal is."""
    return literal.val


def interpret(
    jaxpr: Any,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    visit: Visit,
    *,
    steps: Sequence[Step] | None = None,
    literal: Callable[[Any], Any] = literal_value,
    unknown: Any = MISSING,
    ends: Mapping[int, Sequence[Any]] | None = None,
) -> list[Any]:
    """The values of a jaxpr's results.

    Args:
      jaxpr: an open jaxpr.
      consts: values of its constants.
      inputs: values of its inputs.
      visit: gives the values of a step's results.
      steps: what is run in place of the jaxpr's equations: some of them, runs of them, or records
        of them.
      literal: the value of a literal.
      unknown: the value of a variable that no step made; by default that is an error.
      ends: number of a step -> variables whose values are let go after it (`last_uses`); by default
        none are, which is right under jit and for values that hold no arrays.

    Raises:
      KeyError: a variable that no step made, without `unknown`.

    Example:
      >>> import jax
      >>> from jaxprune.jaxprs.interpret import interpret
      >>> jaxpr = jax.make_jaxpr(lambda x: 2 * x + 1)(3.0).jaxpr
      >>> names = lambda step, operands: [f"{step.primitive.name}({', '.join(map(str, operands))})"]
      >>> interpret(jaxpr, [], ["x"], names)
      ['add(mul(2.0, x), 1.0)']
    """
    values = dict(zip(jaxpr.constvars, consts))
    values.update(zip(jaxpr.invars, inputs))

    def read(variable: Any) -> Any:
        if isinstance(variable, jex.Literal):
            return literal(variable)
        return values[variable] if unknown is MISSING else values.get(variable, unknown)

    for number, step in enumerate(jaxpr.eqns if steps is None else steps):
        operands = [read(variable) for variable in step.invars]
        values.update(zip(step.outvars, visit(step, operands)))
        for variable in () if ends is None else ends.get(number, ()):
            values.pop(variable, None)
    return [read(variable) for variable in jaxpr.outvars]


def last_uses(steps: Sequence[Step], results: Iterable[Any]) -> dict[int, list[Any]]:
    """Number of a step -> the variables that nothing reads after it, so that their values can be
    let go.

    Args:
      steps: in the order in which they are run.
      results: variables that are read at the end.
    """
    last: dict[Any, int] = {}
    for number, step in enumerate(steps):
        for variable in (*step.outvars, *step.invars):
            if not isinstance(variable, jex.Literal):
                last[variable] = number
    for variable in results:
        if not isinstance(variable, jex.Literal):
            last.pop(variable, None)
    ends: dict[int, list[Any]] = {}
    for variable, number in last.items():
        ends.setdefault(number, []).append(variable)
    return ends


def equations(jaxpr: Any) -> list[Any]:
    """The equations of a jaxpr, open or closed; not those that others call."""
    return list(getattr(jaxpr, "jaxpr", jaxpr).eqns)
