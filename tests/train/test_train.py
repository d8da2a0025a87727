"""Runs: resume bit for bit after kill -9, stop before damage, refuse what does not fit."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killed import check_resumes
from toy import SMALL_LAP

from lcn.config import load_config
from lcn.data.dataset import Dataset
from lcn.errors import CheckpointError, ConfigError, TrainingError
from lcn.evaluate.predict import predict_logits
from lcn.train import RunConfig, open_run, saved_predictions, train
from lcn.train.checkpoint import find_checkpoint, load_weights


def config_for(dataset: Dataset, *overrides: str) -> RunConfig:
    small = [
        f"dataset={dataset.folder}",
        *SMALL_LAP,
        "model.embedding.sparse_from=50",
        "model.dropout=0.1",
        "objectives=[{name: crp, weight: 0.01}]",
        "train.epochs=3",
        "train.patience=9",
        "train.checkpoint_every=4",
        "train.log_every=3",
        "train.threads=1",
    ]
    return load_config(RunConfig, None, [*small, *overrides])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "checkpoint" / "model.safetensors")


def test_kill_9_in_mid_epoch_then_resume_is_the_same_run(toy: Dataset, tmp_path: Path) -> None:
    # The run goes on from the checkpoint of step 16 (or an epoch's end).
    check_resumes(config_for(toy), tmp_path, step=18)


def test_same_seed_same_bytes_other_seed_other_bytes(toy: Dataset, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config_for(toy, f"train.seed={seed}", "train.epochs=1"), tmp_path / name,
              progress=False)  # fmt: skip
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_only_touched_rows_of_a_sparse_table_move(toy: Dataset, tmp_path: Path) -> None:
    from lcn.model import Model

    config = config_for(toy, "train.epochs=1", "train.checkpoint_every=1", "objectives=[]")
    torch.manual_seed(config.train.seed)
    start = Model(config.model, toy.manifest).state_dict()["item.embed.tables.0.weight"].clone()

    class EnoughError(Exception):
        pass

    def stop(step: int) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        train(config, tmp_path / "r", progress=False, after_step=stop)
    after = weights(tmp_path / "r")["item.embed.tables.0.weight"]
    moved = (start != after).any(1)
    from lcn.data.loader import Collator, epoch_order

    order = epoch_order(np.asarray(toy.samples["train"].user_S), 4, 0, 0)[:64]
    batch = Collator(toy, "train", config.batch)(order)
    touched = torch.zeros(len(start), dtype=torch.bool)
    touched[batch.item_IF[:, 0].long()] = True
    assert moved.any()
    assert not (moved & ~touched).any()


def test_a_non_finite_loss_stops_before_the_parameters_change(toy: Dataset, tmp_path: Path) -> None:
    config = config_for(
        toy, "train.learning_rate=1e30", "train.checkpoint_every=1", "objectives=[]"
    )
    with pytest.raises(TrainingError, match=r"loss is (nan|inf).*epoch 0, batch \d+.*samples"):
        train(config, tmp_path / "r", progress=False)
    state = json.loads((tmp_path / "r/checkpoint/state.json").read_text())
    # The checkpoint after the last good step is the state the process died with.
    assert state["progress"]["step"] >= 1
    assert all(torch.isfinite(w).all() for w in weights(tmp_path / "r").values())


def test_predictions_that_are_not_finite_stop_training(toy: Dataset, tmp_path: Path) -> None:
    """The last step of an epoch may ruin the parameters: no later loss tells."""
    config = config_for(toy, "train.learning_rate=1e30", "train.evaluate_every=1", "objectives=[]")
    with pytest.raises(TrainingError, match="after step 1 are not finite"):
        train(config, tmp_path / "r", progress=False)


def test_early_stopping_keeps_the_best_not_the_last(toy: Dataset, tmp_path: Path) -> None:
    config = config_for(toy, "train.epochs=8", "train.patience=1", "train.learning_rate=0.02")
    summary = train(config, tmp_path / "r", progress=False)
    values = [
        record["auc"]
        for record in open_run(tmp_path / "r").curves()
        if record["kind"] == "validation"
    ]
    assert summary.best_value == max(values)
    if summary.stopped_early:
        assert values[-1] < max(values)
    run = open_run(tmp_path / "r")
    from lcn.evaluate.metrics import auc

    logit_S = predict_logits(run.model, run.dataset, "validation", run.config.batch)
    assert auc(logit_S, np.asarray(toy.samples["validation"].label_S)) == pytest.approx(
        summary.best_value, abs=1e-6
    )


def test_run_folder_holds_config_environment_and_curves(toy: Dataset, tmp_path: Path) -> None:
    train(config_for(toy, "train.epochs=1"), tmp_path / "r", progress=False)
    environment = json.loads((tmp_path / "r/environment.json").read_text())
    assert environment["seed"] == 0
    assert environment["dataset_fingerprint"] == toy.manifest.fingerprint
    assert {"commit", "torch", "processor", "command"} <= environment.keys()
    assert load_config(RunConfig, tmp_path / "r/config.yaml") == config_for(toy, "train.epochs=1")
    assert list((tmp_path / "r/tensorboard").glob("events*"))
    kinds = {record["kind"] for record in open_run(tmp_path / "r").curves()}
    assert kinds == {"train", "validation"}


def test_refusals_teach(toy: Dataset, tmp_path: Path) -> None:
    config = config_for(toy, "train.epochs=1")
    train(config, tmp_path / "r", progress=False)
    with pytest.raises(ConfigError, match=r"holds a run already.*--resume"):
        train(config, tmp_path / "r", progress=False)
    other = config_for(toy, "train.epochs=1", "model.hidden=[8]")
    with pytest.raises(
        CheckpointError, match=r"another config: model\.hidden was \[16\], this run has \[8\]"
    ):
        train(other, tmp_path / "r", resume=True, progress=False)
    with pytest.raises(CheckpointError, match="not a run folder"):
        open_run(tmp_path)
    run = open_run(tmp_path / "r")
    from lcn.model import Model

    stranger = Model(other.model, toy.manifest)
    with pytest.raises(CheckpointError, match=r"another model or dataset: 'head\.0"):
        load_weights(tmp_path / "r/best.safetensors", stranger)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes((tmp_path / "r/best.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot read"):
        load_weights(bad, run.model)


def test_a_switch_that_is_new_since_stops_no_resume(toy: Dataset, tmp_path: Path) -> None:
    train(config_for(toy, "train.epochs=1"), tmp_path / "r", progress=False)
    path = tmp_path / "r/checkpoint/state.json"
    state = json.loads(path.read_text())
    del state["identity"]["settings"]["model"]["products"]
    path.write_text(json.dumps(state))
    train(config_for(toy, "train.epochs=2"), tmp_path / "r", resume=True, progress=False)
    assert json.loads(path.read_text())["progress"]["epoch"] == 2
    saved = tmp_path / "r/predictions/test.npz"
    open_run(tmp_path / "r").predict("test").save(saved)
    train(config_for(toy, "train.epochs=2"), tmp_path / "r", resume=True, progress=False)
    assert saved.exists()
    state["identity"]["settings"]["model"]["of_the_future"] = True
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="does not know"):
        train(config_for(toy, "train.epochs=3"), tmp_path / "r", resume=True, progress=False)
    del state["identity"]["settings"]
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="older format"):
        train(config_for(toy, "train.epochs=3"), tmp_path / "r", resume=True, progress=False)
    # Started over, the predictions of before are no longer its own.
    path.unlink()
    other = config_for(toy, "train.epochs=1", "model.hidden=[8]")
    train(other, tmp_path / "r", resume=True, progress=False)
    assert not saved.exists()


def test_seeds_of_before_and_after_a_switch_can_be_compared(toy: Dataset, tmp_path: Path) -> None:
    train(config_for(toy, "train.epochs=1"), tmp_path / "r", progress=False)
    saved = tmp_path / "r/predictions/test.npz"
    now = open_run(tmp_path / "r").predict("test")
    replace(now, config="digest of before").save(saved)
    assert saved_predictions(saved).config == now.config
    saved.rename(tmp_path / "alone.npz")
    assert saved_predictions(tmp_path / "alone.npz").config == "digest of before"


def test_two_kills_leave_a_checkpoint(toy: Dataset, tmp_path: Path, monkeypatch) -> None:
    train(config_for(toy, "train.epochs=1"), tmp_path / "r", progress=False)
    # Killed between two renames: the checkpoint stands under its other name alone ...
    folder = tmp_path / "r/checkpoint"
    folder.rename(tmp_path / "r/checkpoint.old")
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == "checkpoint.partial":
            raise KeyboardInterrupt
        return rename(self, target)

    # ... and the run that goes on is killed before its first one stands.
    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config_for(toy, "train.epochs=2"), tmp_path / "r", resume=True, progress=False)
    assert find_checkpoint(folder) == tmp_path / "r/checkpoint.old"


def test_clipping_counts_the_objectives_parameters(
    toy: Dataset, tmp_path: Path, monkeypatch
) -> None:
    def clipped(name: str, *overrides: str) -> int:
        counts: list[int] = []
        monkeypatch.setattr(
            "torch.nn.utils.clip_grad_norm_", lambda dense, most: counts.append(len(dense))
        )
        config = config_for(toy, "train.epochs=1", "train.clip_norm=1.0", *overrides)
        train(config, tmp_path / name, progress=False)
        return counts[0]

    plain = clipped("plain", "objectives=[]")
    assert clipped("more", "objectives=[{name: cl4ctr, weight: 0.1}]") > plain + 20


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcn.train import checkpoint

    config, real, saved = config_for(toy), checkpoint.save_file, []

    def until_full(tensors, path) -> None:
        saved.append(path)
        if len(saved) > 12:
            Path(path).write_bytes(b"cut")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", until_full)
    with pytest.raises(CheckpointError, match=r"No space left.*--resume"):
        train(config, tmp_path / "r", progress=False)
    monkeypatch.setattr(checkpoint, "save_file", real)
    train(config, tmp_path / "r", resume=True, progress=False)
    train(config, tmp_path / "whole", progress=False)
    one, other = weights(tmp_path / "r"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_full_disk_at_the_best_model_says_so(
    toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from lcn.train import checkpoint

    real = checkpoint.save_file

    def full(tensors, path) -> None:
        if "best" in Path(path).name:
            raise SafetensorError("No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"best.safetensors: No space left.*--resume"):
        train(config_for(toy), tmp_path / "r", progress=False)


def test_a_resume_that_cannot_write_leaves_the_settings(
    toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(toy, "train.epochs=1")
    train(config, tmp_path / "r", progress=False)
    before = (tmp_path / "r/config.yaml").read_bytes()

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train(config_for(toy, "train.epochs=2"), tmp_path / "r", resume=True, progress=False)
    assert (tmp_path / "r/config.yaml").read_bytes() == before
    assert not list((tmp_path / "r").glob("*.partial"))


@pytest.mark.parametrize(("monitor", "said"), [("auc", "have the label 1"), ("gauc", "no user")])
def test_a_metric_that_validation_does_not_define_is_refused(
    toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monitor: str, said: str
) -> None:
    """No epoch would be the best: the run would stop at its first model, without a word."""
    from dataclasses import replace

    from lcn.train import loop

    validation = toy.samples["validation"]
    ones = replace(validation, label_S=np.ones_like(validation.label_S))
    one_kind = replace(toy, samples={**toy.samples, "validation": ones})
    monkeypatch.setattr(loop, "open_dataset", lambda *_, **__: one_kind)
    config = config_for(toy, f"train.monitor={monitor}", "train.epochs=1")
    with pytest.raises(ConfigError, match=f"undefined here: .*{said}.*log_loss"):
        train(config, tmp_path / "r", progress=False)
    assert not (tmp_path / "r").exists()
    train(
        config_for(toy, "train.monitor=log_loss", "train.epochs=1"), tmp_path / "l", progress=False
    )


@pytest.mark.slow
def test_kill_9_at_random_moments_always_resumes(toy: Dataset, tmp_path: Path) -> None:
    from lcn.config import dump_config

    config = config_for(toy, "train.checkpoint_every=1")
    train(config, tmp_path / "whole", progress=False)
    (tmp_path / "c.yaml").write_text(dump_config(config))
    script = (
        "import sys\nfrom lcn.config import load_config\nfrom lcn.train import RunConfig, train\n"
        "train(load_config(RunConfig, sys.argv[1]), sys.argv[2], resume=True, progress=False)\n"
    )
    rng = np.random.default_rng(0)
    for _ in range(12):
        command = [sys.executable, "-c", script, str(tmp_path / "c.yaml"), str(tmp_path / "cut")]
        process = subprocess.Popen(command)
        time.sleep(4 + 3 * rng.random())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    train(config, tmp_path / "cut", resume=True, progress=False)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_whoever_may_read_the_folder_may_read_the_weights(toy: Dataset, tmp_path: Path) -> None:
    train(config_for(toy, "objectives=[]", "train.epochs=1"), tmp_path / "r", progress=False)
    files = [tmp_path / "r/best.safetensors", *(tmp_path / "r/checkpoint").glob("*.safetensors")]
    wanted = (tmp_path / "r/config.yaml").stat().st_mode
    assert {file.stat().st_mode for file in files} == {wanted}


def test_a_folder_takes_one_training_at_a_time(toy: Dataset, tmp_path: Path) -> None:
    config = config_for(toy, "objectives=[]")

    def start_another(step: int) -> None:
        if step == 1:
            with pytest.raises(ConfigError, match="another process is training"):
                train(config, tmp_path / "r", resume=True, progress=False)

    train(config, tmp_path / "r", progress=False, after_step=start_another)
    assert train(config, tmp_path / "r", resume=True, progress=False).steps
