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

from lcn.data.cache import clear_errors
from lcn.errors import DataError
from lcn.evaluate.plots import as_file
from lcn.experiments.names import EXPERIMENTS
from lcn.experiments.record import (
    CurvePanel,
    ExperimentRecord,
    ScatterPanel,
    count_runs,
    keep_fullest,
    load_if_readable,
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
        folder: a store, or the folder that `publish` filled.
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
    published = (folder / "records").is_dir()
    paths = sorted(folder.glob("records/*.json" if published else "*/records/*.json"))
    found = sorted((load_record(path) for path in paths), key=lambda each: each.origin.date)
    return list({_key(each): each for each in found}.values())


def _key(record: ExperimentRecord) -> tuple[str, str, bool]:
    return record.origin.dataset, record.experiment, record.origin.quick


def publish(store: Path, docs: Path, *, quick: bool = False) -> list[str]:
    """Put a store's findings into `docs/records`; quick looks when asked.

    A published finding gives way to a newer one of as many runs or more and all of its rows, and
    to an older one of more runs. The numbers behind the panels (`data`) stay in the store, which
    keeps the files small.

    Returns:
        What was not published, and why; an older finding of fewer runs needs no word.

    Raises:
        DataError: a file cannot be read or written.
    """
    found = [record for record in _find(store) if quick or not record.origin.quick]
    if not found:
        return [f"{store} holds nothing to publish; the pages show what was published before"]
    notes = []
    for record in found:
        path = docs / "records" / f"{page_name(record)}.json"
        published = load_if_readable(path)
        if published is not None and _key(published) != _key(record):
            other = f"{published.experiment} on {published.origin.dataset}"
            notes.append(f"not published: {path} is the finding of {other}; rename a dataset")
            continue
        newer = published is None or record.origin.date > published.origin.date
        if published is not None and not newer and count_runs(record) <= count_runs(published):
            continue
        with clear_errors(f"write {path}"):
            note = keep_fullest(path, record.model_copy(update={"data": {}}))
        if note:
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
        with clear_errors(f"write {docs}"):
            for record in records:
                path = docs / f"{page_name(record)}.md"
                write_whole(path, render_markdown(record, _write_pictures(docs, record)))
                written.append(path)
            write_whole(docs / VERDICTS, render_verdicts(records))
        written.append(docs / VERDICTS)
    return written


def _write_pictures(docs: Path, record: ExperimentRecord) -> dict[int, str]:
    """The panels that a page shows as pictures: their places, and the files beside the page."""
    name, files = page_name(record), {}
    for place, panel in enumerate(record.panels):
        if not isinstance(panel, CurvePanel | ScatterPanel) or (svg := draw(panel)) is None:
            continue
        files[place] = f"pictures/{name}-{place + 1}.svg"
        write_whole(docs / files[place], as_file(svg))
    for path in docs.glob(f"pictures/{name}-*.svg"):
        # A longer name may begin with this one; a number follows this one alone.
        if path.stem[len(name) + 1 :].isdigit() and f"pictures/{path.name}" not in files.values():
            path.unlink()
    return files
