"""Impressions: in time order, without duplicates, cut into splits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lcn.data.dataset import Int32, Int64
from lcn.data.mapping import Impressions, SplitRule
from lcn.data.prepare.codes import ITEMS, USERS, Codes, category
from lcn.data.prepare.engine import Engine, explained
from lcn.data.prepare.files import ColumnWriter, read_column
from lcn.data.prepare.ordered import Deduplicator, encoded
from lcn.data.prepare.staging import Staged
from lcn.data.prepare.times import instant
from lcn.errors import DataError
from lcn.schema import SPLITS, Split, SplitTimes

MOMENTS = "moment"
"""SQL table: user, time, row of every impression."""
PLAIN = {
    "user": np.int32,
    "item": np.int32,
    "time": np.int64,
    "label": np.uint8,
    "dwell": np.float32,
    "probability": np.float32,
}
"""Columns of one value per impression."""


@dataclass(frozen=True, slots=True)
class Shown:
    """All impressions in time order, as columns of a work folder."""

    folder: Path
    rows: int
    duplicates: dict[str, int]
    """table label -> rows dropped"""

    def column(self, name: str) -> NDArray:
        """Return one column, memory-mapped."""
        return read_column(self.folder / f"{name}.npy")


def sort_impressions(
    engine: Engine, tables: list[tuple[Staged, Impressions]], codes: Codes, folder: Path
) -> Shown:
    """Write impressions by (time, user, item, everything else); equal rows of a table once.

    Raises:
        DataError: no usable impression at all.
    """
    request, candidate = len(codes.request), len(codes.candidate)
    selects = []
    for staged, mapped in tables:
        context, own = tuple(mapped.context), tuple(mapped.candidate)
        columns = {
            '"user"': f"{USERS}.address",
            "item": f"{ITEMS}.address",
            "time": "log.time",
            "label": "log.label::UTINYINT",
            "dwell": "log.dwell",
            "probability": "log.probability",
        }
        fields = [(coded, category(context, coded.name)) for coded in codes.request]
        fields += [(coded, category(own, coded.name, len(context))) for coded in codes.candidate]
        selects.append(encoded(staged, columns, fields))
    keys = ["time", '"user"', "item", "label", "dwell", "probability"]
    keys += [f"k{number}" for number in range(request + candidate)]
    sql = f"{' UNION ALL '.join(selects)} ORDER BY {', '.join([*keys, 'part'])}"
    unique = Deduplicator([not staged.query.has_id for staged, _ in tables])
    with explained("sorting impressions"), ExitStack() as stack:
        plain = {
            name: stack.enter_context(ColumnWriter(folder / f"{name}.npy", dtype))
            for name, dtype in PLAIN.items()
        }
        context = stack.enter_context(ColumnWriter(folder / "context.npy", np.int32, request))
        candidates = stack.enter_context(
            ColumnWriter(folder / "candidate.npy", np.int32, candidate)
        )
        for columns in unique.of(engine.stream(sql)):
            for name, column in plain.items():
                column.append(columns[name])
            codes_SK = np.column_stack(
                [columns[f"k{k}"] for k in range(request + candidate)]
                or [np.empty((len(columns["user"]), 0), np.int32)]
            )
            context.append(codes_SK[:, :request])
            candidates.append(codes_SK[:, request:])
    rows = plain["user"].rows
    if rows == 0:
        raise DataError(
            "no impression can be used: the impression tables are empty, or `where` and "
            "`target_rule` leave no row"
        )
    labels = [staged.name for staged, _ in tables]
    return Shown(folder, rows, dict(zip(labels, unique.dropped, strict=True)))


def note_moments(engine: Engine, shown: Shown) -> None:
    """Make the table of (user, time, row) that histories are cut by."""
    engine.run(f'CREATE TABLE {MOMENTS} ("user" INTEGER, time BIGINT, row BIGINT)')
    user_S, time_S = shown.column("user"), shown.column("time")
    for first in range(0, shown.rows, 1 << 20):
        last = min(first + (1 << 20), shown.rows)
        arrays = [user_S[first:last], time_S[first:last], np.arange(first, last)]
        batch = pa.RecordBatch.from_arrays(
            [pa.array(np.asarray(array)) for array in arrays], names=["user", "time", "row"]
        )
        engine.insert(MOMENTS, batch)


def moments_by_user(engine: Engine) -> Iterator[tuple[Int32, Int64, Int64]]:
    """Yield (user, time, row) of every impression, by user and time."""
    for batch in engine.stream(f'SELECT * FROM {MOMENTS} ORDER BY "user", time, row'):
        user, time, row = (column.to_numpy() for column in batch.columns)
        yield user, time, row


def split_times(engine: Engine, rule: SplitRule, timezone: str, time_S: Int64) -> SplitTimes:
    """Return where validation and test begin.

    With shares, a bound lies on the first impression time after the wanted number of earlier
    impressions, so equal times are on one side of it.

    Args:
        time_S: impression times in ascending order.

    Raises:
        DataError: a date is no date, or a split would have no impression.
    """
    if rule.validation_from is not None and rule.test_from is not None:
        bounds = [
            instant(engine, rule.validation_from, "split.validation_from"),
            instant(engine, rule.test_from, "split.test_from"),
        ]
    else:
        test = round(len(time_S) * rule.test_share)
        validation = round(len(time_S) * rule.validation_share)
        bounds = [
            _first_time_after(time_S, len(time_S) - test - validation),
            _first_time_after(time_S, len(time_S) - test),
        ]
    times = SplitTimes(timezone=timezone, validation_from=bounds[0], test_from=bounds[1])
    for split, (first, last) in split_rows(time_S, times).items():
        if first >= last:
            raise DataError(_empty_split(engine, split, times, time_S))
    return times


def split_rows(time_S: Int64, times: SplitTimes) -> dict[Split, tuple[int, int]]:
    """Return each split's first and one-past-last impression."""
    validation, test = np.searchsorted(time_S, [times.validation_from, times.test_from])
    edges = [0, int(validation), int(test), len(time_S)]
    return {split: (edges[k], edges[k + 1]) for k, split in enumerate(SPLITS)}


def _first_time_after(time_S: Int64, earlier: int) -> int:
    """Return the bound that leaves at least `earlier` impressions before it."""
    if earlier <= 0:
        return int(time_S[0])
    after = int(np.searchsorted(time_S, time_S[min(earlier, len(time_S)) - 1], side="right"))
    return int(time_S[after]) if after < len(time_S) else int(time_S[-1]) + 1


def _empty_split(engine: Engine, split: Split, times: SplitTimes, time_S: Int64) -> str:
    def text(milliseconds: int) -> str:
        zoned = engine.value("SELECT to_timestamp(? / 1000.0)::VARCHAR", int(milliseconds))
        return str(zoned)

    return (
        f"the {split} split has no impressions: they run from {text(time_S[0])} to "
        f"{text(time_S[-1])}, validation begins {text(times.validation_from)}, test "
        f"{text(times.test_from)}; set split.validation_from and split.test_from inside that span"
    )
