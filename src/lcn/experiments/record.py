"""What an experiment found, on disk: panels to show, verdicts, and how it was made."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lcn.errors import DataError
from lcn.files import write_whole

Mark = Literal["", "better", "worse", "open", "best", "quoted"]
Holding = Literal["holds", "does not hold", "open"]


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="strings"
    )


class Cell(_Record):
    """A cell of a table."""

    text: str
    detail: str = ""
    """Shown small below it: an interval."""
    value: float | None = None
    """What a sortable table sorts by."""
    mark: Mark = ""


class TablePanel(_Record):
    """A table; the first column names the rows."""

    kind: Literal["table"] = "table"
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


class Line(_Record):
    """A curve."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


class CurvePanel(_Record):
    """Curves in one picture."""

    kind: Literal["curves"] = "curves"
    title: str
    xlabel: str
    ylabel: str
    lines: tuple[Line, ...]
    note: str = ""


class Bar(_Record):
    """An estimate with its interval."""

    name: str
    estimate: float
    low: float
    high: float


class ForestPanel(_Record):
    """Estimates with intervals, one below the other."""

    kind: Literal["forest"] = "forest"
    title: str
    xlabel: str
    bars: tuple[Bar, ...]
    zero: float | None = 0.0
    note: str = ""


class Cloud(_Record):
    """Points of one colour."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


class ScatterPanel(_Record):
    """Points in the plane."""

    kind: Literal["scatter"] = "scatter"
    title: str
    clouds: tuple[Cloud, ...]
    note: str = ""


Panel = Annotated[TablePanel | CurvePanel | ForestPanel | ScatterPanel, Field(discriminator="kind")]


class Verdict(_Record):
    """A claim and what the runs say about it."""

    claim: str
    holding: Holding
    evidence: str


class RowRecord(_Record):
    """How a row came about."""

    name: str
    recipe: str
    overrides: tuple[str, ...]
    chosen: tuple[str, ...]
    """Overrides that validation chose."""
    trials: tuple[tuple[tuple[str, ...], float], ...]
    """Overrides tried, each with its validation value."""
    runs: tuple[str, ...]
    """Run folders of the dataset's, one per seed."""
    dataset: str = ""
    """The dataset's folder inside the store."""
    error: str = ""


class Origin(_Record):
    """Where the numbers come from."""

    command: str
    commit: str
    version: str
    machine: str
    date: datetime
    seconds: float
    """Of this call; runs that were there before cost nothing."""
    run_commits: tuple[str, ...] = ()
    """Commits that the runs were trained at, where they are known."""
    run_seconds: float = 0.0
    """Training time of the reported runs together, trials not counted."""
    dataset: str
    fingerprint: str
    licence: str = ""
    seeds: tuple[int, ...]
    trials: int
    tuning_seeds: int = 1
    """Seeds that each trial was run on."""
    settings: tuple[str, ...]
    sizes: tuple[int, int] | None = None
    quick: bool = False


class ExperimentRecord(_Record):
    """An experiment on one dataset."""

    experiment: str
    title: str
    summary: str = ""
    panels: tuple[Panel, ...]
    verdicts: tuple[Verdict, ...] = ()
    rows: tuple[RowRecord, ...] = ()
    data: dict[str, Any] = {}
    """The numbers behind the panels, for programs."""
    origin: Origin


def save_record(path: Path, record: ExperimentRecord) -> Path:
    """Write a record, whole or not at all."""
    write_whole(path, record.model_dump_json(indent=1) + "\n")
    return path


def load_record(path: Path) -> ExperimentRecord:
    """Read a record.

    Raises:
        DataError: not a record, or of another version of the program.
    """
    try:
        return ExperimentRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path} is no record of an experiment that this program can read ({error}); run the "
            "experiment again, where finished runs are reused, or remove the file"
        ) from error


def keep_fullest(path: Path, record: ExperimentRecord) -> str:
    """Save a record, unless it shows fewer runs than the one that is there, or none at all.

    A look at one row, or at what is finished, is shown but does not take a whole table's place.

    Returns:
        Why a finding that is there stays; empty where there is none or it was replaced.
    """
    saved = load_if_readable(path)
    before, now = count_runs(saved) if saved else 0, count_runs(record)
    lost = sorted(_trained(saved) - _trained(record)) if saved else []
    if not record.rows or (now >= max(before, 1) and not lost):
        save_record(path, record)
        return ""
    if not before:
        return ""
    return (
        f"not saved: these are {now} runs{f' without {lost[0]!r}' if lost else ''}, and the "
        f"finding in {path} shows {before}; it stays (remove the file to replace it)"
    )


def count_runs(record: ExperimentRecord) -> int:
    """Runs behind a record."""
    return sum(len(row.runs) for row in record.rows)


def _trained(record: ExperimentRecord) -> set[str]:
    return {row.name for row in record.rows if row.runs}


def load_if_readable(path: Path) -> ExperimentRecord | None:
    """A record; None where there is none, or none that this program can read."""
    try:
        return load_record(path) if path.exists() else None
    except DataError:
        return None


def number_cell(value: float, decimals: int = 4) -> Cell:
    """A cell of one number; `-` for what is undefined."""
    if math.isnan(value):
        return Cell(text="-")
    return Cell(text=f"{value:.{decimals}f}", value=value)


def now() -> datetime:
    """The present moment, for the command line to pass on."""
    return datetime.now(UTC).replace(microsecond=0)
