"""Numbers for texts: addresses of users and items, codes of categories.

A *code* numbers every value a category takes anywhere, from 1 in order of (length, text); 0 is
"no value". Which of them a model may know (the vocabulary) is decided later, from training days.
For whole numbers the order is that of the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from lcn.data.prepare.catalogue import Catalogue
from lcn.data.prepare.engine import Engine
from lcn.data.prepare.reading import Read
from lcn.data.prepare.staging import Staged, usable
from lcn.errors import DataError

_MOST_ADDRESSES = 2**31 - 2
_BY_TEXT = "strlen(CAST(key AS VARCHAR)), CAST(key AS VARCHAR)"
USERS, ITEMS = "user_code", "item_code"


@dataclass(frozen=True, slots=True)
class Coded:
    """One categorical field and the table that numbers its values."""

    name: str
    table: str
    """SQL table: value, code"""
    values: int


@dataclass(frozen=True, slots=True)
class Codes:
    """Everything that was numbered, and how many of each there are (0 not counted)."""

    users: int
    items: int
    event: tuple[Coded, ...]
    request: tuple[Coded, ...]
    candidate: tuple[Coded, ...]
    item: tuple[Coded, ...]
    profile: tuple[Coded, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """Where values of a category stand: an SQL relation and its column."""

    relation: str
    name: str


def number_everything(engine: Engine, read: Read) -> Codes:
    """Number users, items and the values of every category.

    Raises:
        DataError: more users or items than an address can hold.
    """
    events, impressions, items, users = read.events, read.impressions, read.items, read.users
    logs = [staged for staged, _ in (*events, *impressions)]
    _number_users(engine, logs, users)
    _number_items(engine, [staged for staged, _ in events], [s for s, _ in impressions], items)
    counts = {}
    for table in (USERS, ITEMS):
        counts[table] = engine.value(f"SELECT count(*) FROM {table}")
        if counts[table] > _MOST_ADDRESSES:
            raise DataError(f"{counts[table]:,} keys in {table}, at most {_MOST_ADDRESSES:,} fit")
    groups: dict[str, dict[str, list[Column]]] = {"event": {}, "request": {}, "candidate": {}}
    for staged, mapped in events:
        # Every event table has the same context fields, though not in the same order.
        _collect(groups["event"], staged, tuple(mapped.context), tuple(events[0][1].context))
    for staged, mapped in impressions:
        context, own = tuple(mapped.context), tuple(mapped.candidate)
        _collect(groups["request"], staged, context, tuple(impressions[0][1].context))
        wanted = tuple(impressions[0][1].candidate)
        _collect(groups["candidate"], staged, own, wanted, first=len(context))
    for group, catalogue in (("item", items), ("profile", users)):
        groups[group] = {
            name: [Column(catalogue.table, f"f{number}")]
            for number, name in enumerate(catalogue.fields)
        }
    coded = {
        group: tuple(
            _number(engine, f"code_{group}_{number}", name, columns)
            for number, (name, columns) in enumerate(fields.items())
        )
        for group, fields in groups.items()
    }
    return Codes(users=counts[USERS], items=counts[ITEMS], **coded)


def category(names: tuple[str, ...], name: str, first: int = 0) -> str:
    """Return the staged column of a category.

    Args:
        names: the fields of its group, in the order of its table's mapping.
        name: which of them.
        first: columns of other groups before them.
    """
    return f"c{first + names.index(name)}"


def _collect(
    group: dict[str, list[Column]],
    staged: Staged,
    names: tuple[str, ...],
    wanted: tuple[str, ...],
    first: int = 0,
) -> None:
    source = f"(SELECT * FROM {staged.name} WHERE {usable(staged)})"
    for name in wanted:
        group.setdefault(name, []).append(Column(source, category(names, name, first)))


def _number(engine: Engine, table: str, name: str, columns: list[Column]) -> Coded:
    values = " UNION ".join(
        f"SELECT DISTINCT {column.name} AS value FROM {column.relation} "
        f"WHERE {column.name} IS NOT NULL"
        for column in columns
    )
    engine.run(
        f"CREATE TABLE {table} AS SELECT value, "
        "row_number() OVER (ORDER BY strlen(value), value)::INTEGER AS code "
        f"FROM ({values})"
    )
    return Coded(name, table, int(engine.value(f"SELECT count(*) FROM {table}")))


def _number_users(engine: Engine, logs: list[Staged], users: Catalogue) -> None:
    keys = [f'SELECT DISTINCT "user" AS key FROM {log.name} WHERE {usable(log)}' for log in logs]
    keys.append(f"SELECT key FROM {users.table}")
    engine.run(
        f"CREATE TABLE {USERS} AS SELECT key, "
        f"row_number() OVER (ORDER BY {_BY_TEXT})::INTEGER AS address "
        f"FROM ({' UNION '.join(keys)})"
    )


def _number_items(
    engine: Engine, events: list[Staged], impressions: list[Staged], items: Catalogue
) -> None:
    """Number items; note in which domains' logs each occurs."""
    keys = [
        "SELECT item AS key, bool_or(NOT target) AS source, bool_or(target) AS target "
        f"FROM {log.name} WHERE {usable(log)} GROUP BY item"
        for log in events
    ]
    keys += [
        f"SELECT DISTINCT item AS key, false AS source, true AS target FROM {log.name} "
        f"WHERE {usable(log)}"
        for log in impressions
    ]
    keys.append(f"SELECT key, false AS source, false AS target FROM {items.table}")
    engine.run(
        f"CREATE TABLE {ITEMS} AS SELECT key, "
        f"row_number() OVER (ORDER BY {_BY_TEXT})::INTEGER AS address, "
        "CASE WHEN source AND target THEN 'both' WHEN source THEN 'source' "
        "WHEN target THEN 'target' ELSE 'none' END AS domain FROM ("
        "SELECT key, bool_or(source) AS source, bool_or(target) AS target "
        f"FROM ({' UNION ALL '.join(keys)}) GROUP BY key)"
    )
