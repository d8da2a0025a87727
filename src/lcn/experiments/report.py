"""The results site: every record as Markdown pages with provenance, and as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lcn.errors import DataError
from lcn.evaluate.bootstrap import Interval
from lcn.evaluate.plots import Curve, NamedInterval, curves_svg, forest_svg, scatter_svg
from lcn.experiments.names import EXPERIMENTS
from lcn.experiments.record import (
    Cell,
    CurvePanel,
    ExperimentRecord,
    ForestPanel,
    Panel,
    ScatterPanel,
    TablePanel,
    Verdict,
    load_record,
)
from lcn.files import write_whole
from lcn.report.page import template_environment, write_page

TITLE = "LCN: the paper's experiments on open data"
VERDICTS = "what-holds.md"
_POINTS = 12
"""Points of a curve that a Markdown table shows at most."""
_LEGEND = (
    "LCN in a claim is the pyramid with CRP, as in the paper; *with responses first* it is the "
    "recipe `lcn`, which learns from responses instead of CRP."
)
_HELD = {"holds": "better", "does not hold": "worse", "open": "open"}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A cell as the page's sortable tables take it."""

    main: str
    detail: str = ""
    sort: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class _Section:
    """One record as the page shows it."""

    anchor: str
    short: str
    title: str
    summary: str
    quick: bool
    pictures: list[tuple[str, object, str]]
    tables: list[tuple[str, tuple[str, ...], list[list[_Shown]], str]]
    origin: list[tuple[str, str]]


def write_site(
    store: Path, html: Path, docs: Path | None = None, *, quick: bool = False
) -> list[Path]:
    """Write what the store's records say.

    Args:
        store: the results store.
        html: the page to write.
        docs: a folder for one Markdown page per record and one of all verdicts; None leaves
            them out.
        quick: whether quick looks count.

    Returns:
        The files written.

    Raises:
        DataError: there is no record, one cannot be read, or a file cannot be written.
    """
    records = read_records(store, quick=quick)
    written = [write_page(html, render_site(records))]
    if docs is not None:
        for record in records:
            path = docs / f"{page_name(record)}.md"
            write_whole(path, render_markdown(record))
            written.append(path)
        write_whole(docs / VERDICTS, render_verdicts(records))
        written.append(docs / VERDICTS)
    return written


def read_records(store: Path, *, quick: bool = False) -> list[ExperimentRecord]:
    """The records of a store, in the order of the experiments.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    found = [load_record(path) for path in sorted(store.glob("*/records/*.json"))]
    kept = [record for record in found if quick or not record.origin.quick]
    if not kept:
        hint = "; with --quick quick looks count too" if found else ""
        raise DataError(
            f"{store} holds no findings yet; run `lcn experiment table5 DATASET` first{hint}"
        )
    # A dataset that was prepared again has a store of its own; its newest finding counts.
    newest = {
        (each.origin.dataset, each.experiment, each.origin.quick): each
        for each in sorted(kept, key=lambda each: each.origin.date)
    }
    order = {name: place for place, name in enumerate(EXPERIMENTS)}
    return sorted(
        newest.values(),
        key=lambda each: (each.origin.dataset, order.get(each.experiment, len(order))),
    )


def page_name(record: ExperimentRecord) -> str:
    """The name of a record's page: experiment and dataset."""
    words = f"{record.experiment}-{record.origin.dataset}"
    if record.origin.quick:
        words += "-quick"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def render_markdown(record: ExperimentRecord) -> str:
    """One record as a Markdown page."""
    origin = record.origin
    lines = [f"# {record.title} ({origin.dataset})", ""]
    if origin.quick:
        lines += ["**A quick look: few users, one epoch, few trials and seeds. Not a result.**", ""]
    if record.summary:
        lines += [record.summary, ""]
    for panel in record.panels:
        lines += _markdown_panel(panel)
    if record.verdicts:
        lines += ["## What holds and what does not", ""]
        lines += _markdown_table(
            ("claim", "verdict", "evidence"),
            [(one.claim, one.holding, one.evidence) for one in record.verdicts],
        )
    lines += ["## Provenance", ""]
    lines += _markdown_table(("", ""), [(name, f"`{text}`") for name, text in _origin(record)])
    return "\n".join(lines).rstrip() + "\n"


def render_verdicts(records: Sequence[ExperimentRecord]) -> str:
    """All claims of all records on one Markdown page."""
    lines = ["# What holds and what does not", "", _counted(records), "", _LEGEND, ""]
    lines += _markdown_table(
        ("claim", "verdict", "dataset", "evidence", "page"),
        [
            (one.claim, one.holding, record.origin.dataset, one.evidence,
             f"[{record.experiment}]({page_name(record)}.md)")
            for record, one in _verdicts(records)
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


def render_site(records: Sequence[ExperimentRecord]) -> str:
    """All records as one HTML page.

    Raises:
        DataError: the optional packages of the report are missing.
    """
    environment = template_environment()
    rows = [
        [
            _Shown(one.claim),
            _Shown(one.holding, mark=_HELD[one.holding]),
            _Shown(record.origin.dataset),
            _Shown(record.experiment),
            _Shown(one.evidence),
        ]
        for record, one in _verdicts(records)
    ]
    return environment.get_template("site.html").render(
        title=TITLE,
        summary=(
            "Every row of a table tries as many settings as any other (how many, stands with "
            "each), judged by validation; intervals over users and seeds. The paper's own "
            "numbers are quoted beside ours; its data is not open."
        ),
        counts=_counted(records),
        verdicts=(("claim", "verdict", "dataset", "experiment", "evidence"), rows),
        sections=[_section(record) for record in records],
    )


def _section(record: ExperimentRecord) -> _Section:
    from markupsafe import Markup

    pictures, tables = [], []
    for panel in record.panels:
        if isinstance(panel, TablePanel):
            rows = [[_shown(cell) for cell in row] for row in panel.rows]
            tables.append((panel.title, panel.head, rows, panel.note))
        elif (picture := _picture(panel)) is not None:
            # Our own SVG, whose texts were escaped when it was drawn.
            pictures.append((panel.title, Markup(picture), panel.note))
    return _Section(
        anchor=page_name(record),
        short=f"{record.experiment}, {record.origin.dataset}",
        title=f"{record.title} ({record.origin.dataset})",
        summary=record.summary,
        quick=record.origin.quick,
        pictures=pictures,
        tables=tables,
        origin=_origin(record),
    )


def _picture(panel: Panel) -> str | None:
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


def _shown(cell: Cell) -> _Shown:
    sort = "" if cell.value is None else repr(cell.value)
    text = cell.text.replace("-", "−") if cell.value is not None else cell.text
    return _Shown(text, cell.detail, sort, cell.mark)


def _markdown_panel(panel: Panel) -> list[str]:
    lines = [f"## {panel.title}", ""]
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
    else:
        lines += ["A picture: see the HTML page (`lcn experiment report`).", ""]
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


def _origin(record: ExperimentRecord) -> list[tuple[str, str]]:
    origin = record.origin
    rows = [
        ("command", origin.command),
        ("commit", f"{origin.commit} (lcn {origin.version})"),
        ("runs trained at", ", ".join(origin.run_commits)),
        ("dataset", f"{origin.dataset} {origin.fingerprint}".strip()),
        ("licence of the data", origin.licence),
        ("seeds", ", ".join(map(str, origin.seeds))),
        ("trials per row", str(origin.trials)),
        ("settings of every row", ", ".join(origin.settings)),
        ("K1, K2", "{}, {}".format(*origin.sizes) if origin.sizes else ""),
        ("machine", origin.machine),
        ("date", origin.date.strftime("%Y-%m-%d %H:%M UTC")),
        ("duration of this call", f"{origin.seconds:,.0f} s, finished runs reused"),
        ("training of the runs", f"{origin.run_seconds:,.0f} s" if origin.run_seconds else ""),
    ]
    return [(name, text) for name, text in rows if text]


def _verdicts(
    records: Sequence[ExperimentRecord],
) -> list[tuple[ExperimentRecord, Verdict]]:
    order = ("holds", "does not hold", "open")
    found = [(record, one) for record in records for one in record.verdicts]
    return sorted(found, key=lambda pair: order.index(pair[1].holding))


def _counted(records: Sequence[ExperimentRecord]) -> str:
    holdings = [one.holding for _, one in _verdicts(records)]
    counts = [f"{holdings.count(name)} {word}" for name, word in
              (("holds", "hold"), ("does not hold", "do not"), ("open", "are open"))]  # fmt: skip
    return f"Of {len(holdings)} claims {', '.join(counts)}."
