"""Budgets of time. No clock runs here but in one test of what a clock returns: seconds are made up
from shapes.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.jaxprs.calls import bodies
from jaxprune.jaxprs.equations import open_jaxpr
from jaxprune.structure.time.greedy import candidates
from jaxprune.structure.time.latency import Model
from jaxprune.structure.time.timings import Call, device, race

RNG = np.random.default_rng(5)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


PARAMS = {"a": draw(6, 16), "b": draw(16, 12), "c": draw(12, 5)}
X = draw(4, 6)


def mlp(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


def products(jaxpr, times=1.0):
    """(inputs, outputs) of every matrix product, and how often it runs."""
    for eqn in jaxpr.eqns:
        inside = bodies(eqn)
        if eqn.primitive.name == "dot_general":
            yield eqn.invars[1].aval.shape, times
        for body in inside:
            yield from products(
                body.jaxpr,
                times * body.times / (len(inside) if eqn.primitive.name == "cond" else 1),
            )


class Fake:
    """A clock: a product of (k, n) takes cost(k, n), whatever is timed with others takes `extra`
    more.

    Attributes:
      asked: the products of each call that was timed.
    """

    def __init__(self, cost, extra=0.0):
        self.cost = cost
        self.extra = extra
        self.asked = []

    def __call__(self, calls):
        return np.tile([self.one(*call) for call in calls], (3, 1)) * np.array(
            [[2.0], [1.0], [1.0]]
        )

    def one(self, f, args):
        if all(isinstance(x, jax.ShapeDtypeStruct) for x in args):  # an equation by itself
            found = [(args[1].shape, 1.0)]
        else:
            found = list(products(open_jaxpr(jax.make_jaxpr(f)(*args))[0]))
        self.asked.append([shape for shape, _ in found])
        return sum(times * self.cost(*shape) for shape, times in found) + self.extra * (
            len(found) > 1
        )

    @property
    def table(self):
        return jp.Timings(clock=self)


def flat(k, n):
    return 1e-3 * k * n


"""Time that is proportional to the operations."""


def widths(thin):
    return tuple(thin.params[k].shape[1] for k in "ab")


def test_a_budget_of_time_is_met_as_measured_and_the_report_says_by_what():
    clock = Fake(flat)
    thin = jp.shrink(mlp, PARAMS, X, latency=0.5, timings=clock.table)
    before, after = thin.report.latency
    assert before == pytest.approx(clock.one(mlp, (PARAMS, X))) and after <= before / 2
    assert after == pytest.approx(clock.one(thin.apply, (thin.params, X)))
    assert thin.report.pace.predicted == pytest.approx((before, after))
    assert "measured" in str(thin.report) and f"{before / after:.2f}x faster" in str(thin.report)
    assert jp.shrink(mlp, PARAMS, X, flops=0.5).report.latency is None
    assert all(w % 2 == 0 for w in widths(thin)[:1]) and thin.report.error < 1e-5


@pytest.mark.parametrize("good", [3, 5])
def test_widths_that_save_nothing_are_passed_over(good):
    """A width takes as long as the next multiple of `good`, and longer if it is none, as 13
    channels do.
    """

    def up(n):
        return -(-n // good) * good

    clock = Fake(lambda k, n: 1e-3 * up(k) * up(n) * (1 + 0.5 * (n % good > 0)))
    thin = jp.shrink(mlp, PARAMS, X, latency=0.5, round_to=1, timings=clock.table)
    assert all(w % good == 0 or w == n for w, n in zip(widths(thin), (16, 12))) and widths(
        thin
    ) != (16, 12)
    ragged = jp.shrink(mlp, PARAMS, X, flops=0.5)
    assert any(w % good for w in widths(ragged))


def test_what_takes_no_time_stays():
    """Only the inputs of the last product count: cutting the first group would lose units for
    nothing.
    """
    thin = jp.shrink(
        mlp, PARAMS, X, latency=0.5, timings=Fake(lambda k, n: 1e-3 * k * (n == 5)).table
    )
    assert widths(thin) == (16, 6)


def test_the_least_important_for_the_time_go_first():
    """Of two groups with units of the same importance, the one whose units take longer; of one
    group, the weakest.
    """
    params = {
        "a": jnp.ones((6, 16)).at[:, ::2].set(0.5),
        "b": jnp.ones((16, 16)),
        "c": jnp.ones((16, 5)),
    }
    slow = Fake(lambda k, n: 1e-3 * (k * n if n == 5 else 1 + (n if k == 6 else 0)))
    thin = jp.shrink(mlp, params, X, latency=0.9, normalize="none", timings=slow.table)
    assert widths(thin)[0] == 16 and widths(thin)[1] < 16
    thin = jp.shrink(mlp, params, X, latency=0.6, where="a", timings=Fake(flat).table)
    assert thin.plan.keep["a"][1].tolist() == list(range(1, 16, 2))


def test_a_width_far_off_that_saves_much_comes_before_near_ones_that_save_little():
    """One group is fast from 8 on; of the other each unit saves a little, and more than the first
    units of the one.
    """

    def cost(k, n):
        return {6: 10 + 0.01 * n if n > 8 else 1.0}.get(k, 0.1 * k if n == 5 else 0.1)

    thin = jp.shrink(mlp, PARAMS, X, latency=0.3, timings=Fake(cost).table)
    assert widths(thin) == (8, 12)


def test_the_loop_is_closed():
    """The compiled program takes a second more than its parts do together: the prediction is too
    good.
    """
    clock = Fake(flat, extra=1.0)
    thin = jp.shrink(mlp, PARAMS, X, latency=0.8, round_to=1, timings=clock.table)
    before, after = thin.report.latency
    assert after <= 0.8 * before and after > 0.75 * before
    assert after == pytest.approx(clock.one(thin.apply, (thin.params, X)))


def test_a_prediction_that_is_too_bad_is_corrected_too():
    class Fused(Fake):
        def one(self, f, args):
            seconds = super().one(f, args)
            return seconds**2 if len(self.asked[-1]) > 1 else seconds

    clock = Fused(flat)
    thin = jp.shrink(mlp, PARAMS, X, latency=0.5, round_to=1, timings=clock.table)
    before, after = thin.report.latency
    assert 0.45 * before < after <= 0.5 * before
    assert thin.report.pace.predicted[1] > 0.6 * thin.report.pace.predicted[0]
    assert (
        sum(len(products) == 3 for products in clock.asked) <= 1 + 2 * 4
    )  # the whole alone, and beside four others


@pytest.mark.parametrize("extra", [0.0, 1.0])
def test_a_budget_that_cannot_be_met_names_the_nearest_which_can_be(extra):
    table = Fake(flat, extra).table
    with pytest.raises(
        ValueError, match=r"latency=0.001 cannot be met.*Nearest: latency="
    ) as caught:
        jp.shrink(mlp, PARAMS, X, latency=0.001, timings=table)
    nearest = float(str(caught.value).split("Nearest: latency=")[1].split(",")[0])
    before, after = jp.shrink(mlp, PARAMS, X, latency=nearest + 1e-4, timings=table).report.latency
    assert after / before == pytest.approx(nearest, abs=1e-4)


def test_other_budgets_limits_and_rules_hold_too():
    table = Fake(flat).table
    both = jp.shrink(mlp, PARAMS, X, latency=0.9, params=0.4, timings=table).report
    assert both.params[1] <= 0.4 * both.params[0] and both.latency[1] < 0.5 * both.latency[0]
    both = jp.shrink(mlp, PARAMS, X, latency=0.4, params=0.9, timings=table).report
    assert both.latency[1] <= 0.4 * both.latency[0]
    thin = jp.shrink(mlp, PARAMS, X, latency=0.5, keep={"a": 14, "c": (None, 8)}, timings=table)
    assert widths(thin)[0] >= 14 and widths(thin)[1] <= 8
    thin = jp.shrink(mlp, PARAMS, X, latency=0.95, keep={"c": (None, 6)}, timings=table)
    assert widths(thin) == (16, 6)
    assert widths(jp.shrink(mlp, PARAMS, X, latency=0.7, where="a", timings=table))[1] == 12
    assert widths(jp.shrink(mlp, PARAMS, X, latency=0.7, round_to=8, timings=table))[0] % 8 == 0


def test_operations_at_widths_for_the_device():
    clock = Fake(lambda k, n: 1e-3 * k * n * (1 + (n % 8 > 0) + (k % 8 > 0)))
    thin = jp.shrink(mlp, PARAMS, X, flops=0.5, round_to="device", timings=clock.table)
    assert thin.report.flops[1] <= thin.report.flops[0] / 2 and all(
        w % 8 == 0 for w in widths(thin)
    )
    assert (
        thin.report.latency is None
        and thin.report.pace.predicted[1] < thin.report.pace.predicted[0]
    )
    assert "predicted" in str(thin.report) and "measured" not in str(thin.report)


def stacked(p, x):
    def turn(x, w):
        return (jnp.tanh(x @ w["up"]) @ w["down"], None)

    return jax.lax.scan(turn, x, p["layers"])[0] @ p["out"]


def branching(p, x):
    x = jax.lax.cond(x.sum() > 0, lambda x: jnp.tanh(x @ p["a"]), lambda x: x @ p["a"] * 2, x)
    x = jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, jax.nn.relu(c[1] @ p["w"])), (0, x)
    )[1]
    return jax.checkpoint(lambda x: jax.nn.silu(x @ p["b"]))(x) @ p["c"]


@pytest.mark.parametrize(
    "f, params, x",
    [
        (mlp, PARAMS, X),
        (stacked, {"layers": {"up": draw(7, 6, 16), "down": draw(7, 16, 6)}, "out": draw(6, 3)}, X),
        (branching, {"w": draw(16, 16), **PARAMS}, X),
        (
            lambda p, x: (
                jax.jit(mlp)(p, x)
                + jax.lax.scan(lambda c, _: (c @ jnp.eye(5), None), x[:, :5], None, 9)[0]
            ),
            PARAMS,
            X,
        ),
    ],
    ids=["mlp", "scan", "cond and while", "a body of which nothing is cut"],
)
def test_times_of_equations_add_up_to_those_of_the_program(f, params, x):
    """A body counts as often as it runs, a branch by how likely it is."""
    clock = Fake(lambda k, n: 1e-3 * k * n**2)
    report = jp.shrink(f, params, x, latency=0.6, timings=clock.table).report
    assert (
        report.pace.predicted == pytest.approx(report.latency)
        and report.latency[1] <= 0.6 * report.latency[0]
    )


def test_what_is_no_product_takes_the_rest_by_its_bytes():
    """The whole takes 10 s more than its products: those of its arrays that can be cut share
    them.
    """

    class Slow(Fake):
        def one(self, f, args):
            seconds = super().one(f, args)
            return seconds + 10 if len(self.asked[-1]) > 1 else seconds

    found = jp.coupled_axes(mlp, PARAMS, X)
    ranks = [np.arange(float(g.size)) for g in found.groups]
    table = Slow(flat).table
    model = Model(
        found.programs[0], found.variables, ranks, table, 10 + 1e-3 * (6 * 16 + 16 * 12 + 12 * 5)
    )
    sizes = dict(zip((g.size for g in found.groups), range(2)))
    at = [0, 0]
    at[sizes[16]] = 8
    at[sizes[12]] = 12
    model.measure((i, tuple(at)) for i in model.of[sizes[16]])
    moved = 10 * (8 + 12) / (16 + 12)
    assert model.total(tuple(at)) == pytest.approx(moved + 1e-3 * (6 * 8 + 8 * 12 + 12 * 5))


def test_a_table_is_kept_and_nothing_is_measured_twice(tmp_path):
    clock = Fake(flat)
    first = jp.shrink(mlp, PARAMS, X, latency=0.5, timings=clock.table)
    first.report.timings.save(tmp_path / "table.json")
    loaded = jp.Timings.load(tmp_path / "table.json")
    assert loaded.seconds == first.report.timings.seconds and loaded.device == device()
    assert min(loaded.seconds.values()) > 0 and 20 < len(loaded.seconds) < 200
    clock.asked.clear()
    again = jp.shrink(mlp, PARAMS, X, latency=0.5, timings=loaded._replace(clock=clock))
    assert widths(again) == widths(first)
    assert all(len(asked) == 3 for asked in clock.asked)  # whole programs, in the end
    clock.asked.clear()
    jp.shrink(
        mlp, PARAMS, X[:2], latency=0.5, timings=loaded._replace(clock=clock)
    )  # a batch of another size
    assert len(clock.asked) > 20


def test_a_table_of_another_device_and_what_is_no_table_are_refused(tmp_path):
    path = tmp_path / "table.json"
    jp.Timings({"dot": 0.5}).save(path)
    file = json.loads(path.read_text())
    path.write_text(json.dumps(file | {"device": "TPU v9, jax 0.1"}))
    with pytest.raises(
        ValueError, match=r"table.json: measured on 'TPU v9, jax 0.1', and this is .*measure anew"
    ):
        jp.Timings.load(path)
    with pytest.raises(ValueError, match=r"timings: measured on 'a toaster'"):
        jp.shrink(mlp, PARAMS, X, latency=0.5, timings=jp.Timings({}, "a toaster"))
    for odd, match in [
        ({}, "holds no timings: Object missing"),
        (file | {"format": "jaxprune plan 1"}, "its format is 'jaxprune plan 1'"),
        (file | {"seconds": {"dot": -1.0}}, "dot took -1.0 seconds"),
    ]:
        path.write_text(json.dumps(odd))
        with pytest.raises(ValueError, match=match):
            jp.Timings.load(path)


def test_bad_arguments():
    for wrong in (0, 1.5, -0.1):
        with pytest.raises(
            ValueError, match=f"latency={wrong}: a budget is a fraction of the whole"
        ):
            jp.shrink(mlp, PARAMS, X, latency=wrong)
    with pytest.raises(ValueError, match=r"round_to='fast'.*or 'device'"):
        jp.shrink(mlp, PARAMS, X, flops=0.5, round_to="fast")
    with pytest.raises(ValueError, match="timings= is for latency="):
        jp.shrink(mlp, PARAMS, X, flops=0.5, timings=jp.Timings())


def test_candidates_are_eight_to_sixteen_and_multiples():
    assert candidates(64, 1, 64, None) == list(range(8, 64, 8))
    assert candidates(100, 20, 100, None) == list(range(24, 100, 8))
    assert candidates(12, 1, 12, None) == list(range(1, 12))
    assert candidates(20, 5, 20, 8) == [8, 16]
    assert candidates(64, 5, 5, None) == [
        5,
        *range(8, 64, 8),
    ]  # the most that may be kept can be kept
    assert all(7 <= len(candidates(n, 1, n, None)) < 16 for n in range(8, 3000))


def test_a_race_takes_turns():
    ticks = iter(range(10**6))
    order = []

    def note(name):
        return Call(lambda x: order.append(name) or x, (jax.ShapeDtypeStruct((2,), jnp.float32),))

    times = race([note("a"), note("b")], now=lambda: next(ticks))
    assert (
        times.shape == (7, 2) and (times == 1).all()
    )  # a tick a call is long: as few rounds as there may be
    assert order == ["a", "b"] * 9
    assert (race([note("a")]) > 0).all()
