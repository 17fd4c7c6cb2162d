"""The pages show what the results.json files say, and what measures them runs."""

import json

import numpy as np

from experiments import table
from experiments.distillation import cached_teacher as ct


def test_the_table_is_that_of_the_results():
    text = table.PAGE.read_text()
    assert table.page(text) == text, "run: python -m experiments.table --write"
    assert text.count("jaxprune run experiments/") >= 1


def test_the_cached_teacher_runs_at_a_small_size(capsys):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(70, 9)).astype(np.float32), rng.integers(0, 4, 70).astype(np.int32)
    sizes = ct.Sizes((9, 12, 4), (9, 8, 4), batch=16, steps=2, rounds=2)
    rows, figures = ct.measured(sizes, data)
    json.dumps(figures)
    assert figures["cache"]["bytes"] > 70 * 4 * 2 and all(row["measured"] > 0 for row in rows)
    assert set(figures["steps"]) == {ct.ALONE, ct.CACHED, ct.READ, ct.ONLINE}
    with ct.bar("work", after=0.0) as progress:
        progress(1, 2)
    assert capsys.readouterr().out == ""
