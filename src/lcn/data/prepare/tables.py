"""The small tables of a dataset: items, users, their fields' vocabularies; samples by split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lcn.data.dataset import Int32
from lcn.data.prepare.catalogue import Catalogue
from lcn.data.prepare.codes import ITEMS, USERS, Coded, Codes
from lcn.data.prepare.engine import Engine
from lcn.data.prepare.files import ColumnWriter, read_column, write_column, write_table
from lcn.data.prepare.impressions import PLAIN, Shown
from lcn.data.prepare.vocabulary import (
    ITEM_FIELD,
    Seen,
    Vocabulary,
    field_counts,
    make_vocabulary,
)
from lcn.schema import PADDING, UNKNOWN, Field, Split

_CHUNK = 1 << 20
_ITEMS_SCHEMA = pa.schema(
    [("address", pa.int32()), ("key", pa.string()), ("title", pa.string()), ("domain", pa.string())]
)
_USERS_SCHEMA = pa.schema([("address", pa.int32()), ("key", pa.string())])


@dataclass(frozen=True, slots=True)
class Fields:
    """Every vocabulary of a dataset."""

    item: tuple[Field, ...]
    profile: tuple[Field, ...]
    event: tuple[Vocabulary, ...]
    request: tuple[Vocabulary, ...]
    candidate: tuple[Vocabulary, ...]


@dataclass(frozen=True, slots=True)
class TableWriter:
    """Writes vocabularies and whatever needs them.

    Args:
        engine: where keys and texts are.
        codes: their numbers.
        seen: their occurrences in training days.
        min_count: fewer occurrences leave a value unknown.
        folder: the dataset folder.
    """

    engine: Engine
    codes: Codes
    seen: Seen
    min_count: int
    folder: Path

    def write_fields(self, items: Catalogue, users: Catalogue) -> Fields:
        """Write all vocabularies, items and users."""
        groups = {
            group: tuple(
                self._vocabulary(group, coded, counts)
                for coded, counts in zip(
                    getattr(self.codes, group), getattr(self.seen, group), strict=True
                )
            )
            for group in ("event", "request", "candidate")
        }
        return Fields(item=self._write_items(items), profile=self._write_users(users), **groups)

    def _vocabulary(self, group: str, coded: Coded, counts: NDArray[np.int64]) -> Vocabulary:
        path = self.folder / "vocabulary" / group / f"{coded.name}.parquet"
        return make_vocabulary(self.engine, coded, counts, self.min_count, path)

    def _write_items(self, items: Catalogue) -> tuple[Field, ...]:
        own = make_vocabulary(
            self.engine,
            Coded(ITEM_FIELD, ITEMS, self.codes.items),
            self.seen.item_I,
            self.min_count,
            self.folder / "vocabulary" / "item" / f"{ITEM_FIELD}.parquet",
            value="key",
        )
        vocabularies, columns = [own], [own.index.copy()]
        for number, coded in enumerate(self.codes.item):
            code_I = self._catalogue_codes(ITEMS, items, number, coded)
            counts = field_counts(code_I, self.seen.item_I, coded.values)
            vocabularies.append(self._vocabulary("item", coded, counts))
            columns.append(vocabularies[-1].index[code_I])
        item_IF = np.column_stack(columns)
        item_IF[0] = PADDING
        write_column(self.folder / "items.npy", item_IF)
        write_table(
            self.folder / "items.parquet",
            _ITEMS_SCHEMA,
            self.engine.stream(
                "SELECT 0 AS address, NULL AS key, NULL AS title, NULL AS domain UNION ALL "
                f"SELECT address, CAST(key AS VARCHAR), title, domain FROM {ITEMS} "
                f"LEFT JOIN {items.table} USING (key) ORDER BY address"
            ),
        )
        return tuple(vocabulary.field for vocabulary in vocabularies)

    def _write_users(self, users: Catalogue) -> tuple[Field, ...]:
        vocabularies, columns = [], []
        for number, coded in enumerate(self.codes.profile):
            code_U = self._catalogue_codes(USERS, users, number, coded)
            counts = field_counts(code_U, self.seen.is_user_U, coded.values)
            vocabularies.append(self._vocabulary("profile", coded, counts))
            columns.append(vocabularies[-1].index[code_U])
        user_UP = np.empty((self.codes.users + 1, 0), np.int32)
        if columns:
            user_UP = np.column_stack(columns)
        user_UP[0] = UNKNOWN
        write_column(self.folder / "users.npy", user_UP)
        write_table(
            self.folder / "users.parquet",
            _USERS_SCHEMA,
            self.engine.stream(
                "SELECT 0 AS address, NULL AS key UNION ALL "
                f"SELECT address, CAST(key AS VARCHAR) FROM {USERS} ORDER BY address"
            ),
        )
        return tuple(vocabulary.field for vocabulary in vocabularies)

    def _catalogue_codes(self, keys: str, catalogue: Catalogue, number: int, coded: Coded) -> Int32:
        """Return a field's code at every address; 0 where the catalogue has no value."""
        count = self.codes.items if keys == ITEMS else self.codes.users
        code = np.zeros(count + 1, np.int32)
        for batch in self.engine.stream(
            f"SELECT {keys}.address, {coded.table}.code FROM {catalogue.table} AS known "
            f"JOIN {keys} ON known.key = {keys}.key "
            f"JOIN {coded.table} ON known.f{number} = {coded.table}.value"
        ):
            code[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
        return code


def translate(path: Path, vocabularies: tuple[Vocabulary, ...]) -> None:
    """Turn a column file of codes into vocabulary indices, in its place."""
    codes = read_column(path, "r+")
    for first in range(0, len(codes) if vocabularies else 0, _CHUNK):
        block = codes[first : first + _CHUNK]
        block[:] = translated(block, vocabularies)
    if isinstance(codes, np.memmap):
        codes.flush()


def translated(codes: Int32, vocabularies: tuple[Vocabulary, ...]) -> Int32:
    """Return the vocabulary indices of code columns."""
    indices = [vocabulary.index[codes[:, k]] for k, vocabulary in enumerate(vocabularies)]
    return np.column_stack(indices) if indices else np.empty((len(codes), 0), np.int32)


def write_samples(
    shown: Shown,
    rows: dict[Split, tuple[int, int]],
    fields: Fields,
    folder: Path,
    with_probability: bool,
) -> None:
    """Cut the impressions' columns into splits."""
    plain = [*PLAIN, "source_end", "target_end"]
    if not with_probability:
        plain.remove("probability")
    for split, (first, last) in rows.items():
        for name in plain:
            _copy(shown.column(name), first, last, folder / split / f"{name}.npy", None)
        for name, vocabularies in (("context", fields.request), ("candidate", fields.candidate)):
            _copy(shown.column(name), first, last, folder / split / f"{name}.npy", vocabularies)


def _copy(
    column: NDArray, first: int, last: int, path: Path, vocabularies: tuple[Vocabulary, ...] | None
) -> None:
    width = None if vocabularies is None else len(vocabularies)
    with ColumnWriter(path, column.dtype, width) as writer:
        for start in range(first, last, _CHUNK):
            block = np.asarray(column[start : min(start + _CHUNK, last)])
            writer.append(block if vocabularies is None else translated(block, vocabularies))
