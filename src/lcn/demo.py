"""The demo: real logs to a report page that compares LCN with its baselines, in minutes.

Safe to interrupt: a second call reuses the dataset and finished runs and resumes the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from lcn import __version__
from lcn.api import compare, fetch, open_run, prepare, recipe
from lcn.api import evaluate as evaluate_runs
from lcn.config import Config
from lcn.data.dataset import Dataset, open_dataset
from lcn.data.source_clicks import stated_responses
from lcn.errors import DataError
from lcn.evaluate.compare import PairedDifference
from lcn.evaluate.metrics import calibration, sigmoid
from lcn.evaluate.plots import Curve, NamedCalibration
from lcn.evaluate.predictions import load_predictions
from lcn.evaluate.results import RunResult
from lcn.ops.cpu import warm_up
from lcn.report.attention import explain, pick_samples
from lcn.report.page import write_report
from lcn.report.records import CurvePlot, DataFacts, DemoReport, Provenance, SplitFacts
from lcn.schema import SPLITS, read_manifest
from lcn.train import RunConfig, train
from lcn.train.record import commit, processor

SOURCE = "movielens-1m"
SYSTEMS = ("none", "full", "sim_soft", "lap", "lcn")
REFERENCE = "sim_soft"
"""The system that the others are compared with in the forest plot: the paper's first baseline."""

SETTINGS = (
    "model.width=32",
    "model.field_width=32",
    "model.short={width: 32, heads: 4}",
    "batch.size=1024",
    "batch.group=8",
    "batch.lifelong=500",
    "train.patience=4",
)
"""Alike for every system; no early stopping, the best of all epochs by validation AUC. Narrower
than the paper's 64, so that five models fit in minutes."""


class DemoConfig(Config):
    """How long the demo may take."""

    epochs: int = 4
    seeds: tuple[int, ...] = (0,)
    resamples: int = 1000
    cases: int = 3
    """Users whose learned attention is shown."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found and where it left it."""

    results: tuple[RunResult, ...]
    differences: tuple[PairedDifference, ...]
    report: Path
    dataset: Path
    runs: tuple[Path, ...]
    seconds: float


def _prepare(folder: Path, say: Callable[[str], None]) -> None:
    """Fetch the log and prepare it, unless that was done."""
    fetch(SOURCE)
    if not is_prepared(folder):
        say("Preparing the dataset")
        prepare(SOURCE, folder, force=folder.exists())


def _train_all(
    folder: Path, config: DemoConfig, say: Callable[[str], None], *, progress: bool
) -> list[Path]:
    """Every system with every seed; what was trained before is there."""
    say("Compiling the CPU operations (once per machine)")
    warm_up()
    runs = []
    for seed in config.seeds:
        for name in SYSTEMS:
            run_folder = folder / "runs" / f"{name}-{seed}"
            settings = demo_recipe(name, folder / "dataset", seed, config.epochs)
            say(f"Training {name} (seed {seed})")
            fitted = train(settings, run_folder, resume=True, progress=progress, label=name)
            say(f"  best validation AUC {fitted.best_value:.4f} at step {fitted.best_step}")
            runs.append(run_folder)
    return runs


def run_demo(
    folder: Path,
    config: DemoConfig,
    *,
    now: datetime,
    command: str,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = True,
) -> DemoResult:
    """Fetch, prepare, train five systems, compare them and write the report page.

    Args:
        folder: where the dataset, the runs and the page go.
        config: epochs, seeds and resamples.
        now: the date for the page.
        command: the command for the page.
        say: told what happens.
        progress: show training bars on stderr.
    """
    started = time.monotonic()
    say(
        "MovieLens 1M: ratings of 4 and 5 are clicks; Sci-Fi, Fantasy, Animation and Children's\n"
        "are the target domain, all other genres the source domain with the longer history."
    )
    dataset_folder = folder / "dataset"
    _prepare(dataset_folder, say)
    dataset = open_dataset(dataset_folder)
    runs = _train_all(folder, config, say, progress=progress)
    say("Measuring on the test days, with intervals over users")
    results = evaluate_runs(runs, resamples=config.resamples)
    reference_first = sorted(runs, key=lambda run: not run.name.startswith(f"{REFERENCE}-"))
    differences = compare(*reference_first, resamples=config.resamples).differences
    seconds = time.monotonic() - started
    report = DemoReport(
        title="LCN on MovieLens 1M",
        summary=summary(results, differences),
        data=data_facts(dataset),
        results=tuple(results),
        differences=differences,
        curves=learning_curves(runs),
        reliability=reliability(folder / "runs", config.seeds[0]),
        attention=attention(folder / "runs" / f"lap-{config.seeds[0]}", config.cases),
        provenance=Provenance(
            commit=commit(),
            command=command,
            seeds=config.seeds,
            machine=processor(),
            date=now,
            version=__version__,
            duration_seconds=seconds,
            details=(("settings", ", ".join(SETTINGS)),),
        ),
        next_commands=next_commands(folder),
    )
    page = write_report(folder / "report.html", report)
    return DemoResult(
        tuple(results), differences, page, dataset_folder, tuple(runs), time.monotonic() - started
    )


def is_prepared(folder: Path) -> bool:
    """Whether the demo's dataset is there; one of an earlier version does not tell responses."""
    there = (folder / "manifest.json").exists()
    return there and stated_responses(read_manifest(folder)) is not None


def demo_recipe(name: str, dataset: Path, seed: int, epochs: int) -> RunConfig:
    """A system's config as the demo trains it."""
    width = () if name == "none" else ("model.backbone.width=32",)
    return recipe(
        name, dataset, *SETTINGS, *width, f"train.seed={seed}", f"train.epochs={epochs}",
        f"name={name}",
    )  # fmt: skip


def summary(results: Sequence[RunResult], differences: Sequence[PairedDifference]) -> str:
    """One honest sentence: what LCN gains over the reference, and whether that is luck."""
    gain = next(each for each in differences if each.other == "lcn").auc
    best = max(results, key=lambda row: row.intervals.auc.estimate)
    clear = "clear of" if gain.low > 0 or gain.high < 0 else "not distinguishable from"
    return (
        f"AUC of LCN minus SIM Soft: {gain.difference:+.4f} "
        f"(95 % interval {gain.low:+.4f} to {gain.high:+.4f}), {clear} zero on this log. "
        f"Highest AUC: {best.run} with {best.intervals.auc.estimate:.4f}. Histories are short here "
        "(see the data facts); one log of this size cannot settle what a long history is worth."
    )


def data_facts(dataset: Dataset) -> DataFacts:
    """The dataset in numbers."""
    manifest, zone = dataset.manifest, ZoneInfo(dataset.manifest.split.timezone)
    splits = []
    for split in SPLITS:
        samples = dataset.samples[split]
        first, last = (
            datetime.fromtimestamp(int(moment) / 1000, UTC).astimezone(zone)
            for moment in (samples.time_S.min(), samples.time_S.max())
        )
        splits.append(
            SplitFacts(
                name=split,
                impressions=len(samples),
                clicks=int(samples.label_S.sum()),
                users=len(np.unique(samples.user_S)),
                first=first,
                last=last,
            )
        )
    length_S = dataset.lengths(dataset.samples["test"])
    low, middle, high = (int(value) for value in np.quantile(length_S, [0.25, 0.5, 0.75]))
    return DataFacts(
        name=manifest.name,
        licence=manifest.licence,
        fingerprint=manifest.fingerprint,
        target_domain="Sci-Fi, Fantasy, Animation, Children's",
        source_domain="all other genres",
        label="rating of 4 or 5",
        users=manifest.count.users - 1,
        items=manifest.count.items - 1,
        target_events=manifest.count.events["target"],
        source_events=manifest.count.events["source"],
        rejected=sum(sum(reasons.values()) for reasons in manifest.rejected.values()),
        history_quartiles=(low, middle, high),
        splits=tuple(splits),
    )


def learning_curves(runs: Sequence[Path]) -> tuple[CurvePlot, ...]:
    """Validation AUC and training loss over steps, a line per run."""
    plots = (
        ("Validation AUC", "validation", "auc", "AUC"),
        ("Training loss", "train", "mean_ctr", "log loss (nats)"),
    )
    records_of = {run.name: open_run(run).curves() for run in runs}
    found = []
    for title, kind, key, ylabel in plots:
        curves = []
        for name, records in records_of.items():
            points = [(each["step"], each[key]) for each in records if each["kind"] == kind]
            curves.append(Curve(name, [x for x, _ in points], [y for _, y in points]))
        found.append(CurvePlot(title=title, xlabel="steps", ylabel=ylabel, curves=tuple(curves)))
    return tuple(found)


def reliability(runs: Path, seed: int) -> tuple[NamedCalibration, ...]:
    """Reliability of the reference and of LCN, of one seed."""
    found = []
    for name in (REFERENCE, "lcn"):
        test = load_predictions(runs / f"{name}-{seed}" / "predictions" / "test.npz")
        found.append(NamedCalibration(name, calibration(sigmoid(test.logit_S), test.label_S)))
    return tuple(found)


def attention(run_folder: Path, cases: int) -> tuple:
    """What the pyramid kept for a few clicked candidates of users with long histories."""
    run = open_run(run_folder)
    picked = pick_samples(run.dataset, "test", cases, run.config.batch.lifelong)
    if not picked:
        raise DataError("the test split has no clicked impression to explain")
    return tuple(explain(run, "test", row, genre="genres", rating="rating") for row in picked)


def next_commands(folder: Path) -> tuple[tuple[str, str], ...]:
    """What a user would want to do next."""
    return (
        (f"lcn evaluate {folder}/runs/lcn-0 --json", "one run's metrics for a program"),
        (
            f"lcn compare {folder}/runs/full-0 {folder}/runs/lcn-0",
            "is LCN different from attention over everything?",
        ),
        (
            f"lcn train runs/my-lap --recipe lap --dataset {folder}/dataset model.backbone.k1=100",
            "train a variant of your own",
        ),
        ("lcn data mapping movielens-1m > my-logs.yaml", "start a mapping for your own logs"),
        ("lcn prepare my-logs.yaml data/mine", "and prepare them"),
    )
