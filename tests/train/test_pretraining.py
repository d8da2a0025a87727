"""Objectives before clicks: a phase of its own that resumes like the rest."""

import pytest
from killed import check_resumes
from toy import SMALL_LAP

from lcn.config import load_config
from lcn.data.dataset import Dataset
from lcn.errors import ConfigError
from lcn.objectives.crp import Crp
from lcn.train import RunConfig, open_run, train

SETTINGS = [
    *SMALL_LAP,
    "objectives=[{name: crp, weight: 0.01, temperature: 0.1}]",
    "train.pretrain_steps=20",
    "train.checkpoint_every=4",
    "train.log_every=1",
    "train.threads=1",
]


def config_for(dataset: Dataset, *overrides: str) -> RunConfig:
    return load_config(RunConfig, None, [f"dataset={dataset.folder}", *SETTINGS, *overrides])


def losses(folder, kind: str, name: str) -> list[float]:
    lines = [line for line in open_run(folder).curves() if line["kind"] == kind]
    return [line[name] for line in lines if name in line]


def test_pretraining_is_beside_the_epochs_and_only_on_objectives(toy, tmp_path):
    summary = train(config_for(toy), tmp_path / "with", progress=False)
    plain = train(config_for(toy, "train.pretrain_steps=0"), tmp_path / "without", progress=False)
    assert summary.steps == plain.steps + 20
    first = [line for line in open_run(tmp_path / "with").curves() if line["kind"] == "pretraining"]
    assert len(first) == 20 and all("ctr" not in line for line in first)
    loss = [line["crp"] for line in first]
    assert sum(loss[-5:]) < sum(loss[:5])


def test_after_pretraining_clicks_alone(toy, tmp_path):
    alone = config_for(toy, "train.joint_objectives=false")
    train(alone, tmp_path / "alone", progress=False)
    assert not losses(tmp_path / "alone", "train", "crp")
    assert losses(tmp_path / "alone", "pretraining", "crp")
    train(config_for(toy), tmp_path / "both", progress=False)
    assert losses(tmp_path / "both", "train", "crp")


def test_kill_9_while_pretraining_then_resume_is_the_same_run(toy, tmp_path):
    check_resumes(config_for(toy), tmp_path, step=14)


def test_pretraining_without_anything_to_learn_is_refused(toy):
    for overrides in (
        ["objectives=[]"],
        ["model.stop_gradient=objective"],
        ["train.pretrain_steps=0", "train.joint_objectives=false"],
    ):
        with pytest.raises(ConfigError, match="pretrain_steps"):
            config_for(toy, *overrides)


def test_the_weight_of_crp_rises_and_falls():
    crp = Crp(Crp.Config(warmup=4, decay=8), None)
    shares = [crp.share(step) for step in range(20)]
    assert shares[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert shares[4:12] == pytest.approx([1 - k / 8 for k in range(1, 9)])
    assert shares[12:] == pytest.approx([0.0] * 8)
    assert Crp(Crp.Config(), None).share(0) == Crp(Crp.Config(), None).share(10**6) == 1.0
    assert Crp(Crp.Config(decay=4), None).share(0) == pytest.approx(0.75)
