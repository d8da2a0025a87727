"""Results as tables for the terminal and as JSON for a program; the same records in both.

The one rule of rendering: an estimate with its interval in brackets, as many decimals as help to
tell runs apart (below each other in the terminal), and `-` for what is undefined (`null` in JSON).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from lcn.evaluate.bootstrap import Interval
from lcn.evaluate.compare import Difference, PairedDifference, holm
from lcn.evaluate.replicate import METRICS
from lcn.evaluate.results import RunResult

if TYPE_CHECKING:
    from rich.table import Table

TITLES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "log_loss": "log loss",
    "calibration_ratio": "mean p / mean y",
    "ece": "ECE",
    "platt_log_loss": "log loss, Platt",
}
"""Column titles; log loss in nats per impression."""

_DIFFERENCES = ("auc", "gauc", "log_loss")
_RATIO_DECIMALS, _DECIMALS = 3, 4


def results_table(results: Sequence[RunResult]) -> Table:
    """Render results for the terminal."""
    return _rich("Models compared", _result_head(results), _result_rows(results))


def results_json(results: Sequence[RunResult]) -> str:
    """Render results as a JSON list, one object per run, NaN as null."""
    return _json([asdict(result) for result in results])


def differences_table(differences: Sequence[PairedDifference]) -> Table:
    """Render paired differences for the terminal."""
    return _rich("Paired differences", _difference_head(), _difference_rows(differences))


def combined_json(results: Sequence[RunResult], differences: Sequence[PairedDifference]) -> str:
    """Render both as one JSON object with the keys `results` and `differences`, NaN as null.

    Differences carry their p-values with Holm's correction per metric.
    """
    trees = [asdict(difference) for difference in differences]
    for name in METRICS:
        corrected = holm([getattr(one, name).p_value for one in differences])
        for tree, value in zip(trees, corrected, strict=True):
            tree[name]["p_value_holm"] = float(value)
    return _json({"results": [asdict(result) for result in results], "differences": trees})


def interval_text(interval: Interval | Difference, name: str) -> str:
    """Render `0.7976 [0.7921, 0.8030]`; differences carry their sign."""
    decimals = _RATIO_DECIMALS if name == "calibration_ratio" else _DECIMALS
    if isinstance(interval, Difference):
        centre, form = interval.difference, f"+.{decimals}f"
    else:
        centre, form = interval.estimate, f".{decimals}f"
    if math.isnan(centre):
        return "-"
    if math.isnan(interval.low):
        return format(centre, form)
    return f"{centre:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def p_value_text(value: float) -> str:
    """Render a p-value with two significant digits."""
    if math.isnan(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def seeds_text(seeds: Sequence[int]) -> str:
    """Render which seeds, or how many when they are many."""
    return ", ".join(map(str, seeds)) if len(seeds) <= 3 else f"{len(seeds)} seeds"


def _result_head(results: Sequence[RunResult]) -> list[str]:
    columns = [*METRICS]
    if any(result.platt_log_loss is not None for result in results):
        columns.append("platt_log_loss")
    return ["run", *(TITLES[name] for name in columns), "seeds"]


def _result_rows(results: Sequence[RunResult]) -> list[list[str]]:
    with_platt = any(result.platt_log_loss is not None for result in results)
    rows = []
    for result in results:
        cells = [interval_text(getattr(result.intervals, name), name) for name in METRICS]
        if with_platt:
            platt = result.platt_log_loss
            cells.append(interval_text(platt, "platt_log_loss") if platt else "-")
        rows.append([result.run, *cells, seeds_text(result.seeds)])
    return rows


def _difference_head() -> list[str]:
    return ["difference", *(TITLES[name] for name in _DIFFERENCES), "p (AUC)", "p, Holm"]


def _difference_rows(differences: Sequence[PairedDifference]) -> list[list[str]]:
    corrected = holm([one.auc.p_value for one in differences])
    return [
        [
            f"{one.other} − {one.reference}",
            *(interval_text(getattr(one, name), name) for name in _DIFFERENCES),
            p_value_text(one.auc.p_value),
            p_value_text(float(value)),
        ]
        for one, value in zip(differences, corrected, strict=True)
    ]


def _rich(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(head[0], no_wrap=True)
    for name in head[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_narrow(escape(cell)) for cell in row))
    return table


def _narrow(cell: str) -> str:
    """Put the interval below its estimate, dimmed and short: side by side they need 150 columns."""
    estimate, bracket, bounds = cell.partition(" [")
    if not bracket:
        return cell
    low, high = (re.sub(r"^([+-]?)0\.", r"\1.", bound) for bound in bounds.rstrip("]").split(", "))
    dash = ", " if low[0] in "+-" else "–"
    return f"{estimate}\n[dim]{low}{dash}{high}[/dim]"


def _json(tree: Any) -> str:
    return json.dumps(plain(tree), indent=1, allow_nan=False)


def plain(tree: Any) -> Any:
    """Return a tree as JSON can hold it: plain numbers; NaN and infinities become None."""
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    if isinstance(tree, np.generic):
        tree = tree.item()
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
