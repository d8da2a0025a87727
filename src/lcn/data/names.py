"""From addresses and indices back to words: keys, titles and field values of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lcn.errors import DataError
from lcn.schema import PADDING, UNKNOWN

Group = Literal["item", "event", "request", "candidate", "profile"]


class Names:
    """Reads names when they are asked for; whole columns are read once and kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._columns: dict[tuple[str, str], pa.ChunkedArray] = {}
        self._values: dict[tuple[Group, str], dict[int, str]] = {}

    def item_key(self, address: int) -> str:
        """The item as named in the logs."""
        return str(self._column("items", "key")[int(address)].as_py())

    def item_title(self, address: int) -> str:
        """The item's title, or its key where there is none."""
        title = self._column("items", "title")[int(address)].as_py()
        return str(title) if title is not None else self.item_key(address)

    def item_keys(self, address: NDArray) -> pa.ChunkedArray:
        """Keys of many items."""
        return self._column("items", "key").take(pa.array(np.asarray(address, np.int64)))

    def user_key(self, address: int) -> str:
        """The user as named in the logs."""
        return str(self._column("users", "key")[int(address)].as_py())

    def user_keys(self, address: NDArray) -> pa.ChunkedArray:
        """Keys of many users."""
        return self._column("users", "key").take(pa.array(np.asarray(address, np.int64)))

    def value(self, group: Group, field: str, index: int) -> str:
        """The text behind a field's vocabulary index."""
        known = self._values.get((group, field))
        if known is None:
            words = read_vocabulary(self._folder, group, field)
            known = {place: word for word, place in words.items()}
            known |= {PADDING: "none", UNKNOWN: "unknown"}
            self._values[group, field] = known
        return known.get(int(index), f"#{index}")

    def _column(self, table: str, name: str) -> pa.ChunkedArray:
        if (table, name) not in self._columns:
            read = _read(self._folder / f"{table}.parquet", [name])
            self._columns[table, name] = read.column(name)
        return self._columns[table, name]


def read_vocabulary(folder: Path, group: Group, field: str) -> dict[str, int]:
    """The index of each value of a field, as training days numbered them.

    Args:
        folder: of a prepared dataset.
        group: what the field belongs to.
        field: its name.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = folder / "vocabulary" / group / f"{field}.parquet"
    table = _read(path, ["value", "index"])
    values, indices = table["value"].to_pylist(), table["index"].to_pylist()
    return {str(value): int(index) for value, index in zip(values, indices, strict=True)}


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}; prepare the dataset again") from error
