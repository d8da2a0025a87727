"""Rows that cannot be used: counted by reason, written aside, too many fail the job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from lcn.data.mapping import Events, Impressions, Items, Users
from lcn.data.prepare.engine import Engine, explained, literal, quote
from lcn.data.prepare.files import write_table
from lcn.data.prepare.inputs import bind
from lcn.data.prepare.staging import Staged, malformed
from lcn.data.prepare.times import Bounds, unit_hint
from lcn.errors import DataError

DUPLICATE = "duplicate"
_SCHEMA = pa.schema([("reason", pa.string()), ("file", pa.string()), ("row", pa.string())])


@dataclass(frozen=True, slots=True)
class Rejected:
    """What was left out of one table."""

    label: str
    rows: int
    """Rows read, malformed lines included."""
    reasons: dict[str, int]
    """reason -> rows; duplicates are not among them, they are no fault."""


def count_rejected(engine: Engine, staged: Staged) -> Rejected:
    """Count a staged table's unusable rows and malformed lines."""
    counted = engine.rows(
        f"SELECT reason, count(*) FROM {staged.name} WHERE reason IS NOT NULL GROUP BY reason"
    )
    counted += engine.rows(f"SELECT reason, count(*) FROM {malformed(staged)} GROUP BY reason")
    reasons = {reason: int(count) for reason, count in sorted(counted)}
    skipped = sum(reasons.get(reason, 0) for reason in ("broken UTF-8", "malformed line"))
    return Rejected(staged.name, staged.rows + skipped, reasons)


def write_rejected(engine: Engine, staged: Staged, folder: Path, base: Path) -> None:
    """Write a table's unusable rows to `rejected/<table>.parquet`: reason, file, row (JSON).

    Args:
        base: files below it are named relative to it.
    """
    with explained(f"writing the rejected rows of {staged.name}"):
        start = literal(f"{base.absolute()}/")
        named = (
            f"CASE WHEN starts_with(file, {start}) THEN file[length({start}) + 1:] ELSE file END"
        )
        batches = engine.stream(
            f"SELECT reason, {named} AS file, row FROM ({_examples(staged)}) ORDER BY ALL"
        )
        write_table(folder / "rejected" / f"{staged.name}.parquet", _SCHEMA, batches)


def check_share(
    engine: Engine,
    staged: Staged,
    mapped: Events | Impressions | Items | Users,
    rejected: Rejected,
    limit: float,
    bounds: Bounds,
) -> None:
    """Fail when more rows of a table are unusable than the mapping allows.

    Raises:
        DataError: with the table, its files, the reasons and counts, and an example of each.
    """
    bad = sum(rejected.reasons.values())
    if bad <= limit * rejected.rows:
        return
    lines = []
    for reason, count in sorted(rejected.reasons.items(), key=lambda item: (-item[1], item[0])):
        example = engine.rows(
            f"SELECT file, row FROM ({_examples(staged)}) WHERE reason = {literal(reason)} "
            "ORDER BY ALL LIMIT 1"
        )
        where = f", for example in {example[0][0]}: {example[0][1][:300]}" if example else ""
        lines.append(f"{count:,} with {reason}{where}")
    hint = ""
    if isinstance(mapped, Events | Impressions) and any("time" in r for r in rejected.reasons):
        time = bind(engine, staged.query.table, "time", mapped.time).sql
        middle = (
            engine.value(
                f"SELECT median(TRY_CAST({time} AS DOUBLE)) FROM {staged.query.table.sql_with_file}"
            )
            if mapped.time_unit != "iso"
            else None
        )
        hint = unit_hint(middle, mapped.time_unit, bounds)
    raise DataError(
        f"{staged.query.table.place}: {bad:,} of {rejected.rows:,} rows cannot be used, more than "
        f"limits.max_rejected_share {limit:g}: "
        + "; ".join(lines)
        + hint
        + ". Mend the logs or the mapping, or raise limits.max_rejected_share"
    )


def _examples(staged: Staged) -> str:
    """Return a SELECT of reason, file and row (as text) of everything left out."""
    table = staged.query.table
    packed = ", ".join(f"{literal(name)}: CAST({quote(name)} AS VARCHAR)" for name in table.columns)
    whens = "".join(
        f"WHEN {literal(copy)} THEN {literal(file)} " for copy, file in table.copies.items()
    )
    origin = f'CASE "lcn file" {whens}ELSE "lcn file" END' if whens else '"lcn file"'
    extra = {"lcn row": f"CAST(to_json({{{packed}}}) AS VARCHAR)", "lcn origin": origin}
    rows = staged.query.select('"lcn origin" AS file, "lcn row" AS row', table.sql_with_file, extra)
    return (
        f"SELECT reason, file, row FROM ({rows}) WHERE reason IS NOT NULL "
        f"UNION ALL SELECT reason, file, row FROM {malformed(staged)}"
    )
