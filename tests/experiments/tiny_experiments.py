"""A tiny experiment: settings that train in a second, and workers without processes."""

from concurrent.futures import Future
from pathlib import Path

from toy import SMALL

from lcn.data.dataset import Dataset
from lcn.experiments.lab import Lab
from lcn.experiments.rows import Sizes
from lcn.experiments.runner import Workers, Workspace
from lcn.experiments.settings import Options
from lcn.experiments.worker import run_job

TINY = (*SMALL, "train.patience=9")


def tiny(**more) -> Options:
    given = {
        "seeds": (0, 1),
        "trials": 1,
        "settings": TINY,
        "sizes": Sizes(12, 4),
        "jobs": 1,
        "resamples": 20,
    }
    return Options(**{**given, **more})


class InProcess(Workers):
    """Workers without processes, so that tests see coverage and start at once."""

    def __init__(self, fail_at: int = 0) -> None:
        super().__init__(1)
        self.jobs_run: list[Path] = []
        self._fail_at = fail_at

    def submit(self, job):
        self.jobs_run.append(job.folder)
        if len(self.jobs_run) == self._fail_at:
            raise KeyboardInterrupt
        future: Future = Future()
        future.set_result(run_job(job))
        return future


def quiet(line: str) -> None:
    del line


def workspace_of(
    dataset: Dataset, root: Path, workers: Workers | None = None, **options
) -> Workspace:
    """A dataset with tiny options, where nothing is told."""
    return Lab(root, tiny(**options), workers or InProcess(), quiet).open(dataset.folder)
