"""Write a report: one HTML file that needs nothing else, light or dark, on a desk or a phone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lcn.errors import DataError
from lcn.evaluate.bootstrap import Interval
from lcn.evaluate.compare import Difference, holm
from lcn.evaluate.plots import NamedInterval, curves_svg, forest_svg, reliability_svg
from lcn.evaluate.replicate import METRICS
from lcn.evaluate.tables import TITLES, interval_text, p_value_text, seeds_text
from lcn.files import write_whole
from lcn.report.records import DemoReport

if TYPE_CHECKING:
    from jinja2 import Environment

_RISING = ("auc", "gauc")
_FALLING = ("log_loss", "ece")
_FORESTS = (("auc", "AUC"), ("gauc", "GAUC"), ("log_loss", "log loss (nats)"))


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell of a sortable table: what is shown, what is sorted by, how it is marked."""

    main: str
    detail: str = ""
    sort: str = ""
    mark: str = ""


def write_report(path: Path | str, report: DemoReport) -> Path:
    """Write the report page; the same report gives the same bytes.

    Args:
        path: the HTML file to write; its folder is made if missing.
        report: everything on the page.

    Raises:
        DataError: the optional packages of the report are missing, or the file cannot be written.
    """
    return write_page(Path(path), render_report(report))


def write_page(path: Path, page: str) -> Path:
    """Write a page, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        write_whole(path, page)
    except OSError as error:
        raise DataError(
            f"cannot write the report to {path}: {error.strerror}; free some space or choose "
            "another folder"
        ) from error
    return path


def render_report(report: DemoReport) -> str:
    """Render the report page as HTML text; see `write_report`."""
    environment = template_environment()
    from markupsafe import Markup

    # Pictures are our own SVG, whose texts were escaped when they were drawn.
    reliability = Markup(reliability_svg(report.reliability)) if report.reliability else None
    return environment.get_template("page.html").render(
        report=report,
        results=_results(report),
        differences=_differences(report),
        forests=[(title, Markup(svg)) for title, svg in _forests(report)],
        curves=[
            (plot.title, Markup(curves_svg(plot.curves, plot.xlabel, plot.ylabel)))
            for plot in report.curves
        ],
        reliability=reliability,
    )


def template_environment() -> Environment:
    """Return the environment that every page is rendered with.

    Raises:
        DataError: the optional packages of the report are missing.
    """
    try:
        import matplotlib  # noqa: F401  # only to fail here rather than in the middle
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise DataError(
            f"the report page needs {error.name}, which is not installed; "
            "install the optional packages: pip install 'lcn[report]'"
        ) from error
    environment = Environment(
        loader=PackageLoader("lcn.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        thousands=lambda value: f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
        percent=lambda share: f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%",
        day=lambda when: when.strftime("%Y-%m-%d"),
        minute=_minute,
        duration=_duration,
        seeds=seeds_text,
    )
    return environment


def _results(report: DemoReport) -> tuple[list[str], list[list[_Cell]]]:
    with_platt = any(result.platt_log_loss is not None for result in report.results)
    names = [*METRICS, *(["platt_log_loss"] if with_platt else [])]
    best = {name: _best(report, name) for name in (*_RISING, "log_loss")}
    rows = []
    for result in report.results:
        cells = [_Cell(result.run)]
        for name in names:
            interval = _interval_of(result, name)
            mark = "best" if interval and interval.estimate == best.get(name) else ""
            cells.append(_interval_cell(interval, name, mark))
        rows.append([*cells, _Cell(seeds_text(result.seeds))])
    return ["run", *(TITLES[name] for name in names), "seeds"], rows


def _differences(report: DemoReport) -> tuple[list[str], list[list[_Cell]]]:
    corrected = holm([one.auc.p_value for one in report.differences])
    rows = []
    for one, p_value in zip(report.differences, corrected, strict=True):
        cells = [_Cell(f"{one.other} − {one.reference}")]
        for name in (*_RISING, *_FALLING):
            difference = getattr(one, name)
            cells.append(_interval_cell(difference, name, _verdict(difference, name)))
        for value in (one.auc.p_value, float(p_value)):
            cells.append(_Cell(p_value_text(value), sort=_sort_key(value)))
        rows.append(cells)
    titles = (TITLES[name] for name in (*_RISING, *_FALLING))
    return ["difference", *titles, "p (AUC)", "p (AUC, Holm)"], rows


def _forests(report: DemoReport) -> list[tuple[str, str]]:
    if not report.differences:
        return []
    found = []
    for name, title in _FORESTS:
        rows = []
        for one in report.differences:
            part: Difference = getattr(one, name)
            interval = Interval(part.difference, part.low, part.high, part.standard_error)
            rows.append(NamedInterval(f"{one.other} − {one.reference}", interval))
        better = "right is better" if name in _RISING else "left is better"
        found.append((title, forest_svg(rows, f"difference in {title}; {better}", 0.0)))
    return found


def _interval_cell(interval: Interval | Difference | None, name: str, mark: str) -> _Cell:
    if interval is None:
        return _Cell("-")
    centre = interval.difference if isinstance(interval, Difference) else interval.estimate
    main, _, detail = interval_text(interval, name).partition(" [")
    if mark in ("better", "worse"):
        main = f"{main} {'▲' if centre > 0 else '▼'}"
    return _Cell(
        main.replace("-", "−"), detail.rstrip("]").replace("-", "−"), _sort_key(centre), mark
    )


def _verdict(difference: Difference, name: str) -> str:
    if not (difference.low > 0 or difference.high < 0):
        return "open"
    return "better" if (difference.low > 0) == (name in _RISING) else "worse"


def _best(report: DemoReport, name: str) -> float | None:
    values = [getattr(result.intervals, name).estimate for result in report.results]
    values = [value for value in values if not math.isnan(value)]
    if len(values) < 2:
        return None
    return max(values) if name in _RISING else min(values)


def _interval_of(result, name: str) -> Interval | None:
    return result.platt_log_loss if name == "platt_log_loss" else getattr(result.intervals, name)


def _sort_key(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _minute(when: datetime) -> str:
    zone = when.strftime(" %Z").rstrip()
    return when.strftime("%Y-%m-%d %H:%M") + zone


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
