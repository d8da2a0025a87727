"""Times: from whatever unit a log declares to UTC milliseconds, and what is plausible."""

from __future__ import annotations

from dataclasses import dataclass

from lcn.data.mapping import Limits, TimeUnit
from lcn.data.prepare.engine import Engine
from lcn.data.prepare.inputs import INTEGERS, Expression
from lcn.errors import DataError

LATEST = "2100-01-01"
_PER_MS = {"s": 1e-3, "ms": 1.0, "us": 1e3, "ns": 1e6}
"""Ticks of a unit in a millisecond."""
_FLOATS = ("FLOAT", "DOUBLE", "DECIMAL", "UBIGINT", "HUGEINT", "UHUGEINT", "BIGNUM")
_DATES = ("TIMESTAMP", "DATE")
_ZONE = r"'(Z|z|[+-]\d{1,2}(:?\d{2})?|[A-Za-z]+(/[A-Za-z_]+)*)\s*$'"
"""What may follow the time of a day."""
_MS_PER_YEAR = 31_556_952_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """Plausible times, both inclusive, in UTC milliseconds."""

    earliest: int
    latest: int


def bounds_of(engine: Engine, limits: Limits) -> Bounds:
    """Return the limits on times.

    Raises:
        DataError: one is no date, or they are the wrong way round.
    """
    bounds = Bounds(
        instant(engine, limits.earliest, "limits.earliest"),
        instant(engine, limits.latest or LATEST, "limits.latest"),
    )
    if bounds.earliest >= bounds.latest:
        raise DataError(
            f"limits.earliest {limits.earliest} is not before limits.latest {limits.latest}"
        )
    return bounds


def instant(engine: Engine, text: str, setting: str) -> int:
    """Return an ISO date or date-time, read in the mapping's zone, as UTC milliseconds.

    Raises:
        DataError: not a date.
    """
    found = engine.value("SELECT TRY(epoch_ms(TRY_CAST(? AS TIMESTAMPTZ)))", text)
    if found is None:
        raise DataError(
            f"{setting} is {text!r}, expected a date such as 2017-05-13 or 2017-05-13 08:00"
        )
    return int(found)


def as_milliseconds(expression: Expression, unit: TimeUnit, place: str) -> str:
    """Return SQL for a time in UTC milliseconds, NULL where it cannot be read.

    Absurd numbers stay numbers (moved to the end of the range), so that they are reported as too
    early or too late rather than as unreadable. Fractions of a millisecond are cut off.

    Raises:
        DataError: the column's type and the declared unit contradict each other.
    """
    sql, kind = expression.sql, expression.kind.split("(")[0]
    if unit == "iso":
        if kind == "VARCHAR" or kind.startswith(_DATES):
            return f"TRY(epoch_ms(TRY_CAST({sql} AS TIMESTAMPTZ)))"
        raise DataError(
            f"{place} is of type {kind} and cannot hold ISO dates; set time_unit to s, ms, us or ns"
        )
    if kind in INTEGERS:
        return _from_integer(sql, unit)
    if kind in _FLOATS:
        return _from_double(f"CAST({sql} AS DOUBLE)", unit)
    if kind == "VARCHAR":
        return (
            f"CASE WHEN contains({sql}, '.') OR TRY_CAST({sql} AS BIGINT) IS NULL "
            f"THEN {_from_double(f'TRY_CAST({sql} AS DOUBLE)', unit)} "
            f"ELSE {_from_integer(f'TRY_CAST({sql} AS BIGINT)', unit)} END"
        )
    if kind.startswith(_DATES):
        raise DataError(f"{place} is of type {kind}, not a number of {unit}; set time_unit to iso")
    raise DataError(f"{place} is of type {kind}; expected a number, text or a timestamp")


def tells_fractions(engine: Engine, table: str, unit: TimeUnit, kind: str, time: str) -> bool:
    """Whether a column of times is logged more exactly than to the second.

    Args:
        engine: to look at the column with.
        table: SQL of the table.
        unit: the times' unit.
        kind: SQL type of the column.
        time: SQL of the time in milliseconds.
    """
    if unit in ("ms", "us", "ns"):
        return True
    if kind == "DATE" or kind in INTEGERS:
        return False
    found = engine.rows(f"SELECT 1 FROM {table} WHERE ({time}) % 1000 <> 0 LIMIT 1")
    return bool(found)


def last_millisecond(
    expression: Expression, unit: TimeUnit, time: str, *, exact: bool = False
) -> str:
    """Return SQL for the latest moment that a logged time may stand for.

    A log of whole seconds says 10 for what happened at 10.7, and a date for all of its day: nobody
    knew of it before.

    Args:
        expression: the logged time.
        unit: its unit.
        time: SQL of the same time in milliseconds, from `as_milliseconds`.
        exact: whether the column tells fractions of a second (`tells_fractions`): its whole
            seconds then are no less exact.
    """
    if unit in ("ms", "us", "ns"):
        return time
    whole = time if exact else f"({time}) + 999"
    if unit == "s":
        return whole
    sql = expression.sql
    day = f"TRY(epoch_ms(CAST(TRY_CAST({sql} AS DATE) + INTERVAL 1 DAY AS TIMESTAMPTZ)) - 1)"
    if expression.kind == "DATE":
        return day
    if expression.kind != "VARCHAR":
        return whole
    # By what is missing, not by form: dates may be written in several ways.
    clock = f"regexp_replace({sql}, {_ZONE}, '')"
    return (
        f"CASE WHEN NOT contains({sql}, ':') THEN {day} "
        f"WHEN length({clock}) - length(replace({clock}, ':', '')) = 1 THEN ({time}) + 59999 "
        f"ELSE {whole} END"
    )


def unit_hint(median: float | None, unit: TimeUnit, bounds: Bounds) -> str:
    """Say which year the median time falls in, and which unit would make it plausible."""
    if unit == "iso" or median is None:
        return ""
    year = _year(median / _PER_MS[unit])
    fits = [
        other
        for other, ticks in _PER_MS.items()
        if other != unit and bounds.earliest <= median / ticks <= bounds.latest
    ]
    hint = f"; the median time {median:.0f} read as {unit} falls in the year {year}"
    for other in fits[:1]:
        hint += (
            f", read as {other} in {_year(median / _PER_MS[other])}: "
            f"probably time_unit should be {other}"
        )
    return hint


def _year(milliseconds: float) -> int:
    return int(1970 + milliseconds / _MS_PER_YEAR)


def _from_integer(sql: str, unit: TimeUnit) -> str:
    sql = f"CAST({sql} AS BIGINT)"
    if unit == "s":
        return f"1000 * {_within(sql, '9000000000000000')}"
    return sql if unit == "ms" else f"{sql} // {int(_PER_MS[unit])}"


def _from_double(sql: str, unit: TimeUnit) -> str:
    # Seconds with decimals are rounded, since 1.001 s has no exact binary form.
    number = f"round({sql} * 1000)" if unit == "s" else f"floor({sql} / {_PER_MS[unit]})"
    return f"CASE WHEN isnan({sql}) THEN NULL ELSE CAST({_within(number, '9e18')} AS BIGINT) END"


def _within(sql: str, most: str) -> str:
    # Not greatest and least, which pass over NULL.
    return f"CASE WHEN {sql} > {most} THEN {most} WHEN {sql} < -{most} THEN -{most} ELSE {sql} END"
