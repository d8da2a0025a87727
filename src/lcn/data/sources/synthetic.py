"""Synthetic logs with planted truth, from a thousand users to hundreds of millions of rows.

Each impression carries its true click probability: the AUC of ranking by it is the best that a
model can expect. With `rho` near 1 the source log tells what a user likes in the target domain,
whose own history is short; with `rho = 0` it tells nothing. What is planted: `synthetic_world`;
the dials: `synthetic_config`.

A generated folder holds `events_source/`, `events_target/` and `impressions/` (Parquet parts of
4,096 users), `items.parquet`, `users/`, `config.yaml` and a `mapping.yaml`. The same config gives
the same rows whatever the number of processes, and more users only add rows.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lcn.config import dump_config
from lcn.data import cache as caching
from lcn.data.mapping import Events, Impressions, Items, Mapping, SplitRule, Users
from lcn.data.sources.synthetic_config import SyntheticConfig
from lcn.data.sources.synthetic_world import (
    BLOCK,
    Block,
    World,
    draw_block,
    draw_world,
    shared_items,
)
from lcn.errors import DataError
from lcn.files import filled_whole

ABOUT = "Generated logs with planted truth; the best reachable AUC is known"
LICENCE = "Generated data: no rights reserved."
VERSION = "synthetic/1"
START_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC, where every generated log begins."""
BLOCKS_PER_PART = 16
"""Blocks of users in one file of each table."""

_EVENT_SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("time_ms", pa.int64()),
        ("stay_seconds", pa.float32()),
    ]
)

Progress = Callable[[int], None]
"""Called with the number of users just written."""


def fetch(cache: Path, path: Path | None = None) -> Path:
    """Return a generated folder: `path` if given, else the default config's, made once.

    Raises:
        DataError: `path` is not a generated folder.
    """
    if path is not None:
        if not (path / "mapping.yaml").is_file():
            raise DataError(
                f"{path} is no generated folder; make one with `lcn data generate synthetic {path}`"
            )
        return path

    def make(empty: Path) -> str:
        generate(empty, SyntheticConfig())
        return "generated"

    return caching.build(cache / "synthetic" / "default", VERSION, make)


def generate(
    out: Path,
    config: SyntheticConfig,
    workers: int = 1,
    progress: Progress = lambda users: None,
) -> Path:
    """Write a synthetic log into an empty or new folder, in bounded memory.

    Args:
        out: folder to fill.
        config: sizes and planted truth.
        workers: processes; the rows do not depend on it.
        progress: told about users as they are written.

    Raises:
        DataError: the folder is not empty, or cannot be written: what was written is removed.
    """
    with caching.clear_errors(f"write {out}"):
        if out.exists() and any(out.iterdir()):
            raise DataError(f"{out} is not empty; name a new folder, or empty it first")
        with filled_whole(out, last="mapping.yaml") as partial:
            for name in ("events_source", "events_target", "impressions", "users"):
                (partial / name).mkdir()
            _write_items(partial, config, draw_world(config))
            (partial / "config.yaml").write_text(dump_config(config), encoding="utf-8")
            for users in _write_parts(partial, config, workers):
                progress(users)
            (partial / "mapping.yaml").write_text(dump_config(_mapping("")), encoding="utf-8")
    return out


def _write_parts(out: Path, config: SyntheticConfig, workers: int) -> Iterator[int]:
    parts = -(-config.users // (BLOCK * BLOCKS_PER_PART))
    if workers == 1 or parts == 1:
        world = draw_world(config)
        for part in range(parts):
            yield write_part(out, config, world, part)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_write_part, [(out, config, part) for part in range(parts)])


def _write_part(task: tuple[Path, SyntheticConfig, int]) -> int:
    out, config, part = task
    return write_part(out, config, draw_world(config), part)


def write_part(out: Path, config: SyntheticConfig, world: World, part: int) -> int:
    """Write one file of each table; returns the users it covers."""
    first = part * BLOCKS_PER_PART
    blocks = range(first, min(first + BLOCKS_PER_PART, -(-config.users // BLOCK)))
    name = f"part-{part:05d}.parquet"
    # Source events are most of the rows and leave memory block by block; the rest is small.
    small: dict[str, list[pa.Table]] = {"events_target": [], "impressions": [], "users": []}
    with pq.ParquetWriter(
        out / "events_source" / name, _EVENT_SCHEMA, compression="zstd"
    ) as writer:
        for number in blocks:
            block = draw_block(config, world, number)
            rows = _tables(config, block, number * BLOCK)
            source = rows.pop("events_source")
            writer.write_table(source, row_group_size=len(source))
            for table, part_rows in rows.items():
                small[table].append(part_rows)
    for table, tables in small.items():
        pq.write_table(pa.concat_tables(tables), out / table / name, compression="zstd")
    return min(config.users - first * BLOCK, BLOCK * BLOCKS_PER_PART)


def _tables(config: SyntheticConfig, block: Block, first: int) -> dict[str, pa.Table]:
    """Rows of a block's users; those beyond the last user were drawn only to be dropped."""
    users = min(BLOCK, config.users - first)

    def rows(user: NDArray[np.int64], **columns: NDArray) -> pa.Table:
        end = np.searchsorted(user, users)
        return pa.table({"user_id": first + user[:end]} | {k: v[:end] for k, v in columns.items()})

    shown, target = block.shown, block.target
    return {
        "events_source": rows(
            block.source.user,
            item_id=block.source.item,
            time_ms=START_MS + block.source.time,
            stay_seconds=block.source.stay.astype(np.float32),
        ),
        "events_target": rows(
            target.user,
            item_id=_target_id(config, target.item),
            time_ms=START_MS + target.time,
            stay_seconds=target.stay.astype(np.float32),
        ),
        "impressions": _null_stay(
            rows(
                shown.user,
                item_id=_target_id(config, shown.item),
                time_ms=START_MS + shown.time,
                click=shown.click.astype(np.int8),
                stay_seconds=shown.stay.astype(np.float32),
                probability=shown.probability,
            )
        ),
        "users": rows(np.arange(BLOCK), segment=block.segment_U, region=block.region_U),
    }


def _target_id(config: SyntheticConfig, item: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ids of target items: behind the source items, or those of the source items they are."""
    return np.where(shared_items(config)[item], item, config.source_items + item)


def _null_stay(table: pa.Table) -> pa.Table:
    """An unclicked impression has no stay time."""
    stay = pa.array(table["stay_seconds"].to_numpy(), from_pandas=True)
    return table.set_column(table.schema.get_field_index("stay_seconds"), "stay_seconds", stay)


def _write_items(out: Path, config: SyntheticConfig, world: World) -> None:
    offset = 0 if config.shared_categories else config.categories
    category = np.concatenate([world.source.category_I, offset + world.target.category_I])
    domain = ["source"] * config.source_items + ["target"] * config.target_items
    for item in np.flatnonzero(shared_items(config)).tolist():
        domain[item] = "both"
    title = [
        f"{name} item {number} (category {group})"
        for number, (name, group) in enumerate(zip(domain, category, strict=True))
    ]
    items = pa.table(
        {
            "item_id": np.arange(len(category)),
            "title": title,
            "category": category,
            "domain": domain,
        }
    )
    # A shared item stands in the list once, under its source id.
    once = np.r_[np.ones(config.source_items, bool), ~shared_items(config)]
    items = items.filter(pa.array(once))
    pq.write_table(items, out / "items.parquet", compression="zstd")


def mapping(folder: Path) -> Mapping:
    """Describe a generated folder to preparation: test is the last fifth of the impressions."""
    return _mapping(f"{folder.absolute()}/")


def _mapping(prefix: str) -> Mapping:
    stay = "CAST(floor(log2(1 + stay_seconds)) AS INTEGER)"
    hour = "time_ms // 3600000 % 24"

    def events(domain: str) -> Events:
        return Events(
            files=(f"{prefix}events_{domain}/*.parquet",),
            user="user_id",
            item="item_id",
            time="time_ms",
            time_unit="ms",
            domain="target" if domain == "target" else "source",
            context={"stay": stay, "hour": hour},
        )

    return Mapping(
        name="synthetic",
        licence=LICENCE,
        events=(events("source"), events("target")),
        impressions=(
            Impressions(
                files=(f"{prefix}impressions/*.parquet",),
                user="user_id",
                item="item_id",
                time="time_ms",
                time_unit="ms",
                label="click",
                dwell="stay_seconds",
                probability="probability",
                context={"hour": hour},
            ),
        ),
        items=(
            Items(
                files=(f"{prefix}items.parquet",),
                key="item_id",
                title="title",
                fields={"category": "category"},
            ),
        ),
        users=(
            Users(
                files=(f"{prefix}users/*.parquet",),
                key="user_id",
                fields={"segment": "segment", "region": "region"},
            ),
        ),
        split=SplitRule(validation_share=0.1, test_share=0.2),
    )
