"""The whole preparation, from a mapping to a dataset folder, in one straight line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lcn.data.mapping import Events, Impressions, Items, Mapping, Source, Users
from lcn.data.prepare.catalogue import (
    Catalogue,
    check_reached,
    make_lookup,
    reached_item_columns,
    stage_catalogue,
    uses_items,
)
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
from lcn.data.prepare.inputs import Input, bind, open_input, with_items
from lcn.data.prepare.partial import partial_folder
from lcn.data.prepare.rejects import DUPLICATE, check_share, count_rejected, write_rejected
from lcn.data.prepare.staging import (
    Query,
    Staged,
    drop_repeated_ids,
    events_query,
    impressions_query,
    stage,
)
from lcn.data.prepare.tables import Fields, TableWriter, translate, write_samples
from lcn.data.prepare.times import Bounds, bounds_of
from lcn.data.prepare.vocabulary import Seen, check_field_names
from lcn.data.prepare.watch import Stage, Watch
from lcn.errors import DataError
from lcn.schema import DOMAINS, Count, Manifest, Split, SplitTimes, write_manifest

Log = Events | Impressions


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
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)

    def run(self) -> Manifest:
        mapping, engine = self.mapping, self.engine
        self._check_names()
        bounds = bounds_of(engine, mapping.limits)
        items, users = self._read_catalogues(bounds)
        events = self._read_logs(mapping.events, "events", bounds)
        impressions = self._read_logs(mapping.impressions, "impressions", bounds)
        if not any(staged.rows for staged, _ in events):
            raise DataError("the event tables are empty: there is no history to learn from")
        with self.watch.stage("number users, items, categories") as step:
            codes = number_everything(engine, events, impressions, items, users)
            step.rows = codes.users + codes.items
        shown, times = self._sort_impressions(impressions, codes)
        rows = split_rows(shown.column("time"), times)
        seen = Seen(codes, times.validation_from)
        self._count_training(seen, shown, rows["train"][1])
        stored = {}
        for domain in DOMAINS:
            with self.watch.stage(f"sort {domain} events, cut histories") as step:
                place = self.folder / "events" / domain
                store = store_events(engine, events, codes, domain, shown, seen, place)
                stored[domain] = step.rows = store.rows
                self._add_duplicates(store.duplicates)
        fields = self._write_fields(items, users, codes, seen, shown, rows)
        count = Count(
            users=codes.users + 1,
            items=codes.items + 1,
            events=stored,
            samples={split: last - first for split, (first, last) in rows.items()},
            positives=_positives(shown, rows),
        )
        return self._finish(fields, times, count)

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

    def _open(self, tables: Sequence[Any], kind: str) -> list[tuple[Input, Any]]:
        opened = []
        for number, mapped in enumerate(tables):
            label = kind if len(tables) == 1 else f"{kind}_{number + 1}"
            opened.append(
                (open_input(self.engine, mapped, label, f"{kind}.{number}", self.base), mapped)
            )
        return opened

    def _read_catalogues(self, bounds: Bounds) -> tuple[Catalogue, Catalogue]:
        reached = reached_item_columns(self.mapping)
        with self.watch.stage("read items and users") as step:
            item_inputs: list[tuple[Input, Items]] = self._open(self.mapping.items, "items")
            check_reached(item_inputs, reached)
            items = stage_catalogue(self.engine, item_inputs, "item", reached)
            user_inputs: list[tuple[Input, Users]] = self._open(self.mapping.users, "users")
            users = stage_catalogue(self.engine, user_inputs, "user")
            if reached:
                make_lookup(self.engine, reached)
            for catalogue, tables in ((items, self.mapping.items), (users, self.mapping.users)):
                for staged, mapped in zip(catalogue.staged, tables, strict=True):
                    self._judge(staged, mapped, bounds)
                    step.rows += staged.rows
                self._add_duplicates(catalogue.repeated)
        return items, users

    def _read_logs(
        self, tables: Sequence[Any], kind: str, bounds: Bounds
    ) -> list[tuple[Staged, Any]]:
        logs = []
        for number, (opened, mapped) in enumerate(self._open(tables, kind)):
            table = opened
            if uses_items(mapped):
                table = with_items(opened, bind(self.engine, opened, "item", mapped.item))
            with self.watch.stage(f"read {table.label}") as step:
                query = self._query(table, mapped, bounds)
                staged = stage(self.engine, query, number)
                step.rows = staged.rows
                self._judge(staged, mapped, bounds)
                self._add_duplicates({staged.name: drop_repeated_ids(self.engine, staged)})
            logs.append((staged, mapped))
        return logs

    def _query(self, table: Input, mapped: Log, bounds: Bounds) -> Query:
        if isinstance(mapped, Events):
            return events_query(self.engine, table, mapped, bounds)
        return impressions_query(self.engine, table, mapped, bounds)

    def _judge(self, staged: Staged, mapped: Source, bounds: Bounds) -> None:
        """Count what cannot be used; fail if it is too much, else write it aside."""
        rejected = count_rejected(self.engine, staged)
        self.rejected[staged.name] = dict(rejected.reasons)
        if not rejected.reasons:
            return
        limit = self.mapping.limits.max_rejected_share
        check_share(self.engine, staged, mapped, rejected, limit, bounds)
        write_rejected(self.engine, staged, self.folder)

    def _add_duplicates(self, duplicates: dict[str, int]) -> None:
        for label, count in duplicates.items():
            if count:
                reasons = self.rejected[label]
                reasons[DUPLICATE] = reasons.get(DUPLICATE, 0) + count

    def _sort_impressions(
        self, tables: list[tuple[Staged, Impressions]], codes: Codes
    ) -> tuple[Shown, SplitTimes]:
        with self.watch.stage("sort impressions") as step:
            folder = self.folder / "work" / "impressions"
            shown = sort_impressions(self.engine, tables, codes, folder)
            step.rows = shown.rows
            self._add_duplicates(shown.duplicates)
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
        items: Catalogue,
        users: Catalogue,
        codes: Codes,
        seen: Seen,
        shown: Shown,
        rows: dict[Split, tuple[int, int]],
    ) -> Fields:
        with self.watch.stage("vocabularies, items, users") as step:
            min_count = self.mapping.limits.min_count
            writer = TableWriter(self.engine, codes, seen, min_count, self.folder)
            fields = writer.write_fields(items, users)
            step.rows = codes.users + codes.items
        with self.watch.stage("context and samples") as step:
            for domain in DOMAINS:
                translate(self.folder / "events" / domain / "context.npy", fields.event)
            has_truth = any(t.probability is not None for t in self.mapping.impressions)
            write_samples(shown, rows, fields, self.folder / "samples", has_truth)
            step.rows = shown.rows
        return fields

    def _finish(self, fields: Fields, times: SplitTimes, count: Count) -> Manifest:
        import shutil

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
                rejected={name: dict(sorted(r.items())) for name, r in self.rejected.items()},
                mapping=_resolved(self.mapping),
                checksums=seal(self.folder),
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
