"""Reading: every row of a table once, typed, with the reason if it cannot be used.

A staged table holds keys as numbers or text, categories as text and times in UTC milliseconds.
Categories are named `c0, c1, ...` in the order of the mapping (impressions: request context, then
candidate).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa

from lcn.data.mapping import Events, Impressions
from lcn.data.prepare.engine import Engine, explained, quote
from lcn.data.prepare.inputs import (
    Expression,
    Input,
    as_key,
    as_text,
    bind,
    without_malformed_lines,
)
from lcn.data.prepare.times import Bounds, as_milliseconds, last_millisecond, tells_fractions


@dataclass(frozen=True, slots=True)
class KeyKinds:
    """SQL types that users and items are kept in; see `inputs.key_kind`."""

    user: str
    item: str


Checks = list[tuple[str, str]]
"""(SQL condition, reason), the first that holds counts."""


@dataclass(frozen=True, slots=True)
class Query:
    """How a table is read: typed columns, what keeps a row from being used, which rows at all."""

    table: Input
    columns: dict[str, str]
    """Output column -> SQL over the input."""
    checks: Checks
    """Conditions over the output columns."""
    kept: tuple[str, ...]
    """Output columns that are stored."""
    where: str
    order: tuple[str, ...] = ()
    """Which of two rows with the same id stays: the first in this order."""
    has_id: bool = False

    def select(self, columns: str, source: str, extra: dict[str, str] | None = None) -> str:
        """Return a SELECT of output columns and `reason` over the input relation `source`.

        Args:
            columns: what to select.
            source: the relation.
            extra: further output columns, not stored when a table is staged.
        """
        named = self.columns | (extra or {})
        inner = ", ".join(f"{sql} AS {quote(name)}" for name, sql in named.items())
        whens = " ".join(f"WHEN {check} THEN '{reason}'" for check, reason in self.checks)
        reason = f"CASE {whens} END" if whens else "NULL"
        return (
            f"SELECT {columns}, {reason} AS reason "
            f"FROM (SELECT {inner} FROM {source} AS origin WHERE {self.where})"
        )


@dataclass(frozen=True, slots=True)
class Staged:
    """A table that was read."""

    query: Query
    name: str
    """SQL name."""
    number: int
    """Position among the tables of its kind."""
    rows: int
    """Rows read, whether usable or not; malformed lines of text files are not among them."""


def stage(engine: Engine, query: Query, number: int) -> Staged:
    """Read a table into the work database.

    Raises:
        DataError: a file is damaged, an expression fails, or memory or disk run out.
    """
    name = query.table.label
    kept = ", ".join(quote(column) for column in query.kept)
    with explained(f"reading {query.table.place} ({query.table.files[0]})"):
        engine.run(f"CREATE TABLE {name} AS {query.select(kept, query.table.sql)}")
        table, bad = without_malformed_lines(engine, query.table)
        if table.copies:
            query = replace(query, table=table)
            engine.run(f"CREATE OR REPLACE TABLE {name} AS {query.select(kept, table.sql)}")
            without_malformed_lines(engine, table)
        engine.run(
            f"CREATE TABLE {name}_malformed "
            "(reason VARCHAR, file VARCHAR, number BIGINT, kept BIGINT, row VARCHAR)"
        )
        if bad:
            columns = {
                "reason": [m.reason for _, m in bad],
                "file": [file for file, _ in bad],
                "number": [m.number for _, m in bad],
                "kept": [m.kept for _, m in bad],
                "row": [m.text for _, m in bad],
            }
            engine.insert(f"{name}_malformed", pa.RecordBatch.from_pydict(columns))
        rows = engine.value(f"SELECT count(*) FROM {name}")
    return Staged(query, name, number, rows)


def malformed(staged: Staged) -> str:
    """Return the table of lines that could not be read: reason, file, number, kept, row."""
    return f"{staged.name}_malformed"


def usable(staged: Staged) -> str:
    """Return the condition on a staged table's rows that go into the dataset."""
    if not staged.query.has_id:
        return "reason IS NULL"
    return f"reason IS NULL AND rowid NOT IN (SELECT row FROM {staged.name}_again)"


def drop_repeated_ids(engine: Engine, staged: Staged) -> int:
    """Note the rows whose id occurred before (in time, not in the file); returns how many."""
    if not staged.query.has_id:
        return 0
    order = ", ".join(staged.query.order)
    engine.run(
        f"CREATE TABLE {staged.name}_again AS SELECT row FROM ("
        f"SELECT rowid AS row, row_number() OVER (PARTITION BY id ORDER BY {order}) AS nth "
        f"FROM {staged.name} WHERE reason IS NULL AND id IN ("
        f"SELECT id FROM {staged.name} WHERE reason IS NULL AND id IS NOT NULL "
        "GROUP BY id HAVING count(*) > 1)) WHERE nth > 1"
    )
    return int(engine.value(f"SELECT count(*) FROM {staged.name}_again"))


def events_query(
    engine: Engine, table: Input, mapped: Events, bounds: Bounds, kinds: KeyKinds
) -> Query:
    """Return how an event table is read.

    Raises:
        DataError: an expression does not fit the table.
    """
    columns, checks = _who_what_when(engine, table, mapped, bounds, kinds)
    time = bind(engine, table, "time", mapped.time)

    def last(logged: Expression, milliseconds: str) -> str:
        unit, rows = mapped.time_unit, table.sql_with_file
        with explained(f"reading the times of {table.place}"):
            exact = tells_fractions(engine, rows, unit, logged.kind, milliseconds)
        return last_millisecond(logged, unit, milliseconds, exact=exact)

    known = last(time, columns["time"])
    if mapped.arrival is not None:
        arrival = bind(engine, table, "arrival", mapped.arrival)
        columns["no arrival"] = _missing(arrival)
        columns["arrival"] = as_milliseconds(arrival, mapped.time_unit, f"{table.place}.arrival")
        # A missing arrival is passed over.
        known = f"greatest({known}, {last(arrival, columns['arrival'])})"
        checks += [
            ('arrival IS NULL AND NOT "no arrival"', "unreadable arrival"),
            (f"arrival > {bounds.latest}", "arrival after latest"),
        ]
    columns["known"] = f"CAST({known} AS BIGINT)"
    columns["target"] = str(mapped.domain == "target").lower()
    if mapped.domain_rule is not None:
        rule = bind(engine, table, "domain_rule", mapped.domain_rule)
        columns["target"] = f"CAST({rule.sql} AS BOOLEAN)"
        checks.append(("target IS NULL", "unknown domain"))
    categories = _categories(engine, table, {"context": mapped.context})
    columns |= categories
    if mapped.event_id is not None:
        columns["id"] = as_text(bind(engine, table, "event_id", mapped.event_id))
    return Query(
        table=table,
        columns=columns,
        checks=checks,
        kept=("user", "item", "time", "known", "target", *categories, *_id(columns)),
        where=_all_of(engine, table, where=mapped.where),
        order=("known", "time", "user", "item", *categories),
        has_id=mapped.event_id is not None,
    )


def impressions_query(
    engine: Engine, table: Input, mapped: Impressions, bounds: Bounds, kinds: KeyKinds
) -> Query:
    """Return how an impression table is read.

    Raises:
        DataError: an expression does not fit the table.
    """
    columns, checks = _who_what_when(engine, table, mapped, bounds, kinds)
    label = bind(engine, table, "label", mapped.label)
    columns["no label"] = _missing(label)
    columns["label"] = f"TRY_CAST({label.sql} AS DOUBLE)"
    checks += [
        ('"no label"', "missing label"),
        ("label IS NULL OR label NOT IN (0, 1)", "label not 0 or 1"),
    ]
    columns["dwell"] = "CAST('nan' AS FLOAT)"
    if mapped.dwell is not None:
        seconds = f"TRY_CAST({bind(engine, table, 'dwell', mapped.dwell).sql} AS DOUBLE)"
        # NaN is greater than any number here, so it falls to the other branch.
        columns["dwell"] = (
            f"CASE WHEN {seconds} BETWEEN 0 AND 1e9 THEN CAST({seconds} AS FLOAT) "
            "ELSE CAST('nan' AS FLOAT) END"
        )
    columns["probability"] = "CAST('nan' AS FLOAT)"
    if mapped.probability is not None:
        truth = bind(engine, table, "probability", mapped.probability)
        columns["probability"] = f"TRY_CAST({truth.sql} AS FLOAT)"
        checks.append(
            ("probability IS NULL OR NOT probability BETWEEN 0 AND 1", "probability not in 0..1")
        )
    categories = _categories(
        engine, table, {"context": mapped.context, "candidate": mapped.candidate}
    )
    columns |= categories
    if mapped.impression_id is not None:
        columns["id"] = as_text(bind(engine, table, "impression_id", mapped.impression_id))
    measured = ("label", "dwell", "probability")
    return Query(
        table=table,
        columns=columns,
        checks=checks,
        kept=("user", "item", "time", *measured, *categories, *_id(columns)),
        where=_all_of(engine, table, where=mapped.where, target_rule=mapped.target_rule),
        order=("time", "user", "item", *measured, *categories),
        has_id=mapped.impression_id is not None,
    )


def _who_what_when(
    engine: Engine, table: Input, mapped: Events | Impressions, bounds: Bounds, kinds: KeyKinds
) -> tuple[dict[str, str], Checks]:
    time = bind(engine, table, "time", mapped.time)
    columns = {
        "user": as_key(bind(engine, table, "user", mapped.user), kinds.user),
        "item": as_key(bind(engine, table, "item", mapped.item), kinds.item),
        "no time": _missing(time),
        "time": as_milliseconds(time, mapped.time_unit, f"{table.place}.time"),
    }
    checks = [
        ('"user" IS NULL', "missing user"),
        ("item IS NULL", "missing item"),
        ('"no time"', "missing time"),
        ("time IS NULL", "unreadable time"),
        (f"time < {bounds.earliest}", "time before earliest"),
        (f"time > {bounds.latest}", "time after latest"),
    ]
    return columns, checks


def _missing(expression: Expression) -> str:
    if expression.kind == "VARCHAR":
        return f"coalesce({expression.sql}, '') = ''"
    if expression.kind in ("FLOAT", "DOUBLE"):
        return f"({expression.sql} IS NULL OR isnan({expression.sql}))"
    return f"{expression.sql} IS NULL"


def _categories(engine: Engine, table: Input, groups: dict[str, dict[str, str]]) -> dict[str, str]:
    texts = [
        as_text(bind(engine, table, f"{group}.{name}", expression))
        for group, fields in groups.items()
        for name, expression in fields.items()
    ]
    return {f"c{number}": text for number, text in enumerate(texts)}


def _id(columns: dict[str, str]) -> tuple[str, ...]:
    return ("id",) if "id" in columns else ()


def _all_of(engine: Engine, table: Input, **rules: str | None) -> str:
    conditions = [
        f"CAST({bind(engine, table, setting, rule).sql} AS BOOLEAN)"
        for setting, rule in rules.items()
        if rule is not None
    ]
    return " AND ".join(conditions) or "true"
