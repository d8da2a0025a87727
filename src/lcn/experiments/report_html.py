"""All records as one self-contained HTML page with pictures and tables that sort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lcn.experiments.record import Cell, ExperimentRecord, TablePanel
from lcn.experiments.report_parts import (
    all_verdicts,
    count_verdicts,
    draw,
    origin_lines,
    page_name,
)
from lcn.report.page import template_environment

TITLE = "LCN: the paper's experiments on open data"
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
        for record, one in all_verdicts(records)
    ]
    return environment.get_template("site.html").render(
        title=TITLE,
        summary=(
            "Every row of a table tries as many settings as any other (how many, stands with "
            "each), judged by validation; intervals over users and seeds. The paper's own "
            "numbers are quoted beside ours; its data is not open."
        ),
        counts=count_verdicts(records),
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
        elif (picture := draw(panel)) is not None:
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
        origin=origin_lines(record),
    )


def _shown(cell: Cell) -> _Shown:
    sort = "" if cell.value is None else repr(cell.value)
    text = cell.text.replace("-", "−") if cell.value is not None else cell.text
    return _Shown(text, cell.detail, sort, cell.mark)
