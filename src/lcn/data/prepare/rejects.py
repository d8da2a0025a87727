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
_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),
        ("file", pa.string()),
        ("number", pa.int64()),
        ("row", pa.string()),
    ]
)


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
    """Write a table's unusable rows, as JSON, to `rejected/<table>.parquet`: what, where and why.

    Rows are numbered from 1 within their file, the header not counted.

    Args:
        base: files below it are named relative to it.
    """
    with explained(f"writing the rejected rows of {staged.name}"):
        start = literal(f"{base.absolute()}/")
        named = (
            f"CASE WHEN starts_with(file, {start}) THEN file[length({start}) + 1:] ELSE file END"
        )
        batches = engine.stream(
            f"SELECT reason, {named} AS file, number, row FROM ({_examples(staged)}) ORDER BY ALL"
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
    examples = dict(
        engine.rows(
            "SELECT reason, min({'file': file, 'number': number, 'row': row}) "
            f"FROM ({_examples(staged)}) GROUP BY reason"
        )
    )
    for reason, count in sorted(rejected.reasons.items(), key=lambda item: (-item[1], item[0])):
        first = examples.get(reason)
        where = (
            f", for example row {first['number']} of {first['file']}: {first['row'][:300]}"
            if first
            else ""
        )
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
    """Return a SELECT of reason, file, number and row (as text) of everything left out."""
    table = staged.query.table
    packed = ", ".join(f"{literal(name)}: CAST({quote(name)} AS VARCHAR)" for name in table.columns)
    extra = {
        "lcn row": f"CAST(to_json({{{packed}}}) AS VARCHAR)",
        "lcn file": '"lcn file"',
        "lcn number": '"lcn number"',
    }
    columns = '"lcn file" AS read_file, "lcn number" AS number, "lcn row" AS row'
    left_out = staged.query.select(columns, table.sql_with_file, extra)
    before = (
        'SELECT "lcn file" AS read_file, min("lcn number") - 1 AS rows_before '
        f"FROM {table.sql_with_file} GROUP BY ALL"
    )
    whens = "".join(f"WHEN {literal(c)} THEN {literal(f)} " for c, f in table.copies.items())
    origin = f"CASE read_file {whens}ELSE read_file END" if whens else "read_file"
    numbered = (
        f"SELECT reason, {origin} AS file, number - rows_before AS number, row "
        f"FROM ({left_out}) JOIN ({before}) USING (read_file) WHERE reason IS NOT NULL"
    )
    # A mended copy lacks the malformed lines that its file has above a row.
    missing = (
        "SELECT file, kept, sum(count(*)) OVER (PARTITION BY file ORDER BY kept) AS lines "
        f"FROM {malformed(staged)} GROUP BY file, kept"
    )
    return (
        "SELECT n.reason, n.file, n.number + coalesce(m.lines, 0)::BIGINT AS number, n.row "
        f"FROM ({numbered}) AS n ASOF LEFT JOIN ({missing}) AS m "
        "ON n.file = m.file AND n.number > m.kept "
        f"UNION ALL SELECT reason, file, number, row FROM {malformed(staged)}"
    )
