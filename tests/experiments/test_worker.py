"""One run: no failure of it ends the others or takes what it has reached."""

import errno
import json
import math
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from experiments_bench import InProcess, tiny

from lcn.evaluate.metrics import GroupedAuc
from lcn.experiments import worker
from lcn.experiments.rows import Row
from lcn.experiments.runner import fit_rows, open_bench
from lcn.experiments.worker import Job, run_job
from lcn.train import checkpoint, loop

NONE, LAP = Row("none", "none"), Row("LAP", "lap")


def full(*args) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def quiet(line: str) -> None:
    del line


@pytest.fixture
def bench(little, tmp_path):
    return open_bench(little.folder, tmp_path, tiny(seeds=(0,)))


def job_of(bench, *overrides: str) -> Job:
    config = bench.resolve(NONE, "train.seed=0", "train.checkpoint_every=1", *overrides)
    return Job(config.model_dump_json(), bench.store.run_folder(config), bench.store.fingerprint)


def test_a_full_disk_takes_no_checkpoint(bench, monkeypatch):
    job, real, saved = job_of(bench), checkpoint.save_file, []

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
def test_a_checkpoint_that_cannot_be_read_is_started_over(bench, state):
    job = job_of(bench)
    (job.folder / "checkpoint").mkdir(parents=True)
    (job.folder / "checkpoint" / "state.json").write_bytes(state)
    assert run_job(job).done is not None


def test_a_checkpoint_of_other_code_is_started_over(bench, monkeypatch):
    job, real = job_of(bench), checkpoint.save_file

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
def test_a_failure_that_nobody_foresaw_ends_its_row_alone(bench, monkeypatch, error):
    real = worker._train

    def train(config, folder: Path) -> int:
        if config.name == LAP.name:
            raise error
        return real(config, folder)

    monkeypatch.setattr(worker, "_train", train)
    lap, none = fit_rows(bench, [LAP, NONE], workers=InProcess(), say=quiet)
    assert lap.runs == () and len(none.runs) == 1
    for part in ("LAP, seed 0", type(error).__name__, str(error), "worker.py, line"):
        assert part in lap.error


def test_what_a_run_needs_to_go_on_stays_until_it_is_done(bench, monkeypatch):
    job = job_of(bench)
    monkeypatch.setattr(worker, "write_whole", full)
    assert "No space left" in run_job(job).error
    assert (job.folder / "checkpoint" / "state.json").exists()
    monkeypatch.undo()
    assert run_job(job).done is not None
    assert not (job.folder / "checkpoint").exists()


def test_a_run_names_the_commit_it_began_at(bench, monkeypatch):
    from lcn.train import record

    commits = iter(["before", *["after"] * 9])
    real = worker._train

    def train(config, folder: Path) -> int:
        steps = real(config, folder)
        monkeypatch.setattr(record, "commit", lambda: "after")
        return steps

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(record, "commit", lambda: next(commits))
    found = run_job(job_of(bench))
    assert found.done is not None and found.done.commit == "before"


def test_a_row_whose_validation_is_undefined_says_so(bench, little, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "gauc", lambda *_: GroupedAuc(math.nan, 0.0))
    options = tiny(seeds=(0,), trials=2, extra=("train.monitor=gauc",))
    for _ in range(2):  # also where its runs are there already
        tuned = open_bench(little.folder, tmp_path, options)
        (row,) = fit_rows(tuned, [NONE], workers=InProcess(), say=quiet)
        assert row.runs == () and "gauc, which is undefined here" in row.error
    # Monitored by another metric, the run is whole and found again.
    job = job_of(bench)
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
def test_a_killed_process_ends_no_other_row(bench, times, trained):
    lap, none = fit_rows(bench, [LAP, NONE], workers=Killed("LAP", times), say=quiet)
    assert len(lap.runs) == trained and len(none.runs) == 1
    assert trained or "LAP seed 0: a worker process was killed" in lap.error
