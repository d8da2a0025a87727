"""Taobao: the published form, its quirks, and the split on raw category numbers."""

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import pyarrow.parquet as pq
import pytest

from lcn.data.sources import taobao, taobao_generator
from lcn.errors import DataError

ROWS = {
    "raw_sample.csv": (
        "user,time_stamp,adgroup_id,pid,nonclk,clk\n"
        "1,1494000000,10,430539_1007,1,0\n"
        "1,1494691199,11,430548_1007,0,1\n"
        "2,1494100000,12,430539_1007,1,0\n"
        "2,1494100000,99,430539_1007,1,0\n"
    ),
    "ad_feature.csv": (
        "adgroup_id,cate_id,campaign_id,customer,brand,price\n"
        "10,1999,5,6,NULL,170.0\n"
        "11,2000,5,6,0,NULL\n"
        "12,7,5,6,95471,-1.0\n"
    ),
    "user_profile.csv": (
        "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
        "occupation,new_user_class_level \n"
        "1,0,5,2,5,,3,0,3\n"
    ),
    "behavior_log.csv": (
        "user,time_stamp,btag,cate,brand\n"
        "1,1493741625,pv,1999,\n"
        "1,1493741625,pv,1999,\n"
        "2,1493741626,buy,2000,0\n"
    ),
}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "taobao-ad" / "raw"
    folder.mkdir(parents=True)
    for name, text in ROWS.items():
        (folder / name).write_text(text)
    return folder


def select(table, *expressions: str) -> list[tuple]:
    (file,) = table.files
    names = f", names = {list(table.csv.columns)}" if table.csv.columns else ""
    reader = (
        f"read_parquet('{file}')"
        if file.endswith(".parquet")
        else f"read_csv('{file}', all_varchar = true, header = true{names})"
    )
    where = f"WHERE {table.where}" if table.where else ""
    quoted = ['"user"' if text == "user" else text for text in expressions]
    return duckdb.sql(f"SELECT {', '.join(quoted)} FROM {reader} {where} ORDER BY ALL").fetchall()


def test_pairs_of_ads_and_behaviours_meet(raw, tmp_path):
    mapping = taobao.mapping(taobao.fetch(tmp_path))
    events, shown, items = mapping.events[0], mapping.impressions[0], mapping.items[0]
    assert set(select(events, events.item)) == {(19_990_000_000,), (20_000_000_001,)}
    assert select(shown, shown.item) == [
        (70_095_472,),
        (19_990_000_000,),
        (20_000_000_001,),
        (None,),
    ]
    assert select(items, items.key, items.title) == [
        (70_095_472, "category 7, brand 95471"),
        (19_990_000_000, "category 1999"),
        (20_000_000_001, "category 2000, brand 0"),
    ]


def test_domains_split_on_raw_categories(raw, tmp_path):
    mapping = taobao.mapping(taobao.fetch(tmp_path))
    events, shown = mapping.events[0], mapping.impressions[0]
    assert select(events, events.user, events.domain_rule) == [(1, True), (1, True), (2, False)]
    assert select(shown, "adgroup_id", shown.target_rule) == [
        (10, True),
        (11, False),
        (12, True),
        (99, None),
    ]


def test_fields_survive_the_quirks(raw, tmp_path):
    mapping = taobao.mapping(taobao.fetch(tmp_path))
    shown, users = mapping.impressions[0], mapping.users[0]
    assert select(shown, "adgroup_id", shown.candidate["price"], shown.context["hour"]) == [
        (10, 7, 0),
        (11, None, 23),
        (12, None, 3),
        (99, None, 3),
    ]
    assert select(users, users.key, users.fields["new_user_class_level"]) == [(1, "3")]
    assert select(users, users.fields["pvalue_level"]) == [(None,)]


def test_the_sixth_of_may_can_be_dropped(raw, tmp_path):
    folder = taobao.fetch(tmp_path)
    first = taobao.mapping(folder, drop_6_may=True).impressions[0]
    midnight = datetime(2017, 5, 7, tzinfo=ZoneInfo(taobao.TIMEZONE)).timestamp()
    assert first.where == f"time_stamp >= {midnight:.0f}"
    assert [row[0] for row in select(first, "adgroup_id")] == [11, 12, 99]


def test_values_that_are_no_numbers_cost_no_rows(raw, tmp_path):
    for name, line in (
        ("raw_sample.csv", "1,1494000000,ten,430539_1007,1,0\n"),
        ("ad_feature.csv", "13,many,5,6,7,cheap\n"),
        ("behavior_log.csv", "3,1493741627,pv,unknown,5\n3,1493741628,pv,77,5\n"),
    ):
        with (raw / name).open("a") as file:
            file.write(line)
    folder = taobao.fetch(tmp_path / "cache", raw)
    shown = pq.read_table(folder / "impressions.parquet")
    assert shown.num_rows == 5
    assert shown["adgroup_id"].null_count == 1
    assert 77 in pq.read_table(folder / "items.parquet")["cate"].to_pylist()


def test_missing_files_say_what_to_get(raw, tmp_path):
    (raw / "ad_feature.csv").unlink()
    with pytest.raises(DataError, match=r"lacks ad_feature.csv.*tianchi.aliyun.com/dataset/56"):
        taobao.fetch(tmp_path)


def test_another_header_is_named(raw, tmp_path):
    (raw / "behavior_log.csv").write_text("558157,1493741625,pv,6250,91286\n")
    with pytest.raises(DataError, match=r"begins with '558157,.*expected 'user,time_stamp,btag"):
        taobao.fetch(tmp_path)


def test_changed_raw_files_are_joined_anew(raw, tmp_path):
    first = taobao.fetch(tmp_path)
    assert taobao.fetch(tmp_path) == first
    with (raw / "ad_feature.csv").open("a") as file:
        file.write("99,3,1,1,1,1.0\n")
    shown = taobao.mapping(taobao.fetch(tmp_path)).impressions[0]
    assert (99, True) in select(shown, "adgroup_id", shown.target_rule)


SIZE = taobao_generator.Size(behaviours=30_000, impressions=3_000, users=200, ads=300)


def test_generated_files_have_the_published_form(tmp_path):
    out = taobao_generator.generate(tmp_path / "out", SIZE)
    taobao.check_headers(out)
    assert (out / "user_profile.csv").read_text().startswith("userid,cms_segid,")
    assert "new_user_class_level \n" in (out / "user_profile.csv").read_text()
    folder = taobao.fetch(tmp_path, out)
    shown = pq.read_table(folder / "impressions.parquet")
    assert len(shown) == SIZE.impressions
    assert shown["cate_id"].null_count == 0
    assert shown["brand"].null_count > 0
    assert not (folder / ".spill").exists()
    events = taobao.mapping(folder).events[0]
    rows = select(events, "btag", "TRY_CAST(time_stamp AS BIGINT)", events.item, events.user)
    assert len(rows) == SIZE.behaviours
    assert {row[0] for row in rows} == {"pv", "cart", "fav", "buy"}
    outside = sum(not 1_492_790_400 <= row[1] < 1_494_691_200 for row in rows)
    assert 0 < outside < 0.005 * len(rows)
    assert len(set(rows)) < len(rows)
    assert all(row[2] is not None and row[3] is not None for row in rows)


def test_generated_files_follow_the_seed_alone(tmp_path, monkeypatch):
    one = taobao_generator.generate(tmp_path / "one", SIZE)
    two = taobao_generator.generate(tmp_path / "two", SIZE)
    other = taobao_generator.generate(tmp_path / "other", SIZE.model_copy(update={"seed": 1}))
    for name in taobao.HEADERS:
        assert (one / name).read_bytes() == (two / name).read_bytes()
        assert (one / name).read_bytes() != (other / name).read_bytes()
