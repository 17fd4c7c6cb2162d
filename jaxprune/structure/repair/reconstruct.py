"""The remaining weights and biases, refit by least squares to what the large network gave.

After He, Zhang & Sun 2017 (arXiv:1707.06168). A layer loses inputs and outputs. Its weights W' and
bias b' are fitted so that what counts of its outputs is near to what it was:

    min over W', b' of  ‖X' W' + b' − Y‖² + λ ‖W' − W‖²

X' is what the smaller network feeds the layer, behind all layers that were fitted before; W are its
weights before the fit. Y is what the large network has there. Where the output is added to a
residual stream, Y is the sum in the large network less the stream of the smaller one, so each layer
also corrects the error that its stream has by then. A layer without a bias whose outputs go through
a batch norm uses the norm's mean.

The equations of the two programs are evaluated side by side, once, on all batches; no gradient is
taken and no label is read. Behind a block that is left out the stream is brought near to what it
was with it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core.arguments import at_least_zero, flag
from jaxprune.core.arrays import Masked, is_code, materialize
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.core.where import is_float
from jaxprune.numerics.precision import widen
from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.apply.plan import Plan
from jaxprune.structure.apply.small_function import kept
from jaxprune.structure.axes.expressions import fresh
from jaxprune.structure.axes.groups import walked
from jaxprune.structure.axes.traced import shapes_of, trace
from jaxprune.structure.axes.walk import Walk, Walked
from jaxprune.structure.repair.recurrent import (
    Cell,
    bias_in,
    cell_of,
    layers_of,
    sums_over_turns,
    uses_of,
)
from jaxprune.structure.repair.ridge import Batch, change_of, summed
from jaxprune.structure.repair.rows import CONTRACTIONS, columns_of, weights
from jaxprune.structure.repair.sites import (
    Bias,
    Layer,
    Leaf,
    Ways,
    bias_of,
    layer_of,
    leaf_of,
    moved_from,
    unmoved,
)
from jaxprune.structure.repair.steps import (
    LARGE,
    MOVES,
    SAME,
    SMALL,
    Equation,
    Values,
    consumers,
    depends_on_params_alone,
    last_reads,
    unrolled,
)

LOOPS = frozenset({"scan", "while", "cond"})


class Reconstruction(NamedTuple):
    """What `reconstruct` made.

    Attributes:
      params: the smaller params, fitted.
      errors: path of a weight -> ‖Y' − Y‖ / ‖Y‖ of its layer's outputs, before its fit and after. A
        weight that a scan slices has a path for each turn: "layers[0]".
      left: path of a weight that was not fitted -> why.
      done: path of a leaf that was changed -> how.
    """

    params: Any
    errors: dict[str, tuple[float, float]]
    left: dict[str, str]
    done: dict[str, str]

    def __str__(self) -> str:
        width = max(map(len, [*self.errors, *self.left, *self.done]), default=0)
        lines = [
            f"{path:<{width}}  {before:8.4f} -> {after:8.4f}"
            for path, (before, after) in self.errors.items()
        ]
        lines += [
            f"{path:<{width}}  {how}" for path, how in self.done.items() if path not in self.errors
        ]
        lines += [f"{path:<{width}}  not fitted: {why}" for path, why in self.left.items()]
        return "\n".join(lines)


def reconstruct(
    f: Callable[..., Any],
    params: Any,
    plan: Any,
    batches: Iterable[tuple[Any, ...]],
    *,
    ridge: float | None = None,
    biases: bool = True,
    streams: bool = True,
    state: str | None = None,
) -> Reconstruction:
    """The smaller or compressed params, refit by least squares to the outputs of the large
    network's layers.

    Args:
      f: the pure function f(params, *args) that the plan is of.
      params: its params before they were cut or compressed.
      plan: what is kept, of `jp.shrink`; or a tree like params with compressed leaves. Of such a
        tree the dense leaves are fitted to what the compressed ones before them give, the kept
        weights of a `Masked` leaf under its mask; other codes stay as they are, and the biases
        behind them are fitted.
      batches: of the arguments after params, as tuples; all of one shape, and held in memory
        together.
      ridge: the pull towards the weights before the fit, as a share of the mean of X'ᵀX' on its
        diagonal. None: for each layer the one of six from 1e-5 to 1 that is best on a quarter of
          the rows, fitted to the others.
      biases: whether biases and the means of norms are fitted with the weights in front of them.
      streams: whether a layer that is added to something corrects the error of that too.
      state: outputs that are new values of params, as in `jp.coupled_axes`.

    Returns:
      A `Reconstruction`: print it for what was done to each leaf. The layers of a scan over stacked
        params are fitted
      in turn, the weights of a recurrent cell to all times at once. Weights used twice, in a cond
      or a while loop stay as they are, and are named.

    Raises:
      ValueError: no batches, batches of several shapes, a ridge below 0, or of 0 where inputs are
        dependent, NaN, or a plan or tree of another model.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> f = lambda p, x: x @ p["w"] @ p["out"]["w"]
      >>> p = {"w": jnp.array([[1.0, 1.0], [0.0, 0.1]]), "out": {"w": jnp.array([[2.0], [1.0]])}}
      >>> # only the first input varies
      >>> x = jax.random.normal(jax.random.key(0), (64, 2)) * jnp.array([1.0, 0.0])
      >>> thin = jp.shrink(f, p, x, ratio=0.5)
      >>> fitted = jp.reconstruct(f, p, thin.plan, [(x,)], ridge=1e-9)
      >>> print(thin.params["out"]["w"][0], fitted.params["out"]["w"][0])  # the first unit gives it
      [2.] [3.]
    """
    given = [tuple(batch) for batch in batches]
    shapes = {
        str(jax.tree.map(lambda x: (np.shape(x), jnp.result_type(x)), batch)) for batch in given
    }
    if len(shapes) != 1:
        raise ValueError(
            f"reconstruct: batches of one shape are asked for; there are {sorted(shapes) or 'none'}"
        )
    if ridge is not None:
        at_least_zero("reconstruct(ridge={})", ridge, schedule=False)
    flag("reconstruct(biases={})", biases)
    flag("reconstruct(streams={})", streams)
    traced = trace(f, params, given[0], {})
    leaf_axes = {path: [fresh(n) for n in x.shape] for path, x in shapes_of(params).items()}
    if isinstance(plan, Plan):
        tree = plan.cut(params)
    else:
        tree = plan
        plan = Plan({path: x.shape for path, x in shapes_of(params).items()}, {})
        _refuse_other_tree(params, tree)
    program = walked(Walk(depth=True), traced, leaf_axes, state)
    narrow = Narrow(kept(leaf_axes, [program], plan))
    leaves = {leaf_path(keys): x for keys, x in flatten_with_path(tree, is_leaf=is_code)[0]}
    small = {path: materialize(x) for path, x in leaves.items()}
    arrays = [[x for x in jax.tree.leaves(batch) if hasattr(x, "dtype")] for batch in given]
    inputs = [([x], [small.get(path)]) for path, x in zip(leaf_axes, jax.tree.leaves(params))]
    inputs += [(list(column), list(column)) for column in zip(*arrays)]
    fit = _Fit(program, narrow, list(leaf_axes), inputs, leaves, small, ridge)
    fit.biases = biases
    fit.ways.streams = streams
    fit.run()
    made = [fit.leaf_again(path) for path in leaves]
    structure = jax.tree.structure(tree, is_leaf=is_code)
    return Reconstruction(jax.tree.unflatten(structure, made), fit.errors, fit.left(), fit.done)


def _refuse_other_tree(params: Any, tree: Any) -> None:
    """A tree of codes has a leaf for each param, of its shape."""
    flat = flatten_with_path(tree, is_leaf=is_code)[0]
    shapes = {leaf_path(keys): np.shape(materialize(x)) for keys, x in flat}
    wanted = {path: x.shape for path, x in shapes_of(params).items()}
    odd = [path for path in {**wanted, **shapes} if shapes.get(path) != wanted.get(path)]
    if odd:
        path = odd[0]
        raise ValueError(
            f"reconstruct: {path} is {shapes.get(path, 'missing')} in the tree and "
            f"{wanted.get(path, 'missing')} in "
            "the params: give a Plan, or a tree that was compressed from these params"
        )


def change_after(
    program: Walked,
    narrow: Narrow,
    plan: Plan,
    params: Any,
    examples: Sequence[Any],
    ridge: float | None = None,
) -> float:
    """‖y' − y‖² / ‖y‖² of the outputs y of a walked function, once what the plan leaves is refit to
    examples.

    Args:
      program: of the function.
      narrow: what is kept of its variables; `plan` is the same, of the params.
      params: before the cut.
      examples: the arrays among the further arguments.
      ridge: as in `reconstruct`.
    """
    small = {leaf_path(keys): x for keys, x in flatten_with_path(plan.cut(params))[0]}
    paths = list(shapes_of(params))
    inputs = [([x], [small.get(path)]) for path, x in zip(paths, jax.tree.leaves(params))]
    fit = _Fit(
        program, narrow, paths, inputs + [([x], [x]) for x in examples], dict(small), small, ridge
    )
    fit.run()
    large, made = fit.values.memo
    lost = narrow.lost(program)
    rest = whole = 0.0
    for k, number in enumerate(fit.program.outputs):
        [y], [new] = large[number], made.get(number) or [None]
        if k in lost or new is None or np.shape(new) != np.shape(y) or not is_float(y):
            continue
        y = np.asarray(y, np.float64)
        new = np.asarray(new, np.float64)
        rest += float(np.square(new - y).sum())
        whole += float(np.square(y).sum())
    return rest / whole if whole else 0.0


class _Fit:
    """Runs both programs step by step, and fits each weight before its result is used."""

    def __init__(
        self,
        program: Walked,
        narrow: Narrow,
        paths: Sequence[str],
        inputs: Sequence[Any],
        leaves: dict[str, Any],
        small: dict[str, Any],
        ridge: float | None,
    ):
        self.paths = list(paths)
        self.leaves = leaves
        self.params = dict(small)
        self.ridge = ridge
        self.biases = True
        self.narrow = narrow
        self.program = unrolled(program, narrow, len(paths))
        self.values = Values(self.program, narrow, inputs)
        self.constant = depends_on_params_alone(self.program, set(range(len(paths))), len(inputs))
        self.ways = Ways(self.program, consumers(self.program, SMALL), self.constant)
        self.uses = self._uses()
        self.busy: set[int] = set()
        self.fitted: set[int] = set()
        self.errors: dict[str, tuple[float, float]] = {}
        self.done: dict[str, str] = {}
        self.undone: dict[str, str] = {}

    def _uses(self) -> dict[tuple[str, tuple[int, ...]], list[str]]:
        """What uses each leaf, or each turn's slice of it, but to hand it on: names of
        primitives.
        """
        uses: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        for step in self.program.steps:
            if not isinstance(step, Equation) or step.name in MOVES:
                continue
            for number in step.inputs(SMALL):
                leaf = leaf_of(self.program, moved_from(self.program, number)[0], self.paths)
                if leaf is not None:
                    uses.setdefault((leaf.path, leaf.index), []).append(step.name)
        return uses

    def left(self) -> dict[str, str]:
        """Weights that were not fitted, and why."""
        why: dict[str, str] = {}
        for (path, _), uses in self.uses.items():
            products = [name for name in uses if name in CONTRACTIONS or name in LOOPS]
            if path in self.done or path not in self.params or not products:
                continue
            if path in self.undone:
                why[path] = self.undone[path]
                continue
            code = self.leaves[path]
            fixed = is_code(code) and not _is_masked(code)
            why[path] = (
                f"its code stays: {type(code).__name__}"
                if fixed
                else f"it is used by {', '.join(uses)}"
            )
        return why

    def leaf_again(self, path: str) -> Any:
        """The leaf of the result: as it was, or with its new values."""
        old = self.leaves[path]
        if path not in self.done:
            return old
        return old.replace(values=self.params[path]) if is_code(old) else self.params[path]

    # --- running ---

    def run(self) -> None:
        """All steps in order; what nothing reads any more is let go."""
        ends = last_reads(self.program)
        for i, step in enumerate(self.program.steps):
            for side in (LARGE, SMALL):
                if side == LARGE or step.live:
                    for number in step.outs:
                        self.demand(number, side)
            for number in set(ends.get(i, ())) - self.constant:
                for side in (LARGE, SMALL):
                    self.values.memo[side].pop(number, None)

    def demand(self, number: int, side: int) -> list[Any]:
        """A value over batches, with all that it needs, in the order of the program."""
        while missing := self.values.missing(number, side):
            self.compute(missing[0], side)  # a fit drops what a bias was added to: so look again
        return self.values.memo[side][number]

    def compute(self, i: int, side: int) -> None:
        """Runs a step whose operands are there; a product of the small program is fitted then, and
        dropped.
        """
        step = self.program.steps[i]
        self.values.compute(i, side)
        if side == SMALL and i not in self.fitted and isinstance(step, Equation):
            self.fitted.add(i)
            if step.name in CONTRACTIONS:
                self.fit(i, step)
            elif (cell := cell_of(step, self.narrow, self.constant)) is not None:
                self.fit_cell(i, cell)

    # --- fitting ---

    def leaf(self, number: int) -> Leaf | None:
        """The leaf that a value is, if nothing else uses it and it is a float."""
        leaf = leaf_of(self.program, number, self.paths)
        if leaf is None or not is_float(self.params.get(leaf.path)):
            return None
        uses = self.uses.get((leaf.path, leaf.index), [])
        if leaf.index:
            uses = uses + self.uses.get((leaf.path, ()), [])
        return leaf if len(uses) == 1 else None

    def free_leaf(self, number: int) -> Leaf | None:
        """The same, if it is no code."""
        leaf = self.leaf(number)
        return None if leaf is None or is_code(self.leaves[leaf.path]) else leaf

    def fit(self, i: int, step: Equation) -> None:
        """Fits the weights of a product, if it has some, and a bias behind it."""
        sources = [moved_from(self.program, number) for number in step.ins]
        leaves = [self.leaf(origin) for origin, _ in sources]
        operands = [k for k, leaf in enumerate(leaves) if leaf is not None]
        if len(operands) != 1 or step.ins[1 - operands[0]] in self.constant:
            return
        [k] = operands
        leaf = leaves[k]
        assert leaf is not None
        self.busy.add(i)
        layer = layer_of(step, k, self.ways.follow(i, self.values, self.busy), self.narrow)
        for link in layer.way.links:
            if link.other is not None:
                self.demand(link.other, SMALL)
        self.demand(layer.way.end, LARGE)
        self.busy.discard(i)
        bias = bias_of(layer, self.values, self.free_leaf) if self.biases else None
        sums = summed(layer, self._batches(layer), self.ridge is None)
        self._take(layer, sums, leaf, sources[k][1], bias)

    def _batches(self, layer: Layer) -> list[Batch]:
        large, small = self.values.memo
        columns = [
            small[layer.step.ins[1 - layer.weight]],
            small[layer.step.outs[0]],
            large[layer.way.end],
        ]
        others = layer.others(self.values)
        batches = []
        for b in range(self.values.batches):
            x, made, end = (_of_batch(column, b) for column in columns)
            beside = [None if column is None else _of_batch(column, b) for column in others]
            batches.append(Batch(x, made, self.narrow.cut(end, layer.end), beside))
        return batches

    def fit_cell(self, i: int, cell: Cell) -> None:
        """Fits the weights and biases that a scan uses in every turn; a change that makes its
        results worse is undone.

        What a cell is fed comes from itself, so a better product at each time need not give better
        states.
        """
        fittable = {n for n in cell.consts if self.leaf(moved_from(self.program, n)[0]) is not None}
        operands = [*cell.consts, *cell.carry, *cell.slices]
        for number in cell.step.outs:
            self.demand(number, LARGE)
        error = self._error_of(i, cell)
        for layer, k in layers_of(cell, self.narrow, fittable):
            for number in operands:
                self.demand(number, SMALL)
            columns = [[self.values.memo[side][n] for n in operands] for side in (LARGE, SMALL)]
            batches = range(self.values.batches)
            large, small = ([[_of_batch(c, b) for c in side] for b in batches] for side in columns)
            both = list(zip(large, small))
            origin, outer = moved_from(self.program, cell.consts[k])
            inner = moved_from(cell.body, layer.step.ins[layer.weight])[1]
            leaf_at = self._leaf_of_cell(cell)
            bias = bias_in(cell, layer, both[0], self.narrow, leaf_at) if self.biases else None
            sums = sums_over_turns(cell, layer, self.narrow, both, self.ridge is None)
            leaf = self.leaf(origin)
            assert leaf is not None
            before = [(one, self.params[one.path]) for one in (leaf, bias and bias.leaf) if one]
            told = dict(self.errors), dict(self.done)
            self._take(layer, sums, leaf, [*outer, *inner], bias)
            after = self._error_of(i, cell)
            if after <= error:
                error = after
                continue
            for one, old in before:
                self._set(one, old)
            self.errors, self.done = told
            self.undone[leaf.path] = "its fit made the states of the scan worse, and was undone"

    def _error_of(self, i: int, cell: Cell) -> float:
        """The squared error of the results of a scan."""
        for number in cell.step.inputs(SMALL):
            self.demand(number, SMALL)
        self.values.compute(i, SMALL)
        total = 0.0
        for number, axes in zip(cell.step.outs, cell.step.record.outs):
            for y, new in zip(self.values.memo[LARGE][number], self.values.memo[SMALL][number]):
                if is_float(new):
                    total += float(jnp.square(widen(self.narrow.cut(y, axes)) - widen(new)).sum())
        return total

    def _leaf_of_cell(self, cell: Cell) -> Callable[[int], Leaf | None]:
        def leaf_at(number: int) -> Leaf | None:
            if number >= len(cell.consts) or uses_of(cell.body, number) != 1:
                return None
            return self.free_leaf(cell.consts[number])

        return leaf_at

    def _take(
        self, layer: Layer, sums: Any, leaf: Leaf, moves: Sequence[Equation], bias: Bias | None
    ) -> None:
        """Solves for the changes of a layer, and makes them."""
        code = self.leaves[leaf.path]
        fixed = is_code(code) and not _is_masked(code)
        if fixed and bias is None:
            return
        mask = self._mask(code, leaf, layer, moves) if is_code(code) and not fixed else None
        try:
            fit_rows, held_out = sums
            change = change_of(fit_rows, held_out, self.ridge, bias is not None, mask, fixed)
        except ValueError as error:
            raise ValueError(f"reconstruct: {leaf.path}: {error}") from None
        name = leaf.path + "".join(f"[{t}]" for t in leaf.index)
        self.errors[name] = change.errors
        if not fixed:
            made = weights(layer.eqn, change.weights, layer.kernel, layer.weight)
            shapes = [self.narrow.shape(step.record.ins[0]) for step in moves]
            self._add(leaf, np.asarray(unmoved(moves, made, shapes)))
            self.done[leaf.path] = (
                "weights fitted" if mask is None else "kept weights fitted under their mask"
            )
        if bias is not None:
            delta = np.zeros(np.size(self.values.memo[SMALL][bias.leaf.number][0]))
            delta[bias.at] = change.bias * bias.slope
            self._add(bias.leaf, delta)
            self.done[bias.leaf.path] = f"fitted as the bias of {leaf.path}"

    def _mask(self, code: Any, leaf: Leaf, layer: Layer, moves: Sequence[Equation]) -> np.ndarray:
        """[groups, columns, outputs]: which weights of a layer are kept."""
        mask = jnp.asarray(code.mask)[leaf.index]
        for step in moves:
            mask = (
                mask
                if step.name in SAME
                else self.narrow.results(step.record, [mask], step.info)[0]
            )
        return columns_of(layer.eqn, np.asarray(mask), layer.weight, layer.groups)

    def _add(self, leaf: Leaf, delta: np.ndarray) -> None:
        """Changes a leaf, or a slice of it, and drops what was computed from it."""
        memo = self.values.memo[SMALL]
        old = memo[leaf.number][0]
        new = widen(old) + delta.reshape(np.shape(old)).astype(np.float32)
        whole = jnp.asarray(self.params[leaf.path])
        self._set(
            leaf,
            whole.at[leaf.index].set(new.astype(whole.dtype))
            if leaf.index
            else new.astype(whole.dtype),
        )

    def _set(self, leaf: Leaf, whole: Any) -> None:
        """A leaf's new values, of which `leaf` may be the slice that has changed."""
        memo = self.values.memo[SMALL]
        self.params[leaf.path] = whole
        memo[leaf.number] = [whole[leaf.index].astype(memo[leaf.number][0].dtype)]
        memo[self.paths.index(leaf.path)] = [whole]
        self.values.forget(leaf.number, SMALL)


def _of_batch(column: Sequence[Any], b: int) -> Any:
    return column[b] if len(column) > 1 else column[0]


def _is_masked(code: Any) -> bool:
    """Whether it is a mask over plain values, which can be fitted."""
    return isinstance(code, Masked) and not is_code(code.values)
