"""Files of the same form as the Taobao log, of any size: to prove the path without the login.

The form is the published one, quirks included: a blank in a header, brands and prices that are
`NULL`, empty profile levels, unsorted rows, repeated page views within a second, and a few
behaviours stamped outside the published days. The content is invented: it shows that preparation
and training run, and says nothing about quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.random import Generator, SeedSequence, default_rng
from pyarrow import csv
from pydantic import Field

from lcn.config import Config
from lcn.data.cache import clear_errors
from lcn.data.sources.taobao import HEADERS
from lcn.files import written_whole

_CHUNK = 1_000_000
_CATEGORIES = 12_960
_BRANDS = 460_000
_FIRST_BEHAVIOUR, _FIRST_IMPRESSION, _END = 1_492_790_400, 1_494_000_000, 1_494_691_200
"""2017-04-22, 2017-05-06 and 2017-05-14, 00:00 in Shanghai, UTC seconds."""
_BTAGS, _BTAG_SHARES = ("pv", "cart", "fav", "buy"), (0.945, 0.025, 0.015, 0.015)

Progress = Callable[[int], None]
"""Called with the number of rows just written."""


class Size(Config):
    """How much to generate."""

    behaviours: int = Field(default=1_000_000, ge=1)
    impressions: int = Field(default=100_000, ge=1)
    users: int = Field(default=20_000, ge=1)
    ads: int = Field(default=20_000, ge=1)
    noise_share: float = Field(default=0.001, ge=0, le=1)
    """Behaviours stamped outside the published days."""
    seed: int = 0


def generate(out: Path, size: Size, progress: Progress = lambda rows: None) -> Path:
    """Write the four files into a folder, in bounded memory.

    Args:
        out: folder to create; existing files of the same names are replaced.
        size: how many rows.
        progress: told about rows as they are written.

    Raises:
        DataError: the folder cannot be written.
    """
    streams = SeedSequence(size.seed).spawn(4)
    with clear_errors(f"write {out}"):
        out.mkdir(parents=True, exist_ok=True)
        ads = _ads(size, default_rng(streams[0]))
        _write(out / "ad_feature.csv", iter([ads]), progress)
        _write(out / "user_profile.csv", iter([_profiles(size, default_rng(streams[1]))]), progress)
        _write(out / "behavior_log.csv", _behaviours(size, streams[2]), progress)
        _write(out / "raw_sample.csv", _impressions(size, streams[3], ads), progress)
    return out


def _write(path: Path, tables: Iterator[pa.Table], progress: Progress) -> None:
    with written_whole(path) as partial, partial.open("wb") as file:
        file.write((",".join(HEADERS[path.name]) + "\n").encode())
        for table in tables:
            options = csv.WriteOptions(include_header=False, quoting_style="none")
            csv.write_csv(table, file, options)
            progress(table.num_rows)


def _with_null(rng: Generator, value: np.ndarray, share: float, null: str) -> np.ndarray:
    text = value.astype(str).astype(object)
    text[rng.random(len(value)) < share] = null
    return text


def _skewed(rng: Generator, count: int, size: int) -> np.ndarray:
    """Draw `size` numbers below `count`, small ones more often."""
    return np.minimum((count * rng.random(size) ** 3).astype(np.int64), count - 1)


def _ads(size: Size, rng: Generator) -> pa.Table:
    adgroup = np.arange(1, size.ads + 1)
    return pa.table(
        {
            "adgroup_id": adgroup,
            "cate_id": 1 + rng.integers(_CATEGORIES, size=size.ads),
            "campaign_id": 1 + adgroup // 2,
            "customer": 1 + adgroup // 4,
            "brand": _with_null(rng, 1 + _skewed(rng, _BRANDS, size.ads), 0.29, "NULL"),
            "price": _with_null(rng, np.exp(rng.normal(5, 1.5, size.ads)).round(2), 0.001, "NULL"),
        }
    )


def _profiles(size: Size, rng: Generator) -> pa.Table:
    # A few per cent of the users have no profile, as published.
    user = np.arange(1, size.users + 1)
    user = user[rng.random(size.users) < 0.94]
    levels = {"cms_segid": 97, "cms_group_id": 13, "final_gender_code": 2, "age_level": 7}
    columns: dict[str, np.ndarray] = {"userid": user}
    columns |= {name: rng.integers(count, size=len(user)) for name, count in levels.items()}
    columns["pvalue_level"] = _with_null(rng, rng.integers(1, 4, len(user)), 0.54, "")
    columns["shopping_level"] = rng.integers(1, 4, len(user))
    columns["occupation"] = rng.integers(2, size=len(user))
    columns["new_user_class_level "] = _with_null(rng, rng.integers(1, 5, len(user)), 0.32, "")
    return pa.table(columns)


def _favourite(user: np.ndarray) -> np.ndarray:
    """One category per user that both files agree on, so that there is something to learn."""
    return 1 + (user * 7919) % _CATEGORIES


def _chunks(total: int, stream: SeedSequence) -> Iterator[tuple[int, Generator]]:
    starts = range(0, total, _CHUNK)
    for start, child in zip(starts, stream.spawn(len(starts)), strict=True):
        yield min(_CHUNK, total - start), default_rng(child)


def _behaviours(size: Size, stream: SeedSequence) -> Iterator[pa.Table]:
    names = pa.array(_BTAGS)
    for rows, rng in _chunks(size.behaviours, stream):
        user = 1 + _skewed(rng, size.users, rows)
        time = rng.integers(_FIRST_BEHAVIOUR, _END, rows)
        noise = rng.random(rows) < size.noise_share
        time[noise] = rng.choice([-1_000_000_000, 0, 1_300_000_000, 2_100_000_000], noise.sum())
        category = np.where(
            rng.random(rows) < 0.3, _favourite(user), 1 + _skewed(rng, _CATEGORIES, rows)
        )
        brand = (category * 31 + rng.integers(40, size=rows)) % _BRANDS
        btag = rng.choice(len(_BTAGS), rows, p=_BTAG_SHARES).astype(np.int8)
        # Page-view bursts: some rows repeat the one before in every column.
        origin = np.arange(rows)
        origin[1:] -= (rng.random(rows - 1) < 0.02).astype(np.int64)
        table = pa.table(
            {
                "user": user,
                "time_stamp": time,
                "btag": pa.DictionaryArray.from_arrays(pa.array(btag), names).cast(pa.string()),
                "cate": category,
                "brand": brand,
            }
        )
        yield table.take(pa.array(origin))


def _impressions(size: Size, stream: SeedSequence, ads: pa.Table) -> Iterator[pa.Table]:
    category = ads["cate_id"].to_numpy()
    pids = pa.array(["430539_1007", "430548_1007"])
    for rows, rng in _chunks(size.impressions, stream):
        user = 1 + _skewed(rng, size.users, rows)
        ad = rng.integers(size.ads, size=rows)
        liked = category[ad] % 7 == _favourite(user) % 7
        click = rng.random(rows) < np.where(liked, 0.12, 0.04)
        pid = pa.array(rng.integers(2, size=rows).astype(np.int8))
        yield pa.table(
            {
                "user": user,
                "time_stamp": rng.integers(_FIRST_IMPRESSION, _END, rows),
                "adgroup_id": ad + 1,
                "pid": pa.DictionaryArray.from_arrays(pid, pids).cast(pa.string()),
                "nonclk": 1 - click.astype(np.int8),
                "clk": click.astype(np.int8),
            }
        )
