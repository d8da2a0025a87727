"""Run an experiment on datasets: from a name and options to records with their provenance."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rich.console import Console

from lcn import __version__
from lcn.data.dataset import open_dataset
from lcn.errors import ConfigError, DataError, LcnError, nearest
from lcn.experiments.names import EXPERIMENTS, FIGURES, GENERATED, TABLES
from lcn.experiments.record import ExperimentRecord, Origin, load_record, save_record
from lcn.experiments.runner import Bench, Told, Workers, open_bench, own_workers
from lcn.experiments.settings import QUICK, QUICK_STEPS, QUICK_USERS, Options, merged
from lcn.experiments.store import Done, read_done
from lcn.experiments.subset import take_users
from lcn.experiments.tables import run_table
from lcn.experiments.work import Finding
from lcn.schema import Manifest
from lcn.train.record import commit, processor

ROOT = Path("runs/experiments")

Experiment = Callable[[Bench, Workers, Told | None], Finding]


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
    say: Told | None = None,
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
    with own_workers(None, options.jobs) as workers:
        for name, dataset in wanted:
            try:
                if dataset is None:
                    record = _generated(name, datasets, options, call, root, workers, say)
                else:
                    bench = open_bench(seen_dataset(dataset, root, options), root, options)
                    record = _recorded(name, bench, call, workers, say)
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
    if options.trials > 1 and options.tuning_seed in options.seeds:
        raise ConfigError(
            f"--seeds: {options.tuning_seed} is the seed that settings are chosen on; report others"
        )


def quick(options: Options) -> Options:
    """A first look: few users, one epoch, short histories, few trials and seeds."""
    return replace(
        options,
        seeds=options.seeds[:2],
        trials=min(options.trials, 2),
        settings=merged(options.settings, QUICK),
        planted=merged(options.planted, QUICK),
        resamples=min(options.resamples, 200),
        users=min(options.users, 1500),
        first_steps=QUICK_STEPS,
    )


def experiment_of(name: str) -> Experiment:
    """The function behind a name."""
    if name in TABLES:
        return lambda bench, workers, say: run_table(name, bench, workers=workers, say=say)
    from lcn.experiments import figure4, figure5a, figure5b, mass

    modules = {"figure4": figure4, "figure5a": figure5a, "figure5b": figure5b, "mass": mass}
    return modules[name].run


def seen_dataset(dataset: Path, root: Path, options: Options) -> Path:
    """The dataset itself, or its quick view."""
    if not options.quick:
        return dataset
    manifest = open_dataset(dataset).manifest
    view = root / "views" / f"{manifest.name}-{manifest.fingerprint}-{QUICK_USERS}"
    return take_users(dataset, view, QUICK_USERS)


def _recorded(
    name: str, bench: Bench, call: Call, workers: Workers, say: Told | None
) -> ExperimentRecord:
    started = time.monotonic()
    finding = experiment_of(name)(bench, workers, say)
    record = with_origin(name, finding, bench, call, time.monotonic() - started)
    if not bench.options.finished:
        _refuse_untrained(record)
    keep_fullest(bench.store.record_path(_file_name(name, bench.options)), record, say)
    return record


def _refuse_untrained(record: ExperimentRecord) -> None:
    if record.rows and not _runs(record):
        reason = next((row.error for row in record.rows if row.error), "no row was trained")
        where = record.origin.dataset
        raise ConfigError(f"{record.experiment} on {where}: no row could be trained: {reason}")


def keep_fullest(path: Path, record: ExperimentRecord, say: Told | None = None) -> bool:
    """Save a record, unless it shows fewer runs than the one that is there, or none at all.

    A look at one row, or at what is finished, is shown but does not take a whole table's place.

    Returns:
        Whether it was saved.
    """
    before = _saved_runs(path)
    now = _runs(record)
    if not record.rows or now >= max(before, 1):
        save_record(path, record)
        return True
    if before:
        note = (
            f"not saved: these are {now} runs, and the finding in {path} shows {before}; it stays "
            "(remove the file to replace it)"
        )
        _tell(note, say)
    return False


def _tell(line: str, say: Told | None) -> None:
    (say or Console(stderr=True, soft_wrap=True, markup=False).print)(line)


def _runs(record: ExperimentRecord) -> int:
    return sum(len(row.runs) for row in record.rows)


def _saved_runs(path: Path) -> int:
    try:
        return _runs(load_record(path)) if path.exists() else 0
    except DataError:
        return 0


def _generated(  # the two experiments that make their own logs
    name: str,
    datasets: Sequence[Path],
    options: Options,
    call: Call,
    root: Path,
    workers: Workers,
    say: Told | None,
) -> ExperimentRecord:
    from lcn.experiments import conditions, questions

    started = time.monotonic()
    module = {"conditions": conditions, "questions": questions}[name]
    if name == "conditions":
        options = replace(options, sizes=options.sizes or conditions.SIZES)
    finding = module.run(datasets, options, root, workers, say)
    record = with_origin(name, finding, None, call, time.monotonic() - started, options, root)
    if not options.finished:
        _refuse_untrained(record)
    asked = [open_dataset(dataset).manifest for dataset in datasets] if name == "questions" else []
    if asked:
        record = record.model_copy(update={"origin": _beside(record.origin, asked, options)})
    file = "-".join([_file_name(name, options), *(manifest.name for manifest in asked)])
    keep_fullest(root / "planted" / "records" / f"{file}.json", record, say)
    return record


def _beside(origin: Origin, asked: Sequence[Manifest], options: Options) -> Origin:
    """The origin of a finding on generated logs and on some datasets."""
    settings = [f"{m.name}: {' '.join(options.settings_for(m.name))}" for m in asked]
    return origin.model_copy(
        update={
            "dataset": ", ".join([*(m.name for m in asked), origin.dataset]),
            "fingerprint": ", ".join(m.fingerprint for m in asked),
            "licence": "; ".join(m.licence for m in asked),
            "settings": (*settings, f"{origin.dataset}: {' '.join(origin.settings)}"),
        }
    )


def with_origin(
    name: str,
    finding: Finding,
    bench: Bench | None,
    call: Call,
    seconds: float,
    options: Options | None = None,
    root: Path = ROOT,
) -> ExperimentRecord:
    """A finding with its provenance.

    Args:
        name: of the experiment.
        finding: what it found.
        bench: where; None for one on generated logs, which has `options` and `root` instead.
        call: who asked.
        seconds: how long it took.
        options: as asked for.
        root: the results store.
    """
    options = bench.options if bench is not None else options or Options()
    sizes = bench.sizes if bench is not None else options.sizes
    licence = open_dataset(bench.dataset).manifest.licence if bench is not None else ""
    trained = _trained(finding, bench.store.folder.parent if bench is not None else root)
    return ExperimentRecord(
        experiment=name,
        title=finding.title,
        summary=finding.summary,
        panels=finding.panels,
        verdicts=finding.verdicts,
        rows=finding.rows,
        data=finding.data,
        origin=Origin(
            command=call.command,
            commit=commit(),
            version=__version__,
            machine=processor(),
            date=call.now,
            seconds=seconds,
            run_commits=tuple(sorted({done.commit for done in trained})),
            run_seconds=sum(done.seconds for done in trained),
            dataset=bench.name if bench is not None else "generated logs",
            fingerprint=bench.store.fingerprint if bench is not None else "",
            licence=licence,
            seeds=options.seeds,
            trials=options.trials,
            settings=bench.settings if bench is not None else options.settings_for("synthetic"),
            sizes=(sizes.k1, sizes.k2) if sizes is not None else None,
            quick=options.quick,
        ),
    )


def _trained(finding: Finding, root: Path) -> list[Done]:
    """The facts of the runs behind a finding."""
    folders = {root / row.dataset / "runs" / run for row in finding.rows for run in row.runs}
    return [done for folder in folders if (done := read_done(folder)) is not None]


def _file_name(name: str, options: Options) -> str:
    return f"{name}-quick" if options.quick else name


__all__ = ["FIGURES", "ROOT", "Call", "experiment_of", "quick", "run_experiments", "with_origin"]
