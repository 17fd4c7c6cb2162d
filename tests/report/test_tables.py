"""The summary: its words, its numbers, and how it prints."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.core.arrays import Dense, Masked
from jaxprune.report import measure, tables
from jaxprune.report.describe import describe, percent
from jaxprune.report.tables import summary
from tests.helpers import model, normal

codebook8 = jp.at(jp.where.field("codebook"), jp.quantize(bits=8))
w = normal((16, 24))


def row(table, path):
    return next(r for r in table.rows if r.path == path)


@pytest.mark.parametrize(
    "compression, words",
    [
        (jp.identity, ""),
        (jp.prune(0.75), "Masked 25%"),
        (
            jp.chain(jp.prune(0.75), jp.cluster(k=8), codebook8),
            "Masked 25% · Clustered 8 · codebook int8",
        ),
        (jp.cluster(k=3), "Clustered 3"),
        (jp.quantize(bits=8), "int8"),
        (jp.quantize(bits=4), "int4"),
        (jp.quantize(kind="nf4"), "nf4"),
        (jp.quantize(kind="float8_e4m3"), "float8_e4m3fn"),
        (jp.quantize(kind="binary"), "binary"),
        (jp.share(k=5), "Shared 5 of 24"),
        (jp.factorize(rank=3), "LowRank 3"),
        (jp.chain(jp.factorize(rank=3), jp.quantize(bits=8)), "LowRank 3 · u int8 · v int8"),
        (jp.over(1, jp.prune(0.5)), "Masked 50%"),
    ],
)
def test_words(compression, words):
    assert describe(compression.init(w)) == words


def test_percent():
    assert [percent(x) for x in (1, 0.08, 0.125, 0.00125, 0)] == [
        "100%",
        "8%",
        "12.5%",
        "0.125%",
        "0%",
    ]


def test_rows_by_hand():
    mask = np.zeros((8, 8), bool)
    mask[0] = True
    table = summary(
        {"kernel": Masked(jnp.ones((8, 8)), jnp.asarray(mask)), "bias": jnp.arange(8.0)}
    )
    kernel = row(table, "kernel")
    bias = row(table, "bias")
    assert kernel[:6] == ("kernel", (8, 8), "float32", "Masked 12.5%", 0.125, (64 + 8 * 32) / 64)
    # the mask is 10 bytes, and eight values that are all alike a base of 5 and a width of 1
    assert (kernel.dense, kernel.nonzero, kernel.stored, kernel.note) == (256, 32, 10 + 6, "")
    assert bias[:6] == ("bias", (8,), "float32", "", 7 / 8, 32.0)
    assert bias.note == "dense (1-D)"
    assert table.totals.shape == (72,) and table.totals.density == 15 / 72
    assert table.totals.bits == (64 + 8 * 32 + 8 * 32) / 72
    assert table.ratio == 288 / (16 + 32)


@pytest.mark.parametrize(
    "compression",
    [
        jp.identity,
        jp.prune(0.9),
        jp.cluster(k=4),
        jp.cluster(k=4, scope="tree"),
        jp.quantize(bits=4),
    ],
)
def test_totals_are_sizes_and_nbits(compression):
    tree = compression.init(model())
    table = summary(tree)
    totals = table.totals
    assert (totals.dense, totals.nonzero, totals.stored, totals.entropy) == measure.sizes(tree)
    assert totals.shape == (sum(x.size for x in jax.tree.leaves(model())),)
    assert totals.bits * totals.shape[0] == pytest.approx(jp.nbits(tree))
    assert {r.path for r in table.rows} - {"(codebook)"} == {r.path for r in summary(model()).rows}


def test_notes():
    tree = {
        "w": jnp.ones((2, 2)).at[0, 0].set(jnp.nan),
        "bias": jnp.array([[jnp.inf, -jnp.inf, 1.0]]),
        "half": jnp.array([[jnp.nan]], jnp.bfloat16),
        "steps": jnp.array(3),
        "small": Dense(jnp.ones((2, 2)), "U·V is larger"),
        "hidden": Masked(jnp.array([[jnp.nan, 1.0]]), jnp.array([[False, True]])),
    }
    notes = {r.path: r.note for r in summary(tree).rows}
    assert notes == {
        "w": "dense, 1 NaN",
        "bias": "dense (named bias), 2 Inf",
        "half": "dense (a single number), 1 NaN",
        "steps": "dense (not a float array)",
        "small": "dense (U·V is larger)",
        "hidden": "",
    }


def test_where_selects_rows():
    table = summary(jp.prune(0.5).init(model()), where=jp.where.path(r"dense/.*"))
    assert [r.path for r in table.rows] == ["dense/bias", "dense/kernel"]
    assert [r.path for r in summary(model(), where=jp.where.weights).rows] == [
        "conv/kernel",
        "dense/kernel",
    ]
    with pytest.raises(ValueError, match="matches nothing"):
        summary(model(), where=jp.where.path("nothing"))


def test_text_fits_100_columns():
    deep = {
        f"a_rather_long_name_of_a_layer_{i}": {"and_of_what_it_holds": normal((40, 30))}
        for i in range(3)
    }
    tree = jp.chain(jp.prune(0.9), jp.cluster(k=16), codebook8).init({**deep, "x": jnp.zeros(3)})
    lines = str(summary(tree)).splitlines()
    assert max(map(len, lines)) <= tables.WIDTH
    assert len({len(line) for line in lines[:-1]}) == 1  # columns are aligned
    assert sum("…" in line for line in lines) == 3
    assert lines[0].split() == [
        "leaf",
        "array",
        "what",
        "kept",
        "bits",
        "dense",
        "stored",
        "entropy",
    ]


def test_elide_and_size():
    assert (
        tables.elide("params/encoder/kernel", 11) == "param…ernel"
        and tables.elide("abc", 3) == "abc"
    )
    assert [tables.size(n) for n in (0, 9999, 10000, 1_066_440, 2 * 10**9)] == [
        "0",
        "9999",
        "10k",
        "1.066M",
        "2G",
    ]
    for n in range(0, 10**7, 12345):
        assert len(tables.size(n)) <= 6


def test_json():
    table = summary(jp.prune(0.5).init({"w": w, "bad": jnp.array([jnp.nan])}))
    said = json.loads(table.to_json())
    assert said == table.to_dict()
    assert (
        said["rows"][1]["path"] == "w"
        and said["rows"][1]["shape"] == [16, 24]
        and said["rows"][1]["density"] == 0.5
    )
    assert said["totals"]["dense"] == 16 * 24 * 4 + 4 and math.isclose(said["ratio"], table.ratio)
    assert summary({}).ratio == 1.0 and str(summary({}))


def test_rich():
    from rich.console import Console

    console = Console(width=120, record=True, force_terminal=False)
    with console.capture() as out:
        console.print(summary({"a[red]": jp.prune(0.5).init(w)}))
    assert "a[red]" in out.get() and "Masked 50%" in out.get() and "nonzero" in out.get()


def test_rich_is_not_imported():
    code = (
        "import sys, jax.numpy as jnp; from jaxprune.report.tables import summary\n"
        "str(summary(jnp.ones(3))); print('rich' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_one_array():
    assert str(summary(w)).splitlines()[1].startswith("(the array)")


def test_kernels_with_their_outputs_elsewhere_are_listed():
    params = {
        "conv": {"weight": jnp.ones((8, 4, 3, 3)), "bias": jnp.ones(8)},
        "head": {"weight": jnp.ones((5, 8))},
        "plain": {"kernel": jnp.ones((4, 6))},
        "embedding": {"weight": jnp.ones((30, 8))},
    }
    table = summary(jp.prune(0.5, where=jp.where.weights | "embedding/.*").init(params))
    axes = {row.path: row.axes for row in table.rows}
    assert (
        axes["conv/weight"] == "outputs on axis -4"
        and axes["conv/bias"] == axes["embedding/weight"] == ""
    )
    lines = str(table).splitlines()
    assert "outputs on axis -4: conv/weight" in lines and "outputs on axis -2: head/weight" in lines
    assert not any("plain" in line for line in lines if line.startswith("outputs"))
    assert json.loads(table.to_json())["rows"][-1]["axes"] == "outputs on axis -1"


def test_the_reason_for_a_dense_leaf_is_that_of_the_selection():
    """The class of an Equinox module, and a kernel beside it, tell what a name and a shape do
    not."""
    eqx = pytest.importorskip("equinox")
    table = summary(eqx.filter(eqx.nn.Embedding(40, 8, key=jax.random.key(0)), eqx.is_array))
    assert "embedding" in table.rows[0].note
    stacked = {"layer": {"kernel": jnp.ones((3, 4, 6)), "offset": jnp.ones((3, 6))}}
    by_selection = jp.where.weights(stacked)["layer"]
    notes = {row.path.split("/")[-1]: row.note for row in summary(stacked).rows}
    assert {name: note == "dense" for name, note in notes.items()} == by_selection
