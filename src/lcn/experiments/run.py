"""Run an experiment on datasets: from a name and options to records with their provenance."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from lcn import __version__
from lcn.data.dataset import open_dataset
from lcn.errors import ConfigError, LcnError, nearest
from lcn.experiments import conditions, figure4, figure5a, figure5b, mass, questions
from lcn.experiments.lab import Lab
from lcn.experiments.names import EXPERIMENTS, GENERATED, TABLES
from lcn.experiments.record import ExperimentRecord, Origin, count_runs, keep_fullest
from lcn.experiments.runner import Workspace, own_workers
from lcn.experiments.settings import QUICK, QUICK_STEPS, Options, merged
from lcn.experiments.store import Done, read_done
from lcn.experiments.tables import run_table
from lcn.experiments.teller import Say
from lcn.experiments.work import Finding
from lcn.schema import Manifest
from lcn.train.record import commit, processor

ROOT = Path("runs/experiments")

Experiment = Callable[[Workspace], Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who asked for what, when: goes on every record."""

    command: str
    now: datetime


def run_experiments(
    names: Sequence[str],
    datasets: Sequence[Path],
    options: Options,
    call: Call,
    *,
    root: Path = ROOT,
    say: Say | None = None,
) -> list[ExperimentRecord]:
    """Run experiments on datasets and save what they found.

    Args:
        names: of `EXPERIMENTS`.
        datasets: folders of prepared datasets; `conditions` needs none, it generates its logs.
        options: seeds, trials, settings.
        call: the command and the date, for the records.
        root: the results store.
        say: told of each finished run; None shows a bar on stderr.

    Raises:
        ConfigError: unknown experiment, no dataset for one that needs it, seeds of tuning among
            those that are reported, or some experiments could not be done: those that could are
            saved all the same.
    """
    options = quick(options) if options.quick else options
    _check_asked(names, datasets, options)
    commit()  # read once per process: that of the code as it is now
    wanted: list[tuple[str, Path | None]] = []
    for name in names:
        wanted += [(name, None)] if name in GENERATED else [(name, each) for each in datasets]
    records, failed = [], []
    with own_workers(options.jobs) as workers:
        lab = Lab(root, options, workers, say)
        for name, dataset in wanted:
            try:
                if dataset is None:
                    record = _on_generated(name, datasets, lab, call)
                else:
                    record = _on_dataset(name, dataset, lab, call)
            except LcnError as error:
                if len(wanted) == 1:
                    raise
                failed.append(f"{name}{f' on {dataset.name}' if dataset else ''}: {error}")
                _tell(f"not done: {failed[-1]}", say)
                continue
            records.append(record)
    if failed:
        raise ConfigError(
            f"{len(failed)} of {len(wanted)} experiments could not be done ({'; '.join(failed)}); "
            "what the others found is kept: `lcn experiment report`"
        )
    return records


def _check_asked(names: Sequence[str], datasets: Sequence[Path], options: Options) -> None:
    for name in names:
        if name not in EXPERIMENTS:
            raise ConfigError(f"no experiment is called {name!r}{nearest(name, EXPERIMENTS)}")
        if not datasets and name not in GENERATED:
            raise ConfigError(
                f"experiment {name} needs the folder of a prepared dataset; make one with "
                "`lcn prepare SOURCE FOLDER`"
            )
        if options.rows and name not in TABLES:
            raise ConfigError(f"--rows chooses rows of a table; {name} takes none")
    shared = sorted(set(options.tuning_seeds) & set(options.seeds))
    if options.trials > 1 and shared:
        raise ConfigError(
            f"--seeds: settings are chosen on {', '.join(map(str, shared))}; report others"
        )


def quick(options: Options) -> Options:
    """A first look: few users, one epoch, short histories, few trials and seeds."""
    return replace(
        options,
        seeds=options.seeds[:2],
        trials=min(options.trials, 2),
        tuning_seeds=options.tuning_seeds[:1],
        settings=merged(options.settings, QUICK),
        planted=merged(options.planted, QUICK),
        resamples=min(options.resamples, 200),
        users=min(options.users, 1500),
        first_steps=QUICK_STEPS,
    )


def experiment_of(name: str) -> Experiment:
    """The function behind the name of a table or a figure."""
    if name in TABLES:
        return partial(run_table, name)
    modules = {"figure4": figure4, "figure5a": figure5a, "figure5b": figure5b, "mass": mass}
    return modules[name].run


def _on_dataset(name: str, dataset: Path, lab: Lab, call: Call) -> ExperimentRecord:
    workspace = lab.open(dataset)
    find, origin = partial(experiment_of(name), workspace), origin_on(workspace, call)
    path = workspace.store.record_path(_file_name(name, lab.options))
    return _recorded(name, find, origin, path, lab)


def _on_generated(name: str, datasets: Sequence[Path], lab: Lab, call: Call) -> ExperimentRecord:
    """An experiment that also runs on generated logs, or on nothing else."""
    file = _file_name(name, lab.options)
    if name == "conditions":
        options = replace(lab.options, sizes=lab.options.sizes or conditions.SIZES)
        lab = replace(lab, options=options)
        find, origin = partial(conditions.run, lab), origin_generated(lab.options, call)
    else:
        asked = [open_dataset(dataset).manifest for dataset in datasets]
        find = partial(questions.run, lab, datasets)
        origin = origin_beside(asked, lab.options, call)
        file = "-".join([file, *(manifest.name for manifest in asked)])
    path = lab.root / "planted" / "records" / f"{file}.json"
    return _recorded(name, find, origin, path, lab)


def _recorded(
    name: str, find: Callable[[], Finding], origin: Origin, path: Path, lab: Lab
) -> ExperimentRecord:
    started = time.monotonic()
    finding = find()
    origin = origin.model_copy(update={"seconds": time.monotonic() - started})
    record = with_origin(name, finding, origin, lab.root)
    if not lab.options.finished:
        _refuse_untrained(record)
    if note := keep_fullest(path, record):
        _tell(note, lab.say)
    return record


def _refuse_untrained(record: ExperimentRecord) -> None:
    if record.rows and not count_runs(record):
        reason = next((row.error for row in record.rows if row.error), "no row was trained")
        where = record.origin.dataset
        raise ConfigError(f"{record.experiment} on {where}: no row could be trained: {reason}")


def _tell(line: str, say: Say | None) -> None:
    (say or Console(stderr=True, soft_wrap=True, markup=False).print)(line)


def origin_on(workspace: Workspace, call: Call) -> Origin:
    """The origin of what is found on one dataset."""
    where = {
        "dataset": workspace.name,
        "fingerprint": workspace.store.fingerprint,
        "licence": open_dataset(workspace.dataset).manifest.licence,
        "settings": workspace.settings,
        "sizes": (workspace.sizes.k1, workspace.sizes.k2),
    }
    return origin_generated(workspace.options, call).model_copy(update=where)


def origin_generated(options: Options, call: Call) -> Origin:
    """The origin of what is found on generated logs."""
    sizes = options.sizes
    return Origin(
        command=call.command,
        commit=commit(),
        version=__version__,
        machine=processor(),
        date=call.now,
        seconds=0.0,
        dataset="generated logs",
        fingerprint="",
        seeds=options.seeds,
        trials=options.trials,
        tuning_seeds=len(options.tuning_seeds),
        settings=options.settings_for("synthetic"),
        sizes=(sizes.k1, sizes.k2) if sizes is not None else None,
        quick=options.quick,
    )


def origin_beside(asked: Sequence[Manifest], options: Options, call: Call) -> Origin:
    """The origin of what is found on some datasets and on generated logs."""
    origin = origin_generated(options, call)
    if not asked:
        return origin
    settings = [f"{m.name}: {' '.join(options.settings_for(m.name))}" for m in asked]
    where = {
        "dataset": ", ".join([*(m.name for m in asked), origin.dataset]),
        "fingerprint": ", ".join(m.fingerprint for m in asked),
        "licence": "; ".join(m.licence for m in asked),
        "settings": (*settings, f"{origin.dataset}: {' '.join(origin.settings)}"),
    }
    return origin.model_copy(update=where)


def with_origin(name: str, finding: Finding, origin: Origin, root: Path) -> ExperimentRecord:
    """A finding with its provenance.

    Args:
        name: of the experiment.
        finding: what it found.
        origin: of `origin_on`; what is known of the runs is added.
        root: the results store.
    """
    trained = _trained(finding, root)
    of_runs = {
        "run_commits": tuple(sorted({done.commit for done in trained})),
        "run_seconds": sum(done.seconds for done in trained),
    }
    return ExperimentRecord(
        experiment=name,
        title=finding.title,
        summary=finding.summary,
        panels=finding.panels,
        verdicts=finding.verdicts,
        rows=finding.rows,
        data=finding.data,
        origin=origin.model_copy(update=of_runs),
    )


def _trained(finding: Finding, root: Path) -> list[Done]:
    """The facts of the runs behind a finding."""
    folders = {root / row.dataset / "runs" / run for row in finding.rows for run in row.runs}
    return [done for folder in folders if (done := read_done(folder)) is not None]


def _file_name(name: str, options: Options) -> str:
    return f"{name}-quick" if options.quick else name
