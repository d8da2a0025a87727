"""One run, from config to saved predictions; called in a process of its own."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lcn.errors import LcnError
from lcn.experiments.store import Done, locked, note_failure, read_done, revisions_of
from lcn.files import write_whole
from lcn.schema import Split

PREDICTED: tuple[Split, Split] = ("validation", "test")


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is wanted."""

    config: str
    """The resolved config as JSON."""
    folder: Path
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    done: Done | None
    error: str = ""
    """Why there is no run, or why tuning cannot choose by it."""
    reused: bool = False
    """It had been finished before."""

    def __post_init__(self) -> None:
        if self.done is not None and not self.error:
            object.__setattr__(self, "error", _unchoosable(self.done))


def _unchoosable(done: Done) -> str:
    """Why a finished run's validation value tells nothing; empty where it does."""
    monitor = done.config.get("train", {}).get("monitor", "auc")
    if not math.isnan(done.validation.get(monitor, math.nan)):
        return ""
    why = "no user there has impressions both clicked and not, " if monitor == "gauc" else ""
    return f"validation {monitor} is undefined: {why}set train.monitor to another metric"


def start_worker(threads: int, parent: int) -> None:
    """Set a worker process up: its share of the cores, Ctrl-C left to the parent, no outliving it.

    Args:
        threads: compute threads.
        parent: process id of the experiment; when it is gone, so is the worker.
    """
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def run_job(job: Job) -> Outcome:
    """Train and predict, unless a whole run is there; an interrupted one is resumed.

    Errors come back as text: one row that cannot run must not end the others.
    """
    try:
        with locked(job.folder):
            before = read_done(job.folder)
            if before is not None:
                return Outcome(before, reused=True)
            return Outcome(_train_and_predict(job))
    except LcnError as error:
        return _failed(job, str(error))
    except Exception as error:
        return _failed(job, _unforeseen(job, error))


def _failed(job: Job, error: str) -> Outcome:
    with suppress(OSError):
        note_failure(job.folder, error)
    return Outcome(None, error)


def _unforeseen(job: Job, error: Exception) -> str:
    """The row, what stopped it and where in this program."""
    config = json.loads(job.config)
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).resolve().parents[1])
    place = ([frame for frame in frames if frame.filename.startswith(package)] or frames)[-1]
    return (
        f"{config['name']}, seed {config['train']['seed']}: {type(error).__name__}: {error} "
        f"({Path(place.filename).name}, line {place.lineno}); run {job.folder.name} is kept as it "
        "stands: mend the cause and start the experiment again"
    )


def _train_and_predict(job: Job) -> Done:
    from lcn.train import open_run
    from lcn.train.config import RunConfig
    from lcn.train.record import commit, processor

    config = RunConfig.model_validate_json(job.config)
    code = commit()
    started = time.monotonic()
    steps = _train(config, job.folder)
    seconds = time.monotonic() - started
    run = open_run(job.folder, config.dataset)
    for split in PREDICTED:
        run.predict(split).save(job.folder / "predictions" / f"{split}.npz")
    best = run.best
    done = Done(
        config=config.model_dump(mode="json"),
        fingerprint=job.fingerprint,
        validation={name: best[name] for name in ("auc", "gauc", "log_loss")},
        best_step=best["step"],
        steps=steps,
        seconds=seconds,
        commit=code,
        machine=processor(),
        revisions=revisions_of(config),
    )
    write_whole(job.folder / "done.json", done.model_dump_json(indent=1) + "\n")
    (job.folder / "failed.txt").unlink(missing_ok=True)
    # Only a run that must go on needs its optimisers' state; metrics.jsonl holds the curves too.
    for name in ("checkpoint", "tensorboard"):
        shutil.rmtree(job.folder / name, ignore_errors=True)
    return done


def _train(config, folder: Path) -> int:
    from lcn.train import train
    from lcn.train.checkpoint import UnusableCheckpointError

    try:
        return train(config, folder, resume=True, progress=False).steps
    except UnusableCheckpointError:
        # Left by other code: parts have other shapes. Starting again costs only time.
        for path in folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return train(config, folder, resume=True, progress=False).steps
