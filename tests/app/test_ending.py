"""What ends a command early: signals, closed pipes; and what an output may never be."""

import io
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

import jaxprune as jp
from jaxprune.app.experiments.config import load_config, run_name
from jaxprune.app.experiments.results import SIZES
from jaxprune.app.experiments.tables import fitted_table
from jaxprune.storage import atomic
from jaxprune.storage.files import load, save
from tests.app.test_compress import call
from tests.app.toy import CONFIG
from tests.storage.test_checkpoints import write_foreign

ROOT = pathlib.Path(__file__).parents[2]
RULE = '[[rule]]\nwhere = ".*"\nprune = 0.5\n'
# A command that tells when it works on its first leaf, and waits there.
SLOW = """
import signal, sys, time
from jaxprune.app import cli
{patch}
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
sys.argv[0] = "jaxprune"
cli.main()
"""
IN_A_LEAF = """
from jaxprune.app import progress
def wait(self, path, n):
    print("working", file=sys.stderr, flush=True)
    time.sleep(60)
progress.Bytes.__call__ = wait
"""
IN_AN_EPOCH = """
from jaxprune.app.experiments import phases
train = phases._train_one_epoch
def slow(now):
    if now.epoch == 1:
        print("working", file=sys.stderr, flush=True)
        time.sleep(SECONDS)
    train(now)
phases._train_one_epoch = slow
"""


def start(patch, *args):
    command = [sys.executable, "-c", SLOW.format(patch=patch), *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if line == "working\n":
            return process
    raise AssertionError(seen)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "r.toml").write_text(RULE)
    return write_foreign(
        tmp_path / "m.npz", {f"{n}/kernel": np.ones((8, 8), np.float32) for n in "ab"}
    )


@pytest.mark.parametrize(
    "command, how",
    [
        ("compress", signal.SIGINT),
        ("compress", signal.SIGTERM),
        ("restore", signal.SIGINT),
        ("restore", signal.SIGHUP),
    ],
)
def test_a_signal_ends_a_command_at_once_and_leaves_nothing(command, how, model):
    out = model.parent / "out.npz"
    out.write_bytes(b"old")
    before = sorted(os.listdir(model.parent))
    more = ["-r", model.parent / "r.toml"] if command == "compress" else []
    process = start(IN_A_LEAF, command, model, "-o", out, "--force", *more)
    assert sorted(os.listdir(model.parent)) != before  # it has begun
    process.send_signal(how)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + how and stderr == f"stopped: {out} is as it was\n"
    assert sorted(os.listdir(model.parent)) == before and out.read_bytes() == b"old"


@pytest.fixture
def config(tmp_path):
    """One phase of five epochs."""
    (tmp_path / "toy.toml").write_text(CONFIG[: CONFIG.index('[[phase]]\nname = "prune"')])
    return tmp_path / "toy.toml"


def test_a_run_ends_after_its_epoch_with_a_checkpoint(config):
    runs = config.parent / "runs"
    process = start(IN_AN_EPOCH.replace("SECONDS", "0.5"), "run", config, "--runs", runs)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "stopping after this epoch" in stderr and "the same command goes on" in stderr
    (folder,) = runs.iterdir()
    assert (folder / "checkpoints" / "seed-0" / "phase-0-epoch-2").is_dir()
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_a_second_signal_ends_a_run_at_once(config):
    process = start(
        IN_AN_EPOCH.replace("SECONDS", "60"), "run", config, "--runs", config.parent / "runs"
    )
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None and "stopping after this epoch" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.communicate()


def test_what_a_dead_process_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "model.jpz"
    prefix = atomic._prefix("model.jpz") + atomic._machine()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f"{prefix}-{dead.pid}.{'0' * 16}.tmp"
    others = [
        tmp_path / f"{prefix}-{os.getppid()}.{'0' * 16}.tmp",  # of a process that lives
        tmp_path / f".model.jpz.{'f' * 8}-{dead.pid}.{'0' * 16}.tmp",  # of another machine
        tmp_path / f".other.jpz.{atomic._machine()}-{dead.pid}.{'0' * 16}.tmp",  # of another file
    ]
    for file in (stale, *others):
        file.write_bytes(b"")
    save(path, {"w": np.arange(3)})
    assert not stale.exists() and all(file.exists() for file in others)
    assert load(path)["w"].tolist() == [0, 1, 2]


def test_a_closed_pipe_is_no_error(model):
    big = write_foreign(
        model.parent / "big.npz", {f"layer{n}/kernel": np.ones(2, np.float32) for n in range(2000)}
    )
    command = [
        sys.executable,
        "-c",
        "from jaxprune.app import cli; cli.main()",
        "inspect",
        str(big),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(100)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(30) == 0
    process.stderr.close()


def test_a_missing_file_names_the_nearest(model):
    for args in (("inspect", model.parent / "n.npz"), ("diff", model, model.parent / "n.npz")):
        result = call(*args)
        assert result.exit_code == 2 and f"Nearest: {model}" in result.stderr, result.output
    result = call("verify", model.parent / "no" / "m.npz")
    assert result.exit_code == 2 and "nor does its folder" in result.stderr


def test_version_and_help():
    assert call("--version").stdout == f"jaxprune {jp.__version__}\n"
    assert "restore" in call("-h").stdout and "--recipe" in call("compress", "-h").stdout


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_table_cuts_a_number(width, model, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    result = call("inspect", model)
    assert "256 B" in result.stdout and "512 B" in result.stdout
    rows = [
        [
            "share, before",
            "0.1234",
            "97.69 ± 0.32",
            "1.07 MB",
            "85.3 kB",
            "44.0 kB",
            "43.0 kB",
            "24.3x",
        ]
    ]
    columns = {"phase": False} | dict.fromkeys(("loss", "accuracy %", *SIZES, "ratio"), True)
    table = fitted_table("toy", columns, rows, rows, width, ("nonzero", "entropy", "dense", "loss"))
    screen = Console(width=width, file=io.StringIO())
    screen.print(table)
    text = screen.file.getvalue()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert "97.69 ± 0.32" in text and "24.3x" in text and ("85.3 kB" in text) == (width == 100)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "null", "3", "{", "[" * 100_000, '{"schema": 0}', '{"schema": 1}', "{}"]
)
def test_results_that_are_none_are_one_line(text, config):
    runs = config.parent / "runs"
    folder = runs / run_name(load_config(config))
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(text)
    result = call("run", config, "--runs", runs)
    assert (
        result.exit_code == 2
        and str(folder) in result.stderr
        and len(result.stderr.splitlines()) == 1
    )


@pytest.mark.parametrize(
    "setting",
    [
        "seeds=[-1]",
        "seeds=[18446744073709551616]",
        "train.learning_rate=nan",
        "train.learning_rate=inf",
    ],
)
def test_numbers_that_no_run_can_have_are_one_line(setting, config):
    result = call("run", config, "--runs", config.parent / "runs", "--set", setting)
    assert (
        result.exit_code == 2
        and len(result.stderr.splitlines()) == 1
        and not (config.parent / "runs").exists()
    )


# --- an output is never an input
# ---------------------------------------------------------------------------------------


@pytest.fixture
def orbax_folder(tmp_path):
    with ocp.StandardCheckpointer() as store:
        store.save(tmp_path / "orb", {"d": {"kernel": np.ones((8, 8), np.float32)}})
    (tmp_path / "r.toml").write_text(RULE)
    return tmp_path / "orb"


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(folder, *args):
    """The message; nothing may be touched, whatever --force says."""
    before = snapshot(folder)
    result = call(*args, "--force")
    assert (
        result.exit_code == 2 and "Traceback" not in result.output and snapshot(folder) == before
    ), result.output
    return result.stderr


def test_an_output_is_not_the_checkpoint_nor_the_recipe(model):
    here = model.parent
    recipe = model.parent / "r.toml"
    os.symlink(model, here / "link.npz")
    os.link(model, here / "hard.npz")
    os.symlink(here, here / "here")
    os.link(recipe, here / "hard.toml")
    for out in (
        model,
        here / "link.npz",
        here / "hard.npz",
        here / "here" / "m.npz",
        here / "here" / ".." / here.name / "m.npz",
    ):
        assert "is the checkpoint" in refused(here, "compress", model, "-o", out, "-r", recipe)
        assert "is the checkpoint" in refused(here, "restore", model, "-o", out)
    for out in (recipe, here / "hard.toml"):
        assert "is the recipe" in refused(here, "compress", model, "-o", out, "-r", recipe)


def test_an_output_is_not_inside_the_checkpoint_nor_around_it(orbax_folder):
    here = orbax_folder.parent
    os.symlink(orbax_folder, here / "link")
    os.link(orbax_folder / "_METADATA", here / "hard")
    recipe = here / "r.toml"
    for out in (orbax_folder / "_METADATA", orbax_folder / "new.jpz", here / "link" / "new.jpz"):
        assert "inside the checkpoint" in refused(
            here, "compress", orbax_folder, "-o", out, "-r", recipe
        )
    assert "hard link" in refused(here, "compress", orbax_folder, "-o", here / "hard", "-r", recipe)
    assert "folder that contains" in refused(here, "restore", orbax_folder, "-o", here)
    assert "inside the checkpoint" in refused(
        here, "restore", orbax_folder, "-o", orbax_folder / "back"
    )


def test_a_run_folder_does_not_hold_the_config(config):
    runs = config.parent / "runs"
    folder = runs / run_name(load_config(config)) / "checkpoints"
    folder.mkdir(parents=True)
    os.rename(config, folder / "toy.toml")
    result = call("run", folder / "toy.toml", "--runs", runs)
    assert result.exit_code == 2 and "where the run writes" in result.stderr


def test_an_existing_file_is_replaced_on_request_only(model):
    out = model.parent / "out.npz"
    recipe = model.parent / "r.toml"
    out.write_bytes(b"precious")
    for args in (("compress", model, "-o", out, "-r", recipe), ("restore", model, "-o", out)):
        result = call(*args)
        assert (
            result.exit_code == 2 and "--force" in result.stderr and out.read_bytes() == b"precious"
        )
    assert call("compress", model, "-o", out, "-r", recipe, "--dry-run").exit_code == 0
    assert (
        call("restore", model, "-o", out, "--force").exit_code == 0
        and out.read_bytes() != b"precious"
    )
