"""What the figures share: rows of Table 5 by name, values over seeds, sizes of the exact set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lcn.evaluate.bootstrap import Student
from lcn.evaluate.consistency import ConsistencyConfig
from lcn.experiments import table5
from lcn.experiments.record import Cell
from lcn.experiments.rows import Row, Sizes
from lcn.experiments.runner import Fitted, Workspace
from lcn.train.run import Run, open_run


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """A mean over seeds with its 95 % interval (Student); NaN bounds for a single seed."""

    estimate: float
    low: float
    high: float
    p_value: float
    """Two-sided, of the hypothesis that the mean is 0."""
    values: tuple[float, ...]


def over_seeds(values: Sequence[float], level: float = 0.95) -> OverSeeds:
    """Mean and interval of one number per seed; a seed without one (NaN) makes it NaN."""
    value_K = np.asarray(values, np.float64)
    mean = float(value_K.mean()) if len(value_K) else math.nan
    if len(value_K) < 2 or math.isnan(mean):
        return OverSeeds(mean, math.nan, math.nan, math.nan, tuple(value_K.tolist()))
    error = float(value_K.std(ddof=1)) / math.sqrt(len(value_K))
    student = Student(len(value_K) - 1)
    half = student.quantile((1 + level) / 2) * error
    p_value = student.two_sided(abs(mean) / error) if error else float(mean == 0)
    return OverSeeds(mean, mean - half, mean + half, p_value, tuple(value_K.tolist()))


def gap_over_seeds(found: OverSeeds, reference: OverSeeds) -> OverSeeds:
    """By how much the values lie above those of a reference, seed by seed."""
    return over_seeds([a - b for a, b in zip(found.values, reference.values, strict=True)])


def seeds_cell(found: OverSeeds) -> Cell:
    """A cell with the mean and its interval."""
    if math.isnan(found.estimate):
        return Cell(text="-")
    detail = "" if math.isnan(found.low) else f"{found.low:.3f}, {found.high:.3f}"
    return Cell(text=f"{found.estimate:.3f}", detail=detail, value=found.estimate)


def rows_of_table5(sizes: Sizes, *names: str) -> tuple[Row, ...]:
    """Rows of the main table, so that figures show the models that the table measured."""
    known = {row.name: row for row in table5.table(sizes).rows}
    return tuple(known[name] for name in names)


def open_runs(workspace: Workspace, fitted: Fitted) -> Iterator[Run]:
    """The trained models of a row, one per seed."""
    for config in fitted.runs:
        yield open_run(workspace.store.run_folder(config), workspace.dataset)


def exact_set(sizes: Sizes) -> ConsistencyConfig:
    """The consistency metric at these sizes: the paper's 50 of at least 100 rows is K2 of 2 K2."""
    steps = sorted({max(1, round(sizes.k2 * share)) for share in (0.2, 0.4, 1, 2, 4)})
    return ConsistencyConfig(size=sizes.k2, least=2 * sizes.k2, recall_sizes=tuple(steps))
