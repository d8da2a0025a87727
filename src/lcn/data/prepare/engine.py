"""The in-process SQL engine that preparation runs on: bounded memory, spills to disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from lcn.errors import DataError

STREAM_ROWS = 1 << 20
_DISK_FULL = ("No space left", "max_temp_directory_size", "Disk quota exceeded")


def quote(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


class Engine:
    """One database of a preparation run, in a file of its work folder.

    Args:
        work: folder for the database and what spills out of memory.
        timezone: IANA zone in which naive times are read.
        threads: None for as many as there are processors.
        memory_limit: such as "2GB"; the process itself needs some hundred MB on top.

    Raises:
        DataError: a setting has no meaning.
    """

    def __init__(
        self, work: Path, *, timezone: str, threads: int | None, memory_limit: str
    ) -> None:
        self.work = work
        self._connection = duckdb.connect(str(work / "work.duckdb"))
        _be_silent(self._connection)
        settings: dict[str, str | int | bool] = {
            # Nothing may be fetched behind the user's back.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": str(work / "spill"),
            # Every order that matters is spelled out, with keys that leave no ties.
            "preserve_insertion_order": False,
            # TRY_CAST over read_csv would drop the row instead of giving NULL (duckdb #23818); and
            # least and greatest in Parquet files leave NaN out, so isnan() would be taken as false.
            "disabled_optimizers": "type_pushdown,statistics_propagation",
            # It halves the size of the work database, but takes most of the time of reading.
            "disabled_compression_methods": "dict_fsst",
            "memory_limit": memory_limit,
            "TimeZone": timezone,
        }
        if threads is not None:
            settings["threads"] = threads
        for name, value in settings.items():
            try:
                self._connection.execute(f"SET GLOBAL {name} = {_setting(value)}")
            except duckdb.Error as error:
                self.close()
                raise DataError(f"cannot set {name} to {value!r}: {_one_line(error)}") from error

    def close(self) -> None:
        """Release the database file."""
        self._connection.close()

    def run(self, sql: str) -> None:
        """Execute a statement."""
        self._connection.execute(sql)

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return all rows of a small result."""
        return self._connection.execute(sql, list(values)).fetchall()

    def value(self, sql: str, *values: object) -> Any:
        """Return the one value of a result."""
        return self.rows(sql, *values)[0][0]

    def stream(self, sql: str, rows: int = STREAM_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield a result of any length in batches; several streams may be open at once."""
        cursor = self._connection.cursor()
        try:
            _be_silent(cursor)
            with cursor.sql(sql).to_arrow_reader(rows) as reader:
                for batch in reader:
                    if batch.num_rows:
                        yield batch
        finally:
            cursor.close()

    def insert(self, table: str, batch: pa.RecordBatch) -> None:
        """Append a batch to a table, columns in order."""
        self._connection.register("appended", batch)
        self._connection.execute(f"INSERT INTO {table} SELECT * FROM appended")
        self._connection.unregister("appended")


def _be_silent(connection: duckdb.DuckDBPyConnection) -> None:
    # The engine's own progress bar would write into the results on stdout.
    connection.execute("SET SESSION enable_progress_bar = false")


def _setting(value: str | int | bool) -> str:
    return literal(value) if isinstance(value, str) else str(value).lower()


def _one_line(error: BaseException) -> str:
    return str(error).strip().split("\n\n")[0].replace("\n", " ")


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn the engine's and the disk's errors into `DataError`s that say what to do."""
    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        if "state machine reached an invalid state" in text:
            raise DataError(
                f"{doing}: some lines end with CR LF and others with LF; make them alike, for "
                "example with dos2unix"
            ) from error
        if any(sign in text for sign in _DISK_FULL):
            raise _disk_full(doing, error) from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise DataError(
                f"{doing}: the memory limit is too small ({_one_line(error)}); raise it with "
                "--memory, or lower --threads"
            ) from error
        if isinstance(error, duckdb.ConversionException):
            raise DataError(
                f"{doing}: an expression of the mapping fails on a value ({_one_line(error)}); "
                "write TRY_CAST(... AS ...) to make such values missing"
            ) from error
        raise DataError(f"{doing}: {_one_line(error)}") from error
    except pa.ArrowException as error:
        raise DataError(f"{doing}: {_one_line(error)}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(doing, error) from error
        raise DataError(f"{doing}: {error}") from error


def _disk_full(doing: str, error: BaseException) -> DataError:
    return DataError(
        f"{doing}: the disk is full ({_one_line(error)}); preparation needs about as much room "
        "beside its output folder as the logs have uncompressed: free some, or choose an output "
        "folder on a larger disk"
    )
