"""What the results site says of a record, whichever form it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lcn.evaluate.bootstrap import Interval
from lcn.evaluate.plots import Curve, NamedInterval, curves_svg, forest_svg, scatter_svg
from lcn.experiments.record import (
    CurvePanel,
    ExperimentRecord,
    ForestPanel,
    Panel,
    ScatterPanel,
    Verdict,
)


def page_name(record: ExperimentRecord) -> str:
    """The name of a record's page: experiment and dataset."""
    words = f"{record.experiment}-{record.origin.dataset}"
    if record.origin.quick:
        words += "-quick"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def draw(panel: Panel) -> str | None:
    """The panel as SVG; None where it is a table or holds nothing to draw."""
    if isinstance(panel, CurvePanel) and panel.lines:
        curves = [Curve(line.name, line.x, line.y) for line in panel.lines]
        return curves_svg(curves, panel.xlabel, panel.ylabel)
    if isinstance(panel, ForestPanel) and panel.bars:
        bars = [
            NamedInterval(bar.name, Interval(bar.estimate, bar.low, bar.high, float("nan")))
            for bar in panel.bars
        ]
        return forest_svg(bars, panel.xlabel, panel.zero)
    if isinstance(panel, ScatterPanel) and panel.clouds:
        return scatter_svg([Curve(each.name, each.x, each.y) for each in panel.clouds], panel.title)
    return None


def origin_lines(record: ExperimentRecord) -> list[tuple[str, str]]:
    """Where a record comes from: names and what stands beside them."""
    origin = record.origin
    rows = [
        ("command", origin.command),
        ("commit", f"{origin.commit} (lcn {origin.version})"),
        ("runs trained at", ", ".join(origin.run_commits)),
        ("dataset", f"{origin.dataset} {origin.fingerprint}".strip()),
        ("licence of the data", origin.licence),
        ("seeds", ", ".join(map(str, origin.seeds))),
        ("trials per row", str(origin.trials)),
        ("seeds of each trial", str(origin.tuning_seeds) if origin.tuning_seeds > 1 else ""),
        ("settings of every row", ", ".join(origin.settings)),
        ("K1, K2", "{}, {}".format(*origin.sizes) if origin.sizes else ""),
        ("machine", origin.machine),
        ("date", origin.date.strftime("%Y-%m-%d %H:%M UTC")),
        ("duration of this call", f"{origin.seconds:,.0f} s, finished runs reused"),
        ("training of the runs", f"{origin.run_seconds:,.0f} s" if origin.run_seconds else ""),
    ]
    return [(name, text) for name, text in rows if text]


def all_verdicts(
    records: Sequence[ExperimentRecord],
) -> list[tuple[ExperimentRecord, Verdict]]:
    """Claims with their records: what holds, what does not, what is open."""
    order = ("holds", "does not hold", "open")
    found = [(record, one) for record in records for one in record.verdicts]
    return sorted(found, key=lambda pair: order.index(pair[1].holding))


def count_verdicts(records: Sequence[ExperimentRecord]) -> str:
    """How many claims hold, in words."""
    holdings = [one.holding for _, one in all_verdicts(records)]
    counts = [f"{holdings.count(name)} {word}" for name, word in
              (("holds", "hold"), ("does not hold", "do not"), ("open", "are open"))]  # fmt: skip
    return f"Of {len(holdings)} claims {', '.join(counts)}."
