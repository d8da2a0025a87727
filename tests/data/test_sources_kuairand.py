"""KuaiRand: the slice's facts and the published layout."""

import os
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcn.data.sources import kuairand
from lcn.errors import DataError

_SHARED = os.environ.get("LCN_SHARED_DATA")
SHARED = Path(_SHARED) if _SHARED else Path(__file__).parents[3] / "shared" / "data"
SLICE = SHARED / "kuairand-pure-slice"
needs_slice = pytest.mark.skipif(not SLICE.is_dir(), reason="no KuaiRand slice in the shared data")


def joined(table, items) -> str:
    """The relation that preparation evaluates a table's expressions over."""

    def read(names) -> str:
        listed = ", ".join(f"'{name}'" for name in names)
        if names[0].endswith(".parquet"):
            return f"read_parquet([{listed}])"
        return f"read_csv([{listed}], all_varchar = true)"

    where = f"WHERE {table.where}" if table.where else ""
    return (
        f"(SELECT log.*, items FROM (FROM {read(table.files)} {where}) AS log "
        f"LEFT JOIN {read(items.files)} AS items ON log.{table.item} = items.{items.key})"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return kuairand.fetch(tmp_path_factory.mktemp("cache"), SLICE)


@needs_slice
@pytest.mark.parametrize(("domain", "expected"), [("tag", 93_441), ("tab", 55_321)])
def test_target_impressions_of_the_slice(folder, domain, expected):
    mapping = kuairand.mapping(folder, domain=domain)
    shown, items = mapping.impressions[0], mapping.items[0]
    sql = f"SELECT count(*) FROM {joined(shown, items)} WHERE {shown.target_rule}"
    assert duckdb.sql(sql).fetchall() == [(expected,)]


@needs_slice
def test_events_of_the_slice(folder):
    events, items = (getattr(kuairand.mapping(folder), kind)[0] for kind in ("events", "items"))
    context = ", ".join(events.context.values())
    sql = f"SELECT {context}, {events.domain_rule} FROM {joined(events, items)}"
    rows = duckdb.sql(f"SELECT #1, count(*) FROM ({sql}) GROUP BY #1 ORDER BY #1").fetchall()
    assert [row[0] for row in rows] == ["0", "1", "history"]
    assert rows[2][1] == 817_187
    assert rows[0][1] + rows[1][1] == 228_329
    events = kuairand.mapping(folder, domain="tab").events[0]
    sql = f"SELECT count(*) FROM {joined(events, items)}"
    assert duckdb.sql(sql).fetchall() == [(228_329,)]


@needs_slice
def test_pseudo_times_keep_the_order_and_end_at_the_known_time(folder):
    history = pq.read_table(SLICE / "user_history.parquet")
    events = pq.read_table(folder / "events.parquet", filters=[("tab", "=", "history")])
    user, time = events["user_id"].to_numpy(), events["time_ms"].to_numpy()
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    ends = np.r_[starts[1:], len(user)] - 1
    rising = np.diff(time) > 0
    rising[ends[:-1]] = True
    assert rising.all()
    last = dict(
        zip(history["user_id"].to_pylist(), history["last_time_ms"].to_pylist(), strict=True)
    )
    assert all(last[u] == t for u, t in zip(user[ends], time[ends], strict=True))
    # Nothing is moved before the period the lists cover.
    assert time.min() >= 1_649_433_600_000
    watched = next(row for row in history.to_pylist() if len(row["watch_seq"]) > 5)
    assert (
        events.filter(pa.array(user == watched["user_id"]))["video_id"].to_pylist()
        == (watched["watch_seq"])
    )


@needs_slice
def test_long_views_of_the_watch_lists(folder):
    history = pq.read_table(SLICE / "user_history.parquet").to_pylist()
    events = pq.read_table(folder / "events.parquet", filters=[("tab", "=", "history")])
    long = events.filter(pa.compute.equal(events["long_view"], 1))
    # Whole lists name every long view; where the log was cut, older ones have no event.
    whole = {row["user_id"]: row for row in history if row["history_len"] == len(row["watch_seq"])}
    found: dict[int, list[int]] = {user: [] for user in whole}
    for user, item in zip(long["user_id"].to_pylist(), long["video_id"].to_pylist(), strict=True):
        if user in found:
            found[user].append(item)
    assert all(found[user] == row["long_watch_seq"] for user, row in whole.items())
    share = len(long) / len(events)
    assert 0.3 < share < 0.45


LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,long_view,play_time_ms,duration_ms,is_rand,"
    "tab\n"
)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    data = tmp_path / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    files = {
        "log_standard_4_08_to_4_21_pure.csv": LOG
        + "1,7,20220409,0,1649433600000,1,1,900,1000,0,1\n",
        "log_standard_4_22_to_5_08_pure.csv": LOG + "1,8,20220508,900,1651971600000,0,0,0,9,0,4\n",
        "log_random_4_22_to_5_08_pure.csv": LOG + "1,9,20220508,900,1651971600001,0,0,0,9,1,1\n",
        "user_features_pure.csv": "user_id,user_active_degree\n1,full_active\n",
        "video_features_basic_pure.csv": (
            'video_id,author_id,video_duration,tag\n7,1,87433.0,39\n8,2,,"11,30"\n9,2,5000.0,\n'
        ),
    }
    for name, text in files.items():
        (data / name).write_text(text)
    return tmp_path


def test_published_layout(published, tmp_path):
    folder = kuairand.fetch(tmp_path / "cache", published)
    assert folder == published / "KuaiRand-Pure" / "data"
    for logs, domain, target in (
        ("standard", "tag", [8]),
        ("both", "tag", [8]),
        ("both", "tab", [8]),
        ("random", "tab", []),
    ):
        mapping = kuairand.mapping(folder, domain=domain, logs=logs)
        shown, items = mapping.impressions[0], mapping.items[0]
        files = [str(path) for name in shown.files for path in folder.glob(Path(name).name)]
        assert len(files) == {"standard": 2, "random": 1, "both": 3}[logs]
        relation = joined(shown, items)
        rows = duckdb.sql(f"SELECT video_id FROM {relation} WHERE {shown.target_rule}").fetchall()
        assert [int(row[0]) for row in rows] == target
    hour, dwell = shown.context["hour"], shown.dwell
    assert duckdb.sql(f"SELECT {hour}, {dwell} FROM {relation}").fetchall() == [(9, 0.0)]


def test_missing_files_are_explained(published, tmp_path):
    with pytest.raises(DataError, match=r"zenodo.org/records/10439422.*--path"):
        kuairand.fetch(tmp_path / "cache")
    (published / "KuaiRand-Pure" / "data" / "user_features_pure.csv").unlink()
    with pytest.raises(DataError, match="lacks user_features"):
        kuairand.fetch(tmp_path / "cache", published)


def test_a_log_without_a_needed_column_is_named(published, tmp_path):
    log = published / "KuaiRand-Pure" / "data" / "log_random_4_22_to_5_08_pure.csv"
    log.write_text(LOG.replace(",tab", ",scene"))
    with pytest.raises(DataError, match="lacks column 'tab'"):
        kuairand.fetch(tmp_path / "cache", published)


def test_unknown_options_name_the_nearest(published):
    with pytest.raises(DataError, match="did you mean 'standard'"):
        kuairand.mapping(published, logs="standart")
