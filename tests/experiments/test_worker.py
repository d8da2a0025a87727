"""One run: no failure of it ends the others or takes what it has reached."""

import errno
import json
import math
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_experiments import InProcess, workspace_of

from lcn.evaluate.metrics import GroupedAuc
from lcn.experiments import worker
from lcn.experiments.rows import Row
from lcn.experiments.runner import fit_rows
from lcn.experiments.worker import Job, run_job
from lcn.train import checkpoint, loop

NONE, LAP = Row("none", "none"), Row("LAP", "lap")


def full(*args) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def workspace(little, tmp_path):
    return workspace_of(little, tmp_path, seeds=(0,))


def job_of(workspace, *overrides: str) -> Job:
    config = workspace.resolve(NONE, "train.seed=0", "train.checkpoint_every=1", *overrides)
    store = workspace.store
    return Job(config.model_dump_json(), store.run_folder(config), store.fingerprint)


def test_a_full_disk_takes_no_checkpoint(workspace, monkeypatch):
    job, real, saved = job_of(workspace), checkpoint.save_file, []

    def until_full(tensors, path) -> None:
        saved.append(path)
        if len(saved) > 8:
            full()
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", until_full)
    found = run_job(job)
    assert found.done is None and "No space left" in found.error
    kept = json.loads((job.folder / "checkpoint" / "state.json").read_text())
    assert kept["progress"]["step"] > 0
    monkeypatch.setattr(checkpoint, "save_file", real)
    loaded = []
    monkeypatch.setattr(
        loop, "load_checkpoint", lambda *given: loaded.append(checkpoint.load_checkpoint(*given))
    )
    assert run_job(job).done is not None and loaded


@pytest.mark.parametrize(
    "state",
    [
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"identity": {"dataset": "other"}}',
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_started_over(workspace, state):
    job = job_of(workspace)
    (job.folder / "checkpoint").mkdir(parents=True)
    (job.folder / "checkpoint" / "state.json").write_bytes(state)
    assert run_job(job).done is not None


def test_a_checkpoint_of_other_code_is_started_over(workspace, monkeypatch):
    job, real = job_of(workspace), checkpoint.save_file

    def killed(tensors, path) -> None:
        real(tensors, path)
        if (job.folder / "checkpoint").exists():
            raise RuntimeError("killed")

    monkeypatch.setattr(checkpoint, "save_file", killed)
    assert "killed" in run_job(job).error
    monkeypatch.setattr(checkpoint, "save_file", real)
    path = job.folder / "checkpoint" / "state.json"
    tree = json.loads(path.read_text())
    tree["progress"]["a_field_of_later"] = 1
    path.write_text(json.dumps(tree))
    assert run_job(job).done is not None


@pytest.mark.parametrize("error", [RuntimeError("logit holds NaN"), OSError(5, "I/O error")])
def test_a_failure_that_nobody_foresaw_ends_its_row_alone(workspace, monkeypatch, error):
    real = worker._train

    def train(config, folder: Path) -> int:
        if config.name == LAP.name:
            raise error
        return real(config, folder)

    monkeypatch.setattr(worker, "_train", train)
    lap, none = fit_rows(workspace, [LAP, NONE])
    assert lap.runs == () and len(none.runs) == 1
    for part in ("LAP, seed 0", type(error).__name__, str(error), "worker.py, line"):
        assert part in lap.error


def test_what_a_run_needs_to_go_on_stays_until_it_is_done(workspace, monkeypatch):
    job = job_of(workspace)
    monkeypatch.setattr(worker, "write_whole", full)
    assert "No space left" in run_job(job).error
    assert (job.folder / "checkpoint" / "state.json").exists()
    monkeypatch.undo()
    assert run_job(job).done is not None
    assert not (job.folder / "checkpoint").exists()


def test_a_run_names_the_commit_it_began_at(workspace, monkeypatch):
    from lcn.train import record

    commits = iter(["before", *["after"] * 9])
    real = worker._train

    def train(config, folder: Path) -> int:
        steps = real(config, folder)
        monkeypatch.setattr(record, "commit", lambda: "after")
        return steps

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(record, "commit", lambda: next(commits))
    found = run_job(job_of(workspace))
    assert found.done is not None and found.done.commit == "before"


def test_a_row_whose_validation_is_undefined_says_so(workspace, little, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "gauc", lambda *_: GroupedAuc(math.nan, 0.0))
    options = {"seeds": (0,), "trials": 2, "extra": ("train.monitor=gauc",)}
    for _ in range(2):  # also where its runs are there already
        (row,) = fit_rows(workspace_of(little, tmp_path, **options), [NONE])
        assert row.runs == () and "gauc, which is undefined here" in row.error
    # Monitored by another metric, the run is whole and found again.
    job = job_of(workspace)
    for _ in range(2):
        found = run_job(job)
        assert found.done is not None and found.error == ""
        assert math.isnan(found.done.validation["gauc"])
    assert found.reused


class Killed(InProcess):
    """A worker process is killed by each run of a row, so many times."""

    def __init__(self, row: str, times: int) -> None:
        super().__init__()
        self._row, self._times = row, times

    def submit(self, job):
        if json.loads(job.config)["name"] != self._row or not self._times:
            return super().submit(job)
        self._times -= 1
        future: Future = Future()
        future.set_exception(BrokenProcessPool("terminated abruptly"))
        return future


@pytest.mark.parametrize(("times", "trained"), [(1, 1), (9, 0)])
def test_a_killed_process_ends_no_other_row(workspace, times, trained):
    killed = replace(workspace, workers=Killed("LAP", times))
    lap, none = fit_rows(killed, [LAP, NONE])
    assert len(lap.runs) == trained and len(none.runs) == 1
    if not trained:
        assert "LAP seed 0: a worker process was killed" in lap.error
