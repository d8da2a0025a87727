"""The texts behind a model's numbers, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from lcn.errors import DataError

Group = Literal["event", "request", "candidate", "profile"]
GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True, slots=True)
class Names:
    """Items, users and values of fields."""

    items: pa.Table
    """address, key, title; row = address, row 0 is padding."""
    users: pa.Table
    """address, key; row 0 is unknown."""
    values: Mapping[tuple[Group, str], pa.Table]
    """(group, field) -> value, index."""


def read_names(folder: Path) -> Names:
    """Read the names of a dataset folder or a bundle.

    Raises:
        DataError: a table is missing or damaged.
    """
    values = {}
    try:
        for group in GROUPS:
            for path in sorted((folder / "vocabulary" / group).glob("*.parquet")):
                values[group, path.stem] = pq.read_table(path, columns=["value", "index"])
        items = pq.read_table(folder / "items.parquet", columns=["address", "key", "title"])
        users = pq.read_table(folder / "users.parquet", columns=["address", "key"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read the names in {folder}: {error}") from error
    return Names(items, users, values)
