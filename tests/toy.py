"""Small datasets written straight in the dataset format, for tests that do not need preparation.

The planted rule is simple and not a pyramid: a candidate is clicked when its category is frequent
in the user's source history, with label noise. `signal=False` draws labels at random.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lcn.data.dataset import Dataset, open_dataset
from lcn.schema import Count, Field, Manifest, SplitTimes, write_manifest

SMALL = (
    "model.width=8",
    "model.field_width=8",
    "model.short={width: 8, heads: 2}",
    "model.hidden=[16]",
    "batch.size=64",
    "batch.group=4",
    "batch.lifelong=30",
    "batch.short=5",
    "train.epochs=1",
)
"""Settings of a model that trains on a toy in a second."""
SMALL_LAP = (*SMALL, "model.backbone={name: lap, k1: 12, k2: 4, width: 8, heads: 2}")


def make_toy(
    folder: Path,
    *,
    users: int = 60,
    items: int = 80,
    events: int = 40,
    impressions: int = 20,
    signal: bool = True,
    seed: int = 0,
) -> Dataset:
    """Write and open a toy dataset; some users have no events of one domain."""
    rng = np.random.default_rng(seed)
    categories = 8
    addresses = items + 1
    item = np.zeros((addresses, 2), np.int32)
    item[1:, 0] = np.arange(2, items + 2)
    item[1:, 1] = 2 + np.arange(items) % categories
    user = np.zeros((users + 1, 1), np.int32)
    user[1:, 0] = rng.integers(2, 5, users)
    taste = rng.integers(0, categories, (users + 1, 2))
    offsets, columns = {}, {}
    for domain, low, high in (("source", 1, items // 2), ("target", items // 2 + 1, items)):
        length = rng.integers(0, 2 * events, users + 1)
        length[0] = 0
        length[1 + (domain == "target")] = 0
        offsets[domain] = np.r_[0, np.cumsum(length)].astype(np.int64)
        total = offsets[domain][-1]
        owner = np.repeat(np.arange(users + 1), length)
        pick = rng.integers(low, high + 1, total).astype(np.int32)
        liked = taste[owner, rng.integers(0, 2, total)]
        moved = low + (pick - low) // categories * categories + (liked - low + 1) % categories
        keen = (rng.random(total) < 0.7) & (moved <= high)
        columns[domain] = {
            "item": np.where(keen, moved, pick).astype(np.int32),
            "time": np.concatenate(
                [np.sort(rng.integers(0, 10**9, n)) for n in length] or [np.zeros(0)]
            ).astype(np.int64),
            "context": rng.integers(2, 6, (total, 1)).astype(np.int32),
        }
    _write_array(folder / "items.npy", item)
    _write_array(folder / "users.npy", user)
    for domain, store in columns.items():
        _write_array(folder / f"events/{domain}/offsets.npy", offsets[domain])
        for name, column in store.items():
            _write_array(folder / f"events/{domain}/{name}.npy", column)

    count = users * impressions
    shown = {
        "user": rng.integers(1, users + 1, count).astype(np.int32),
        "time": np.sort(rng.integers(10**8, 12 * 10**8, count)).astype(np.int64),
        "item": rng.integers(items // 2 + 1, items + 1, count).astype(np.int32),
        "dwell": np.full(count, np.nan, np.float32),
        "context": rng.integers(2, 6, (count, 1)).astype(np.int32),
        "candidate": rng.integers(2, 9, (count, 1)).astype(np.int32),
    }
    match = (item[shown["item"], 1, None] - 2 == taste[shown["user"]]).any(1)
    chance = np.where(match, 0.85, 0.15) if signal else np.full(count, 0.5)
    shown["label"] = (rng.random(count) < chance).astype(np.uint8)
    for domain in ("source", "target"):
        shown[f"{domain}_end"] = _ends(offsets[domain], columns[domain]["time"], shown)
    bounds = [0, int(0.7 * count), int(0.85 * count), count]
    for split, low, high in zip(("train", "validation", "test"), bounds, bounds[1:], strict=False):
        for name, column in shown.items():
            _write_array(folder / f"samples/{split}/{name}.npy", column[low:high])
    _tell_responses(folder)
    times = [int(shown["time"][bound]) for bound in bounds[1:3]]
    return _finish(folder, item, user, columns, shown["label"], bounds, times)


KINDS = {"liked": 2, "loved": 3, "seen": 4, "unsure": 5}
"""Words of the event field `kind`: liked and loved are clicks, seen is none, unsure is neither."""


def without_target_history(dataset: Dataset) -> Dataset:
    """The same impressions of users who have done nothing in the target domain yet."""
    samples = {
        split: replace(rows, target_end_S=dataset.histories(rows, "target")[0])
        for split, rows in dataset.samples.items()
    }
    return replace(dataset, samples=samples)


def _tell_responses(folder: Path) -> None:
    path = folder / "vocabulary" / "event" / "kind.parquet"
    path.parent.mkdir(parents=True)
    table = {"value": list(KINDS), "index": list(KINDS.values()), "count": [1] * len(KINDS)}
    pq.write_table(pa.table(table), path)


def _ends(offsets, time, shown):
    ends = np.empty(len(shown["user"]), np.int64)
    for row, (user, moment) in enumerate(zip(shown["user"], shown["time"], strict=True)):
        first, last = offsets[user], offsets[user + 1]
        ends[row] = first + np.searchsorted(time[first:last], moment, "left")
    return ends


def _finish(folder, item, user, columns, label, bounds, times) -> Dataset:
    splits = ("train", "validation", "test")
    parts = list(zip(splits, bounds, bounds[1:], strict=False))
    manifest = Manifest(
        name="toy",
        licence="made up",
        item_fields=(
            Field(name="item", size=len(item) + 1),
            Field(name="category", size=int(item[:, 1].max()) + 1),
        ),
        event_context=(Field(name="kind", size=6),),
        request_context=(Field(name="hour", size=6),),
        candidate_fields=(Field(name="campaign", size=9),),
        profile_fields=(Field(name="age", size=5),),
        split=SplitTimes(timezone="UTC", validation_from=times[0], test_from=times[1]),
        count=Count(
            users=len(user),
            items=len(item),
            events={domain: len(store["item"]) for domain, store in columns.items()},
            samples={split: high - low for split, low, high in parts},
            positives={split: int(label[low:high].sum()) for split, low, high in parts},
        ),
        rejected={},
        mapping={"responses": {"field": "kind", "clicked": ["liked", "loved"], "shown": ["seen"]}},
        checksums={
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*.npy"))
        },
    )
    write_manifest(folder, manifest)
    return open_dataset(folder)


def _write_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
