"""What the default selection takes of every layer that Flax, Haiku and Equinox ship, and which axis
is the output."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from tests.core.layers import equinox_layers, haiku_layers, linen_layers, nnx_layers
from tests.core.layers.probe import Layer, computed, spoiled

FRAMEWORKS = {
    "Flax linen": linen_layers.LAYERS,
    "Flax NNX": nnx_layers.LAYERS,
    "Haiku": haiku_layers.LAYERS,
    "Equinox": equinox_layers.LAYERS,
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:SelfAttention will be deprecated:DeprecationWarning"
)
ROWS = [
    pytest.param(layer, id=f"{name}: {layer.name}")
    for name, layers in FRAMEWORKS.items()
    for layer in layers
]


@pytest.fixture(autouse=True)
def dtypes_promote():
    """The frameworks add integers to floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("layer", ROWS)
def test_the_kernels_of_every_layer_are_taken_and_their_outputs_known(layer: Layer):
    answers = computed(layer.build().params)
    assert {path for path, (why, _) in answers.items() if not why} == set(layer.weights)
    for path, weight in layer.weights.items():
        axes = answers[path][1]
        assert (axes.outputs, axes.stacked) == (weight.outputs, weight.stacked), path


@pytest.mark.parametrize("layer", ROWS)
def test_one_unit_of_a_kernel_is_one_feature_of_the_output(layer: Layer):
    built = layer.build()
    apply = jax.jit(built.apply)
    shapes = {
        leaf_path(keys): leaf.shape
        for keys, leaf in flatten_with_path(built.params)[0]
        if hasattr(leaf, "shape")
    }
    for path, weight in layer.weights.items():
        if weight.hand:
            continue
        axes = sorted((*weight.stacked, *weight.outputs))
        lengths = [shapes[path][axis] for axis in axes]
        for number in (1, int(np.prod(lengths)) - 1):
            unit = dict(zip(axes, map(int, np.unravel_index(number, lengths))))
            features = spoiled(layer, built._replace(apply=apply), path, unit)
            # The gates of a recurrent cell are one unit each, several times.
            assert list(np.flatnonzero(features)) == [number % features.size], path


@pytest.mark.parametrize("name", haiku_layers.NETS)
def test_every_kernel_of_a_network_is_taken(name):
    answers = computed(haiku_layers.NETS[name]().params)
    taken = {path: axes for path, (why, axes) in answers.items() if not why}
    assert taken.keys() == {path for path in answers if path.endswith("/w")}
    assert all(axes.outputs == (-1,) and not axes.scales[1:] for axes in taken.values())


PAGE = pathlib.Path(__file__).parents[3] / "docs" / "layers.md"


def table(layers: list[Layer]) -> str:
    """A row for each layer: the leaves that the default takes and their output axes, and those that
    it leaves alone."""
    rows = ["| layer | taken: output axis | left alone |", "|---|---|---|"]
    for layer in layers:
        answers = computed(layer.build().params)
        taken = [f"`{path}` {_axes(axes)}" for path, (why, axes) in answers.items() if not why]
        left = [f"`{path}` ({why})" for path, (why, _) in answers.items() if why]
        rows.append(f"| {layer.name} | {', '.join(taken) or '-'} | {', '.join(left) or '-'} |")
    return "\n".join(rows)


def _axes(axes: Any) -> str:
    text = " and ".join(map(str, axes.outputs))
    return (
        f"{text} of the layers on {' and '.join(map(str, axes.stacked))}" if axes.stacked else text
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_page_has_every_layer(framework):
    """`python -m tests.core.layers.test_every_layer` writes the page anew.

    What is left alone is not compared: versions of a framework differ in that (a scale of
    WeightNorm's).
    """
    section = PAGE.read_text().split(f"## {framework}\n\n")[1].split("\n\n")[0].splitlines()
    expected = table(FRAMEWORKS[framework]).splitlines()
    assert [row.split("|")[1:3] for row in section] == [row.split("|")[1:3] for row in expected]


def write_page() -> None:
    """The tables of the page, in the places of the old ones."""
    head = PAGE.read_text().split("\n## ")[0].rstrip()
    with jax.numpy_dtype_promotion("standard"):
        tables = [f"## {name}\n\n{table(layers)}\n" for name, layers in FRAMEWORKS.items()]
    PAGE.write_text("\n\n".join([head, *tables]))


if __name__ == "__main__":
    write_page()
