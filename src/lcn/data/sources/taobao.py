"""The Taobao display-advertising log (Tianchi data set 56), the paper's public data.

Four files as published: impressions of ads with clicks over eight days (raw_sample), what the ads
are (ad_feature), user profiles (user_profile), and 22 days of behaviours (behavior_log), which
name a category and a brand but no item. So an item is a (category, brand) pair, for behaviours
and ads alike, and the domains are split on the raw category number: below 2000 is the target
domain (Source: LCN section 5.1.1; our reading of it is in docs/paper.md).

Pairs are keyed by one integer, `category * 10,000,000 + (brand + 1, or 0 without a brand)`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

from lcn.data import cache as caching
from lcn.data.mapping import Csv, Events, Impressions, Items, Limits, Mapping, SplitRule, Users
from lcn.errors import DataError

ABOUT = "Taobao display ads (Tianchi 56): 26.6 M impressions, 723 M behaviours; needs a login"
LICENCE = """\
Ali display-advertising click data, copyright Alibaba Group, published on Tianchi (data set 56)
for research under the terms shown on its page, which you accept when you download it; do not
redistribute the files. Cite "Ad Display/Click Data on Taobao.com", Alibaba,
2018, https://tianchi.aliyun.com/dataset/56."""
OPTIONS = ("drop_6_may: leave out the first day's impressions, as 'seven days' may mean (false)",)

HEADERS: dict[str, tuple[str, ...]] = {
    "raw_sample.csv": ("user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk"),
    "ad_feature.csv": ("adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price"),
    "user_profile.csv": (
        *("userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level"),
        # The published header ends in a blank; it is part of the column's name.
        *("pvalue_level", "shopping_level", "occupation", "new_user_class_level "),
    ),
    "behavior_log.csv": ("user", "time_stamp", "btag", "cate", "brand"),
}
TIMEZONE = "Asia/Shanghai"
TARGET_BELOW = 2000
"""Raw category numbers below this are the target domain."""
VERSION = "taobao-ad/1"
_MAY_7 = 1_494_086_400
"""2017-05-07 00:00 in Shanghai, UTC seconds."""
_PAIR = "TRY_CAST({cate} AS BIGINT) * 10000000 + coalesce(TRY_CAST({brand} AS BIGINT) + 1, 0)"
_HOUR = "(TRY_CAST(time_stamp AS BIGINT) + 28800) // 3600 % 24"


def fetch(cache: Path, path: Path | None = None) -> Path:
    """Check the four published files and join what preparation cannot look up by itself.

    The folder returned holds `impressions.parquet` (raw_sample with its ads' columns),
    `items.parquet` (each pair once) and `origin.json` (where the raw files lie). Behaviours and
    profiles are read where they are.

    Args:
        cache: folder of fetched logs.
        path: folder with the four CSV files; default `taobao-ad/raw` in the cache.

    Raises:
        DataError: a file is missing or its header is another; the message says what to get.
    """
    raw = (path or cache / "taobao-ad" / "raw").absolute()
    check_headers(raw)
    # Another raw folder, or changed files, are other data: they get another folder.
    facts = [(raw / name).stat() for name in HEADERS]
    marks = [str(raw), *((fact.st_size, fact.st_mtime_ns) for fact in facts)]
    key = hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:12]

    def make(empty: Path) -> str:
        _join(raw, empty)
        (empty / "origin.json").write_text(json.dumps({"raw": str(raw)}) + "\n", encoding="utf-8")
        return str(raw)

    return caching.build(cache / "taobao-ad" / f"joined-{key}", VERSION, make, deep=False)


def check_headers(raw: Path) -> None:
    """Check that the four files are there with their published columns.

    Raises:
        DataError: names every missing file, or the first unexpected header.
    """
    missing = [name for name in HEADERS if not (raw / name).is_file()]
    if missing:
        raise DataError(
            f"{raw} lacks {', '.join(missing)}. The data needs a login, so no program can fetch "
            "it: sign in at https://tianchi.aliyun.com/dataset/56, download the four archives, "
            "unpack them, and put " + ", ".join(HEADERS) + f" into {raw} (or name their folder "
            "with --path); to try the path without them, make files of the same form with "
            "`lcn data generate taobao-ad FOLDER`"
        )
    for name, expected in HEADERS.items():
        with (raw / name).open(encoding="utf-8", errors="replace", newline="") as file:
            got = tuple(next(csv.reader(file), ()))
        if tuple(column.strip() for column in got) != tuple(c.strip() for c in expected):
            raise DataError(
                f"{raw / name} begins with {','.join(got)!r}, expected {','.join(expected)!r}; "
                "is it the published file, with its header, in UTF-8?"
            )


def _join(raw: Path, out: Path) -> None:
    import duckdb

    with duckdb.connect() as engine:
        engine.execute("SET preserve_insertion_order = false")
        # Pushed into read_csv, TRY_CAST raises or drops the row instead of giving NULL.
        engine.execute("SET disabled_optimizers = 'type_pushdown'")
        engine.execute("SET temp_directory = ?", [str(out / ".spill")])
        try:
            engine.execute(_JOIN_IMPRESSIONS.format(raw=_sql(raw), out=_sql(out)))
            engine.execute(_COLLECT_ITEMS.format(raw=_sql(raw), out=_sql(out)))
        except duckdb.Error as error:
            raise DataError(f"cannot read the files in {raw}: {error}") from error
    spill = out / ".spill"
    if spill.exists():
        for left in spill.iterdir():
            left.unlink()
        spill.rmdir()


def _sql(path: Path) -> str:
    return str(path).replace("'", "''")


# Everything is read as text: what is not a number becomes NULL here and is rejected, counted and
# shown by preparation.
_READ = "all_varchar = true, header = true, delim = ',', quote = '', nullstr = ['', 'NULL']"
_AD = (
    "SELECT TRY_CAST(adgroup_id AS BIGINT) AS adgroup_id, TRY_CAST(cate_id AS BIGINT) AS cate_id, "
    "TRY_CAST(campaign_id AS BIGINT) AS campaign_id, TRY_CAST(customer AS BIGINT) AS customer, "
    "TRY_CAST(brand AS BIGINT) AS brand, TRY_CAST(price AS DOUBLE) AS price "
    "FROM read_csv('{raw}/ad_feature.csv', " + _READ + ")"
)
_JOIN_IMPRESSIONS = (
    "COPY (WITH ad AS (" + _AD + '), shown AS (SELECT TRY_CAST("user" AS BIGINT) AS "user", '
    "TRY_CAST(time_stamp AS BIGINT) AS time_stamp, TRY_CAST(adgroup_id AS BIGINT) AS adgroup_id, "
    "pid, TRY_CAST(clk AS TINYINT) AS clk "
    "FROM read_csv('{raw}/raw_sample.csv', " + _READ + ")) "
    "SELECT shown.*, ad.* EXCLUDE (adgroup_id), "
    + _PAIR.format(cate="ad.cate_id", brand="ad.brand")
    + " AS pair FROM shown LEFT JOIN ad USING (adgroup_id)) "
    "TO '{out}/impressions.parquet' (FORMAT parquet, COMPRESSION zstd)"
)
_COLLECT_ITEMS = (
    "COPY (SELECT DISTINCT " + _PAIR.format(cate="cate", brand="brand") + " AS pair, cate, brand "
    "FROM (SELECT TRY_CAST(cate AS BIGINT) AS cate, TRY_CAST(brand AS BIGINT) AS brand "
    "FROM read_csv('{raw}/behavior_log.csv', ignore_errors = true, " + _READ + ") "
    "UNION ALL SELECT cate_id, brand FROM (" + _AD + ")) WHERE cate IS NOT NULL) "
    "TO '{out}/items.parquet' (FORMAT parquet, COMPRESSION zstd)"
)


def mapping(folder: Path, *, drop_6_may: bool = False) -> Mapping:
    """Describe the joined folder, and the raw files it names, to preparation.

    Split: test 13 May 2017, validation 12 May, training before; days are Shanghai days.

    Args:
        folder: as returned by `fetch`.
        drop_6_may: keep seven days of impressions instead of eight.
    """
    folder = folder.absolute()
    raw = Path(json.loads((folder / "origin.json").read_text(encoding="utf-8"))["raw"])
    profile = tuple(column.strip() for column in HEADERS["user_profile.csv"])
    items = Items(
        files=(str(folder / "items.parquet"),),
        key="pair",
        title="'category ' || cate || coalesce(', brand ' || brand, '')",
        fields={"cate": "cate", "brand": "brand"},
    )
    users = Users(
        files=(str(raw / "user_profile.csv"),),
        csv=Csv(quote="", columns=profile),
        key="TRY_CAST(userid AS BIGINT)",
        fields={name: name for name in profile[1:]},
    )
    return Mapping(
        name="taobao-ad",
        licence="Tianchi data set 56: research under Alibaba's terms, no redistribution",
        timezone=TIMEZONE,
        events=(_events(raw),),
        impressions=(_impressions(folder, drop_6_may),),
        items=(items,),
        users=(users,),
        split=SplitRule(validation_from="2017-05-12", test_from="2017-05-13"),
        # Behaviours stamped outside the published days are noise, and there are some.
        limits=Limits(earliest="2017-04-22", latest="2017-05-14", max_rejected_share=0.05),
    )


def _events(raw: Path) -> Events:
    return Events(
        files=(str(raw / "behavior_log.csv"),),
        csv=Csv(quote=""),
        user='TRY_CAST("user" AS BIGINT)',
        item=_PAIR.format(cate="cate", brand="brand"),
        time="time_stamp",
        time_unit="s",
        domain_rule=f"TRY_CAST(cate AS BIGINT) < {TARGET_BELOW}",
        context={"btag": "btag", "hour": _HOUR},
    )


def _impressions(folder: Path, drop_6_may: bool) -> Impressions:
    return Impressions(
        files=(str(folder / "impressions.parquet"),),
        where=f"time_stamp >= {_MAY_7}" if drop_6_may else None,
        user="user",
        item="pair",
        time="time_stamp",
        time_unit="s",
        label="clk",
        target_rule=f"cate_id < {TARGET_BELOW}",
        context={"pid": "pid", "hour": _HOUR},
        candidate={
            "adgroup": "adgroup_id",
            "campaign": "campaign_id",
            "customer": "customer",
            "price": "CASE WHEN price >= 0 THEN CAST(floor(log2(1 + price)) AS INTEGER) END",
        },
    )
