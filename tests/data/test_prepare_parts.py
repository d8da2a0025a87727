"""The parts of preparation whose mistakes only long logs would show."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcn.data.mapping import Csv
from lcn.data.prepare.events import HistoryCutter, count_before
from lcn.data.prepare.files import ColumnWriter, read_column, write_table
from lcn.data.prepare.mending import mend
from lcn.data.prepare.ordered import Deduplicator
from lcn.errors import DataError

pairs = st.lists(st.tuples(st.integers(1, 5), st.integers(-(2**62), 2**62) | st.integers(0, 4)))
cuts = st.integers(1, 4)


def _columns(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    user = np.array([user for user, _ in rows], np.int32)
    return user, np.array([time for _, time in rows], np.int64)


@given(events=pairs.filter(bool), shown=pairs)
def test_count_before_counts(events: list[tuple[int, int]], shown: list[tuple[int, int]]) -> None:
    got = count_before(*_columns(sorted(events)), *_columns(shown))
    assert got.tolist() == [sum(event < moment for event in events) for moment in shown]


@given(events=pairs, shown=pairs, step=cuts, pace=cuts)
def test_histories_are_cut_alike_however_rows_are_batched(
    events: list[tuple[int, int]], shown: list[tuple[int, int]], step: int, pace: int
) -> None:
    events, moments = sorted(events), sorted((*pair, row) for row, pair in enumerate(shown))
    end_S = np.full(len(shown), -1)

    def batches():
        for first in range(0, len(moments), pace):
            part = moments[first : first + pace]
            yield *_columns([m[:2] for m in part]), np.array([m[2] for m in part])

    cutter = HistoryCutter(batches(), end_S)
    for first in range(0, len(events), step):
        cutter.pass_events(*_columns(events[first : first + step]))
    cutter.finish()
    assert end_S.tolist() == [sum(event < moment for event in events) for moment in shown]


@given(rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1))), step=cuts)
def test_duplicates_across_batches(rows: list[tuple[int, int]], step: int) -> None:
    rows = sorted(rows)
    value = np.array([value for value, _ in rows], np.float32)
    value[value == 0] = np.nan
    part = np.array([part for _, part in rows], np.int32)
    table = pa.table({"value": value, "part": part})
    unique = Deduplicator([True, False])
    batches = unique.of(iter(table.to_batches(max_chunksize=step)))
    kept = [columns["part"].tolist() for columns in batches]
    of_first = {row for row in rows if row[1] == 0}
    assert sum(map(len, kept)) == len(of_first) + int((part == 1).sum())
    assert unique.dropped == [int((part == 0).sum()) - len(of_first), 0]


@given(steps=st.lists(st.integers(0, 5), max_size=5), width=st.none() | st.integers(0, 3))
def test_columns_grow(tmp_path_factory: pytest.TempPathFactory, steps, width) -> None:
    path = tmp_path_factory.mktemp("column") / "column.npy"
    rows, shape = sum(steps), () if width is None else (width,)
    whole = np.arange(rows * int(np.prod(shape, dtype=int)), dtype=np.int32).reshape(rows, *shape)
    with ColumnWriter(path, np.int32, width) as column:
        for first, count in zip(np.cumsum([0, *steps]), steps, strict=False):
            column.append(whole[first : first + count])
    np.testing.assert_array_equal(read_column(path), whole)
    other = path.with_name("whole.npy")
    np.save(other, whole)
    assert np.load(other).dtype == read_column(path).dtype


def test_tables_do_not_depend_on_batches(tmp_path: Path) -> None:
    table = pa.table({"number": range(300_000), "text": [f"t{k % 1000}" for k in range(300_000)]})
    for size in (1_000, 77_777, 300_000):
        write_table(tmp_path / f"{size}", table.schema, table.to_batches(max_chunksize=size))
    assert len({(tmp_path / f"{size}").read_bytes() for size in (1_000, 77_777, 300_000)}) == 1


MESSY = b'u,i,t\n1,"two\nlines",3\n1,2\n\n1,\xff,3\n1,"a ""b"" c",3\r\n1,"a"b,3\n1,2,3,4\n1,2,last'


@pytest.mark.parametrize("name", ["messy.csv", "messy.csv.gz"])
def test_mending_keeps_what_can_be_read(tmp_path: Path, name: str) -> None:
    file, copy = tmp_path / name, tmp_path / "copy.csv"
    file.write_bytes(gzip.compress(MESSY) if name.endswith(".gz") else MESSY)
    bad = mend(str(file), copy, Csv(), ",", 3)
    assert [(line.reason, line.number, line.kept, line.text) for line in bad] == [
        ("malformed line", 2, 1, "1,2"),
        ("broken UTF-8", 3, 1, "1,\ufffd,3"),
        ("malformed line", 5, 2, '1,"a"b,3'),
        ("malformed line", 6, 2, "1,2,3,4"),
    ]
    assert copy.read_bytes() == (b'u,i,t\n1,"two\nlines",3\n1,"a ""b"" c",3\r\n1,2,last')


def test_mending_stops_at_an_open_quote(tmp_path: Path) -> None:
    file = tmp_path / "open.csv"
    file.write_bytes(b'u,i\n1,2\n1,"x\n' + b"1,2\n" * 1_000_000)
    with pytest.raises(DataError, match=r"quote in line 3 of .*open.csv is never closed"):
        mend(str(file), tmp_path / "copy.csv", Csv(), ",", 2)
