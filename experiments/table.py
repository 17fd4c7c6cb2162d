"""The table of experiments/README.md, printed from the results.json files: `python -m
experiments.table [--write]`.

A row needs an entry in CLAIMS (what the paper says, and the command); its figures come from the
file alone.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
BEGIN = "<!-- table: begin -->"
END = "<!-- table: end -->"


class Claim(NamedTuple):
    """What stands beside our figures."""

    paper: str
    claim: str


CLAIMS = {
    "digits": Claim("Deep Compression on scikit-learn's digits", "none: the first thing to run"),
    "digits_random": Claim("its control: random instead of magnitude", "none"),
    "lenet300": Claim(
        "Han et al. 2016, 1510.00149, LeNet-300-100",
        "32x before Huffman, 40x with; error 1.64 -> 1.58%",
    ),
    "lenet300_random": Claim("its control: random instead of magnitude", "none"),
    "lenet300_4pct": Claim("the same, 4% of the weights, 7 values", "none"),
    "lenet5": Claim(
        "Han et al. 2016, LeNet-5 (Caffe)", "33x before Huffman, 39x with; error 0.80 -> 0.74%"
    ),
    "lenet300_90x": Claim(
        "a price on bits, a teacher, 24 values: LeNet-300-100",
        "64x, error 1.89 -> 1.94% (soft weight-sharing, 1702.04008)",
    ),
    "lenet300_124x": Claim(
        "the same at three times the price, 8 values", "124x, error 1.6 -> 1.9% (1906.06624)"
    ),
    "lenet300_200x": Claim("a price on bits, labels alone, 8 values", "none"),
    "lenet5_162x": Claim(
        "a price on bits, a teacher, 12 values: LeNet-5 (Caffe)",
        "162x, error 0.88 -> 0.97% (soft weight-sharing, 1702.04008)",
    ),
    "lenet5_555x": Claim(
        "the same at twelve times the price, 6 values", "555x at +0.1, 1110x at +0.3 (1810.00440)"
    ),
    "lenet5_555x_labels": Claim("as before, labels alone", "as before"),
    "lenet5_555x_grid": Claim("as before, on a uniform grid of 0.055 bits a weight", "as before"),
}


def row(name: str, folder: str, results: dict[str, Any]) -> str:
    """One line of the table; the config is in a folder of experiments/."""
    std = results["std"]
    seeds = len(results["seeds"])
    dense, final = (100 * (1 - results["accuracy"][k]) for k in ("dense", "final"))
    spread = [100 * std["accuracy"][k] for k in ("dense", "final")]
    deep = results["deep_compression"]
    error = f"{dense:.2f} ± {spread[0]:.2f} -> {final:.2f} ± {spread[1]:.2f}%"
    ratio = f"{results['ratio']:.1f} ± {std['ratio']:.1f}x"
    minutes = sum(p["seconds"] for s in results["seeds"] for p in s["phases"]) / 60
    counted = f"{deep['fixed']:.1f}x, {deep['huffman']:.1f}x" if deep else "not codes of the paper"
    cells = (
        CLAIMS[name].paper,
        CLAIMS[name].claim,
        f"{counted}; file {ratio}",
        f"{error} ({final - dense:+.2f})",
        str(seeds),
        f"`jaxprune run experiments/{folder}/{name}.toml`",
        f"{minutes:.1f} min",
    )
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """The whole table, as Markdown."""
    head = (
        "| paper | claim | ours: before Huffman, with; the file | error, dense -> final | seeds "
        "| command | time |"
    )
    files = sorted(HERE.glob("*/results/*/results.json"))
    found = {
        p.parent.name: p for p in files if (p.parents[2] / f"{p.parent.name}.toml").exists()
    }  # runs of a config
    rows = [
        row(name, found[name].parts[-4], json.loads(found[name].read_text()))
        for name in CLAIMS
        if name in found
    ]
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def page(text: str) -> str:
    """The page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(PAGE.read_text()))
    print(table())
