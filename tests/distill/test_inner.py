"""The compiled loop and the Python loop do the same, however many batches are gathered at once."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxprune.distill import inner

DATA = {"x": jnp.arange(40, dtype=jnp.float32).reshape(20, 2)}
ROWS = [np.array([7 * i % 20, 3 * i % 20, i % 20], np.int32) for i in range(7)]
BYTES = 3 * 2 * 4


def step(state, batch, teacher):
    """Order matters: a batch that comes twice, late or not at all changes the state."""
    new = 3 * state + jnp.sum(batch["x"] * jnp.arange(6.0).reshape(3, 2))
    return new % 1001, {"loss": new}


@pytest.mark.parametrize("kind", ["python", "scan"])
@pytest.mark.parametrize("at_once", [0, 1, 2, 3, 7, 50])
@pytest.mark.parametrize("n", [1, 6, 7])
def test_every_batch_comes_once_in_its_place(kind, at_once, n, monkeypatch):
    monkeypatch.setattr(inner, "BLOCK", at_once * BYTES)
    shapes = set()

    def take(row, data):
        shapes.add(row.shape)
        return {"x": data["x"][row]}

    state = jnp.zeros(())
    run, _ = inner.chunk_runner(step, take, kind, 7, state, ROWS[0], DATA, None)
    found, metrics = run(state + 0, ROWS[:n], DATA, None)
    losses = []
    for row in ROWS[:n]:
        state, said = step(state, {"x": DATA["x"][row]}, None)
        losses.append(said["loss"])
    assert float(found) == float(state)
    assert_array_equal(metrics["loss"][:n], losses)
    if kind == "scan":
        assert shapes == {
            (3,),
            (max(1, min(at_once, 7)), 3),
        }  # one is looked at, a block is gathered


def test_batches_that_come_whole_are_not_copied_in_blocks():
    seen = set()

    def whole(row, data):
        return seen.add(row["x"].shape) or row

    rows = [{"x": np.asarray(DATA["x"])[row]} for row in ROWS]
    inner.chunk_runner(step, whole, "scan", 7, jnp.zeros(()), rows[0], {}, None)[0](
        jnp.zeros(()), rows, {}, None
    )
    assert seen == {(3, 2), (1, 3, 2)}
