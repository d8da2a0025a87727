"""Figure 5a: does search deliver what attention would choose? By system."""

from __future__ import annotations

import math

from lcn.evaluate.readings import ConsistencyRow, consistency_rows
from lcn.evaluate.tables import plain
from lcn.experiments.claims import Claimed, settle
from lcn.experiments.figures import (
    OverSeeds,
    exact_set,
    gap_over_seeds,
    open_runs,
    over_seeds,
    rows_of_table5,
    seeds_cell,
)
from lcn.experiments.record import Bar, Cell, ForestPanel, TablePanel, Verdict
from lcn.experiments.rows import BACKBONES, CRP_KNOBS, Row, Sizes
from lcn.experiments.runner import Fitted, Workspace, fit_rows, fitted_ok
from lcn.experiments.table5 import LCN, PLAIN
from lcn.experiments.tables import row_record
from lcn.experiments.work import Finding
from lcn.train.run import Run

APART = "LCN w/o integration"
WAYS = {"common": "", "own": " (own aggregation)", "stale": " (older parameters)"}


def rows(sizes: Sizes) -> tuple[Row, ...]:
    """Every two-stage system, and the pyramid with and without integration and CRP."""
    outputs = ("model.backbone.use_csa_output=false", "model.backbone.use_msa_output=false")
    return (
        *rows_of_table5(sizes, *BACKBONES, PLAIN, LCN),
        Row(APART, "lap_crp", outputs, CRP_KNOBS),
    )  # fmt: skip


def run(workspace: Workspace) -> Finding:
    """Train the systems (those of Table 5 are there already) and measure their consistency."""
    fitted = fit_rows(workspace, rows(workspace.sizes))
    found: dict[str, list[list[ConsistencyRow]]] = {}
    for each in fitted_ok(fitted):
        found[each.row.name] = [
            _measure(workspace, opened) for opened in open_runs(workspace, each)
        ]
    values = _values(found)
    config = exact_set(workspace.sizes)
    facts = [seeds[0][0].consistency for seeds in found.values()]
    kept = facts[0].kept_share if facts else 0.0
    return Finding(
        title="Consistency of search and attention",
        summary=(
            f"Of the {config.size} events that the final stage would weigh most over the whole "
            f"history, the share that the stages before it deliver; impressions with at least "
            f"{config.least} events ({kept:.0%} of the test days). Heads averaged unless said."
        ),
        panels=(_forest(values), _table(found, values, fitted)),
        verdicts=_verdicts(values),
        rows=tuple(row_record(workspace, each) for each in fitted),
        data=plain({name: each.values for name, each in values.items()}),
    )


def _measure(workspace: Workspace, opened: Run) -> list[ConsistencyRow]:
    return consistency_rows(
        opened.model, opened.dataset, "test", opened.config.batch, exact_set(workspace.sizes)
    )


def _values(found: dict[str, list[list[ConsistencyRow]]]) -> dict[str, OverSeeds]:
    """Name and way of reading -> consistency over seeds."""
    values = {}
    for name, seeds in found.items():
        for place, row in enumerate(seeds[0]):
            each = [rows[place].consistency.value for rows in seeds]
            values[name + WAYS[row.way]] = over_seeds(each)
    return values


def _forest(values: dict[str, OverSeeds]) -> ForestPanel:
    bars = [
        Bar(name=name, estimate=each.estimate, low=each.low, high=each.high)
        for name, each in values.items()
        if not math.isnan(each.estimate)
    ]
    return ForestPanel(
        title="Consistency", xlabel="share of the exact set that search delivers",
        bars=tuple(bars), zero=None,
        note="95 % intervals over seeds. Synchronous TWIN is 1 by construction under its own "
        "aggregation: it cannot be beaten there.",
    )  # fmt: skip


def _table(
    found: dict[str, list[list[ConsistencyRow]]],
    values: dict[str, OverSeeds],
    fitted: tuple[Fitted, ...],
) -> TablePanel:
    first = next(iter(found.values()), None)
    sizes = [recall.rows for recall in first[0][0].consistency.recall] if first else []
    rows = []
    for name, seeds in found.items():
        for place, row in enumerate(seeds[0]):
            label = name + WAYS[row.way]
            recalls = [
                over_seeds([rows[place].consistency.recall[at].value for rows in seeds])
                for at in range(len(sizes))
            ]
            chance = over_seeds([rows[place].consistency.chance for rows in seeds])
            cells = [seeds_cell(each) for each in (values[label], chance, *recalls)]
            rows.append((Cell(text=label), *cells))
    for each in fitted:
        if not each.runs:
            failed = Cell(text="not run", detail=each.error[:160])
            empty = [Cell(text="-")] * (len(sizes) + 1)
            rows.append((Cell(text=each.row.name), failed, *empty))
    head = ["row", "consistency", "chance", *(f"recall, {size} delivered" for size in sizes)]
    return TablePanel(title="Consistency by system", head=tuple(head), rows=tuple(rows))


def _verdicts(values: dict[str, OverSeeds]) -> tuple[Verdict, ...]:
    pairs = [
        ("integration of the three levels raises consistency", LCN, APART),
        *((f"the pyramid is more consistent than {name}", LCN, name) for name in BACKBONES),
    ]
    found = []
    for claim, other, reference in pairs:
        if other not in values or reference not in values:
            continue
        one, two = values[other], values[reference]
        gap = gap_over_seeds(one, two)
        evidence = f"{one.estimate:.3f} against {two.estimate:.3f}; difference {gap.estimate:+.3f}"
        if not math.isnan(gap.low):
            evidence += f" [{gap.low:+.3f}, {gap.high:+.3f}] over {len(gap.values)} seeds"
        found.append(Claimed(claim, gap, evidence))
    return settle(found)
