"""Vocabularies: the values a model may know, learned from training days only.

Training days are events known before validation begins, and training impressions. Indices go by
(occurrences in training days, most first; length; text). Occurrences are: of an item, its events
and impressions; of an item field, those of all items with the value; of event context, events;
of request context and candidate fields, impressions; of a profile field, users, each once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lcn.data.dataset import Int32, Int64
from lcn.data.prepare.codes import Coded, Codes
from lcn.data.prepare.engine import Engine
from lcn.data.prepare.files import write_table
from lcn.errors import DataError
from lcn.schema import FIRST_VALUE, UNKNOWN, Field

ITEM_FIELD = "item"
_SCHEMA = pa.schema([("value", pa.string()), ("index", pa.int32()), ("count", pa.int64())])
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Seen:
    """What occurs in training days, counted while rows stream by.

    Args:
        codes: what there is to count.
        before: events known at this time or later are not of training days.
    """

    def __init__(self, codes: Codes, before: int) -> None:
        self._before = before
        self.item_I = np.zeros(codes.items + 1, np.int64)
        self.is_user_U = np.zeros(codes.users + 1, np.bool_)
        self.event = [np.zeros(coded.values + 1, np.int64) for coded in codes.event]
        self.request = [np.zeros(coded.values + 1, np.int64) for coded in codes.request]
        self.candidate = [np.zeros(coded.values + 1, np.int64) for coded in codes.candidate]

    def count_events(self, user_E: Int32, item_E: Int32, known_E: Int64, codes_EG: Int32) -> None:
        """Count a batch of events of either domain."""
        is_past_E = known_E < self._before
        if not is_past_E.all():
            user_E, item_E, codes_EG = user_E[is_past_E], item_E[is_past_E], codes_EG[is_past_E]
        self.is_user_U[user_E] = True
        np.add.at(self.item_I, item_E, 1)
        for number, counts in enumerate(self.event):
            np.add.at(counts, codes_EG[:, number], 1)

    def count_impressions(
        self, user_S: Int32, item_S: Int32, request_SR: Int32, candidate_SA: Int32
    ) -> None:
        """Count training impressions."""
        self.is_user_U[user_S] = True
        np.add.at(self.item_I, item_S, 1)
        for counts, codes_SF in ((self.request, request_SR), (self.candidate, candidate_SA)):
            for number, count in enumerate(counts):
                np.add.at(count, codes_SF[:, number], 1)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One field's indices."""

    field: Field
    index: Int32
    """code -> vocabulary index; code 0, no value, is unknown."""


def check_field_names(groups: dict[str, tuple[str, ...]]) -> None:
    """Check that field names can name files.

    Raises:
        DataError: a name with other characters, or an item field named like the item itself.
    """
    for group, names in groups.items():
        for name in names:
            if not _SAFE_NAME.fullmatch(name):
                raise DataError(
                    f"{group} field {name!r}: a field's name may have letters, digits, _ . and -"
                )
    if ITEM_FIELD in groups["item"]:
        raise DataError(f"item field {ITEM_FIELD!r}: this name is the item's own; choose another")


def make_vocabulary(
    engine: Engine,
    coded: Coded,
    count_V: NDArray[np.int64],
    min_count: int,
    path: Path,
    value: str = "value",
) -> Vocabulary:
    """Choose and number the values that occur often enough, and write them.

    Args:
        count_V: [values + 1] occurrences in training days of each code.
        min_count: fewer occurrences leave a value unknown.
        path: the Parquet file: value, index, count.
        value: column of the code table with the text.
    """
    kept = np.flatnonzero(count_V[1:] >= max(min_count, 1)) + 1
    # Codes go by (length, text), and the sort is stable.
    kept = kept[np.argsort(-count_V[kept], kind="stable")]
    index = np.full(len(count_V), UNKNOWN, np.int32)
    index[kept] = np.arange(FIRST_VALUE, FIRST_VALUE + len(kept), dtype=np.int32)
    write_table(path, _SCHEMA, _rows(engine, coded, value, index, count_V))
    return Vocabulary(Field(name=coded.name, size=FIRST_VALUE + len(kept)), index)


def _rows(
    engine: Engine, coded: Coded, value: str, index: Int32, count_V: NDArray[np.int64]
) -> Iterator[pa.RecordBatch]:
    """Yield value, index, count in order of the values' codes."""
    code = "address" if value == "key" else "code"
    for batch in engine.stream(
        f"SELECT CAST({value} AS VARCHAR), {code} FROM {coded.table} ORDER BY {code}"
    ):
        codes = batch.column(1).to_numpy()
        chosen = index[codes] >= FIRST_VALUE
        text = batch.column(0).filter(pa.array(chosen))
        numbers = (index[codes][chosen], count_V[codes][chosen])
        yield pa.RecordBatch.from_arrays([text, *map(pa.array, numbers)], names=_SCHEMA.names)


def field_counts(code_I: Int32, weight_I: NDArray, values: int) -> NDArray[np.int64]:
    """Sum weights by code, for fields of items (weight: occurrences) and users (weight: 0 or 1)."""
    # Sums of integers in float64 are exact far beyond any log's length.
    return np.bincount(code_I, weights=weight_I, minlength=values + 1).astype(np.int64)
