"""The paper's open questions: longer histories, kinds of side information, items in both domains.

Lengths and side information are asked of the given datasets (and of a generated log for lengths
that real ones do not have); items in both domains must be planted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from lcn.data.dataset import open_dataset
from lcn.evaluate.compare import Difference
from lcn.evaluate.tables import plain
from lcn.experiments.claims import Claimed, between_logs, settle
from lcn.experiments.lab import Lab
from lcn.experiments.measure import Measured, measure
from lcn.experiments.planted import planted_config
from lcn.experiments.record import (
    CurvePanel,
    Line,
    Panel,
    RowRecord,
    TablePanel,
    Verdict,
)
from lcn.experiments.rows import NONE, Claim, Row, Sizes, Table
from lcn.experiments.runner import Workspace, fit_rows
from lcn.experiments.tables import show
from lcn.experiments.work import Finding

LENGTHS = (100, 500, 2000, 5000, 10_000, 20_000)
SHARES = (0.0, 0.1, 0.25, 0.5)
"""Of the target items that are source items too."""
LONG = {"source_events": 20_000, "impressions": 60.0, "activity_skew": 0.3}
"""A generated log with histories of 20,000 events; many impressions per user, so that few users
are enough to learn from."""
LONG_USERS = 20
"""Times fewer users than in the other generated logs."""


def run(lab: Lab, datasets: Sequence[Path]) -> Finding:
    """Answer the three questions.

    Args:
        lab: where, with which options.
        datasets: real logs for lengths and side information; may be empty.
    """
    options = replace(lab.options, sizes=lab.options.sizes or Sizes(100, 30))
    planted = replace(lab, options=options)
    parts = [_on_dataset(lab.open(dataset)) for dataset in datasets]
    parts += [_long(planted), _shared(planted)]
    return Finding(
        title="The paper's open questions",
        summary=(
            "Histories beyond 2,000 events; which side information the median and focused scope "
            "need; items that occur in both domains."
        ),
        panels=tuple(panel for part in parts for panel in part.panels),
        verdicts=tuple(verdict for part in parts for verdict in part.verdicts),
        rows=tuple(row for part in parts for row in part.rows),
        data={part.title: part.data for part in parts},
    )


def length_table(longest: int) -> Table:
    """The pyramid and SIM Soft with more and more of the history, as far as there is any."""
    known = [length for length in LENGTHS if length < longest]
    lengths = (*known, LENGTHS[len(known)]) if len(known) < len(LENGTHS) else LENGTHS
    rows = [Row(NONE, "none")]
    claims = []
    for name, recipe in (("SIM Soft", "sim_soft"), ("LAP", "lap")):
        rows += [
            Row(f"{name}, N={length}", recipe, (f"batch.lifelong={length}",)) for length in lengths
        ]
        claims += [
            Claim(f"{name} gains from {b} events over {a}", f"{name}, N={b}", f"{name}, N={a}")
            for a, b in pairwise(lengths)
        ]
    return Table("lengths", "Longer histories", tuple(rows), (NONE,), tuple(claims))


def side_table(fields: Sequence[str]) -> Table:
    """The pyramid with all context, none, and each kind alone."""
    whole, bare = "all side information", "the item alone"

    def seeing(names: Sequence[str], *, recency: bool) -> tuple[str, ...]:
        kept = "[" + ", ".join(names) + "]"
        return (
            f"model.backbone.context_fields={kept}",
            f"model.backbone.recency={str(recency).lower()}",
        )

    rows = [
        Row(NONE, "none"),
        Row(bare, "lap", seeing((), recency=False)),
        Row("time since the event", "lap", seeing((), recency=True)),
    ]
    if fields:
        rows += [Row(f"{name} alone", "lap", seeing((name,), recency=False)) for name in fields]
        rows.append(Row(whole, "lap"))
    claims = tuple(
        Claim(f"side information raises AUC: {row.name}", row.name, bare) for row in rows[2:]
    )
    return Table("side", "Kinds of side information", tuple(rows), (NONE, bare), claims)


def _on_dataset(workspace: Workspace) -> Finding:
    opened = open_dataset(workspace.dataset)
    length_S = opened.lengths(opened.samples["test"])
    longest = int(np.quantile(length_S, 0.99)) if len(length_S) else 0
    lengths = length_table(longest)
    fields = [field.name for field in opened.manifest.event_context]
    tables = [lengths, side_table(fields)]
    return _joined(workspace.name, [(table, *_trained(workspace, table)) for table in tables])


def _long(lab: Lab) -> Finding:
    users = max(100, lab.options.users // LONG_USERS)
    long = {**LONG, "source_events": 2000} if lab.options.quick else LONG
    config = planted_config(users, **long)
    table = length_table(config.source_events)
    name = f"generated log, {config.source_events:,} source events a user"
    return _joined(name, [(table, *_trained(lab.generate(config), table))])


def _shared(lab: Lab) -> Finding:
    """Gains by the share of target items that are source items too."""
    rows = tuple(
        Row(name, recipe)
        for name, recipe in ((NONE, "none"), ("SIM Soft", "sim_soft"), ("LAP", "lap"),
                             ("LCN", "lap_crp"))
    )  # fmt: skip
    names = tuple(row.name for row in rows[1:])
    claims = tuple(Claim("", name, NONE) for name in names)
    claims += (Claim("", "LCN", "LAP"),)
    table = Table("shared", "Items in both domains", rows, (NONE,), claims)
    shares = (SHARES[0], SHARES[-1]) if lab.options.quick else SHARES
    found: dict[float, Measured] = {}
    trained: list[RowRecord] = []
    for share in shares:
        config = planted_config(lab.options.users, shared_items=share)
        finding, found[share] = _trained(lab.generate(config), table)
        trained += finding.rows
    gains = _gains(found, names)
    panel = CurvePanel(
        title="Gain by the share of items in both domains",
        xlabel="share of target items that are source items too",
        ylabel="difference in AUC",
        lines=tuple(
            Line(name=name, x=tuple(s for s, _ in each), y=tuple(d.difference for _, d in each))
            for name, each in gains.items()
            if each
        ),
    )
    claims_made = []
    for name, each in gains.items():
        if len(each) < 2:
            continue
        first, last = each[0][1], each[-1][1]
        gap = between_logs(first, last)
        claims_made.append(
            Claimed(
                f"shared items raise {name}",
                gap,
                f"{each[0][0]:.0%}: {first.difference:+.4f}, {each[-1][0]:.0%}: "
                f"{last.difference:+.4f}; difference {gap.estimate:+.4f} "
                f"[{gap.low:+.4f}, {gap.high:+.4f}]",
            )
        )
    data = {
        name: [{"share": share, "gain": one.difference, "low": one.low, "high": one.high}
               for share, one in each]
        for name, each in gains.items()
    }  # fmt: skip
    return Finding(
        title="Items in both domains",
        panels=(panel,),
        verdicts=settle(claims_made),
        rows=tuple(trained),
        data=plain(data),
    )


def _gains(
    found: dict[float, Measured], names: Sequence[str]
) -> dict[str, list[tuple[float, Difference]]]:
    """Pair of systems -> share of common items and difference in AUC."""
    pairs = [*((name, NONE) for name in names), ("LCN", "LAP")]
    return {
        f"{other} − {reference}": [
            (share, pair.difference.auc)
            for share, measured in found.items()
            if (pair := measured.pair(other, reference)) is not None
        ]
        for other, reference in pairs
    }


def _trained(workspace: Workspace, table: Table) -> tuple[Finding, Measured]:
    fitted = fit_rows(workspace, table.rows)
    measured = measure(workspace, table, fitted)
    return show(workspace, table, fitted, measured), measured


def _joined(name: str, parts: Sequence[tuple[Table, Finding, Measured]]) -> Finding:
    """Findings of several tables on one dataset, each panel saying where it is from."""
    panels: list[Panel] = []
    verdicts: list[Verdict] = []
    rows: list[RowRecord] = []
    for table, finding, _ in parts:
        for panel in finding.panels:
            if isinstance(panel, TablePanel):
                title = f"{name}: {table.title}. {panel.title}"
                panels.append(panel.model_copy(update={"title": title}))
        verdicts += [
            verdict.model_copy(update={"claim": f"{name}: {verdict.claim}"})
            for verdict in finding.verdicts
        ]
        rows += finding.rows
    return Finding(
        title=name,
        panels=tuple(panels),
        verdicts=tuple(verdicts),
        rows=tuple(rows),
        data={table.name: finding.data for table, finding, _ in parts},
    )
