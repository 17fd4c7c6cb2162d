"""What is wrong with the data of a run is said before its first step, in one line."""

import types

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxprune.app import cli
from jaxprune.app.experiments.config import load_config
from jaxprune.app.experiments.experiment import run
from jaxprune.app.experiments.splits import check_outputs, splits_of
from tests.app.toy import CONFIG, blobs

X, Y = blobs().train
PAIR = (X, Y)


def made(train=PAIR, validation=PAIR, test=PAIR):
    return types.SimpleNamespace(train=train, validation=validation, test=test)


def with_value(array, value, at=3):
    changed = array.copy()
    changed[at] = value
    return changed


ONE_HOT = np.eye(3, dtype=np.float32)[Y]
WRONG = {
    "a tuple": (
        (PAIR, PAIR, PAIR),
        "makes a tuple without train, validation, test: give an object",
    ),
    "a dict": (
        {"train": PAIR, "test": PAIR},
        r"makes a dict with \['train', 'test'\]: give an object",
    ),
    "nothing": (None, "makes a NoneType without"),
    "no validation": (types.SimpleNamespace(train=PAIR, test=PAIR), "without validation"),
    "a split without labels": (made(test=X), "test is a ndarray: give"),
    "three arrays in a split": (made(train=(X, Y, Y)), "train is a tuple of 3: give"),
    "a split that is a dict": (made(train={"x": X, "y": Y}), "train is a dict: give"),
    "lists": (made(train=(X.tolist(), Y)), "x of train is a list: give a NumPy array"),
    "no examples": (made(validation=(X[:0], Y[:0])), "validation has 0 inputs and 0 labels"),
    "lengths": (made(train=(X, Y[:-3])), "train has 120 inputs and 117 labels"),
    "one number": (made(train=(X[0, 0], Y)), "x of train is one number"),
    "float64": (made(train=(X.astype(float), Y)), r"x of train is float64.*x.astype\(np.float32\)"),
    "int64 tokens": (made(train=(Y.astype(np.int64), Y)), r"int64.*np.int32"),
    "NaN": (
        made(test=(with_value(X, np.nan), Y)),
        r"x of test has 8 values that are NaN or infinite, the first at \[3, 0\]",
    ),
    "infinite": (made(train=(with_value(X, -np.inf), Y)), "x of train has 8 values"),
    "objects": (made(train=(X.astype(object), Y)), "x of train has the dtype object"),
    "complex": (made(train=(X.astype(np.complex64), Y)), "x of train has the dtype complex64"),
    "masked": (made(train=(np.ma.masked_less(X, 0), Y)), r"x of train is a masked array: fill it"),
    "text labels": (made(train=(X, Y.astype(str))), r"y of train: y is text.*np.unique"),
    "float labels": (
        made(train=(X, Y.astype(np.float32))),
        "y is float32: give classes as integers",
    ),
    "one-hot labels": (made(train=(X, ONE_HOT)), r"one-hot: give y.argmax\(-1\)"),
    "one-hot integers": (made(train=(X, ONE_HOT.astype(int))), r"one-hot.*y.argmax\(-1\)"),
    "a negative label": (
        made(validation=(X, with_value(Y, -100))),
        "y of validation has the label -100",
    ),
    "other shapes": (
        made(test=(X[:, :5], Y)),
        r"x of test is float32 of examples \(5,\), and that of train",
    ),
    "other dtypes": (made(test=(X.astype(np.float16), Y)), "x of test is float16"),
    "other labels": (made(test=(X, Y[:, None])), r"y of test has labels of shape \(1,\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_one_line(case):
    value, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as error:
        splits_of(value)
    assert "\n" not in str(error.value)


def test_right_data_passes_as_it_is():
    splits = splits_of(made())
    assert splits.train[0] is X
    huge = np.full((120, 8), 3e38, np.float32)  # whose sum overflows float32, and which is finite
    splits_of(made(train=(huge, Y), validation=(huge, Y), test=(huge, Y)))
    tokens = np.zeros((4, 7), np.int32)
    splits_of(
        types.SimpleNamespace(
            train=(tokens, tokens), validation=(tokens, tokens), test=(tokens, tokens)
        )
    )
    with jax.enable_x64(True):
        splits_of(made(*[(X.astype(float), Y)] * 3))


def outputs(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


OUTPUTS = {
    "two classes for three": (
        outputs(2, 2),
        "y of train has the label 2, and the model gives 2 outputs",
    ),
    "one output": (outputs(2, 1), "the model gives 1 output"),
    "no classes": (outputs(2), r"float32\[2\].*logits are floats \(batch, classes\)"),
    "a sequence": (outputs(2, 5, 3), "logits are floats"),
    "integers": (outputs(2, 3, dtype=np.int32), "int32"),
    "a pair": ((outputs(2, 3), outputs(2, 3)), "the model gives a tuple"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_that_cannot_be_the_labels_logits(case):
    value, message = OUTPUTS[case]
    with pytest.raises(ValueError, match=message):
        check_outputs(value, splits_of(made()))


def test_yes_and_no_from_one_output():
    pair = (X, (Y > 0).astype(np.int32) * 0)
    with pytest.raises(ValueError, match="its softmax is always 1"):
        check_outputs(outputs(2, 1), splits_of(made(pair, pair, pair)))


CONFIGS = {
    "a batch larger than the data": (
        "train.batch=500",
        "phase 'train': batch = 500, and the training split has 120",
    ),
    "a rule of the last phase": (
        "phase.quantize.rule.1.where=kernels",
        "phase 'quantize': rule 1 .*Nearest: 'dense1/kernel'",
    ),
    "a codebook where there is none": (
        'phase.share.rule=[{where=".*", keep=true}]',
        "phase 'quantize': ",
    ),
    "a NaN": ("train.learning_rate=nan", "learning_rate = nan must be > 0 and finite"),
    "an infinite rate": ("phase.share.learning_rate=inf", "learning_rate = inf"),
    "a decay that is NaN": ("train.weight_decay=nan", "weight_decay = nan"),
    "a seed of 40 bits": (
        "seeds=[1099511627776]",
        "the seed 1099511627776: JAX makes keys of 32 bits",
    ),
    "a negative seed": ("train.seed=-1", "the seed -1"),
    "a seed twice": ("seeds=[3, 3]", "two are equal"),
    "a factory that raises": ("data_args={n = -5}", r"data = 'tests.app.toy:blobs': .*negative"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_run_that_cannot_be_right_stops_before_its_first_step(case, tmp_path):
    setting, message = CONFIGS[case]
    (tmp_path / "toy.toml").write_text(CONFIG)
    with pytest.raises(ValueError, match=message):
        run(load_config(tmp_path / "toy.toml", [setting]), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    (tmp_path / "toy.toml").write_text(CONFIG)
    high = ["--set", "train.learning_rate=1e38", "--runs", str(tmp_path / "runs")]
    shown = CliRunner().invoke(cli.app, ["run", str(tmp_path / "toy.toml"), *high])
    assert shown.exit_code == 2
    assert "phase 'train', epoch 1: the validation loss is nan. Lower learning_rate" in shown.stderr
    assert not list((tmp_path / "runs").glob("*/results.json"))
