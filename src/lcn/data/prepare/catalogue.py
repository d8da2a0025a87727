"""What is known of items and users: one row per key, and item columns for other tables' rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lcn.data.mapping import Events, Impressions, Items, Mapping, Users
from lcn.data.prepare.engine import Engine, explained, quote
from lcn.data.prepare.inputs import ITEMS, Input, as_key, as_text, bind
from lcn.data.prepare.staging import Query, Staged, stage
from lcn.errors import DataError, nearest

_ITEM_COLUMN = re.compile(r'\bitems\s*\.\s*("(?:[^"]|"")+"|\w+)', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Staged items or users."""

    table: str
    """SQL table: key, and title, f0, f1, ... as text; one row per key."""
    fields: tuple[str, ...]
    """Names of f0, f1, ..."""
    staged: tuple[Staged, ...]
    repeated: dict[str, int]
    """table label -> rows whose key another row already had"""


def stage_catalogue(
    engine: Engine,
    inputs: Sequence[tuple[Input, Items | Users]],
    kind: str,
    key: str,
    reached: dict[str, str] | None = None,
) -> Catalogue:
    """Read all tables of items, or of users; of rows with one key the smallest stays.

    Args:
        kind: item or user; names the SQL table.
        key: SQL type of the keys.
        reached: item columns that expressions of other tables use, as `reached_item_columns`
            names them.

    Raises:
        DataError: an expression does not fit its table, or a reached column is in none.
    """
    fields = tuple(dict.fromkeys(name for _, mapped in inputs for name in mapped.fields))
    staged = []
    for number, (table, mapped) in enumerate(inputs):
        staged.append(
            stage(engine, _query(engine, table, mapped, fields, key, reached or {}), number)
        )
    name = f"{kind}_row"
    named = ["title", *(f"f{k}" for k in range(len(fields)))]
    if not staged:
        columns = ", ".join(f"CAST(NULL AS VARCHAR) AS {column}" for column in named)
        engine.run(f"CREATE TABLE {name} AS SELECT CAST(NULL AS {key}) AS key, {columns} LIMIT 0")
        return Catalogue(name, fields, (), {})
    everything = " UNION ALL BY NAME ".join(
        f"SELECT * EXCLUDE (reason), {part.number} AS part FROM {part.name} WHERE reason IS NULL"
        for part in staged
    )
    columns = dict.fromkeys(column for part in staged for column in part.query.columns)
    order = ", ".join([*columns, "part"])
    with explained(f"reading {kind}s"):
        engine.run(
            f"CREATE TABLE {name} AS SELECT * FROM ({everything}) "
            f"QUALIFY row_number() OVER (PARTITION BY key ORDER BY {order}) = 1"
        )
    return Catalogue(name, fields, tuple(staged), _repeated(engine, name, staged))


def reached_item_columns(mapping: Mapping) -> dict[str, str]:
    """Return the columns named as `items.<column>` in the mapping: name -> output column."""
    names: dict[str, None] = {}
    for mapped in (*mapping.events, *mapping.impressions):
        for text in expressions_of(mapped):
            names |= {found.strip('"').lower(): None for found in _ITEM_COLUMN.findall(text)}
    return {name: f"x{number}" for number, name in enumerate(names)}


def uses_items(mapped: Events | Impressions) -> bool:
    """Tell whether any expression of a table reaches an item column."""
    return any(_ITEM_COLUMN.search(text) for text in expressions_of(mapped))


def expressions_of(mapped: Events | Impressions) -> list[str]:
    """Return every column name or SQL expression of an event or impression table."""
    texts = [mapped.user, mapped.item, mapped.time, mapped.where, *mapped.context.values()]
    if isinstance(mapped, Events):
        texts += [mapped.arrival, mapped.domain_rule, mapped.event_id]
    else:
        texts += [mapped.label, mapped.dwell, mapped.target_rule, mapped.probability]
        texts += [mapped.impression_id, *mapped.candidate.values()]
    return [text for text in texts if text is not None]


def make_lookup(engine: Engine, reached: dict[str, str]) -> None:
    """Make the table that other tables' expressions reach as `items`."""
    packed = ", ".join(f"{quote(name)} := {column}" for name, column in reached.items())
    engine.run(f"CREATE TABLE {ITEMS} AS SELECT key, struct_pack({packed}) AS items FROM item_row")


def _query(
    engine: Engine,
    table: Input,
    mapped: Items | Users,
    fields: tuple[str, ...],
    key: str,
    reached: dict[str, str],
) -> Query:
    columns = {"key": as_key(bind(engine, table, "key", mapped.key), key)}
    columns["title"] = "CAST(NULL AS VARCHAR)"
    if isinstance(mapped, Items) and mapped.title is not None:
        columns["title"] = as_text(bind(engine, table, "title", mapped.title))
    for number, name in enumerate(fields):
        columns[f"f{number}"] = "CAST(NULL AS VARCHAR)"
        if name in mapped.fields:
            columns[f"f{number}"] = as_text(
                bind(engine, table, f"fields.{name}", mapped.fields[name])
            )
    known = {column.lower() for column in table.columns}
    mapped_as = {name.lower(): expression for name, expression in mapped.fields.items()}
    for name, column in reached.items():
        if name in known:
            columns[column] = quote(name)
        elif name in mapped_as:
            columns[column] = bind(engine, table, f"fields.{name}", mapped_as[name]).sql
    where = "true"
    if mapped.where is not None:
        where = f"CAST({bind(engine, table, 'where', mapped.where).sql} AS BOOLEAN)"
    return Query(table, columns, [("key IS NULL", "missing key")], tuple(columns), where)


def check_reached(inputs: list[tuple[Input, Items]], reached: dict[str, str]) -> None:
    """Check that every `items.<column>` of the mapping is a column or field of an items table.

    Raises:
        DataError: it is not; the nearest name is given.
    """
    known = {column.lower() for table, _ in inputs for column in table.columns}
    known |= {name.lower() for _, mapped in inputs for name in mapped.fields}
    for name in reached:
        if not inputs:
            raise DataError(f"the mapping uses items.{name}, but has no items table; add one")
        if name not in known:
            raise DataError(
                f"the mapping uses items.{name}, which no items table has{nearest(name, known)}"
            )


def _repeated(engine: Engine, name: str, staged: list[Staged]) -> dict[str, int]:
    stayed = dict(engine.rows(f"SELECT part, count(*) FROM {name} GROUP BY part"))
    repeated = {}
    for part in staged:
        usable = engine.value(f"SELECT count(*) FROM {part.name} WHERE reason IS NULL")
        repeated[part.name] = usable - stayed.get(part.number, 0)
    return repeated
