"""KuaiRand: short-video impressions with clicks, as published (Pure, 1K, 27K) or as a small slice.

One log serves two domains, by one of two rules:

- `tag`: videos whose first tag number is below 12 are the target domain;
- `tab`: impressions outside tab 1 (the main feed) are the target domain.

Every impression is also an event of its domain, with `is_click` and `long_view` as context: what
was shown and not clicked is history too.

The *slice* is a compact extract of KuaiRand-Pure: 228,329 impressions of 25 April to 8 May 2022
and, for the weeks before, each user's last 50 watched videos *without times*. These get
order-preserving pseudo times: evenly spaced, as densely as the user watched on average
(`history_len` impressions since 9 April), ending at the known time of the last one. Their click
flag, tab and hour are the value `history`. Which of them were long views is known (the slice lists
each user's last 50; of long views 99.6 % are clicks).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lcn.data import cache as caching
from lcn.data.mapping import (
    Events,
    Impressions,
    Items,
    Limits,
    Mapping,
    Responses,
    SplitRule,
    Users,
)
from lcn.errors import DataError, nearest
from lcn.files import sha256_of

ABOUT = "KuaiRand (Pure, 1K, 27K) short-video logs, standard and random, or the small slice"
LICENCE = """\
KuaiRand, CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/): share with attribution
and under the same licence. Cite Gao et al., "KuaiRand: An Unbiased Sequential Recommendation
Dataset with Randomly Exposed Videos", CIKM 2022, https://kuairand.com."""
OPTIONS = (
    "domain: the rule for the target domain, tag or tab (tag)",
    "logs: standard, random or both, for the published layout (standard)",
)

TIMEZONE = "Asia/Shanghai"
TARGET_TAG_BELOW = 12
VERSION = "kuairand-slice/2"
_SLICE_FILES = ("impressions.parquet", "user_history.parquet", "users.parquet", "videos.parquet")
_APRIL_9_MS = 1_649_433_600_000
"""2022-04-09 00:00 in Shanghai, where the untimed histories begin."""
_NEEDED = (
    "user_id",
    "video_id",
    "time_ms",
    "is_click",
    "long_view",
    "play_time_ms",
    "duration_ms",
    "tab",
)
_HOUR = "(TRY_CAST(time_ms AS BIGINT) // 3600000 + 8) % 24"
_DURATION = (
    "CASE WHEN TRY_CAST(video_duration AS DOUBLE) >= 0 THEN "
    "CAST(floor(log2(1 + TRY_CAST(video_duration AS DOUBLE) / 1000)) AS INTEGER) END"
)
_PROFILE = (
    *("user_active_degree", "is_video_author", "follow_user_num_range", "fans_user_num_range"),
    *("register_days_range", "onehot_feat1", "onehot_feat2"),
)

Rule = Literal["tag", "tab"]
Logs = Literal["standard", "random", "both"]


def fetch(cache: Path, path: Path | None = None) -> Path:
    """Return a folder for `mapping`: the published one as it lies, or the slice converted.

    Args:
        cache: folder of fetched logs.
        path: an unpacked KuaiRand folder (the one with `log_standard_*.csv`, or one above it), or
            the folder of the slice; default `kuairand/raw` in the cache.

    Raises:
        DataError: neither layout is there; the message says what to get and where to put it.
    """
    raw = (path or cache / "kuairand" / "raw").absolute()
    if all((raw / name).is_file() for name in _SLICE_FILES):
        return caching.build(
            cache / "kuairand" / "slice", f"{VERSION}-{_key(raw)}", lambda out: convert(raw, out)
        )
    for folder in (raw, raw / "data", *sorted(raw.glob("KuaiRand-*/data"))):
        if any(folder.glob("log_*.csv")):
            _check_published(folder)
            return folder
    raise DataError(
        f"{raw} holds no KuaiRand log. Download KuaiRand-Pure.tar.gz (45 MB), KuaiRand-1K.tar.gz "
        "or KuaiRand-27K.tar.gz from https://zenodo.org/records/10439422 (described at "
        f"https://kuairand.com), unpack it into {raw}, or name the unpacked folder with --path"
    )


def _key(raw: Path) -> str:
    """Name the slice by its bytes, so that another copy is converted anew."""
    return "-".join(sha256_of(raw / name)[:8] for name in _SLICE_FILES)


def _check_published(folder: Path) -> None:
    for pattern in ("log_standard_*.csv", "user_features_*.csv", "video_features_basic_*.csv"):
        if not any(folder.glob(pattern)):
            raise DataError(f"{folder} lacks {pattern}: unpack the whole published archive there")
    for log in sorted(folder.glob("log_*.csv")):
        with log.open(encoding="utf-8", errors="replace") as file:
            columns = file.readline().strip().split(",")
        missing = [name for name in _NEEDED if name not in columns]
        if missing:
            raise DataError(f"{log} lacks column {missing[0]!r}; it has {', '.join(columns)}")


def convert(raw: Path, out: Path) -> str:
    """Turn the slice into events, impressions, videos and users; returns the slice's path.

    Raises:
        DataError: a file of the slice is not readable.
    """
    try:
        shown, history, users, videos = (pq.read_table(raw / name) for name in _SLICE_FILES)
    except pa.ArrowInvalid as error:
        raise DataError(f"cannot read the KuaiRand slice in {raw}: {error}") from error
    impressions = shown.select(_NEEDED)
    events = pa.concat_tables([_timed(history), _as_events(impressions)])
    tables = {"events": events, "impressions": impressions, "users": users, "videos": videos}
    for name, table in tables.items():
        pq.write_table(table, out / f"{name}.parquet", compression="zstd")
    return str(raw)


def _as_events(impressions: pa.Table) -> pa.Table:
    return pa.table(
        {
            "user_id": impressions["user_id"],
            "video_id": impressions["video_id"],
            "time_ms": impressions["time_ms"],
            "is_click": impressions["is_click"].cast(pa.string()),
            "long_view": impressions["long_view"].cast(pa.int64()),
            "tab": impressions["tab"].cast(pa.string()),
        }
    )


def _timed(history: pa.Table) -> pa.Table:
    """Unroll the watch lists, oldest first, with the pseudo times the module describes."""
    watched = pa.concat_arrays(history["watch_seq"].chunks)
    length = watched.value_lengths().to_numpy().astype(np.int64)
    last = np.repeat(history["last_time_ms"].to_numpy(), length)
    shown = np.repeat(np.maximum(history["history_len"].to_numpy(), 1), length)
    step = np.maximum((last - _APRIL_9_MS) // shown, 1)
    back = np.repeat(length.cumsum(), length) - 1 - np.arange(length.sum())
    unknown = pa.repeat(pa.scalar("history"), len(last))
    return pa.table(
        {
            "user_id": np.repeat(history["user_id"].to_numpy(), length),
            "video_id": watched.flatten(),
            "time_ms": last - back * step,
            "is_click": unknown,
            "long_view": _long_views(history),
            "tab": unknown,
        }
    )


def _long_views(history: pa.Table) -> NDArray[np.int64]:
    """Which watched videos were long views: 1 or 0 each, oldest first.

    Both lists of a user end with the newest, so they are matched from their ends; long views that
    are older than the watch list match nothing.
    """
    found = []
    lists = zip(
        history["watch_seq"].to_pylist(), history["long_watch_seq"].to_pylist(), strict=True
    )
    for watched, long_viewed in lists:
        is_long = [0] * len(watched)
        wanted = len(long_viewed) - 1
        for place in reversed(range(len(watched))):
            if wanted >= 0 and watched[place] == long_viewed[wanted]:
                is_long[place], wanted = 1, wanted - 1
        found += is_long
    return np.asarray(found, np.int64)


def mapping(folder: Path, *, domain: Rule = "tag", logs: Logs = "standard") -> Mapping:
    """Describe a folder returned by `fetch` to preparation.

    Split: test 8 May 2022, validation 7 May, training before; days are Shanghai days.

    Args:
        folder: the published folder, or the converted slice.
        domain: which rule makes the target domain.
        logs: which logs of the published layout to read; the slice has standard logs only.

    Raises:
        DataError: an unknown option value.
    """
    for value, known in ((domain, ("tag", "tab")), (logs, ("standard", "random", "both"))):
        if value not in known:
            raise DataError(f"unknown option value {value!r}{nearest(str(value), known)}")
    files = _files(folder.absolute(), logs)
    first_tag = "TRY_CAST(split_part(CAST(items.tag AS VARCHAR), ',', 1) AS INTEGER)"
    rule = {
        "tag": f"coalesce({first_tag} < {TARGET_TAG_BELOW}, false)",
        "tab": "CAST(tab AS VARCHAR) <> '1'",
    }[domain]
    items = Items(
        files=files.videos,
        key="video_id",
        fields={
            "author": "author_id",
            "tag": "split_part(CAST(tag AS VARCHAR), ',', 1)",
            "duration": _DURATION,
        },
    )
    return Mapping(
        name=f"kuairand-{domain}",
        licence="CC BY-SA 4.0; cite Gao et al., CIKM 2022",
        timezone=TIMEZONE,
        events=(_events(files, domain, rule),),
        impressions=(_impressions(files, rule),),
        items=(items,),
        users=(Users(files=files.users, key="user_id", fields={n: n for n in _PROFILE}),),
        responses=Responses(field="long_view", clicked=("1",), shown=("0",)),
        split=SplitRule(validation_from="2022-05-07", test_from="2022-05-08"),
        limits=Limits(earliest="2022-04-08", latest="2022-05-10"),
    )


@dataclass(frozen=True)
class _Files:
    """Which files hold which table, in either layout."""

    events: tuple[str, ...]
    impressions: tuple[str, ...]
    videos: tuple[str, ...]
    users: tuple[str, ...]
    is_slice: bool


def _files(folder: Path, logs: Logs) -> _Files:
    if (folder / "events.parquet").is_file():
        tables = ("events", "impressions", "videos", "users")
        return _Files(*((str(folder / f"{name}.parquet"),) for name in tables), is_slice=True)
    kinds = ("standard", "random") if logs == "both" else (logs,)
    log = tuple(str(folder / f"log_{kind}_*.csv") for kind in kinds)
    videos = (str(folder / "video_features_basic_*.csv"),)
    return _Files(log, log, videos, (str(folder / "user_features_*.csv"),), is_slice=False)


def _events(files: _Files, domain: Rule, rule: str) -> Events:
    timed = f"CASE WHEN is_click = 'history' THEN 'history' ELSE CAST({_HOUR} AS VARCHAR) END"
    hour = timed if files.is_slice else _HOUR
    context = {"is_click": "is_click", "long_view": "long_view", "hour": hour}
    if domain == "tag":
        # Under the other rule the tab is the domain: as context it would say nothing new.
        context["tab"] = "tab"
    return Events(
        files=files.events,
        # Where the tab decides, watch lists without a tab have no domain.
        where="tab <> 'history'" if files.is_slice and domain == "tab" else None,
        user="user_id",
        item="video_id",
        time="time_ms",
        time_unit="ms",
        domain_rule=rule,
        context=context,
    )


def _impressions(files: _Files, rule: str) -> Impressions:
    return Impressions(
        files=files.impressions,
        user="user_id",
        item="video_id",
        time="time_ms",
        time_unit="ms",
        label="is_click",
        dwell="TRY_CAST(play_time_ms AS DOUBLE) / 1000",
        target_rule=rule,
        context={"hour": _HOUR, "tab": "tab"},
    )
