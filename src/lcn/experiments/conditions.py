"""When does a lifelong source history pay? Dose-response on planted truth, one dial at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lcn.data.dataset import open_dataset
from lcn.data.prepare import true_probability
from lcn.data.sources.synthetic_config import SyntheticConfig
from lcn.evaluate.compare import Difference
from lcn.evaluate.metrics import auc
from lcn.evaluate.tables import plain
from lcn.experiments.claims import Claimed, Gap, between_logs, settle
from lcn.experiments.facts import read_facts
from lcn.experiments.lab import Lab
from lcn.experiments.measure import Measured, measure
from lcn.experiments.planted import planted_config
from lcn.experiments.record import (
    Cell,
    CurvePanel,
    Line,
    Panel,
    RowRecord,
    TablePanel,
    number_cell,
)
from lcn.experiments.rows import NONE, Claim, Row, Sizes, Table
from lcn.experiments.runner import Workspace, fit_rows
from lcn.experiments.settings import Options
from lcn.experiments.tables import interval_cell, row_record
from lcn.experiments.work import Finding

BASE = {"rho": 0.9, "source_events": 200, "noise_share": 0.2, "target_events": 1.0}
DIALS: dict[str, tuple[float, ...]] = {
    "rho": (0.0, 0.3, 0.6, 0.9),
    "source_events": (20, 60, 200, 600),
    "noise_share": (0.0, 0.2, 0.5, 0.8),
    "target_events": (0.0, 1.0, 10.0, 50.0),
}
TITLES = {
    "rho": "shared interest (rho)",
    "source_events": "source events per user (mean)",
    "noise_share": "share of behaviours that are noise",
    "target_events": "target events per user beside clicks (mean)",
}
SIM, LAP, LCN = "SIM Soft", "LAP", "LCN"
SIZES = Sizes(100, 30)


@dataclass(frozen=True, slots=True)
class Point:
    """One generated log and what was gained on it."""

    dial: str
    value: float
    none_auc: float
    best_auc: float
    """The best reachable."""
    gains: dict[str, Difference]
    """System -> AUC minus that of no lifelong part."""
    facts: dict[str, Any]


def table() -> Table:
    """The systems, all from the same settings."""
    rows = (Row(NONE, "none"), Row(SIM, "sim_soft"), Row(LAP, "lap"), Row(LCN, "lap_crp"))
    claims = tuple(Claim("", name, NONE) for name in (SIM, LAP, LCN))
    return Table("conditions", "Conditions", rows, (NONE,), claims)


def grid(options: Options) -> Iterator[tuple[str, float, SyntheticConfig]]:
    """The logs: each dial over its values, the others at the base; --quick: its two ends."""
    for dial, values in DIALS.items():
        for value in (values[0], values[-1]) if options.quick else values:
            planted = {**BASE, dial: value}
            yield dial, value, planted_config(options.users, **planted)


def run(lab: Lab) -> Finding:
    """Generate the logs, train on each, and relate the gains to dials and to the logs' facts."""
    points: list[Point] = []
    seen: dict[SyntheticConfig, _Log] = {}
    for dial, value, config in grid(lab.options):
        if config not in seen:
            seen[config] = _measure(lab.generate(config))
        log = seen[config]
        gains = {
            name: pair.difference.auc
            for name in (SIM, LAP, LCN)
            if (pair := log.measured.pair(name, NONE)) is not None
        }
        none_auc = next(
            (one.intervals.auc.estimate for one in log.measured.results if one.run == NONE), np.nan
        )
        points.append(Point(dial, value, float(none_auc), log.best_auc, gains, log.facts))
    return Finding(
        title="When a lifelong source history pays",
        summary=(
            f"Generated logs of {lab.options.users:,} users whose click probabilities are known; "
            "one dial turned at a time from "
            + ", ".join(f"{name} {value:g}" for name, value in BASE.items())
            + ". Gains are AUC minus that of the same model without a lifelong part."
        ),
        panels=tuple(_panels(points)),
        verdicts=settle([_claimed(points, dial) for dial in DIALS]),
        rows=tuple(row for log in seen.values() for row in log.rows),
        data=plain({"points": [_tree(point) for point in points]}),
    )


@dataclass(frozen=True, slots=True)
class _Log:
    """What was measured on one generated log."""

    measured: Measured
    facts: dict[str, Any]
    best_auc: float
    rows: tuple[RowRecord, ...]


def _measure(workspace: Workspace) -> _Log:
    fitted = fit_rows(workspace, table().rows)
    dataset = open_dataset(workspace.dataset)
    label_S = np.asarray(dataset.samples["test"].label_S)
    best = auc(true_probability(dataset, "test"), label_S)
    facts = read_facts(dataset, resamples=min(workspace.options.resamples, 200))
    rows = tuple(row_record(workspace, each) for each in fitted)
    return _Log(measure(workspace, table(), fitted), facts.drivers, best, rows)


def _tree(point: Point) -> dict[str, Any]:
    gains = {
        name: {"gain": one.difference, "low": one.low, "high": one.high}
        for name, one in point.gains.items()
    }
    return {
        "dial": point.dial,
        "value": point.value,
        "none_auc": point.none_auc,
        "best_auc": point.best_auc,
        "gains": gains,
        "facts": point.facts,
    }


def _panels(points: Sequence[Point]) -> Iterator[Panel]:
    for dial, title in TITLES.items():
        of_dial = [point for point in points if point.dial == dial]
        names = [name for name in (SIM, LAP, LCN) if all(name in p.gains for p in of_dial)]
        if not of_dial or not names:
            continue
        yield CurvePanel(
            title=f"Gain by {title}",
            xlabel=title,
            ylabel="AUC minus no lifelong",
            lines=tuple(
                Line(
                    name=name,
                    x=tuple(point.value for point in of_dial),
                    y=tuple(point.gains[name].difference for point in of_dial),
                )
                for name in names
            ),
        )
    facts = list(points[0].facts) if points else []
    rows = [
        (
            Cell(text=f"{TITLES[point.dial]} {point.value:g}"),
            number_cell(point.none_auc),
            *(
                interval_cell(point.gains[name], "auc") if name in point.gains else Cell(text="-")
                for name in (SIM, LAP, LCN)
            ),
            number_cell(point.best_auc),
            *(number_cell(point.facts[name], 3) for name in facts),
        )
        for point in points
    ]
    head = ("log", f"AUC, {NONE}", *(f"gain, {name}" for name in (SIM, LAP, LCN)))
    yield TablePanel(
        title="Every log",
        head=(*head, "best reachable AUC", *facts),
        rows=tuple(rows),
        note="95 % intervals over users and seeds, not corrected. The last columns are what "
        "`lcn diagnose` reads from a log.",
    )


def _claimed(points: Sequence[Point], dial: str) -> Claimed:
    """Does the pyramid's gain move with the dial as it should?"""
    rising = {"rho": True, "source_events": True, "noise_share": False, "target_events": False}
    ends = [point for point in points if point.dial == dial and LAP in point.gains]
    word = "rises" if rising[dial] else "falls"
    claim = f"the gain of LAP {word} with {TITLES[dial]}"
    if len(ends) < 2:
        return Claimed(claim, Gap(*[math.nan] * 4), "not trained")
    first, last = ends[0].gains[LAP], ends[-1].gains[LAP]
    gap = between_logs(first, last) if rising[dial] else between_logs(last, first)
    evidence = (
        f"{ends[0].value:g}: {first.difference:+.4f}, {ends[-1].value:g}: {last.difference:+.4f}; "
        f"{word} by {gap.estimate:.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
    )
    return Claimed(claim, gap, evidence)
