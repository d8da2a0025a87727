"""How concentrated attention is: the paper has 90 % of the mass on 20 % of the events.

Shapes: C candidates, S rows of all spans, H heads, G points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcn import ops
from lcn.backbones.base import Query
from lcn.backbones.lap import Lap
from lcn.data.loader import load_batches
from lcn.evaluate.consistency import eligible
from lcn.evaluate.tables import plain
from lcn.experiments.claims import Claimed, settle
from lcn.experiments.figures import OverSeeds, open_runs, over_seeds, rows_of_table5, seeds_cell
from lcn.experiments.record import Cell, CurvePanel, Line, TablePanel
from lcn.experiments.runner import Workspace, fit_rows, fitted_ok
from lcn.experiments.tables import row_record
from lcn.experiments.work import Finding
from lcn.ops import HistoryRows, Scoring
from lcn.train.run import Run

SHARES = np.linspace(0, 1, 51)
"""Shares of the history at which the curve is read."""
LIMIT = 1000
CLAIMED_SHARE, CLAIMED_MASS = 0.2, 0.9


def run(workspace: Workspace) -> Finding:
    """Train full attention and the pyramid, and read how their weights are spread."""
    rows = rows_of_table5(workspace.sizes, "full attention", "SIM Soft", "TWIN", "LCN-200-50")
    fitted = fit_rows(workspace, rows)
    curves: dict[str, list[NDArray[np.float64]]] = {}
    for each in fitted_ok(fitted):
        for opened in open_runs(workspace, each):
            for stage, curve_G in mass_curves(opened, 2 * workspace.sizes.k2).items():
                curves.setdefault(f"{each.row.name}{stage}", []).append(curve_G)
    at = int(np.argmin(np.abs(SHARES - CLAIMED_SHARE)))
    claimed = {name: over_seeds([float(c[at]) for c in each]) for name, each in curves.items()}
    needed = {
        name: over_seeds([_share_for(c, CLAIMED_MASS) for c in each])
        for name, each in curves.items()
    }
    return Finding(
        title="How few events hold how much of the attention",
        summary=(
            "Softmax weights over the whole history, heads averaged, strongest first; test "
            f"impressions with at least {2 * workspace.sizes.k2} events. Uniform attention lies on "
            "the diagonal."
        ),
        panels=(
            CurvePanel(
                title="Attention mass",
                xlabel="share of the history, strongest first",
                ylabel="share of the attention",
                lines=tuple(
                    Line(name=name, x=tuple(SHARES.tolist()),
                         y=tuple(np.mean(each, axis=0).tolist()))
                    for name, each in curves.items()
                ),
            ),
            TablePanel(
                title="The claim of 90 % on 20 %",
                head=("stage", "mass on the top 20 %", "share of events for 90 %"),
                rows=tuple(
                    (Cell(text=name), seeds_cell(claimed[name]), seeds_cell(needed[name]))
                    for name in curves
                ),
                note="Mean and 95 % interval over seeds.",
            ),
        ),
        verdicts=settle([_claimed(name, each) for name, each in claimed.items()]),
        rows=tuple(row_record(workspace, each) for each in fitted),
        data=plain({name: np.mean(each, axis=0).tolist() for name, each in curves.items()}),
    )  # fmt: skip


def mass_curves(opened: Run, least: int) -> dict[str, NDArray[np.float64]]:
    """Stage -> mean cumulative mass at `SHARES`; of the pyramid, each scope over all rows.

    Args:
        opened: a trained run whose backbone attends.
        least: impressions with fewer rows are left out.
    """
    batch = opened.config.batch.model_copy(update={"size": 128})
    order, _ = eligible(opened.dataset, "test", batch, least, LIMIT, 0)
    total: dict[str, NDArray[np.float64]] = {}
    count = 0
    with torch.inference_mode():
        for piece in load_batches(opened.dataset, "test", batch, order):
            parts = opened.model.embed(piece)
            state = opened.model.backbone.encode(parts.history)
            for stage, rows, scoring in _stages(opened, state, parts.query):
                weight_SH = ops.span_score(rows, piece.lifelong_C2, scoring)
                mass_CG = spread(weight_SH, piece.lifelong_C2)
                total[stage] = total.get(stage, 0.0) + mass_CG.sum(0)
            count += len(piece)
    return {stage: mass_G / count for stage, mass_G in total.items()} if count else {}


def spread(score_SH: Tensor, span_C2: Tensor) -> NDArray[np.float64]:
    """mass_CG: share of the softmax mass (heads averaged) on the strongest rows of each span."""
    length_C = (span_C2[:, 1] - span_C2[:, 0]).tolist()
    curves, first = [], 0
    for length in length_C:
        weight_N = torch.softmax(score_SH[first : first + length].double(), 0).mean(1)
        mass_N = np.r_[0.0, weight_N.sort(descending=True).values.cumsum(0).numpy()]
        curves.append(np.interp(SHARES * length, np.arange(length + 1), mass_N))
        first += length
    return np.stack(curves) if curves else np.zeros((0, len(SHARES)))


def _stages(opened: Run, state: object, query: Query) -> Iterator[tuple[str, HistoryRows, Scoring]]:
    backbone = opened.model.backbone
    if isinstance(backbone, Lap):
        for name, rows, scoring in backbone.stage_scorings(state, query):  # type: ignore[arg-type]
            yield f", {name} scope", rows, scoring
        return
    yield "", state.rows, backbone.final_scoring(query)  # type: ignore[attr-defined]


def _share_for(curve_G: NDArray[np.float64], mass: float) -> float:
    """Share of the events that holds so much of the mass."""
    return float(np.interp(mass, curve_G, SHARES)) if len(curve_G) else math.nan


def _claimed(name: str, mass: OverSeeds) -> Claimed:
    gap = over_seeds([value - CLAIMED_MASS for value in mass.values])
    return Claimed(
        f"90 % of the attention lies on 20 % of the events ({name})",
        gap,
        f"{mass.estimate:.1%} [{mass.low:.1%}, {mass.high:.1%}] of the mass on the strongest 20 %, "
        f"{len(mass.values)} seeds",
    )
