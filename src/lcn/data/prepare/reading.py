"""Reading every table of a mapping into the work database, and judging its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lcn.data.mapping import Events, Impressions, Items, Mapping, Source, Users
from lcn.data.prepare.catalogue import (
    Catalogue,
    check_reached,
    make_lookup,
    reached_item_columns,
    stage_catalogue,
    uses_items,
)
from lcn.data.prepare.engine import Engine
from lcn.data.prepare.inputs import Input, bind, key_kind, open_input, with_items
from lcn.data.prepare.rejects import DUPLICATE, check_share, count_rejected, write_rejected
from lcn.data.prepare.staging import (
    KeyKinds,
    Query,
    Staged,
    drop_repeated_ids,
    events_query,
    impressions_query,
    stage,
)
from lcn.data.prepare.times import Bounds, bounds_of
from lcn.data.prepare.watch import Watch

Log = Events | Impressions
LogT = TypeVar("LogT", Events, Impressions)
TableT = TypeVar("TableT", bound=Source)


@dataclass(frozen=True, slots=True)
class Read:
    """Everything that was read."""

    items: Catalogue
    users: Catalogue
    events: list[tuple[Staged, Events]]
    impressions: list[tuple[Staged, Impressions]]


@dataclass(slots=True)
class Reader:
    """Reads the tables of a mapping.

    Args:
        engine: where to.
        mapping: what.
        base: folder that relative file names start from.
        folder: dataset folder, for rows left out.
        watch: is told the stages.
    """

    engine: Engine
    mapping: Mapping
    base: Path
    folder: Path
    watch: Watch
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    """table label -> reason -> rows left out"""

    def read(self) -> Read:
        """Read items, then logs (whose rules may use items).

        Raises:
            DataError: files, columns or expressions are wrong, or too many rows are.
        """
        engine, mapping = self.engine, self.mapping
        bounds = bounds_of(engine, mapping.limits)
        items_in, users_in = self._open(mapping.items, "items"), self._open(mapping.users, "users")
        events_in = self._open(mapping.events, "events")
        shown_in = self._open(mapping.impressions, "impressions")
        reached = reached_item_columns(mapping)
        check_reached(items_in, reached)
        item_keys = [bind(engine, table, "key", mapped.key) for table, mapped in items_in]
        for table, mapped in (*events_in, *shown_in):
            item_keys.append(bind(engine, table, "item", mapped.item))
        item_kind = key_kind(item_keys)
        with self.watch.stage("read items") as step:
            items = stage_catalogue(engine, items_in, "item", item_kind, reached)
            step.rows = self._judge_catalogue(items, mapping.items, bounds)
            if reached:
                make_lookup(engine, reached)
        events_in = [(self._joined(*pair, item_kind), pair[1]) for pair in events_in]
        shown_in = [(self._joined(*pair, item_kind), pair[1]) for pair in shown_in]
        user_keys = [bind(engine, table, "key", mapped.key) for table, mapped in users_in]
        for table, mapped in (*events_in, *shown_in):
            user_keys.append(bind(engine, table, "user", mapped.user))
        kinds = KeyKinds(user=key_kind(user_keys), item=item_kind)
        with self.watch.stage("read users") as step:
            users = stage_catalogue(engine, users_in, "user", kinds.user)
            step.rows = self._judge_catalogue(users, mapping.users, bounds)
        return Read(
            items=items,
            users=users,
            events=self._read_logs(events_in, bounds, kinds),
            impressions=self._read_logs(shown_in, bounds, kinds),
        )

    def add_duplicates(self, duplicates: dict[str, int]) -> None:
        """Count rows dropped as duplicates, by table."""
        for label, count in duplicates.items():
            if count:
                reasons = self.rejected[label]
                reasons[DUPLICATE] = reasons.get(DUPLICATE, 0) + count

    def _open(self, tables: Sequence[TableT], kind: str) -> list[tuple[Input, TableT]]:
        opened = []
        for number, mapped in enumerate(tables):
            label = kind if len(tables) == 1 else f"{kind}_{number + 1}"
            place = f"{kind}.{number}"
            opened.append((open_input(self.engine, mapped, label, place, self.base), mapped))
        return opened

    def _joined(self, table: Input, mapped: Log, item_kind: str) -> Input:
        if not uses_items(mapped):
            return table
        return with_items(table, bind(self.engine, table, "item", mapped.item), item_kind)

    def _read_logs(
        self, tables: list[tuple[Input, LogT]], bounds: Bounds, kinds: KeyKinds
    ) -> list[tuple[Staged, LogT]]:
        logs = []
        for number, (table, mapped) in enumerate(tables):
            with self.watch.stage(f"read {table.label}") as step:
                query = self._query(table, mapped, bounds, kinds)
                staged = stage(self.engine, query, number)
                step.rows = staged.rows
                self._judge(staged, mapped, bounds)
                self.add_duplicates({staged.name: drop_repeated_ids(self.engine, staged)})
            logs.append((staged, mapped))
        return logs

    def _query(self, table: Input, mapped: Log, bounds: Bounds, kinds: KeyKinds) -> Query:
        if isinstance(mapped, Events):
            return events_query(self.engine, table, mapped, bounds, kinds)
        return impressions_query(self.engine, table, mapped, bounds, kinds)

    def _judge_catalogue(
        self, catalogue: Catalogue, tables: Sequence[Items | Users], bounds: Bounds
    ) -> int:
        for staged, mapped in zip(catalogue.staged, tables, strict=True):
            self._judge(staged, mapped, bounds)
        self.add_duplicates(catalogue.repeated)
        return sum(staged.rows for staged in catalogue.staged)

    def _judge(self, staged: Staged, mapped: Log | Items | Users, bounds: Bounds) -> None:
        """Count what cannot be used; fail if it is too much, else write it aside."""
        rejected = count_rejected(self.engine, staged)
        self.rejected[staged.name] = dict(rejected.reasons)
        if not rejected.reasons:
            return
        limit = self.mapping.limits.max_rejected_share
        check_share(self.engine, staged, mapped, rejected, limit, bounds)
        write_rejected(self.engine, staged, self.folder, self.base)
