"""A run with objectives, killed and resumed, ends as if it had never stopped."""

import pytest
import torch
from objective_bench import small_config
from safetensors.torch import load_file

from lcn.backbones.none import NoLifelong
from lcn.data.loader import BatchConfig
from lcn.model import ModelConfig
from lcn.objectives import OBJECTIVES
from lcn.objectives.encoder import EncoderConfig
from lcn.train import train
from lcn.train.config import RunConfig, TrainConfig


class Killed(Exception):
    """Stands for a killed process."""


def _config(dataset, names):
    # Dropout draws from the global generator, which a checkpoint holds as well.
    encoder = EncoderConfig(layers=1, heads=2, hidden=16, dropout=0.2)
    objectives = []
    for name in names:
        own = {"encoder": encoder} if "encoder" in OBJECTIVES[name].Config.model_fields else {}
        objectives.append(small_config(name, **own))
    return RunConfig(
        dataset=str(dataset.folder),
        model=ModelConfig(backbone=NoLifelong.Config(), width=16, field_width=16, hidden=(16,)),
        objectives=tuple(objectives),
        batch=BatchConfig(size=128, lifelong=20, short=10),
        train=TrainConfig(epochs=2, checkpoint_every=3, log_every=2, threads=1, workers=0),
    )


@pytest.mark.parametrize("names", [list(OBJECTIVES)[:5], list(OBJECTIVES)[5:]])
def test_killed_and_resumed_is_bit_exact(toy, tmp_path, names):
    config = _config(toy, names)
    whole = train(config, tmp_path / "whole", progress=False)

    def kill(step):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path / "cut", progress=False, after_step=kill)
    resumed = train(config, tmp_path / "cut", resume=True, progress=False)
    assert resumed.steps == whole.steps == 14
    for part in ("model", "objectives"):
        expected, got = (
            load_file(tmp_path / run / "checkpoint" / f"{part}.safetensors")
            for run in ("whole", "cut")
        )
        assert expected.keys() == got.keys() and expected
        for name, tensor in expected.items():
            assert torch.equal(tensor, got[name]), name
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "cut")]
    assert all(f'"{name}"' in lines[0] for name in names)
    # The deployed model holds nothing of the objectives.
    best = load_file(tmp_path / "whole" / "best.safetensors")
    assert not any(key.startswith(("0.", "encoder", "learner")) for key in best)
