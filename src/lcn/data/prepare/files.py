"""Files of a dataset folder: columns that grow by appending, tables, checksums."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from lcn.errors import DataError
from lcn.files import sha256_of, sync
from lcn.schema import read_manifest

_ROW_GROUP = 1 << 17


class ColumnWriter:
    """A `.npy` file written batch by batch; its length is known when it is closed.

    Args:
        path: file to create; its folder is created too.
        dtype: element type.
        width: None for one value per row, else columns per row.
    """

    def __init__(self, path: Path, dtype: DTypeLike, width: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._dtype = np.dtype(dtype)
        self._width = width
        self._file = path.open("wb", buffering=0)
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        """Write further rows."""
        block = np.ascontiguousarray(values, dtype=self._dtype)
        _write_all(self._file.fileno(), block)
        self.rows += len(block)

    def close(self) -> None:
        """Put the final length into the header."""
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_header(self) -> None:
        # numpy pads the header so that a longer first axis still fits in its place.
        shape = (self.rows,) if self._width is None else (self.rows, self._width)
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": shape,
            },
        )


def _write_all(descriptor: int, block: NDArray[Any]) -> None:
    if block.size == 0:
        return
    left = block.data.cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def write_column(path: Path, values: NDArray[Any]) -> None:
    """Write a whole column that is in memory."""
    width = None if values.ndim == 1 else values.shape[1]
    with ColumnWriter(path, values.dtype, width) as column:
        column.append(values)


def read_column(path: Path, mode: str = "r") -> NDArray[Any]:
    """Memory-map a column; an empty one, which cannot be mapped, is read."""
    try:
        return np.load(path, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except ValueError:
        return np.load(path, allow_pickle=False)


def write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write Parquet whose bytes depend on the rows alone, not on how they were batched.

    Returns:
        The number of rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pending: list[pa.RecordBatch] = []
    waiting = total = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            pending.append(batch.cast(schema))
            waiting += batch.num_rows
            total += batch.num_rows
            while waiting >= _ROW_GROUP:
                table = pa.Table.from_batches(pending, schema)
                writer.write_table(table.slice(0, _ROW_GROUP).combine_chunks())
                pending = table.slice(_ROW_GROUP).to_batches()
                waiting -= _ROW_GROUP
        if waiting or not total:
            writer.write_table(pa.Table.from_batches(pending, schema).combine_chunks())
    return total


def seal(folder: Path) -> dict[str, str]:
    """Bring every file of a finished folder to the disk and return path -> SHA-256.

    Rows left out (`rejected/`) are notes for people and name input files, so they are no part
    of what a dataset is; nor is a hidden file, such as the lock.
    """
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        name = path.relative_to(folder).as_posix()
        if not name.startswith(("rejected/", ".")):
            sums[name] = sha256_of(path)
    return sums


def verify(folder: Path | str) -> None:
    """Check every file of a dataset against the checksums in its manifest.

    Raises:
        DataError: a file is missing or has other bytes; the first one is named.
    """
    folder = Path(folder)
    for name, expected in read_manifest(folder).checksums.items():
        try:
            got = sha256_of(folder / name)
        except OSError as error:
            raise DataError(
                f"{folder / name} cannot be read ({error.strerror}); prepare the dataset again"
            ) from error
        if got != expected:
            raise DataError(
                f"{folder / name} has SHA-256 {got[:12]}…, its manifest says {expected[:12]}…: "
                "the file was changed or damaged; prepare the dataset again"
            )
