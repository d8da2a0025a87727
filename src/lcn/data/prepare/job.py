"""The whole preparation, from a mapping to a dataset folder, in one straight line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lcn.data.mapping import Impressions, Mapping
from lcn.data.prepare.codes import Codes, number_everything
from lcn.data.prepare.engine import Engine, explained
from lcn.data.prepare.events import store_events
from lcn.data.prepare.files import seal
from lcn.data.prepare.impressions import (
    Shown,
    note_moments,
    sort_impressions,
    split_rows,
    split_times,
)
from lcn.data.prepare.partial import partial_folder
from lcn.data.prepare.reading import Read, Reader
from lcn.data.prepare.staging import Staged
from lcn.data.prepare.tables import Fields, TableWriter, translate, write_samples
from lcn.data.prepare.vocabulary import Seen, check_field_names
from lcn.data.prepare.watch import Stage, Watch
from lcn.errors import DataError
from lcn.schema import DOMAINS, Count, Manifest, Split, SplitTimes, write_manifest


def prepare(
    mapping: Mapping,
    folder: Path,
    *,
    base: Path | None = None,
    threads: int | None = None,
    memory_limit: str = "2GB",
    force: bool = False,
    progress: bool = False,
    listener: Callable[[Stage], None] | None = None,
) -> Manifest:
    """Turn logs into a dataset folder; the same logs and mapping give the same bytes.

    Works in `<folder>.partial` and renames it when everything is written, so a folder without
    that ending is whole. What the folder holds: see `lcn.schema`.

    Args:
        mapping: which logs, and which column is what.
        folder: where the dataset goes.
        base: folder that relative file names start from; default: the working folder.
        threads: None for as many as there are processors.
        memory_limit: of the SQL engine, such as "2GB"; the process needs up to 1 GB more.
        force: replace a dataset that is already there.
        progress: show stages on stderr.
        listener: called after each stage.

    Returns:
        The manifest, as written.

    Raises:
        DataError: the logs, the mapping or the disk do not allow it; the message says what to do.
    """
    with (
        partial_folder(folder, force=force) as partial,
        Watch(progress=progress, listener=listener) as watch,
    ):
        (partial / "work").mkdir()
        engine = Engine(
            partial / "work",
            timezone=mapping.timezone,
            threads=threads,
            memory_limit=memory_limit,
        )
        try:
            with explained("preparing"):
                job = _Job(engine, mapping, base or Path.cwd(), partial, watch)
                manifest = job.run()
        finally:
            engine.close()
        return manifest


@dataclass(slots=True)
class _Job:
    engine: Engine
    mapping: Mapping
    base: Path
    folder: Path
    watch: Watch
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = Reader(self.engine, self.mapping, self.base, self.folder, self.watch)

    def run(self) -> Manifest:
        """Read, number, sort, count and write, one stage after another."""
        engine = self.engine
        self._check_names()
        read = self.reader.read()
        with self.watch.stage("number users, items, categories") as step:
            codes = number_everything(engine, read)
            step.rows = codes.users + codes.items
        shown, times = self._sort_impressions(read.impressions, codes)
        rows = split_rows(shown.column("time"), times)
        seen = Seen(codes, times.validation_from)
        self._count_training(seen, shown, rows["train"][1])
        stored, delays = {}, set()
        for domain in DOMAINS:
            with self.watch.stage(f"sort {domain} events, cut histories") as step:
                place = self.folder / "events" / domain
                store = store_events(engine, read.events, codes, domain, shown, seen, place)
                stored[domain] = step.rows = store.rows
                self.reader.add_duplicates(store.duplicates)
                delays |= store.delays
        if not any(stored.values()):
            raise DataError(
                "no event can be used: the event tables are empty, or `where` leaves no row; "
                f"there is no history to learn from (left out: {self.reader.rejected})"
            )
        fields = self._write_fields(read, codes, seen, shown, rows)
        count = Count(
            users=codes.users + 1,
            items=codes.items + 1,
            events=stored,
            samples={split: last - first for split, (first, last) in rows.items()},
            positives=_positives(shown, rows),
        )
        return self._finish(fields, times, count, delays)

    def _check_names(self) -> None:
        mapping = self.mapping
        if not mapping.events or not mapping.impressions:
            raise DataError("the mapping needs at least one events and one impressions table")
        for group in ("context", "candidate"):
            names = {tuple(sorted(getattr(table, group))) for table in mapping.impressions}
            if len(names) > 1:
                raise DataError(
                    f"all impression tables must map the same {group} fields, got "
                    + " and ".join(str(list(fields)) for fields in sorted(names))
                )
        check_field_names(
            {
                "event context": tuple(mapping.events[0].context),
                "request context": tuple(n for t in mapping.impressions for n in t.context),
                "candidate": tuple(n for t in mapping.impressions for n in t.candidate),
                "item": tuple(n for t in mapping.items for n in t.fields),
                "profile": tuple(n for t in mapping.users for n in t.fields),
            }
        )

    def _sort_impressions(
        self, tables: list[tuple[Staged, Impressions]], codes: Codes
    ) -> tuple[Shown, SplitTimes]:
        with self.watch.stage("sort impressions") as step:
            folder = self.folder / "work" / "impressions"
            shown = sort_impressions(self.engine, tables, codes, folder)
            step.rows = shown.rows
            self.reader.add_duplicates(shown.duplicates)
            rule, zone = self.mapping.split, self.mapping.timezone
            times = split_times(self.engine, rule, zone, shown.column("time"))
            note_moments(self.engine, shown)
        return shown, times

    def _count_training(self, seen: Seen, shown: Shown, rows: int) -> None:
        for first in range(0, rows, 1 << 20):
            block = slice(first, min(first + (1 << 20), rows))
            names = ("user", "item", "context", "candidate")
            seen.count_impressions(*(np.asarray(shown.column(name)[block]) for name in names))

    def _write_fields(
        self,
        read: Read,
        codes: Codes,
        seen: Seen,
        shown: Shown,
        rows: dict[Split, tuple[int, int]],
    ) -> Fields:
        with self.watch.stage("vocabularies, items, users") as step:
            min_count = self.mapping.limits.min_count
            writer = TableWriter(self.engine, codes, seen, min_count, self.folder)
            fields = writer.write_fields(read.items, read.users)
            step.rows = codes.users + codes.items
        with self.watch.stage("context and samples") as step:
            for domain in DOMAINS:
                translate(self.folder / "events" / domain / "context.npy", fields.event)
            has_truth = any(t.probability is not None for t in self.mapping.impressions)
            write_samples(shown, rows, fields, self.folder / "samples", has_truth)
            step.rows = shown.rows
        return fields

    def _finish(
        self, fields: Fields, times: SplitTimes, count: Count, delays: set[int]
    ) -> Manifest:
        self.engine.close()
        shutil.rmtree(self.folder / "work")
        with self.watch.stage("checksums") as step:
            manifest = Manifest(
                name=self.mapping.name,
                licence=self.mapping.licence,
                item_fields=fields.item,
                event_context=tuple(v.field for v in fields.event),
                request_context=tuple(v.field for v in fields.request),
                candidate_fields=tuple(v.field for v in fields.candidate),
                profile_fields=fields.profile,
                split=times,
                count=count,
                rejected={
                    name: dict(sorted(r.items())) for name, r in self.reader.rejected.items()
                },
                mapping=_resolved(self.mapping),
                checksums=seal(self.folder),
                late_events=len(delays) > 1,
                known_after=delays.pop() if len(delays) == 1 else 0,
            )
            step.rows = len(manifest.checksums)
            write_manifest(self.folder, manifest)
        return manifest


def _positives(shown: Shown, rows: dict[Split, tuple[int, int]]) -> dict[str, int]:
    label_S = shown.column("label")
    return {
        split: int(np.count_nonzero(label_S[first:last])) for split, (first, last) in rows.items()
    }


def _resolved(mapping: Mapping) -> dict[str, Any]:
    """Return the mapping with every default; files sorted, since their order says nothing."""
    tree: dict[str, Any] = mapping.model_dump(mode="json")
    for kind in ("events", "impressions", "items", "users"):
        for table in tree[kind]:
            table["files"] = sorted(table["files"])
    return tree
