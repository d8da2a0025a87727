"""Records as Markdown pages with provenance, and one page of all verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lcn.experiments.record import (
    Cell,
    CurvePanel,
    ExperimentRecord,
    ForestPanel,
    Panel,
    TablePanel,
)
from lcn.experiments.report_parts import all_verdicts, count_verdicts, origin_lines, page_name

_POINTS = 12
"""Points of a curve that a table shows at most."""
_LEGEND = (
    "LCN in a claim is the pyramid with CRP, as in the paper; *with responses first* it is the "
    "recipe `lcn`, which learns from responses instead of CRP."
)


def render_markdown(record: ExperimentRecord, pictures: Mapping[int, str] | None = None) -> str:
    """One record as a Markdown page.

    Args:
        record: what was found.
        pictures: files of panels' pictures, relative to the page, by the panel's place.
    """
    files = pictures or {}
    origin = record.origin
    lines = [f"# {record.title} ({origin.dataset})", ""]
    if origin.quick:
        lines += ["**A quick look: few users, one epoch, few trials and seeds. Not a result.**", ""]
    if record.summary:
        lines += [record.summary, ""]
    for place, panel in enumerate(record.panels):
        lines += _markdown_panel(panel, files.get(place))
    if record.verdicts:
        lines += ["## What holds and what does not", ""]
        lines += _markdown_table(
            ("claim", "verdict", "evidence"),
            [(one.claim, one.holding, one.evidence) for one in record.verdicts],
        )
    lines += ["## Provenance", ""]
    lines += _markdown_table(("", ""), [(name, f"`{text}`") for name, text in origin_lines(record)])
    return "\n".join(lines).rstrip() + "\n"


def render_verdicts(records: Sequence[ExperimentRecord]) -> str:
    """All claims of all records on one Markdown page."""
    lines = ["# What holds and what does not", "", count_verdicts(records), "", _LEGEND, ""]
    lines += _markdown_table(
        ("claim", "verdict", "dataset", "evidence", "page"),
        [
            (one.claim, one.holding, record.origin.dataset, one.evidence,
             f"[{record.experiment}]({page_name(record)}.md)")
            for record, one in all_verdicts(records)
        ],
    )  # fmt: skip
    lines += ["## What was run", ""]
    lines += _markdown_table(
        ("page", "dataset", "rows", "seeds", "settings tried per row"),
        [
            (f"[{record.experiment}]({page_name(record)}.md)", record.origin.dataset,
             str(sum(1 for row in record.rows if row.runs) or "-"),
             str(len(record.origin.seeds)), str(record.origin.trials))
            for record in records
        ],
    )  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _markdown_panel(panel: Panel, picture: str | None) -> list[str]:
    lines = [f"## {panel.title}", ""]
    if picture is not None:
        lines += [f"![{panel.title}]({picture})", ""]
    if isinstance(panel, TablePanel):
        rows = [[_markdown_cell(cell) for cell in row] for row in panel.rows]
        lines += _markdown_table(panel.head, rows)
    elif isinstance(panel, ForestPanel):
        # The same numbers stand in the table of differences.
        if panel.zero is not None:
            return []
        rows = [
            (bar.name, f"{bar.estimate:.3f}", f"{bar.low:.3f} to {bar.high:.3f}")
            for bar in panel.bars
        ]
        lines += _markdown_table(("", panel.xlabel, "interval"), rows)
    elif isinstance(panel, CurvePanel):
        lines += _curve_table(panel)
    elif picture is None:
        lines += ["The points of this picture were not kept.", ""]
    if panel.note:
        lines += [panel.note, ""]
    return lines


def _curve_table(panel: CurvePanel) -> list[str]:
    if not panel.lines:
        return []
    # Lines need not have the same points: a system that was not trained has fewer.
    x = sorted({value for line in panel.lines for value in line.x})
    step = -(-len(x) // _POINTS)
    shown = [x[place] for place in sorted({*range(0, len(x), step), len(x) - 1})]
    head = (f"{panel.ylabel} by {panel.xlabel}", *(f"{value:g}" for value in shown))
    rows = []
    for line in panel.lines:
        y_of = dict(zip(line.x, line.y, strict=True))
        rows.append(
            (line.name, *(f"{y_of[value]:.4f}" if value in y_of else "-" for value in shown))
        )
    return _markdown_table(head, rows)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.mark == "best" else cell.text
    if cell.mark == "quoted":
        text = f"*{cell.text}*"
    return f"{text} [{cell.detail}]" if cell.detail else text


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    return [line(head), "|---" * len(head) + "|", *(line(row) for row in rows), ""]
