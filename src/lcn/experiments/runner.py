"""Train what an experiment needs: tune every row alike, then run its seeds; resume where it was.

Runs are jobs for worker processes. Two rows that want the same config share the run.
"""

from __future__ import annotations

import heapq
import math
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lcn.errors import ConfigError
from lcn.experiments.rows import Row, Sizes, resolve, shortened
from lcn.experiments.settings import Options
from lcn.experiments.store import Store, read_failure
from lcn.experiments.teller import Say, Teller
from lcn.experiments.tuning import choose, plan_trials
from lcn.experiments.worker import Job, Outcome, run_job, start_worker
from lcn.train.config import RunConfig

NOT_TRAINED = "not trained yet"


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting that was tried."""

    overrides: tuple[str, ...]
    value: float
    """Best validation metric, its mean over the tuning seeds; NaN when one of them failed."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A row after tuning and training."""

    row: Row
    trials: tuple[Trial, ...] = ()
    chosen: tuple[str, ...] = ()
    """Overrides of the trial that validation chose."""
    runs: tuple[RunConfig, ...] = ()
    """Finished runs, one per seed."""
    error: str = ""
    """Why the row could not be trained."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """One dataset with its store, the options and the processes: where rows are trained."""

    dataset: str
    """Folder of the prepared dataset."""
    name: str
    store: Store
    options: Options
    settings: tuple[str, ...]
    """Of every row here."""
    sizes: Sizes
    workers: Workers
    say: Say | None = None
    """Told of each finished run; None shows a bar on stderr."""

    def resolve(self, row: Row, *more: str) -> RunConfig:
        """A row's whole config here."""
        config = resolve(row, self.dataset, self.settings, self.sizes, *more)
        return shortened(config, self.options.first_steps)


def fit_rows(workspace: Workspace, rows: Sequence[Row]) -> tuple[Fitted, ...]:
    """Tune and train rows; those finished before cost nothing.

    Args:
        workspace: where.
        rows: what to train; tuned with the same number of trials each.
    """
    with Teller(workspace.say, workspace.name) as teller:
        return _Schedule(workspace, teller).run(rows)


@dataclass(slots=True)
class _Pursuit:
    """A row on its way: its trials, then its seeds."""

    row: Row
    trials: tuple[tuple[str, ...], ...] = ((),)
    trial_runs: list[list[RunConfig]] = field(default_factory=list)
    """Of each trial, one per tuning seed."""
    seed_runs: list[RunConfig] = field(default_factory=list)
    tried: tuple[Trial, ...] = ()
    chosen: tuple[str, ...] = ()
    error: str = ""


@dataclass(order=True, slots=True)
class _Wanted:
    """A job in the queue."""

    priority: tuple[int, int]
    """Seeds of tuned rows come before trials, earlier rows before later ones: so that rows are
    complete, and can be shown, as early as may be."""
    job: Job = field(compare=False)


class _Schedule:
    """Submits jobs, and each row's seeds as soon as its last trial is known."""

    def __init__(self, workspace: Workspace, teller: Teller) -> None:
        self._workspace, self._workers, self._teller = workspace, workspace.workers, teller
        self._future_of: dict[Path, Future[Outcome]] = {}
        self._job_of: dict[Path, Job] = {}
        self._lost: set[Path] = set()
        self._outcome_of: dict[Path, Outcome] = {}
        self._label_of: dict[Path, str] = {}
        self._queue: list[_Wanted] = []

    def run(self, rows: Sequence[Row]) -> tuple[Fitted, ...]:
        """Tune and train the rows, until each is done or known to fail."""
        options = self._workspace.options
        pursuits = []
        tried = options.trials * len(options.tuning_seeds) if options.trials > 1 else 0
        per_row = len(options.seeds) + tried
        self._teller.expect(per_row * len(rows))
        for row in rows:
            pursuit = _Pursuit(row)
            pursuits.append(pursuit)
            self._start(pursuit)
        waiting = True
        while waiting:
            for pursuit in pursuits:
                self._advance(pursuit)
            waiting = self._collect()
        return tuple(self._fitted(pursuit) for pursuit in pursuits)

    def _start(self, pursuit: _Pursuit) -> None:
        options = self._workspace.options
        if options.trials <= 1:
            self._submit_seeds(pursuit)
            return
        more = [f"train.epochs={options.trial_epochs}"] if options.trial_epochs else []
        row = pursuit.row
        try:
            standing = self._workspace.resolve(row)
            pursuit.trials = plan_trials(
                row,
                options.trials,
                options.tuning_seeds[0],
                fixed={setting.partition("=")[0] for setting in options.extra},
                changes=lambda overrides: self._workspace.resolve(row, *overrides) != standing,
            )
            pursuit.trial_runs = [
                [
                    self._workspace.resolve(row, *overrides, *more, f"train.seed={seed}")
                    for seed in options.tuning_seeds
                ]
                for overrides in pursuit.trials
            ]
        except ConfigError as error:
            pursuit.error = str(error)
            return
        for number, configs in enumerate(pursuit.trial_runs):
            for config in configs:
                label = f"{row.name} trial {number} seed {config.train.seed}"
                self._want(config, label, 1)

    def _advance(self, pursuit: _Pursuit) -> None:
        """Choose, once all trials are known, and submit the seeds."""
        if pursuit.error or pursuit.seed_runs or not pursuit.trial_runs:
            return
        runs = [config for configs in pursuit.trial_runs for config in configs]
        outcomes = [each for each in map(self._outcome, runs) if each is not None]
        if len(outcomes) < len(runs):
            return
        if any(each.error == NOT_TRAINED for each in outcomes):
            pursuit.error = NOT_TRAINED
            return
        monitor, seeds = runs[0].train.monitor, len(self._workspace.options.tuning_seeds)
        values = [
            _mean_validation(outcomes[first : first + seeds], monitor)
            for first in range(0, len(outcomes), seeds)
        ]
        pursuit.tried = tuple(
            Trial(overrides, value) for overrides, value in zip(pursuit.trials, values, strict=True)
        )
        try:
            pursuit.chosen = pursuit.trials[choose(values, monitor)]
        except ValueError:
            pursuit.error = next(each.error for each in outcomes if each.error)
            return
        self._submit_seeds(pursuit)

    def _submit_seeds(self, pursuit: _Pursuit) -> None:
        try:
            pursuit.seed_runs = [
                self._workspace.resolve(pursuit.row, *pursuit.chosen, f"train.seed={seed}")
                for seed in self._workspace.options.seeds
            ]
        except ConfigError as error:
            pursuit.error = str(error)
            return
        for seed, config in zip(self._workspace.options.seeds, pursuit.seed_runs, strict=True):
            self._want(config, f"{pursuit.row.name} seed {seed}", 0)

    def _want(self, config: RunConfig, label: str, stage: int) -> None:
        """Queue a run, unless it is there or queued already."""
        folder = self._workspace.store.run_folder(config)
        if folder in self._label_of:
            self._teller.advance("")
            return
        self._label_of[folder] = label
        done = self._workspace.store.finished(config)
        if done is not None or self._workspace.options.finished:
            error = "" if done else read_failure(folder) or NOT_TRAINED
            self._outcome_of[folder] = Outcome(done, error, reused=True)
            self._teller.advance("")
            return
        job = Job(config.model_dump_json(), folder, self._workspace.store.fingerprint)
        heapq.heappush(self._queue, _Wanted((stage, len(self._label_of)), job))

    def _collect(self) -> bool:
        """Keep the workers busy and wait for a run; False when there is nothing more to do."""
        while self._queue and len(self._future_of) < self._workers.jobs:
            job = heapq.heappop(self._queue).job
            self._job_of[job.folder] = job
            self._future_of[job.folder] = self._workers.submit(job)
        if not self._future_of:
            return False
        finished, _ = wait(self._future_of.values(), return_when=FIRST_COMPLETED)
        if any(isinstance(future.exception(), BrokenProcessPool) for future in finished):
            # A process that is killed takes the runs of all others with it.
            finished, _ = wait(self._future_of.values())
            self._workers.close()
        for folder in [key for key, future in self._future_of.items() if future in finished]:
            outcome = self._ended(folder, self._future_of.pop(folder))
            if outcome is not None:
                self._outcome_of[folder] = outcome
                self._teller.advance(_line(self._label_of[folder], outcome))
        return True

    def _ended(self, folder: Path, future: Future[Outcome]) -> Outcome | None:
        """How a run ended; None where its process was killed: it goes on once, maybe blameless."""
        try:
            return future.result()
        except BrokenProcessPool:
            if folder in self._lost:
                return Outcome(
                    None,
                    f"{self._label_of[folder]}: a worker process was killed twice while this run "
                    "was under way (out of memory?); with fewer --jobs the same command goes on "
                    "from its checkpoint",
                )
            self._lost.add(folder)
            heapq.heappush(self._queue, _Wanted((2, len(self._lost)), self._job_of[folder]))
            return None

    def _outcome(self, config: RunConfig) -> Outcome | None:
        return self._outcome_of.get(self._workspace.store.run_folder(config))

    def _fitted(self, pursuit: _Pursuit) -> Fitted:
        runs, error = [], pursuit.error
        for config in pursuit.seed_runs:
            outcome = self._outcome(config)
            if outcome is not None and outcome.done is not None:
                runs.append(config)
            elif outcome is not None:
                error = error or outcome.error
        # Fewer seeds than its rivals would make a row incomparable.
        whole = tuple(runs) if len(runs) == len(self._workspace.options.seeds) else ()
        return Fitted(pursuit.row, pursuit.tried, pursuit.chosen, whole, error)


def _mean_validation(outcomes: Sequence[Outcome], monitor: str) -> float:
    """Over a trial's seeds; NaN when one of them failed."""
    values = [each.done.validation[monitor] if each.done else math.nan for each in outcomes]
    return sum(values) / len(values)


def _line(label: str, outcome: Outcome) -> str:
    if outcome.done is None:
        return f"{label}: {outcome.error}"
    how = "" if outcome.reused else f" ({outcome.done.seconds:.0f} s)"
    return f"{label}: validation AUC {outcome.done.validation['auc']:.4f}{how}"


class Workers:
    """Processes that run jobs, each with its share of the cores."""

    def __init__(self, jobs: int = 0) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        cores = cores or os.cpu_count() or 1
        self.jobs = jobs or cores
        self._threads = max(1, cores // self.jobs)
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, job: Job) -> Future[Outcome]:
        """Run a job in some process; processes start with the first one."""
        if self._pool is None:
            with _threads_in_environment(self._threads):
                # Processes start as jobs are submitted, all of them here.
                self._pool = ProcessPoolExecutor(
                    self.jobs,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=start_worker,
                    initargs=(self._threads, os.getpid()),
                )
                for future in [self._pool.submit(os.getpid) for _ in range(self.jobs)]:
                    future.result()
        try:
            return self._pool.submit(run_job, job)
        except BrokenProcessPool as error:
            broken: Future[Outcome] = Future()
            broken.set_exception(error)
            return broken

    def close(self, *, cancel: bool = False) -> None:
        """End the processes; `cancel` does not wait for the runs under way."""
        if self._pool is None:
            return
        if cancel:
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(wait=not cancel, cancel_futures=True)
        self._pool = None


@contextmanager
def own_workers(jobs: int) -> Iterator[Workers]:
    """Workers for the length of a block."""
    workers = Workers(jobs)
    try:
        yield workers
    except BaseException:
        # Interrupted runs resume from their checkpoints.
        workers.close(cancel=True)
        raise
    workers.close()


@contextmanager
def _threads_in_environment(threads: int) -> Iterator[None]:
    """What child processes must find in their environment before they import anything."""
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(threads) for name in names})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def fitted_ok(fitted: Iterable[Fitted]) -> tuple[Fitted, ...]:
    """The rows that were trained with every seed."""
    return tuple(each for each in fitted if each.runs)
