"""Calls that are wrong, and logits that teach nothing: one clear error each, and no file."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.distill.cache_toy import TOP, X, opened, teacher, write

VALUES = {
    "NaN": (np.nan, "nan: a teacher's logits are numbers, or -inf"),
    "+inf": (np.inf, "inf: a teacher's logits"),
    "an overflow": (65520.0, "65520, for which float16 has no room: use form='float32', or -inf"),
    "a mask of 1e9": (-1e9, "-1e\\+09, for which float16 has no room"),
}


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("form", ["float16", "float32", TOP], ids=str)
def test_values_that_teach_nothing(case, form, tmp_path):
    value, message = VALUES[case]
    z = teacher(X)
    z[13, 4] = value
    keeps = np.isfinite(value) and form != "float16"
    calls = iter(range(0, 99, 3))

    def harmed(x):
        return z[(i := next(calls)) : i + 3]

    if keeps:
        write(tmp_path, harmed, form=form)
        return
    with pytest.raises(ValueError, match=f"example 13: the logits hold {message}"):
        write(tmp_path, harmed, form=form)
    assert sorted(os.listdir(tmp_path / "augmentation-0")) == ["shard-000000", "shard-000001"]


def test_the_largest_float16_is_kept(tmp_path):
    z = np.float32([[65504, -65504, 65519.99, 1e-9]])
    assert write(tmp_path, lambda x: z, X[:1]).whole().tolist() == [[65504, -65504, 65504, 0]]


def test_float64_beyond_float32(tmp_path):
    with pytest.raises(
        ValueError, match="example 0: the logits hold 1e\\+300, for which float32 has no room"
    ):
        write(tmp_path, lambda x: np.full((1, 2), 1e300), X[:1], form="float32")


INDICES = {
    "floats": ([0.0, 1.0], "dtype float64.*give integers from 0 to 22"),
    "nothing": ([], "dtype float64"),
    "flags": ([True], "dtype bool"),
    "texts": (["1"], "give integers"),
    "negative": ([3, -1], "-1 is out of range; the cache holds examples 0 to 22"),
    "beyond": (np.uint8([[0, 23]]), "23 is out of range"),
    "far beyond": (np.uint64(2**64 - 1), "18446744073709551615 is out of range"),
    "a float of JAX": (jnp.zeros(3), "dtype float32"),
}


@pytest.mark.parametrize("case", INDICES)
def test_indices_that_are_none(case, folder):
    indices, message = INDICES[case]
    with pytest.raises(ValueError, match=f"indices: .*{message}"):
        opened(folder).read(indices)


CALLS = {
    "no examples": (
        {"examples": X[:0]},
        r"examples of shapes \[\(0, 4\)\]: give arrays of one length, 1 or more",
    ),
    "no arrays": ({"examples": {}}, r"shapes \[\]"),
    "a number": ({"examples": np.float32(3)}, r"shapes \[\(\)\]"),
    "unequal lengths": ({"examples": (X, X[1:])}, r"\(23, 4\), \(22, 4\)"),
    "a list of numbers": ({"examples": [1, 2]}, r"\(\), \(\)"),
    "texts": ({"examples": np.array(["a"])}, "ndarray <U1"),
    "a negative seed": ({"augmentation": -1}, "augmentation=-1"),
    "a float for a seed": ({"augmentation": 0.0}, "augmentation=0.0"),
    "no batch": ({"batch": 0}, r"batch=0\): give an integer of at least 1"),
    "no rows": ({"shard": 0}, "shard=0"),
    "no form": ({"form": "int8"}, r"form='int8': choose 'float16', 'float32' or jp.distill.Top"),
    "k of all and one": (
        {"form": jp.distill.Top(7)},
        "give an integer of at least 1 and at most 6",
    ),
    "k of no integer": ({"form": jp.distill.Top(2.0)}, "give an integer of at least 1"),
    "no temperature": ({"form": jp.distill.Top(2, 0.0)}, "one positive, finite"),
    "no fingerprint": ({"fingerprint": ""}, "a fingerprint is a text of 1 to 200 characters.*''"),
    "params for a fingerprint": ({"fingerprint": {"w": 1}}, "a fingerprint is a text"),
    "one logit an example": (
        {"logits_of": lambda x: teacher(x)[:, 0]},
        r"float32\[3\] for 3 examples",
    ),
    "too few logits": ({"logits_of": lambda x: teacher(x)[1:]}, r"float32\[2, 6\] for 3 examples"),
    "no classes": ({"logits_of": lambda x: teacher(x)[:, :0]}, "at least one class"),
    "integers": (
        {"logits_of": lambda x: np.ones((len(x), 2), int)},
        r"int64\[3, 2\].*floats of shape \(3, \*pos",
    ),
    "lists": ({"logits_of": lambda x: teacher(x).tolist()}, r"list\[3, 6\]"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_are_wrong(case, tmp_path):
    changes, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "cache", **{"logits_of": teacher, **changes})
    assert not (tmp_path / "cache").exists()


def test_another_number_of_classes(folder):
    """A teacher whose outputs change within a write, and one that has another fingerprint's."""
    calls = iter(range(99))

    def widening(x):
        return np.ones((len(x), 6 + (next(calls) > 2)), np.float32)

    with pytest.raises(
        ValueError, match=r"example 9: logits of shape \(7,\); the cache holds \(6,\)"
    ):
        write(folder, widening, augmentation=1)
    with pytest.raises(ValueError, match=r"example 6: logits of shape \(5,\)"):
        write(folder, lambda x: np.ones((len(x), 5), np.float32), augmentation=1)
