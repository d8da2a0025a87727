"""The results site: what a store's experiments found, published beside what was found before.

docs/<experiment>-<dataset>.md       a page per finding, with provenance
docs/what-holds.md                   every claim and its verdict
docs/pictures/<...>.svg              the pages' pictures
docs/records/<...>.json              the findings: a store stays on the machine that filled it,
                                     so pages are made of these, whatever machine found them
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lcn.errors import DataError
from lcn.evaluate.plots import as_file
from lcn.experiments.names import EXPERIMENTS
from lcn.experiments.record import (
    CurvePanel,
    ExperimentRecord,
    ScatterPanel,
    keep_fullest,
    load_record,
)
from lcn.experiments.report_html import render_site
from lcn.experiments.report_markdown import render_markdown, render_verdicts
from lcn.experiments.report_parts import draw, page_name
from lcn.files import write_whole
from lcn.report.page import write_page

VERDICTS = "what-holds.md"


def read_records(folder: Path, *, quick: bool = False) -> list[ExperimentRecord]:
    """The findings of a results store, or those published in a folder, by dataset and experiment.

    Args:
        folder: a store, or what `publish` was given.
        quick: whether quick looks count.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    found = _find(folder)
    kept = [record for record in found if quick or not record.origin.quick]
    if not kept:
        hint = "; with --quick quick looks count too" if found else ""
        raise DataError(
            f"{folder} holds no findings yet; run `lcn experiment table5 DATASET` first{hint}"
        )
    order = {name: place for place, name in enumerate(EXPERIMENTS)}
    return sorted(
        kept, key=lambda each: (each.origin.dataset, order.get(each.experiment, len(order)))
    )


def _find(folder: Path) -> list[ExperimentRecord]:
    """A folder's records; where a dataset was prepared again, its newest finding counts."""
    paths = sorted([*folder.glob("*/records/*.json"), *folder.glob("records/*.json")])
    found = sorted((load_record(path) for path in paths), key=lambda each: each.origin.date)
    newest = {(each.origin.dataset, each.experiment, each.origin.quick): each for each in found}
    return list(newest.values())


def publish(store: Path, docs: Path, *, quick: bool = False) -> list[str]:
    """Put a store's findings, if it has any, into `docs/records`; quick looks when asked.

    A published finding gives way to a newer one of as many runs or more and all of its rows. The
    numbers behind the panels (`data`) stay in the store, which keeps the files small.

    Returns:
        What stays as it was published, and why.

    Raises:
        DataError: a file cannot be read or written.
    """
    notes = []
    for record in _find(store):
        if record.origin.quick and not quick:
            continue
        path = docs / "records" / f"{page_name(record)}.json"
        if path.exists() and load_record(path).origin.date >= record.origin.date:
            continue
        if note := keep_fullest(path, record.model_copy(update={"data": {}})):
            notes.append(note)
    return notes


def write_site(
    records: Sequence[ExperimentRecord], html: Path, docs: Path | None = None
) -> list[Path]:
    """Write one HTML page of all findings and, with `docs`, a Markdown page of each.

    Args:
        records: of `read_records`.
        html: the page to write.
        docs: a folder for the Markdown pages, their pictures and the page of all verdicts.

    Returns:
        The pages written.

    Raises:
        DataError: a file cannot be written, or packages of the report are missing.
    """
    written = [write_page(html, render_site(records))]
    if docs is not None:
        for record in records:
            path = docs / f"{page_name(record)}.md"
            write_whole(path, render_markdown(record, _write_pictures(docs, record)))
            written.append(path)
        write_whole(docs / VERDICTS, render_verdicts(records))
        written.append(docs / VERDICTS)
    return written


def _write_pictures(docs: Path, record: ExperimentRecord) -> dict[int, str]:
    """The panels that a page shows as pictures: their places, and the files beside the page."""
    files = {}
    for place, panel in enumerate(record.panels):
        if not isinstance(panel, CurvePanel | ScatterPanel) or (svg := draw(panel)) is None:
            continue
        files[place] = f"pictures/{page_name(record)}-{place + 1}.svg"
        write_whole(docs / files[place], as_file(svg))
    return files
