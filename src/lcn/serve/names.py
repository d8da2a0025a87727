"""The texts behind a model's numbers, as tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lcn.data.names import Group
from lcn.errors import DataError

USER_LENGTH, ITEM_LENGTH = 64, 256
"""Characters of a key that a request may name."""
KEY_TEXT = r"^[^\x00-\x1f\x7f-\x9f]+$"
"""Such a key: any text without control characters."""
GROUPS: tuple[Group, ...] = ("event", "request", "candidate", "profile")
"""The groups whose values are looked up; items are known by their keys."""


@dataclass(frozen=True, slots=True)
class NameTables:
    """Items, users and values of fields."""

    items: pa.Table
    """address, key, title; row = address, row 0 is padding."""
    users: pa.Table
    """address, key; row 0 is unknown."""
    values: Mapping[tuple[Group, str], pa.Table]
    """(group, field) -> value, index."""


def read_names(folder: Path) -> NameTables:
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
    return NameTables(_by_address(items, folder), _by_address(users, folder), values)


def unaskable(names: NameTables) -> dict[str, list[str]]:
    """Keys of users and items that no request can name: too long, or with control characters."""
    good = re.compile(KEY_TEXT)
    found = {}
    for kind, table, most in (
        ("users", names.users, USER_LENGTH),
        ("items", names.items, ITEM_LENGTH),
    ):
        keys = (key for key in table["key"].to_pylist() if key is not None)
        found[kind] = [key for key in keys if len(key) > most or not good.fullmatch(key)]
    return {kind: keys for kind, keys in found.items() if keys}


def _by_address(table: pa.Table, folder: Path) -> pa.Table:
    """The table with a row for every address from 0; address 0 may be left out, it has no name."""
    address = table["address"].to_numpy()
    if len(address) and address[0] == 1:
        empty = {field.name: pa.nulls(1, field.type) for field in table.schema}
        empty["address"] = pa.array([0], table.schema.field("address").type)
        table = pa.concat_tables([pa.table(empty, table.schema), table])
        address = table["address"].to_numpy()
    if not np.array_equal(address, np.arange(len(address))):
        raise DataError(f"{folder}: addresses do not count up from 0; prepare the dataset again")
    return table
