"""A run that is killed and goes on, beside the same run that was not."""

import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from lcn.config import dump_config
from lcn.train import RunConfig, train

KILLED = """
import os, signal, sys
from lcn.config import load_config
from lcn.train import RunConfig, train
config, last = load_config(RunConfig, sys.argv[1]), int(sys.argv[3])
def die(step):
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)
train(config, sys.argv[2], progress=False, after_step=die)
"""


def check_resumes(config: RunConfig, tmp_path: Path, step: int) -> None:
    """Kill -9 after a step, resume: the same weights, metric lines and best model."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(config, whole, progress=False)
    (tmp_path / "c.yaml").write_text(dump_config(config))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "c.yaml"), str(cut), str(step)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    train(config, cut, resume=True, progress=False)
    one, other = (load_file(run / "checkpoint" / "model.safetensors") for run in (whole, cut))
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert (whole / "metrics.jsonl").read_text() == (cut / "metrics.jsonl").read_text()
    assert (whole / "best.safetensors").read_bytes() == (cut / "best.safetensors").read_bytes()
