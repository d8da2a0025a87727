"""What preparation does with input that is not as it should be: one outcome each."""

from __future__ import annotations

import datetime
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepare_twin import BASE, Event, Item, Logs, User, enough, mapping, write
from pydantic import ValidationError

from lcn.config import dump_config
from lcn.data.dataset import Dataset, open_dataset
from lcn.data.mapping import Csv, Events, Impressions, Limits, Mapping, SplitRule, Users
from lcn.data.prepare import files, prepare, true_probability, verify
from lcn.errors import DataError
from lcn.schema import Manifest

PLAIN = Mapping(
    name="plain",
    events=(
        Events(files=("events.csv",), user="u", item="i", time="t", time_unit="s", domain="source"),
    ),
    impressions=(
        Impressions(
            files=("impressions.csv",), user="u", item="i", time="t", time_unit="s", label="y"
        ),
    ),
    limits=Limits(max_rejected_share=0.5),
)
EVENTS = [f"1,a,{BASE + k}" for k in range(10)]
IMPRESSIONS = [f"{k % 3},a,{BASE + 10 * k},{k % 2}" for k in range(20)]


def _prepare(
    folder: Path,
    events: list[str] | None = None,
    impressions: list[str] | None = None,
    *,
    asked: Mapping = PLAIN,
    encoding: str = "utf-8",
) -> Manifest:
    for name, header, lines, default in (
        ("events", "u,i,t", events, EVENTS),
        ("impressions", "u,i,t,y", impressions, IMPRESSIONS),
    ):
        text = "\n".join([header, *(default if lines is None else lines)]) + "\n"
        if not (folder / f"{name}.csv").exists():
            (folder / f"{name}.csv").write_bytes(text.encode(encoding))
    return prepare(asked, folder / "out", base=folder, threads=1)


def _changed(kind: str, **changes: object) -> Mapping:
    table = getattr(PLAIN, kind)[0].model_copy(update=changes)
    return PLAIN.model_copy(update={kind: (table,)})


def _limits(**changes: object) -> Mapping:
    return PLAIN.model_copy(update={"limits": Limits.model_validate(changes)})


def _left(folder: Path, table: str) -> list[dict[str, str]]:
    return pq.read_table(folder / "out" / "rejected" / f"{table}.parquet").to_pylist()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f",a,{BASE}", "missing user"),
        (f"1,,{BASE}", "missing item"),
        (f"1,NULL,{BASE}", "missing item"),
        ("1,a,", "missing time"),
        ("1,a,yesterday", "unreadable time"),
        ("1,a,nan", "unreadable time"),
        ("1,a,0", "time before earliest"),
        ("1,a,-1500000000", "time before earliest"),
        ("1,a,-99999999999999999999999", "time before earliest"),
        (f"1,a,{BASE}000", "time after latest"),
        ("1,a,9223372036854775807", "time after latest"),
        ("1,a,1e300", "time after latest"),
        ("1,a", "malformed line"),
        (f"1,a,{BASE},extra", "malformed line"),
    ],
)
def test_rejected_events(tmp_path: Path, line: str, reason: str) -> None:
    manifest = _prepare(tmp_path, [*EVENTS[:5], line, *EVENTS[5:]])
    assert manifest.rejected["events"] == {reason: 1}
    assert manifest.count.events == {"source": 10, "target": 0}
    (row,) = _left(tmp_path, "events")
    assert row["reason"] == reason
    assert row["file"] == "events.csv"
    assert row["number"] == 6
    assert row["row"]


@pytest.mark.parametrize(
    ("label", "reason"),
    [("", "missing label"), ("2", "label not 0 or 1"), ("0.5", "label not 0 or 1"),
     ("yes", "label not 0 or 1"), ("-1", "label not 0 or 1"), ("nan", "label not 0 or 1")],
)  # fmt: skip
def test_rejected_labels(tmp_path: Path, label: str, reason: str) -> None:
    manifest = _prepare(tmp_path, None, [*IMPRESSIONS, f"1,a,{BASE},{label}"])
    assert manifest.rejected["impressions"] == {reason: 1}
    assert sum(manifest.count.samples.values()) == 20


def test_labels_as_numbers_with_decimals_are_read(tmp_path: Path) -> None:
    manifest = _prepare(tmp_path, None, [f"{line}.0" for line in IMPRESSIONS])
    assert sum(manifest.count.positives.values()) == 10


def test_broken_utf8_is_rejected_line_by_line(tmp_path: Path) -> None:
    lines = [*EVENTS, f"1,\xff\xfe,{BASE}", f"\xe9t\xe9,b,{BASE}", f"2,c,{BASE}"]
    manifest = _prepare(tmp_path, lines, encoding="latin-1")
    assert manifest.rejected["events"] == {"broken UTF-8": 2}
    assert {row["reason"] for row in _left(tmp_path, "events")} == {"broken UTF-8"}
    assert manifest.count.events["source"] == 11


def test_an_open_quote_fails_the_job_for_it_swallows_lines(tmp_path: Path) -> None:
    lines = [*EVENTS[:5], f'"2,b,{BASE}', *(f"3,c,{BASE + k}" for k in range(7))]
    with pytest.raises(DataError, match=r"the quote in line 7 of .*events.csv is never closed"):
        _prepare(tmp_path, lines)
    manifest = _prepare(tmp_path, asked=_changed("events", csv=Csv(quote="")))
    assert manifest.count.events["source"] == 13


def test_too_many_rejected_rows_fail_the_job_and_leave_nothing(tmp_path: Path) -> None:
    lines = [*EVENTS, *(f",a,{BASE + k}" for k in range(4)), "1,a,then"]
    with pytest.raises(DataError) as failed:
        _prepare(tmp_path, lines, asked=_limits(max_rejected_share=0.1))
    message = str(failed.value)
    for part in ("events.0", "5 of 15", "0.1", "4 with missing user", "1 with unreadable time"):
        assert part in message
    assert f'{{"u":null,"i":"a","t":"{BASE}"}}' in message
    assert f"row 11 of {tmp_path}/events.csv" in message
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_rejected_row_is_found_by_its_number(tmp_path: Path, suffix: str) -> None:
    """Several files; one with another order of columns, one with malformed lines in between."""
    rows = {
        name: [(None if k in bad else k, "a", BASE + k) for k in range(12)]
        for name, bad in (("a", {3, 11}), ("b", {0, 5, 6}), ("c", {7}))
    }
    lines: dict[str, list[str]] = {}
    for name, values in rows.items():
        order = (2, 1, 0) if name == "c" else (0, 1, 2)
        lines[name] = [
            ",".join("" if row[at] is None else str(row[at]) for at in order) for row in values
        ]
        if suffix == "parquet":
            table = pa.table({"uit"[at]: [row[at] for row in values] for at in order})
            pq.write_table(table, tmp_path / f"events-{name}.parquet")
            continue
        for at in (1, 4, 9) if name == "b" else ():
            lines[name].insert(at, "too,few")
        text = "\n".join([",".join("uit"[at] for at in order), *lines[name]]) + "\n"
        (tmp_path / f"events-{name}.csv").write_text(text)
    _prepare(tmp_path, asked=_changed("events", files=(f"events-*.{suffix}",)))
    left = {(row["reason"], row["file"], row["number"]) for row in _left(tmp_path, "events")}
    expected = {
        ("malformed line" if "too" in line else "missing user", f"events-{name}.{suffix}", number)
        for name in rows
        for number, line in enumerate(lines[name], start=1)
        if "too" in line or "" in line.split(",")
    }
    assert left == expected


@pytest.mark.parametrize(
    ("declared", "factor", "hint"),
    [("s", 1000, "should be ms"), ("ms", 1, "should be s"), ("s", 10**6, "should be us"),
     ("us", 10**9, "should be ns")],
)  # fmt: skip
def test_mixed_up_time_units_are_named(
    tmp_path: Path, declared: str, factor: int, hint: str
) -> None:
    lines = [f"1,a,{(BASE + k) * factor}" for k in range(10)]
    with pytest.raises(DataError, match=r"falls in the year \d+, read as \w+ in 2017: .*" + hint):
        _prepare(tmp_path, lines, asked=_changed("events", time_unit=declared))


def test_times_in_every_unit_give_the_same_dataset(tmp_path: Path) -> None:
    fingerprints = set()
    for unit, factor in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        (tmp_path / unit).mkdir()
        lines = [f"1,a,{(BASE + k) * factor}" for k in range(10)]
        asked = _changed("events", time_unit=unit)
        fingerprints.add(_prepare(tmp_path / unit, lines, asked=asked).fingerprint)
    assert len(fingerprints) == 1


def test_fractions_of_seconds_are_kept(tmp_path: Path) -> None:
    _prepare(tmp_path, [f"1,a,{BASE}.0014", f"1,a,{BASE}.001", f"1,a,{BASE}.9996"])
    times = open_dataset(tmp_path / "out").events["source"].time_E
    assert (times - BASE * 1000).tolist() == [1, 1000]


def test_naive_iso_times_are_of_the_declared_zone(tmp_path: Path) -> None:
    asked = _changed("events", time_unit="iso").model_copy(update={"timezone": "Asia/Shanghai"})
    lines = ["1,a,2017-07-14 10:40:00", "1,b,2017-07-14T02:40:01Z", "1,c,2017-07-14T04:40:02+02:00"]
    _prepare(tmp_path, [*lines, "1,d,14/07/2017"], asked=asked)
    assert open_dataset(tmp_path / "out").events["source"].time_E.tolist() == [
        (BASE + k) * 1000 for k in range(3)
    ]
    assert [row["reason"] for row in _left(tmp_path, "events")] == ["unreadable time"]


def test_timestamp_columns_need_iso(tmp_path: Path) -> None:
    when = [datetime.datetime(2017, 7, 14, 2, 40, k, tzinfo=datetime.UTC) for k in range(3)]
    table = pa.table({"u": [1, 1, 2], "i": ["a", "b", "c"], "t": when})
    pq.write_table(table, tmp_path / "events.parquet")
    asked = _changed("events", files=("events.parquet",))
    with pytest.raises(DataError, match="set time_unit to iso"):
        _prepare(tmp_path, asked=asked)
    _prepare(tmp_path, asked=_changed("events", files=("events.parquet",), time_unit="iso"))
    times = open_dataset(tmp_path / "out").events["source"].time_E
    assert times.tolist() == [(BASE + k) * 1000 for k in range(3)]


def test_wrong_columns_name_the_nearest_right_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"impressions.0.label names column 'yy'.*did you mean 'y'"):
        _prepare(tmp_path, asked=_changed("impressions", label="yy"))
    with pytest.raises(DataError, match=r"events.0.where .*'tt' is not a column.*did you mean 't'"):
        _prepare(tmp_path, asked=_changed("events", where="tt > '5'"))
    with pytest.raises(DataError, match=r"events.0.item is not SQL"):
        _prepare(tmp_path, asked=_changed("events", item="lower(i"))
    with pytest.raises(DataError, match=r"columns of delimited text are text"):
        _prepare(tmp_path, asked=_changed("events", time="t // 1000"))
    with pytest.raises(DataError, match=r"items.category, but has no items table"):
        _prepare(tmp_path, asked=_changed("events", where="items.category = 1"))


def test_wrong_item_column_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, enough(Logs([], [], [Item("a", 1, "t")], [])))
    table = mapping().events[0].model_copy(update={"domain_rule": "items.categori = 1"})
    with pytest.raises(DataError, match=r"items.categori, .*did you mean 'category'"):
        prepare(mapping(events=(table,)), tmp_path / "out", base=tmp_path)


def test_a_failing_expression_says_try_cast(tmp_path: Path) -> None:
    asked = _changed("events", time="CAST(t AS BIGINT)")
    with pytest.raises(DataError, match="TRY_CAST"):
        _prepare(tmp_path, [*EVENTS, "1,a,never"], asked=asked)


def test_values_that_try_cast_cannot_read_are_missing_not_malformed(tmp_path: Path) -> None:
    context = {"c": "TRY_CAST(i AS INTEGER)"}
    manifest = _prepare(tmp_path, asked=_changed("events", context=context))
    assert manifest.rejected["events"] == {}
    assert manifest.count.events["source"] == 10
    assert (open_dataset(tmp_path / "out").events["source"].context_EG == 1).all()


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/\*.csv' matches no file"):
        _prepare(tmp_path, asked=_changed("events", files=("nowhere/*.csv",)))
    (tmp_path / "log.xlsx").touch()
    with pytest.raises(DataError, match=r"ending in .xlsx; expected"):
        _prepare(tmp_path, asked=_changed("events", files=("log.xlsx",)))


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"bad.parquet"):
        _prepare(tmp_path, asked=_changed("events", files=("bad.parquet",)))


def test_empty_logs(tmp_path: Path) -> None:
    for name in ("no-events", "no-impressions", "nothing"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no event can be used"):
        _prepare(tmp_path / "no-events", [])
    with pytest.raises(DataError, match="no impression can be used"):
        _prepare(tmp_path / "no-impressions", None, [])
    (tmp_path / "nothing" / "events.csv").touch()
    with pytest.raises(DataError, match=r"events.csv is empty: expected a header"):
        _prepare(tmp_path / "nothing")


def test_headers(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("u,i,u\n1,a,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="names 'u' twice"):
        _prepare(tmp_path)
    lines = "".join(f"1|a|{BASE + k}\n" for k in range(3))
    (tmp_path / "events.csv").write_text("\ufeffx|y|z\n" + lines, encoding="utf-8")
    form = Csv(delimiter="|", columns=("u", "i", "t"))
    manifest = _prepare(tmp_path, asked=_changed("events", csv=form))
    assert manifest.count.events["source"] == 3


def test_files_with_columns_in_another_order(tmp_path: Path) -> None:
    (tmp_path / "e1.csv").write_text(f"u,i,t\n1,a,{BASE}\n", encoding="utf-8")
    (tmp_path / "e2.csv").write_text(f"t,extra,i,u\n{BASE + 1},x,b,1\n", encoding="utf-8")
    _prepare(tmp_path, asked=_changed("events", files=("e?.csv",)))
    dataset = open_dataset(tmp_path / "out")
    assert dataset.events["source"].time_E.tolist() == [BASE * 1000, BASE * 1000 + 1000]
    assert dataset.events["source"].item_E.tolist() == [1, 2]


def test_duplicates_are_dropped_counted_and_no_fault(tmp_path: Path) -> None:
    manifest = _prepare(tmp_path, EVENTS * 3, IMPRESSIONS * 2, asked=_limits(max_rejected_share=0))
    assert manifest.rejected == {
        "events": {"duplicate": 20},
        "impressions": {"duplicate": 20},
    }
    assert manifest.count.events["source"] == 10
    assert sum(manifest.count.samples.values()) == 20


def test_an_id_makes_duplicates_and_equal_rows_without_one_stay(tmp_path: Path) -> None:
    asked = _changed("events", event_id="id")
    rows = [f"1,a,{BASE + 5},p", f"1,b,{BASE + 3},p", f"1,a,{BASE},q", f"1,a,{BASE},r"]
    (tmp_path / "events.csv").write_text("\n".join(["u,i,t,id", *rows, *rows[:1]]) + "\n")
    manifest = _prepare(tmp_path, asked=asked)
    assert manifest.rejected["events"] == {"duplicate": 2}
    times = open_dataset(tmp_path / "out").events["source"].time_E
    # Of the three rows with id p the earliest stays, wherever it stands in the file.
    assert (times // 1000 - BASE).tolist() == [0, 0, 3]


def test_ids_as_text_integers_or_floats_are_the_same_ids(tmp_path: Path) -> None:
    large = 2**63 - 1
    users = pa.array([large, 7, 7], pa.int64())
    items = pa.array([1.0, 2.0, None], pa.float64())
    times = pa.array([BASE, BASE + 1, BASE + 2])
    pq.write_table(pa.table({"u": users, "i": items, "t": times}), tmp_path / "events.parquet")
    shown = [f"{large},1,{BASE + 5},0", f"7,2,{BASE + 5},1", *(f"8,2,{BASE + k},0" for k in (6, 7))]
    asked = _changed("events", files=("events.parquet",))
    asked = asked.model_copy(update={"split": SplitRule(validation_share=0.25, test_share=0.25)})
    manifest = _prepare(tmp_path, None, shown, asked=asked)
    assert manifest.rejected["events"] == {"missing item": 1}
    dataset = open_dataset(tmp_path / "out")
    keys = pq.read_table(tmp_path / "out" / "users.parquet")["key"].to_pylist()
    assert keys == [None, "7", "8", str(large)]
    train = dataset.samples["train"]
    assert train.user_S.tolist() == [1, 3]
    starts = dataset.events["source"].offsets_U[train.user_S]
    assert (train.source_end_S - starts).tolist() == [1, 1]


def test_users_of_one_domain_have_an_empty_history(tmp_path: Path) -> None:
    _prepare(tmp_path)
    dataset = open_dataset(tmp_path / "out")
    for samples in dataset.samples.values():
        starts = dataset.events["target"].offsets_U[samples.user_S]
        assert (samples.target_end_S == starts).all()
        is_silent = samples.user_S != 2
        silent = dataset.events["source"].offsets_U[samples.user_S[is_silent]]
        assert (samples.source_end_S[is_silent] == silent).all()


def test_late_arrivals_are_no_past(tmp_path: Path) -> None:
    rows = [f"1,a,{BASE},{BASE + 50}", f"1,b,{BASE + 1},", f"1,c,{BASE + 2},{BASE - 9}"]
    (tmp_path / "events.csv").write_text("\n".join(["u,i,t,seen", *rows]) + "\n")
    shown = [f"1,a,{BASE + k},0" for k in (1, 2, 3, 49, 50, 51)]
    _prepare(tmp_path, None, shown, asked=_changed("events", arrival="seen"))
    dataset = open_dataset(tmp_path / "out")
    assert (dataset.events["source"].time_E // 1000 - BASE).tolist() == [1, 2, 0]
    ends = [end for samples in dataset.samples.values() for end in samples.source_end_S.tolist()]
    assert ends == [0, 1, 2, 2, 2, 3]


def test_a_split_is_by_dates_or_by_shares() -> None:
    dates = {"validation_from": "2024-03-09", "test_from": "2024-03-10"}
    assert SplitRule.model_validate(SplitRule(**dates).model_dump()).test_from == "2024-03-10"
    with pytest.raises(ValueError, match="test_share, not both"):
        SplitRule(**dates, test_share=0.2)


@pytest.mark.parametrize(
    ("unit", "times", "shown", "sees"),
    [
        # A second's event may have happened at its end, the very click to be predicted.
        ("s", [BASE - 1, BASE], [300, 999, 1000], [1, 1, 2]),
        ("iso", ["2017-07-13", "2017-07-14"], [300, 86_400_000 - 9_600_001, 76_800_000], [1, 1, 2]),
        ("iso", ["2017-07-14 02:39", "2017-07-14 02:40"], [300, 59_999, 60_000], [1, 1, 2]),
        ("iso", ["2017/07/13", "2017/07/14"], [300, 86_400_000 - 9_600_001, 76_800_000], [1, 1, 2]),
        ("iso", ["2017-07-14 02:39Z", "2017-07-14T02:40+00"], [300, 59_999, 60_000], [1, 1, 2]),
        ("iso", ["2017-07-14 02:39 UTC", "2017/07/14 02:40"], [300, 59_999, 60_000], [1, 1, 2]),
        ("iso", ["2017-07-14 02:39:59+00:00", "2017-07-14 02:40:00Z"], [300, 999, 1000], [1, 1, 2]),
        ("iso", ["2017-07-14 02:39:59", "2017-07-14 02:40:00"], [300, 999, 1000], [1, 1, 2]),
        ("iso", ["2017-07-14 02:39:59", "2017-07-14 02:40:00.299"], [299, 300, 301], [1, 2, 2]),
        ("s", [f"{BASE}.298", f"{BASE}.299"], [299, 300, 301], [1, 2, 2]),
        ("us", [BASE * 10**6 - 1, BASE * 10**6], [0, 1, 2], [1, 2, 2]),
    ],
)
def test_a_coarse_time_is_known_at_its_end(tmp_path: Path, unit, times, shown, sees) -> None:
    """Impressions in milliseconds, events less exactly: nothing is seen before it can be known."""
    lines = [f"1,a,{time}" for time in times]
    impressions = [f"1,a,{BASE * 1000 + ms},{k % 2}" for k, ms in enumerate(shown)]
    asked = _changed("events", time_unit=unit)
    table = asked.impressions[0].model_copy(update={"time_unit": "ms"})
    rule = SplitRule(validation_share=0.34, test_share=0.34)
    asked = asked.model_copy(update={"impressions": (table,), "split": rule})
    _prepare(tmp_path, lines, impressions, asked=asked)
    samples = open_dataset(tmp_path / "out").samples
    assert [int(end) for split in samples.values() for end in split.source_end_S] == sees


@pytest.mark.parametrize(
    ("units", "late"), [(("s", "s"), False), (("s", "ms"), True), (("iso", "iso"), True)]
)
def test_the_manifest_says_whether_times_alone_tell_who_knew_what(
    tmp_path: Path, units: tuple[str, str], late: bool
) -> None:
    """Tables alike exact are; a date beside a time of day is not, though both are iso."""
    texts = {
        "s": [BASE, BASE + 5],
        "ms": [BASE * 1000 + 1, BASE * 1000 + 5],
        "iso": ["2017-07-13", "2017-07-14 02:40:01"],
    }
    tables = []
    for number, unit in enumerate(units):
        rows = [f"1,a,{time}" for time in texts[unit]]
        (tmp_path / f"e{number}.csv").write_text("\n".join(["u,i,t", *rows]) + "\n")
        changes = {"files": (f"e{number}.csv",), "time_unit": unit}
        changes["domain"] = ("source", "target")[number]
        tables.append(PLAIN.events[0].model_copy(update=changes))
    asked = PLAIN.model_copy(update={"events": tuple(tables)})
    assert _prepare(tmp_path, asked=asked).late_events is late


def test_a_date_column_is_known_at_the_end_of_its_day(tmp_path: Path) -> None:
    days = [datetime.date(2017, 7, 13), datetime.date(2017, 7, 14)]
    pq.write_table(pa.table({"u": [1, 1], "i": ["a", "b"], "t": days}), tmp_path / "e.parquet")
    asked = _changed("events", files=("e.parquet",), time_unit="iso")
    midnight = 1_499_990_400
    impressions = [f"1,a,{midnight + k},{k % 2}" for k in (0, 1, 86_399, 86_400, 86_401)]
    asked = asked.model_copy(update={"split": SplitRule(validation_share=0.2, test_share=0.2)})
    _prepare(tmp_path, None, impressions, asked=asked)
    samples = open_dataset(tmp_path / "out").samples
    ends = [int(end) for split in samples.values() for end in split.source_end_S]
    assert ends == [1, 1, 1, 2, 2]


def test_context_and_candidate_may_share_a_name(tmp_path: Path) -> None:
    rows = [f"{k % 3},a,{BASE + 10 * k},{k % 2},{k},{100 + k}" for k in range(20)]
    (tmp_path / "impressions.csv").write_text("\n".join(["u,i,t,y,a,b", *rows]) + "\n")
    asked = _changed("impressions", context={"price": "a"}, candidate={"price": "b"})
    _prepare(tmp_path, asked=asked)
    for group, first in (("request", 0), ("candidate", 100)):
        table = pq.read_table(tmp_path / "out" / "vocabulary" / group / "price.parquet")
        assert sorted(map(int, table["value"].to_pylist())) == list(range(first, first + 16))


@pytest.mark.parametrize("name", ["user", "current_date", "session_user"])
def test_a_missing_column_is_no_function_of_sqls(tmp_path: Path, name: str) -> None:
    (tmp_path / "users.csv").write_text("uid,age\n1,30\n")
    asked = PLAIN.model_copy(
        update={"users": (Users(files=("users.csv",), key=name, fields={"age": "age"}),)}
    )
    with pytest.raises(DataError, match=f"users.0.key names column '{name}', which .* not have"):
        _prepare(tmp_path, asked=asked)


def test_whole_numbers_as_text_with_a_point_are_the_same_ids(tmp_path: Path) -> None:
    """As data frames write integer columns with gaps; and decimals."""
    lines = [f"7.0,a,{BASE}", f"7.5,a,{BASE}", f"x.0,a,{BASE}"]
    table = pa.table({
        "u": pa.array([Decimal("7.00"), Decimal("7.50")] * 3, pa.decimal128(10, 2)),
        "i": ["a"] * 6, "t": [BASE + 1 + k for k in range(6)], "y": [0, 1] * 3,
    })  # fmt: skip
    pq.write_table(table, tmp_path / "i.parquet")
    asked = _changed("impressions", files=("i.parquet",)).model_copy(
        update={"split": SplitRule(validation_share=0.34, test_share=0.34)}
    )
    _prepare(tmp_path, lines, asked=asked)
    keys = pq.read_table(tmp_path / "out" / "users.parquet")["key"].to_pylist()
    assert keys == [None, "7", "7.5", "x.0", "7.50"]


def test_text_that_is_no_key_stays_as_it_is(tmp_path: Path) -> None:
    """A version 13.0 is no number, and `responses` are told by the texts of the log."""
    lines = [f"{k % 3},a,{BASE + k},{1 + k % 2}.0" for k in range(10)]
    (tmp_path / "events.csv").write_text("\n".join(["u,i,t,stars", *lines]) + "\n")
    _prepare(tmp_path, asked=_changed("events", context={"stars": "stars"}))
    table = pq.read_table(tmp_path / "out" / "vocabulary" / "event" / "stars.parquet")
    assert sorted(table["value"].to_pylist()) == ["1.0", "2.0"]


def test_half_a_swap_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends when the old dataset is moved away and the new one not yet in its place."""
    _prepare(tmp_path)
    before = open_dataset(tmp_path / "out").manifest.fingerprint
    real = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name == "out.partial":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(PLAIN, tmp_path / "out", base=tmp_path, force=True)
    monkeypatch.setattr(Path, "replace", real)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").exists()
    with pytest.raises(DataError, match="exists; choose another folder"):
        prepare(PLAIN, tmp_path / "out", base=tmp_path)
    assert open_dataset(tmp_path / "out").manifest.fingerprint == before
    prepare(PLAIN, tmp_path / "out", base=tmp_path, force=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]


def test_a_column_called_filename_is_a_column(tmp_path: Path) -> None:
    table = pa.table({
        "u": ["1", "2", None], "i": ["a"] * 3, "t": [BASE, BASE, BASE], "filename": ["x", "y", "z"],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "e.parquet")
    asked = _changed("events", files=("e.parquet",), context={"file": "filename"})
    _prepare(tmp_path, asked=asked)
    (row,) = _left(tmp_path, "events")
    assert (row["reason"], row["number"], row["file"]) == ("missing user", 3, "e.parquet")
    assert json.loads(row["row"])["filename"] == "z"


def test_reserved_and_odd_column_names_work_as_columns(tmp_path: Path) -> None:
    header = "user,select it,group"
    lines = [f"1,a,{BASE + k}" for k in range(3)]
    (tmp_path / "events.csv").write_text("\n".join([header, *lines]) + "\n")
    asked = _changed("events", user="user", item="select it", time="group")
    assert _prepare(tmp_path, asked=asked).count.events["source"] == 3


def test_where_and_target_rule_drop_without_rejecting(tmp_path: Path) -> None:
    asked = _changed("events", where=f"TRY_CAST(t AS BIGINT) < {BASE + 4}")
    shown = asked.impressions[0].model_copy(update={"target_rule": "u <> '0'"})
    manifest = _prepare(tmp_path, asked=asked.model_copy(update={"impressions": (shown,)}))
    assert manifest.rejected == {"events": {}, "impressions": {}}
    assert manifest.count.events["source"] == 4
    assert sum(manifest.count.samples.values()) == 13


def test_an_undecided_domain_is_rejected(tmp_path: Path) -> None:
    lines = [f"1,{item},{BASE}" for item in ("5", "50", "x")]
    asked = _changed("events", domain=None, domain_rule="TRY_CAST(i AS INTEGER) > 9")
    manifest = _prepare(tmp_path, lines, asked=asked)
    assert manifest.rejected["events"] == {"unknown domain": 1}
    assert manifest.count.events == {"source": 1, "target": 1}


def test_dwell_and_probability(tmp_path: Path) -> None:
    dwells = ["1.5", "", "-3", "much", "inf", "0"]
    shown = [f"1,a,{BASE + k},0,{dwell},0.{k}" for k, dwell in enumerate(dwells)]
    header = "u,i,t,y,d,p"
    (tmp_path / "impressions.csv").write_text(
        "\n".join([header, *shown, f"1,a,{BASE},1,1,1.5"]) + "\n"
    )
    asked = _changed("impressions", dwell="d", probability="p")
    asked = asked.model_copy(update={"split": SplitRule(validation_share=0.3, test_share=0.3)})
    manifest = _prepare(tmp_path, asked=asked)
    assert manifest.rejected["impressions"] == {"probability not in 0..1": 1}
    dataset = open_dataset(tmp_path / "out")
    dwell_S = np.concatenate([samples.dwell_S for samples in dataset.samples.values()])
    nan = np.nan
    np.testing.assert_array_equal(dwell_S, np.array([1.5, nan, nan, nan, nan, 0], np.float32))
    truth = [true_probability(dataset, split) for split in dataset.samples]
    np.testing.assert_allclose(np.concatenate(truth), np.arange(6) / 10, rtol=1e-6)


def test_probability_unknown(tmp_path: Path) -> None:
    _prepare(tmp_path)
    with pytest.raises(DataError, match="only synthetic logs know them"):
        true_probability(open_dataset(tmp_path / "out"), "test")


def test_shares_keep_equal_times_together(tmp_path: Path) -> None:
    seconds = [0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8, 8, 8, 8, 9, 9, 9, 9, 9, 9]
    shown = [f"{k},a,{BASE + second},0" for k, second in enumerate(seconds)]
    asked = PLAIN.model_copy(update={"split": SplitRule(validation_share=0.2, test_share=0.35)})
    manifest = _prepare(tmp_path, None, shown, asked=asked)
    # 9 before validation: the next time is 7; 13 before the test: the next time is 9.
    assert manifest.split.validation_from == (BASE + 7) * 1000
    assert manifest.split.test_from == (BASE + 9) * 1000
    assert manifest.count.samples == {"train": 9, "validation": 5, "test": 6}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            SplitRule(validation_from="2030-01-01", test_from="2031-01-01"),
            "validation split has no",
        ),
        (
            SplitRule(validation_from="2001-01-01", test_from="2017-07-14 02:42"),
            "train split has no",
        ),
        (SplitRule(validation_from="2017-07-14 02:42", test_from="2017-07-13"), "validation split"),
        (
            SplitRule(validation_from="someday", test_from="2017-07-13"),
            "'someday', expected a date",
        ),
    ],
)
def test_impossible_splits(tmp_path: Path, rule: SplitRule, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _prepare(tmp_path, asked=PLAIN.model_copy(update={"split": rule}))


def test_unknown_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="TimeZone"):
        _prepare(tmp_path, asked=PLAIN.model_copy(update={"timezone": "Mars/Olympus"}))
    with pytest.raises(DataError, match=r"earliest .* is not before"):
        _prepare(tmp_path, asked=_limits(earliest="2020-01-01", latest="2019-01-01"))
    with pytest.raises(DataError, match="field's name may have"):
        _prepare(tmp_path, asked=_changed("events", context={"../up": "i"}))


def test_items_given_twice_keep_one_row(tmp_path: Path) -> None:
    items = [Item("a", 3, "one"), Item("a", 2, "two"), Item("b", 7, "b")]
    logs = enough(Logs([Event("1", "b", 1, None, None)], [], items, [User("1", "y")]))
    write(tmp_path, logs)
    manifest = prepare(mapping(), tmp_path / "out", base=tmp_path)
    assert manifest.rejected["items"] == {"duplicate": 1}
    table = pq.read_table(tmp_path / "out" / "items.parquet").to_pydict()
    assert table["key"] == [None, "a", "b"]
    assert table["title"] == [None, "one", "b"]
    assert table["domain"] == [None, "both", "target"]


def test_an_existing_dataset_is_not_overwritten(tmp_path: Path) -> None:
    first = _prepare(tmp_path)
    with pytest.raises(DataError, match="--force"):
        _prepare(tmp_path)
    again = prepare(PLAIN, tmp_path / "out", base=tmp_path, force=True)
    assert again == first
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    with pytest.raises(DataError, match="is no dataset"):
        prepare(PLAIN, tmp_path / "home", base=tmp_path, force=True)
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_nothing_is_removed_that_no_preparation_made(tmp_path: Path) -> None:
    """`out.old` and `out.partial` are names that people use too."""
    others = (".out-old-mine", ".out-old-12345678", ".out-old-2023-old-abcdefgh")
    for name in ("out.old", "out.partial", *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").touch()
    with pytest.raises(DataError, match=r"out.partial exists.*move it away"):
        _prepare(tmp_path)
    (tmp_path / "out.partial").rename(tmp_path / "elsewhere")
    _prepare(tmp_path)
    prepare(PLAIN, tmp_path / "out", base=tmp_path, force=True)
    assert (tmp_path / "out.old" / "precious.txt").exists()
    assert sorted(path.name for path in tmp_path.glob(".out-old-*")) == sorted(others)


def test_a_link_to_a_dataset_is_followed(tmp_path: Path) -> None:
    _prepare(tmp_path)
    (tmp_path / "out").rename(tmp_path / "disk")
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for _ in range(2):
        prepare(PLAIN, tmp_path / "out", base=tmp_path, force=True)
    assert (tmp_path / "out").is_symlink() and not list(tmp_path.glob("*partial"))
    assert open_dataset(tmp_path / "out").manifest.count.events["source"] == 10


def test_what_an_interrupted_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "out.partial" / "work").mkdir(parents=True)
    (tmp_path / "out.partial" / ".lock").touch()
    (tmp_path / "out.partial" / "work" / "work.duckdb").write_bytes(b"half")
    _prepare(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_killed_run_leaves_nothing_that_opens(tmp_path: Path) -> None:
    _prepare(tmp_path)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "mapping.yaml").write_text(dump_config(PLAIN), encoding="utf-8")
    code = (
        "import os, signal, sys; from pathlib import Path; from lcn.data.prepare import prepare;"
        "from lcn.data.mapping import read_mapping; folder = Path(sys.argv[1]);"
        "die = lambda stage: 'context' in stage.name and os.kill(os.getpid(), signal.SIGKILL);"
        "prepare(read_mapping(folder / 'mapping.yaml'), folder / 'out', base=folder, listener=die)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, env=environment
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"holds no manifest.json"):
        open_dataset(tmp_path / "out.partial")
    _prepare(tmp_path)
    assert not (tmp_path / "out.partial").exists()


def test_two_preparations_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    inner: list[str] = []

    def begin_another(_: object) -> None:
        if not inner:
            with pytest.raises(DataError, match="another process is preparing") as failed:
                prepare(PLAIN, tmp_path / "out", base=tmp_path)
            inner.append(str(failed.value))

    (tmp_path / "events.csv").write_text("\n".join(["u,i,t", *EVENTS]) + "\n")
    (tmp_path / "impressions.csv").write_text("\n".join(["u,i,t,y", *IMPRESSIONS]) + "\n")
    prepare(PLAIN, tmp_path / "out", base=tmp_path, listener=begin_another)
    assert inner
    verify(tmp_path / "out")


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "write", no_room)
    with pytest.raises(DataError, match=r"the disk is full.*free some"):
        _prepare(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("out*"))


def test_verify_names_the_damaged_file(tmp_path: Path) -> None:
    _prepare(tmp_path)
    verify(tmp_path / "out")
    column = tmp_path / "out" / "events" / "source" / "item.npy"
    column.write_bytes(column.read_bytes()[:-1] + b"\x07")
    with pytest.raises(DataError, match=r"item.npy has SHA-256"):
        verify(tmp_path / "out")
    column.unlink()
    with pytest.raises(DataError, match=r"item.npy cannot be read"):
        verify(tmp_path / "out")


def assert_no_leak(dataset: Dataset) -> int:
    """Check every event of every span against its impression; return how many there were."""
    checked = 0
    for samples in dataset.samples.values():
        for domain, end_S in (
            ("source", samples.source_end_S),
            ("target", samples.target_end_S),
        ):
            store = dataset.events[domain]
            start_S, stop_S = store.offsets_U[samples.user_S], store.offsets_U[samples.user_S + 1]
            assert ((start_S <= end_S) & (end_S <= stop_S)).all()
            # Rows of a user are in time order (no arrival times here): the last one decides.
            has_past = end_S > start_S
            assert (store.time_E[end_S[has_past] - 1] < samples.time_S[has_past]).all()
            has_future = end_S < stop_S
            assert (store.time_E[end_S[has_future]] >= samples.time_S[has_future]).all()
            same_user = np.repeat(np.arange(len(store.offsets_U) - 1), np.diff(store.offsets_U))
            assert (np.diff(store.time_E)[np.diff(same_user) == 0] >= 0).all()
            checked += int((end_S - start_S).sum())
    return checked


def test_no_leak_in_real_logs(tmp_path: Path, shared_data: Path) -> None:
    from lcn.data.sources import kuairand

    logs = kuairand.fetch(tmp_path / "cache", shared_data / "kuairand-pure-slice")
    manifest = prepare(kuairand.mapping(logs), tmp_path / "out")
    assert manifest.rejected["impressions"]["duplicate"] == 3077
    assert assert_no_leak(open_dataset(tmp_path / "out")) > 1_000_000


@pytest.mark.slow
def test_more_rows_than_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in range(10):
        columns = {
            "u": rng.integers(0, 50_000, 1_000_000),
            "i": rng.integers(0, 100_000, 1_000_000),
            "t": BASE + rng.integers(0, 10**6, 1_000_000),
        }
        pq.write_table(pa.table(columns), tmp_path / f"events-{part}.parquet")
    shown = [f"{k},{k},{BASE + 50 * k},{k % 2}" for k in range(20_000)]
    (tmp_path / "impressions.csv").write_text("\n".join(["u,i,t,y", *shown]) + "\n")
    asked = _changed("events", files=("events-*.parquet",))
    # Sorted at once, these rows take some 400 MB.
    manifests = [
        prepare(asked, tmp_path / limit, base=tmp_path, threads=2, memory_limit=limit)
        for limit in ("200MB", "2GB")
    ]
    assert manifests[0] == manifests[1]
    assert_no_leak(open_dataset(tmp_path / "200MB"))
    with pytest.raises(DataError, match="--memory"):
        prepare(asked, tmp_path / "tiny", base=tmp_path, threads=2, memory_limit="8MB")


def test_a_quote_within_a_value_opens_nothing(tmp_path: Path) -> None:
    """5" tv is no quoted value: one malformed line elsewhere costs that line alone."""
    lines = [f"1,a{k},{BASE + k}" for k in range(30)]
    lines[3], lines[20] = f'1,5" tv,{BASE + 3}', f'1,6" tv,{BASE + 20}'
    lines[10] += ",more"
    manifest = _prepare(tmp_path, lines)
    assert manifest.rejected["events"] == {"malformed line": 1}
    assert manifest.count.events["source"] == 29


def test_each_line_of_a_malformed_record_counts(tmp_path: Path) -> None:
    lines = [f"1,a{k},{BASE + k}" for k in range(10)]
    lines[3] = f'1,"tv,{BASE + 3}'
    lines[6] = f'1,a",{BASE + 6},more'
    manifest = _prepare(tmp_path, lines)
    assert manifest.rejected["events"] == {"malformed line": 4}
    assert manifest.count.events["source"] == 6
    assert [row["row"] for row in _left(tmp_path, "events")] == lines[3:7]


@pytest.mark.parametrize("column", ["u", "t", "y", "kind", "p"])
def test_nan_in_parquet_is_missing(tmp_path: Path, column: str) -> None:
    """The least and greatest that Parquet notes leave NaN out; an engine must not rely on them."""
    rows, rng = 200, np.random.default_rng(0)
    table = {
        "u": rng.integers(0, 9, rows).astype(float),
        "i": rng.integers(0, 9, rows),
        "t": (BASE + np.arange(rows)).astype(float),
        "y": rng.integers(0, 2, rows).astype(float),
        "kind": rng.integers(0, 3, rows).astype(float),
        "p": rng.random(rows),
    }
    table[column][::7] = np.nan
    pq.write_table(pa.table(table), tmp_path / "impressions.parquet")
    asked = _changed(
        "impressions",
        files=("impressions.parquet",),
        candidate={"kind": "kind"},
        probability="p",
    )
    manifest = _prepare(tmp_path, asked=asked)
    missing = len(range(0, rows, 7))
    reason = {"u": "missing user", "t": "missing time", "y": "missing label"}
    expected = {} if column == "kind" else {reason.get(column, "probability not in 0..1"): missing}
    assert manifest.rejected["impressions"] == expected
    assert sum(manifest.count.samples.values()) == rows - sum(expected.values())


def test_whole_seconds_among_fractions_are_exact(tmp_path: Path) -> None:
    """One event in a thousand of a log in milliseconds falls on a whole second."""
    when = np.array([BASE * 1000, BASE * 1000 + 1, BASE * 1000 + 1500], "datetime64[ms]")
    pq.write_table(pa.table({"u": [1, 1, 2], "i": [1, 2, 3], "t": when}), tmp_path / "e.parquet")
    asked = _changed("events", files=("e.parquet",), time_unit="iso")
    manifest = _prepare(tmp_path, asked=asked)
    assert manifest.late_events is False and manifest.known_after == 0
    (tmp_path / "whole").mkdir()
    assert _prepare(tmp_path / "whole").known_after == 999


def test_an_index_without_a_name_is_a_column_like_any(tmp_path: Path) -> None:
    text = "\n".join([",u,i,t", *(f"{k},1,a,{BASE + k}" for k in range(10))]) + "\n"
    (tmp_path / "events.csv").write_text(text)
    assert _prepare(tmp_path).count.events["source"] == 10
    (tmp_path / "events.csv").write_text("u,i,t,T\n")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(DataError, match=r"names .[tT]. twice.*upper and lower case"):
        _prepare(tmp_path)


@pytest.mark.parametrize("given", [{"delimiter": "::"}, {"delimiter": ""}, {"quote": "''"}])
def test_delimiters_and_quotes_are_single_characters(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="must be one character"):
        Csv(**given)
