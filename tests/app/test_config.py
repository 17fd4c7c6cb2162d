"""Configs: strict keys, overrides, sweeps, and names that last."""

import msgspec
import pytest

from jaxprune.app.experiments import config as c
from jaxprune.app.recipes.strict import fields_at
from tests.app.toy import CONFIG


@pytest.fixture
def path(tmp_path):
    there = tmp_path / "toy.toml"
    there.write_text(CONFIG)
    return there


def test_reads(path):
    config = c.load_config(path)
    assert [p.name for p in config.phase] == ["train", "prune", "share", "quantize"]
    assert config.phase[1].rule[0].prune.sparsity == 0.8
    assert c.settings_of(config, config.phase[2]).schedule == "cosine"
    assert c.settings_of(config, config.phase[1]).batch == 20
    assert c.seeds_of(config) == (0,)


MISSPELT = [
    (
        "learning_rate = 1e-2",
        "lerning_rate = 1e-2",
        "'lerning_rate' in train. Did you mean 'learning_rate'",
    ),
    ("epochs = 5", "epcohs = 5", r"'epcohs' in phase 1. Did you mean 'epochs'"),
    ('name = "toy"', 'nam = "toy"', "Did you mean 'name'"),
    ("cluster = 4", "clusster = 4", r"'clusster' in phase 3, rule 1. Did you mean 'cluster'"),
    (
        "sparsity = 0.8",
        "sparcity = 0.8",
        r"'sparcity' in phase 2, rule 1, prune. Did you mean 'sparsity'",
    ),
    ("[train]", "[trian]", "Did you mean 'train'"),
]


@pytest.mark.parametrize("right, wrong, message", MISSPELT, ids=[w for _, w, _ in MISSPELT])
def test_a_misspelt_key_names_the_file_and_the_nearest(path, right, wrong, message):
    path.write_text(CONFIG.replace(right, wrong, 1))
    with pytest.raises(ValueError, match=message) as e:
        c.load_config(path)
    assert str(path) in str(e.value)


WRONG = [
    ("batch = 20", 'batch = "20"', "train.batch"),
    ("epochs = 5", "epochs = 5.5", r"phase 1, epochs"),
    ("epochs = 5", "epochs = -1", "epochs"),
    ("ramp = 0.6", "ramp = 1.6", "ramp"),
    ("epochs = 0", "epochs = 0\nramp = 0.5", "needs epochs > 0 and a rule that prunes"),
    ("ramp = 0.6", "rate_penalty = -1e-6", "phase 'prune': rate_penalty.*strength >= 0"),
    ("ramp = 0.6", "rate_penalty = { strength = 1e-6, ramp = 2 }", "ramp in"),
    ("ramp = 0.6", "rate_penalty = { width = 0.1 }", "strength"),
    ("epochs = 3", "epochs = 3\ndistill = -1.0", "phase 'share': distill.*temperature > 0"),
    ("epochs = 3", "epochs = 3\ndistill = { temperature = 2, weight = 2 }", "weight in"),
    ('name = "train"', 'name = "train"\ndistill = 2', "put it after"),
    ('name = "share"', 'name = "prune"', "two phases"),
    ('name = "toy"', 'name = "../toy"', "folder"),
    ('schedule = "cosine"', 'schedule = "cos"', "cos"),
    ("sparsity = 0.8", "sparsity = 1.8", "phase 'prune'.*sparsity"),
    ('model = "tests.app.toy:net"', "", "model"),
    ("[train]", "seeds = [1]\n[train]\nseed = 2", "seeds and train.seed"),
    ("[train]", "sweep.train.seed = 3\n[train]", "list of values"),
]


@pytest.mark.parametrize("right, wrong, message", WRONG, ids=[w for _, w, _ in WRONG])
def test_a_wrong_value_names_its_key(path, right, wrong, message):
    path.write_text(CONFIG.replace(right, wrong, 1))
    with pytest.raises(ValueError, match=message):
        c.load_config(path)


def test_a_truncated_file(path):
    path.write_text(CONFIG[: CONFIG.index("0.8")])
    with pytest.raises(ValueError, match=r"toy\.toml is not whole TOML"):
        c.load_config(path)


def test_a_missing_file_names_its_neighbour(path):
    with pytest.raises(ValueError, match=r"Did you mean 'toy\.toml'"):
        c.load_config(path.with_name("toi.toml"))


def test_overrides_are_typed(path):
    config = c.load_config(
        path,
        ["train.seed=3", "phase.prune.epochs=2", "phase.2.rule.1.prune.sparsity=0.5", "name=other"],
    )
    assert c.seeds_of(config) == (3,)
    assert (config.name, config.phase[1].epochs, config.phase[1].rule[0].prune.sparsity) == (
        "other",
        2,
        0.5,
    )
    assert c.load_config(path, ["model_args={hidden = 4}"]).model_args == {"hidden": 4}
    assert c.load_config(path, ["model_args.hidden=4"]).model_args == {"hidden": 4}


BAD_SETS = [
    ("train.lerning_rate=1", "Did you mean 'learning_rate'"),
    ("trian.batch=1", "Did you mean 'train'"),
    ("phase.prun.epochs=1", "Did you mean 'prune'"),
    ("phase.9.epochs=1", "only 4"),
    ("phase.0.epochs=1", "counted from 1.*no item 0, the first is 1"),
    ("phase.prune.rule.0.where=kernel", "counted from 1.*no item 0, the first is 1"),
    ("phase.prune.rule.00.where=kernel", "counted from 1"),
    ("phase.-1.epochs=1", "nothing here is named '-1'"),
    ("train.batch=many", "train.batch"),
    ("train.batch", "key=value"),
    ("name.first=1", "not a table"),
    ("phase.prune.rule.1.cluter=4", "Did you mean 'cluster'"),
]


@pytest.mark.parametrize("text, message", BAD_SETS, ids=[t for t, _ in BAD_SETS])
def test_a_wrong_override_is_refused(path, text, message):
    with pytest.raises(ValueError, match=message):
        c.load_config(path, [text])


def test_a_sweep_is_a_grid(path):
    path.write_text(CONFIG + '\n[sweep]\n"train.seed" = [0, 1]\nphase.prune.epochs = [3, 4, 5]\n')
    runs = c.grid(c.load_config(path))
    assert [(r.train.seed, r.phase[1].epochs) for _, r in runs] == [
        (s, e) for s in (0, 1) for e in (3, 4, 5)
    ]
    assert len({c.run_name(r) for _, r in runs}) == 6
    assert runs[0][0] == {"train.seed": 0, "phase.prune.epochs": 3}
    assert c.run_name(runs[2][1]) == c.run_name(c.make(c.to_dict(runs[2][1])))


def test_an_unknown_key_in_a_sweep(path):
    path.write_text(CONFIG + '\n[sweep]\n"train.sed" = [0, 1]\n')
    with pytest.raises(ValueError, match="Did you mean 'seed'"):
        c.grid(c.load_config(path))


def test_the_name_of_a_run_lasts(path):
    config = c.load_config(path)
    assert (
        c.run_name(config) == "toy-3a2a7b725d"
    )  # changes only when a default does: then old folders are lost
    explicit = c.load_config(path, ["train.select=best", "baselines=true", "phase.prune.ramp=0.6"])
    assert c.run_name(explicit) == c.run_name(config)
    assert c.run_name(c.load_config(path, ["train.select=last"])) != c.run_name(config)
    assert (
        c.run_name(c.load_config(path, ["name=other"])).split("-")[1]
        == c.run_name(config).split("-")[1]
    )


def test_a_new_setting_with_a_default_renames_no_run(path):
    config = c.load_config(path)

    class Later(c.Config, frozen=True):
        brand_new: float = 0.5

    later = msgspec.convert(c.to_dict(config), Later)
    assert c.run_name(later) == c.run_name(config)
    assert c.run_name(msgspec.structs.replace(later, brand_new=0.6)) != c.run_name(config)


def test_known_keys_by_place():
    assert "sparsity" in fields_at(c.Config, "phase[0].rule[2].prune")
    assert fields_at(c.Config, "")[0] == "name"
    assert fields_at(c.Config, "model_args") == []
