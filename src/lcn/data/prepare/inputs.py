"""Input tables: which files they are, how they are read, which columns they have."""

from __future__ import annotations

import csv
import glob
import gzip
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import duckdb

from lcn.data.mapping import Csv, Source
from lcn.data.prepare.engine import Engine, explained, literal, quote
from lcn.data.prepare.mending import Malformed, mend
from lcn.errors import DataError, nearest

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
ITEM_KEY = "lcn item key"
ITEMS = "item_lookup"
"""Table `item_lookup(key, items)`: what mapping expressions reach as `items.<column>`."""
_NUMBER = 'row_number() OVER () AS "lcn number"'
"""In the order of the files, and one thread's work: only asked for where rows are left out."""


@dataclass(frozen=True, slots=True)
class Input:
    """One table of the mapping, ready to be selected from."""

    label: str
    """Its name in messages and reports: events, or events_2 where there are several."""
    place: str
    """Where it stands in the mapping file: events.1"""
    files: tuple[str, ...]
    is_text: bool
    columns: dict[str, str]
    """name -> SQL type"""
    sql: str
    """Relation with the columns above, and `items` if joined; malformed lines are recorded."""
    sql_with_file: str
    """The same with the columns `lcn file` and `lcn number` (1, 2, ... through all files that have
    the same header); malformed lines are passed over."""
    form: Csv
    copies: dict[str, str] = field(default_factory=dict)
    """file read in place of another, without its malformed lines -> that other"""


@dataclass(frozen=True, slots=True)
class Expression:
    """A column or SQL expression of a mapping, bound to its input."""

    sql: str
    kind: str
    """SQL type, upper case."""


def open_input(engine: Engine, source: Source, label: str, place: str, base: Path) -> Input:
    """Find a table's files and columns.

    Raises:
        DataError: no such file, an unknown kind of file, a file that cannot be read as its kind,
            or a header that names a column twice.
    """
    files = _find(source, place, base)
    is_text = _is_text(files, place)
    if is_text:
        form = source.csv
        groups = list(enumerate(_by_header(files, form, place)))
        recording = [_read_csv(group, names, form, label, i) for i, (names, group) in groups]
        passing = [_read_csv(group, names, form, None, i) for i, (names, group) in groups]
    else:
        names = ", ".join(literal(file) for file in files)
        recording = [f"SELECT * FROM read_parquet([{names}], union_by_name = true)"]
        passing = [
            f"SELECT *, {_NUMBER} "
            f"FROM read_parquet([{names}], union_by_name = true, filename = 'lcn file')"
        ]
    sql = "(" + " UNION ALL BY NAME ".join(recording) + ")"
    with explained(f"{place}: cannot read {_few(files)}"):
        described = engine.rows(f"DESCRIBE SELECT * FROM {sql}")
    return Input(
        label=label,
        place=place,
        files=files,
        is_text=is_text,
        columns={name: kind.upper() for name, kind, *_ in described},
        sql=sql,
        sql_with_file="(" + " UNION ALL BY NAME ".join(passing) + ")",
        form=source.csv,
    )


def with_items(table: Input, item: Expression, kind: str) -> Input:
    """Join `items` to a table, so that expressions reach item columns."""
    if "items" in table.columns:
        raise DataError(
            f"{table.place} has a column named 'items', so items.<column> is ambiguous; rename it"
        )

    def joined(sql: str) -> str:
        return (
            f"(SELECT base.* EXCLUDE ({quote(ITEM_KEY)}), {ITEMS}.items FROM "
            f"(SELECT *, {as_key(item, kind)} AS {quote(ITEM_KEY)} FROM {sql}) AS base "
            f"LEFT JOIN {ITEMS} ON base.{quote(ITEM_KEY)} = {ITEMS}.key)"
        )

    return replace(table, sql=joined(table.sql), sql_with_file=joined(table.sql_with_file))


def without_malformed_lines(
    engine: Engine, table: Input
) -> tuple[Input, list[tuple[str, Malformed]]]:
    """Replace files that have malformed lines by copies without them.

    Call it after the table was read once: the engine has then noted which files they are.

    Returns:
        The table to read, and (file, what was left out of it).

    Raises:
        DataError: a quote is never closed, or the engine objects to a mended copy too.
    """
    bad: list[tuple[str, Malformed]] = []
    copies: dict[str, str] = {}
    for file in _noted_files(engine, table):
        if file in table.copies:
            raise DataError(f"{table.place}: cannot read {table.copies[file]}; check its quotes")
        copy = engine.work / f"mended-{table.label}-{len(copies)}.csv"
        width = len(table.form.columns or _header(file, table.form, table.place))
        delimiter = _delimiter(file, table.form)
        bad += [(file, line) for line in mend(file, copy, table.form, delimiter, width)]
        copies[str(copy)] = file
    sql, sql_with_file = table.sql, table.sql_with_file
    for copy, file in copies.items():
        sql = sql.replace(literal(file), literal(copy))
        sql_with_file = sql_with_file.replace(literal(file), literal(copy))
    return replace(table, sql=sql, sql_with_file=sql_with_file, copies=copies), bad


def _noted_files(engine: Engine, table: Input) -> list[str]:
    """Return the files the engine found malformed lines in, and forget them."""
    names = engine.rows(
        "SELECT table_name FROM duckdb_tables() WHERE temporary AND "
        f"regexp_matches(table_name, {literal(f'^malformed_{table.label}_[0-9]+$')}) ORDER BY ALL"
    )
    files: set[str] = set()
    for (noted,) in names:
        scans = noted.replace("malformed_", "scan_", 1)
        found = engine.rows(
            f"SELECT DISTINCT file_path FROM {noted} JOIN {scans} USING (scan_id, file_id)"
        )
        files.update(file for (file,) in found)
        engine.run(f"DROP TABLE {noted}")
        engine.run(f"DROP TABLE {scans}")
    return sorted(files)


def bind(engine: Engine, table: Input, setting: str, expression: str) -> Expression:
    """Check that an expression can be computed from a table's columns, and find its type.

    Args:
        setting: the key of the mapping that holds it, to be named in errors.
        expression: a column's name, or SQL.

    Raises:
        DataError: not a column and not SQL over the table's columns; the nearest name is given.
    """
    place = f"{table.place}.{setting}"
    known = {name.lower(): name for name in table.columns}
    # A plain column name stands for the column even where SQL would read it as a keyword.
    name = known.get(expression.strip().lower())
    sql = quote(name) if name else f"({expression}\n)"
    if name is None and expression.strip().isidentifier() and not _is_literal(expression):
        # SQL would take some names (user, current_date) for functions of its own.
        raise DataError(_unbound(table, place, expression, None))
    try:
        described = engine.rows(f"DESCRIBE SELECT {sql} AS bound FROM {table.sql}")
    except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException) as error:
        raise DataError(_unbound(table, place, expression, error)) from error
    kind = described[0][1].upper()
    if kind.startswith(("STRUCT", "MAP", "UNION")) or kind.endswith("]"):
        raise DataError(f"{place} {expression!r} is of type {kind}, expected one value per row")
    return Expression(sql, kind)


def as_text(expression: Expression) -> str:
    """Return SQL for a category as text; NULL, NaN and the empty text are missing.

    Whole numbers read alike whether they were stored as integers, floats or decimals, so 7 and 7.0
    (an integer column with gaps, as data frames store it) name the same thing. Text stays as it is:
    a version 13.0 is no number.
    """
    sql = expression.sql
    if expression.kind == "VARCHAR":
        return f"nullif({sql}, '')"
    if expression.kind.startswith("DECIMAL"):
        return (
            f"CASE WHEN {sql} = trunc({sql}) THEN CAST(CAST({sql} AS HUGEINT) AS VARCHAR) "
            f"ELSE CAST({sql} AS VARCHAR) END"
        )
    if expression.kind in ("FLOAT", "DOUBLE"):
        return (
            f"CASE WHEN isnan({sql}) THEN NULL WHEN abs({sql}) < 9e15 AND {sql} = trunc({sql}) "
            f"THEN CAST(CAST({sql} AS BIGINT) AS VARCHAR) ELSE CAST({sql} AS VARCHAR) END"
        )
    return f"CAST({sql} AS VARCHAR)"


def key_kind(expressions: Iterable[Expression]) -> str:
    """Return the SQL type that keys of one sort are kept in: BIGINT if all are, else text.

    Numbers take half the time of text; the dataset is the same.
    """
    return "BIGINT" if all(e.kind in INTEGERS for e in expressions) else "VARCHAR"


def as_key(expression: Expression, kind: str) -> str:
    """Return SQL for a key of users or items, as the type `key_kind` chose.

    Text that is a whole number with .0, as data frames write integer columns with gaps, is that
    number: the same key is often a number in another table.
    """
    if kind == "BIGINT":
        return f"CAST({expression.sql} AS BIGINT)"
    sql, text = expression.sql, as_text(expression)
    if expression.kind != "VARCHAR":
        return text
    return (
        f"CASE WHEN ends_with({sql}, '.0') AND regexp_full_match({sql}, '-?[0-9]+\\.0') "
        f"THEN {sql}[:-3] ELSE {text} END"
    )


def _is_literal(expression: str) -> bool:
    return expression.strip().lower() in ("true", "false", "null")


def _unbound(table: Input, place: str, expression: str, error: duckdb.Error | None) -> str:
    text = str(error)
    if expression.strip().isidentifier():
        return (
            f"{place} names column {expression.strip()!r}, which {_few(table.files)} does not "
            f"have{nearest(expression.strip(), table.columns)}"
        )
    hint = ""
    if 'column "' in text:
        missing = text.split('column "')[1].split('"', maxsplit=1)[0]
        hint = f"; {missing!r} is not a column of {_few(table.files)}"
        hint += nearest(missing, table.columns)
    elif table.is_text:
        hint = "; columns of delimited text are text: write TRY_CAST(column AS BIGINT)"
    if "items." in expression:
        hint += "; items.<column> reaches columns and fields of the items table"
    return f"{place} is not SQL over its table: {expression!r}: {text.splitlines()[0]}{hint}"


def _find(source: Source, place: str, base: Path) -> tuple[str, ...]:
    found: set[str] = set()
    for pattern in source.files:
        path = Path(pattern).expanduser()
        full = str(path if path.is_absolute() else base / path)
        matches = [full] if Path(full).is_file() else sorted(glob.glob(full, recursive=True))
        matches = [match for match in matches if Path(match).is_file()]
        if not matches:
            raise DataError(
                f"{place}.files: {full!r} matches no file; give a file or a pattern such as "
                "logs/*.parquet, relative to the mapping file"
            )
        found.update(str(Path(match).absolute()) for match in matches)
    if not found:
        raise DataError(f"{place}.files is empty: name at least one file")
    return tuple(sorted(found))


def _is_text(files: tuple[str, ...], place: str) -> bool:
    kinds = {_suffix(file) for file in files}
    if kinds == {".parquet"}:
        return False
    if kinds <= set(TEXT_SUFFIXES):
        return True
    raise DataError(
        f"{place}.files: got files ending in {', '.join(sorted(kinds))}; expected all .parquet, "
        f"or all {', '.join(TEXT_SUFFIXES)} (also with .gz)"
    )


def _suffix(file: str) -> str:
    return Path(file.removesuffix(".gz")).suffix.lower()


def _open_text(file: str) -> TextIO:
    if file.endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8-sig", errors="replace", newline="")
    return open(file, encoding="utf-8-sig", errors="replace", newline="")


def _by_header(
    files: tuple[str, ...], form: Csv, place: str
) -> list[tuple[tuple[str, ...], list[str]]]:
    """Group files whose columns stand in the same order."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for file in files:
        groups.setdefault(form.columns or _header(file, form, place), []).append(file)
    return sorted(groups.items())


def _header(file: str, form: Csv, place: str) -> tuple[str, ...]:
    with explained(f"{place}: cannot read {file}"), _open_text(file) as text:
        delimiter, quote_as = _delimiter(file, form), form.quote or None
        quoting = csv.QUOTE_MINIMAL if form.quote else csv.QUOTE_NONE
        lines = csv.reader(text, delimiter=delimiter, quotechar=quote_as, quoting=quoting)
        first = next(lines, [])
    if not first:
        raise DataError(f"{place}: {file} is empty: expected a header, or csv.columns with names")
    if not form.header:
        raise DataError(
            f"{place}: csv.header is false, so csv.columns must name the {len(first)} columns of "
            f"{file}"
        )
    # Data frames write an index without a name.
    first = [name or f"column{number}" for number, name in enumerate(first)]
    lower = [name.lower() for name in first]
    twice = sorted({name for name in first if lower.count(name.lower()) > 1})
    if twice:
        raise DataError(
            f"{place}: the header of {file} names {twice[0]!r} twice (upper and lower case are "
            "alike in SQL); give csv.columns with names of your own"
        )
    return tuple(first)


def _delimiter(file: str, form: Csv) -> str:
    return "\t" if _suffix(file) == ".tsv" and form.delimiter == "," else form.delimiter


def _read_csv(
    files: list[str], names: tuple[str, ...], form: Csv, record: str | None, part: int
) -> str:
    """Return a SELECT of all columns as text.

    Args:
        record: table label under which malformed lines are recorded; None passes them over and
            adds file names and row numbers.
        part: number of this group of files.
    """
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    options = [
        "auto_detect = false",
        f"columns = {{{columns}}}",
        f"delim = {literal(_delimiter(files[0], form))}",
        f"quote = {literal(form.quote)}",
        f"escape = {literal(form.quote)}",
        f"header = {str(form.header).lower()}",
        f"nullstr = [{', '.join(literal(text) for text in form.null)}]",
    ]
    if record is None:
        options += ["ignore_errors = true", "filename = 'lcn file'"]
    else:
        options += [
            "store_rejects = true",
            f"rejects_scan = {literal(f'scan_{record}_{part}')}",
            f"rejects_table = {literal(f'malformed_{record}_{part}')}",
        ]
    named = ", ".join(literal(file) for file in files)
    selected = f"*, {_NUMBER}" if record is None else "*"
    return f"SELECT {selected} FROM read_csv([{named}], {', '.join(options)})"


def _few(files: tuple[str, ...]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
