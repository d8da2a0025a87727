"""Figure 5b: the pyramid's consistency as more rows pass the complete scope."""

from __future__ import annotations

from lcn.evaluate.consistency import sweep_k1
from lcn.evaluate.tables import plain
from lcn.experiments.claims import Claimed, settle
from lcn.experiments.figures import exact_set, open_runs, over_seeds, rows_of_table5, seeds_cell
from lcn.experiments.record import Cell, CurvePanel, Line, TablePanel
from lcn.experiments.rows import Sizes
from lcn.experiments.runner import Workspace, fit_rows, fitted_ok
from lcn.experiments.tables import row_record
from lcn.experiments.work import Finding

SHARES = (0.25, 0.5, 1.0, 2.5, 5.0)
"""Of K1: the paper's 50, 100, 200, 500 and 1,000 of 200."""


def k1_sizes(sizes: Sizes) -> tuple[int, ...]:
    """The K1 to measure with; 0, all rows, comes last."""
    return (*(max(1, round(share * sizes.k1)) for share in SHARES), 0)


def run(workspace: Workspace) -> Finding:
    """Measure trained pyramids with other K1 than they were trained with."""
    rows = rows_of_table5(workspace.sizes, "LCN-200-50 w/o CRP", "LCN-200-50")
    fitted = fit_rows(workspace, rows)
    config, sizes = exact_set(workspace.sizes), k1_sizes(workspace.sizes)
    found = {
        each.row.name: [
            [
                one.value
                for _, one in sweep_k1(
                    opened.model, opened.dataset, "test", opened.config.batch, config, sizes
                )
            ]
            for opened in open_runs(workspace, each)
        ]
        for each in fitted_ok(fitted)
    }
    points = {
        name: [over_seeds([seed[place] for seed in seeds]) for place in range(len(sizes))]
        for name, seeds in found.items()
    }
    labels = [str(size) if size else "all" for size in sizes]
    longest = max((config.batch.lifelong for each in fitted for config in each.runs), default=0)
    # "All rows" stands at the longest history, or beyond the largest K1.
    shown = [size or max(longest, *sizes) for size in sizes]
    return Finding(
        title="Consistency by K1",
        summary=f"The same trained models; K1 other than {workspace.sizes.k1} in measuring alone.",
        panels=(
            CurvePanel(
                title="Consistency by K1",
                xlabel="rows that pass the complete scope",
                ylabel="consistency",
                lines=tuple(
                    Line(name=name, x=tuple(map(float, shown)),
                         y=tuple(one.estimate for one in each))
                    for name, each in points.items()
                ),
                note="The last point passes all rows.",
            ),
            TablePanel(
                title="Consistency by K1",
                head=("row", *labels),
                rows=tuple(
                    (Cell(text=name), *(seeds_cell(one) for one in each))
                    for name, each in points.items()
                ),
                note="Mean and 95 % interval over seeds.",
            ),
        ),
        verdicts=settle([_claimed(name, seeds) for name, seeds in found.items()]),
        rows=tuple(row_record(workspace, each) for each in fitted),
        data=plain({"k1": sizes, "consistency": found}),
    )  # fmt: skip


def _claimed(name: str, seeds: list[list[float]]) -> Claimed:
    """Rising from the smallest K1 to all rows?"""
    gap = over_seeds([seed[-1] - seed[0] for seed in seeds])
    return Claimed(
        f"consistency of {name} rises with K1",
        gap,
        f"all rows minus the smallest K1: {gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
    )
