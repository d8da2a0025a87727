"""Configs: YAML, overrides, and errors that name the right key."""

from pathlib import Path

import pytest

from lcn.config import dump_config, load_config, parse_config
from lcn.errors import ConfigError
from lcn.recipes import RECIPES
from lcn.train.config import RunConfig


def test_defaults_yaml_and_overrides_merge(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("dataset: d\nmodel: {backbone: {name: lap, k1: 100}, width: 32}\n")
    config = load_config(RunConfig, path, ["model.backbone.k2=7", "train.seed=3", "batch.group=8"])
    assert (config.model.backbone.k1, config.model.backbone.k2) == (100, 7)
    assert (config.model.width, config.train.seed, config.batch.group) == (32, 3, 8)


@pytest.mark.parametrize("name", RECIPES)
def test_dump_and_read_back_is_the_same_config(name: str, tmp_path: Path) -> None:
    config = RECIPES[name]("somewhere")
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(config))
    assert load_config(RunConfig, path) == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.sed=1", "did you mean 'seed'"),
        ("model.backbone={name: lap, k3: 1}", "unknown key 'model.backbone.lap.k3'"),
        ("model.backbone={name: lapp}", "did you mean 'lap'"),
        ("modle.width=3", "did you mean 'model'"),
        ("train.epochs=0", "train.epochs: .*greater than 0"),
        ("train.clip_norm=-1", "train.clip_norm: .*greater than or equal to 0"),
        ("train.seed=-1", "train.seed"),
        ("train.learning_rate=.nan", "train.learning_rate"),
        ("batch.short=0", "batch.short"),
        ("objectives=[{name: clrec, min_history: 0}]", "min_history"),
        ("batch.lifelong=0", "batch.lifelong"),
        ("batch.size=-5", "batch.size"),
        ("model.dropout=2", "model.dropout: .*less than 1"),
        ("model.backbone={name: lap, k1: -1}", "k1"),
        ("objectives=[{name: crp, temperature: 0}]", "temperature"),
        ("train.learning_rate=fast", "train.learning_rate"),
        ("nonsense", "dotted.key=value"),
        ("objectives=[{name: crp, temprature: 1}]", "did you mean 'temperature'"),
    ],
)
def test_wrong_settings_are_explained(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + said.replace("[", r"\[")):
        load_config(RunConfig, None, ["dataset=d", override])


def test_missing_file_and_broken_yaml_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(RunConfig, tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(RunConfig, broken)
    broken.write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(RunConfig, broken)


def test_a_config_cannot_be_changed() -> None:
    config = parse_config(RunConfig, {"dataset": "d"})
    with pytest.raises(Exception, match="frozen"):
        config.dataset = "e"  # type: ignore[misc]


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    """YAML would keep the last: a second list of tables would silently replace the first."""
    path = tmp_path / "c.yaml"
    path.write_text("dataset: d\nmodel: {width: 8}\nmodel: {dropout: 0.1}\n")
    with pytest.raises(ConfigError, match=r"line 3: 'model' is given twice"):
        load_config(RunConfig, path)


def test_a_rule_about_a_group_does_not_print_the_group() -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(RunConfig, None, ["dataset=d", "train.pretrain_steps=5"])
    assert "pretrain_steps" in str(refused.value)
    assert "got" not in str(refused.value) and "Value error" not in str(refused.value)


def test_a_key_that_is_a_list_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("? [a, b]\n: 1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(RunConfig, path)
