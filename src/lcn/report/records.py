"""Everything a report page shows, as plain records; whoever ran the experiments fills them in.

Shapes: N points of a curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from lcn.evaluate.compare import PairedDifference
from lcn.evaluate.plots import Curve, NamedCalibration
from lcn.evaluate.results import RunResult

__all__ = [
    "AttentionCase",
    "AttentionLevel",
    "CurvePlot",
    "DataFacts",
    "DemoReport",
    "KeptEvent",
    "NamedCalibration",
    "PairedDifference",
    "Provenance",
    "RunResult",
    "SplitFacts",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """One split of the dataset."""

    name: str
    impressions: int
    clicks: int
    users: int
    first: datetime
    last: datetime
    """Times of the first and last impression, in the dataset's zone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What the models were trained and tested on."""

    name: str
    licence: str
    fingerprint: str
    target_domain: str
    """In words, e.g. `Sci-Fi, Fantasy, Animation, Children's`."""
    source_domain: str
    label: str
    """In words, e.g. `rating of 4 or 5`."""
    users: int
    items: int
    target_events: int
    source_events: int
    rejected: int
    """Rows of the logs that were left out."""
    history_quartiles: tuple[int, int, int]
    """Source-domain events before a test impression: lower quartile, median, upper quartile."""
    splits: tuple[SplitFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEvent:
    """One event of a user's history that a level kept."""

    title: str
    genre: str
    rating: float | None
    when: datetime
    weight: float
    """The level's attention weight; those of all kept events add up to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLevel:
    """What one level of the pyramid looked at, for one candidate."""

    name: str
    """E.g. `complete scope`."""
    kept: int
    total: int
    """The level kept `kept` events of the history's `total`."""
    events: tuple[KeptEvent, ...]
    """The strongest of them, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """One candidate of one user, explained."""

    user: str
    title: str
    """The candidate's."""
    genre: str
    when: datetime
    label: int
    probability: float
    run: str
    levels: tuple[AttentionLevel, ...]


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """One picture of learning curves."""

    title: str
    xlabel: str
    ylabel: str
    """With unit."""
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where the numbers come from; no number goes without it."""

    commit: str
    command: str
    seeds: tuple[int, ...]
    machine: str
    date: datetime
    """Passed in, so that the page is reproducible."""
    version: str
    duration_seconds: float
    details: tuple[tuple[str, str], ...] = ()
    """Further rows: name, text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """One report page. Empty tuples leave their section out."""

    title: str
    summary: str
    """A sentence or two under the title."""
    data: DataFacts
    results: tuple[RunResult, ...]
    differences: tuple[PairedDifference, ...] = ()
    curves: tuple[CurvePlot, ...] = ()
    reliability: tuple[NamedCalibration, ...] = ()
    attention: tuple[AttentionCase, ...] = ()
    provenance: Provenance
    next_commands: tuple[tuple[str, str], ...] = ()
    """What a reader may want to run next: command, what it does."""
