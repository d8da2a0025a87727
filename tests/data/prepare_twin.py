"""Preparation once more, slowly and plainly, and small logs to try both on."""

from __future__ import annotations

import csv
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lcn.data.dataset import Dataset
from lcn.data.mapping import Events, Impressions, Items, Limits, Mapping, SplitRule, Users
from lcn.schema import DOMAINS, SPLITS

BASE = 1_500_000_000
"""2017-07-14 02:40:00 UTC"""
VALIDATION_FROM, TEST_FROM = "2017-07-14 02:40:30", "2017-07-14 02:40:40"
"""Seconds 30 and 40 after BASE."""


class Event(NamedTuple):
    user: str | None
    item: str | None
    time: int | None
    """Seconds after BASE."""
    arrival: int | None
    act: str | None


class Shown(NamedTuple):
    user: str | None
    item: str | None
    time: int | None
    label: int | None
    hour: str | None


class Item(NamedTuple):
    item: str
    category: int | None
    """5 and above: target domain."""
    title: str


class User(NamedTuple):
    user: str
    age: str | None


@dataclass(frozen=True)
class Logs:
    events: list[Event]
    impressions: list[Shown]
    items: list[Item]
    users: list[User]


def enough(logs: Logs) -> Logs:
    """Add an event, and an impression to each split, so that nothing is empty."""
    shown = [Shown("1", "a", second, second % 2, "0") for second in (5, 35, 45)]
    event = Event("1", "a", 4, None, "pv")
    return Logs([*logs.events, event], logs.impressions + shown, logs.items, logs.users)


def mapping(suffix: str = "csv", **changes: object) -> Mapping:
    """Return the mapping of files written by `write`."""
    settings: dict[str, object] = {
        "name": "twin",
        "events": (
            Events(
                files=(f"events-*.{suffix}",),
                user="user",
                item="item",
                time="time",
                time_unit="s",
                arrival="arrival",
                domain_rule="coalesce(TRY_CAST(items.category AS INTEGER) >= 5, false)",
                context={"act": "act"},
            ),
        ),
        "impressions": (
            Impressions(
                files=(f"impressions-*.{suffix}",),
                user="user",
                item="item",
                time="time",
                time_unit="s",
                label="label",
                context={"hour": "hour"},
                candidate={"kind": "items.category"},
            ),
        ),
        "items": (
            Items(
                files=(f"items-*.{suffix}",),
                key="item",
                title="title",
                fields={"category": "category"},
            ),
        ),
        "users": (Users(files=(f"users-*.{suffix}",), key="user", fields={"age": "age"}),),
        "split": SplitRule(validation_from=VALIDATION_FROM, test_from=TEST_FROM),
        "limits": Limits(max_rejected_share=1.0),
    }
    return Mapping.model_validate(settings | changes)


def write(folder: Path, logs: Logs, suffix: str = "csv", parts: int = 2, seed: int = 0) -> None:
    """Write logs into `parts` files a table, rows in an order that depends on the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    tables = {
        "events": ([_since_epoch(event, "time", "arrival") for event in logs.events], Event),
        "impressions": ([_since_epoch(shown, "time") for shown in logs.impressions], Shown),
        "items": (list(logs.items), Item),
        "users": (list(logs.users), User),
    }
    for name, (rows, kind) in tables.items():
        rng.shuffle(rows)
        for part in range(parts):
            path = folder / f"{name}-{part}.{suffix}"
            _write_rows(path, kind._fields, rows[part::parts])


def _since_epoch(row, *fields: str):
    times = {f: getattr(row, f) for f in fields}
    return row._replace(**{f: BASE + t for f, t in times.items() if t is not None})


def _write_rows(path: Path, names: tuple[str, ...], rows: list) -> None:
    if path.suffix == ".parquet":
        numbers = {"time", "arrival", "label", "category"}
        # Keys that are all numbers become integers, as logs usually have them.
        for k, name in enumerate(names):
            if name in ("user", "item") and all(_is_number(row[k]) for row in rows):
                numbers.add(name)
        columns = {
            name: _array([row[k] for row in rows], is_number=name in numbers)
            for k, name in enumerate(names)
        }
        pq.write_table(pa.table(columns), path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(["" if value is None else value for value in row] for row in rows)


def _is_number(text: str | None) -> bool:
    return text is None or (text.lstrip("-").isdecimal() and str(int(text)) == text)


def _array(values: list, *, is_number: bool) -> pa.Array:
    if not is_number:
        return pa.array(values, pa.string())
    return pa.array([None if value is None else int(value) for value in values], pa.int64())


def expected(logs: Logs, min_count: int = 1) -> dict[str, object]:
    """Return every array of the dataset, by path, computed with loops."""
    events = sorted({e for e in logs.events if None not in (e.user, e.item, e.time)}, key=str)
    shown = {s for s in logs.impressions if None not in (s.user, s.item, s.time, s.label)}
    user_of = _numbered([x.user for x in (*events, *shown, *logs.users)])
    item_of = _numbered([x.item for x in (*events, *shown, *logs.items)])
    category = {item.item: _text(item.category) for item in logs.items}
    age = {user.user: user.age for user in logs.users}
    act_of = _numbered([event.act for event in events])
    hour_of = _numbered([s.hour for s in shown])
    known = {e: max(e.time, e.arrival if e.arrival is not None else e.time) for e in events}
    kind_of = _numbered([category.get(s.item) for s in shown])
    train = [s for s in shown if s.time < 30]
    past = [e for e in dict.fromkeys(events) if known[e] < 30]
    # Events that differ in arrival alone, before their time, were known at the same moment.
    past = list({(e.user, e.item, e.time, known[e], e.act): e for e in past}.values())
    seen_items = Counter([x.item for x in (*past, *train)])
    categories = Counter()
    for item, count in seen_items.items():
        categories[category.get(item)] += count
    vocabulary = {
        "item/item": _vocabulary(seen_items, min_count),
        "item/category": _vocabulary(categories, min_count),
        "event/act": _vocabulary(Counter(e.act for e in past), min_count),
        "request/hour": _vocabulary(Counter(s.hour for s in train), min_count),
        "candidate/kind": _vocabulary(Counter(category.get(s.item) for s in train), min_count),
        "profile/age": _vocabulary(
            Counter(age.get(user) for user in {x.user for x in (*past, *train)}), min_count
        ),
    }
    index = {name: (lambda value, v=v: v.get(value, 1)) for name, v in vocabulary.items()}
    result: dict[str, object] = {
        f"vocabulary/{name}": list(v.items()) for name, v in vocabulary.items()
    }
    result["items"] = [[0, 0]] + [
        [index["item/item"](item), index["item/category"](category.get(item))] for item in item_of
    ]
    result["users"] = [[1]] + [[index["profile/age"](age.get(user))] for user in user_of]
    samples = sorted(
        shown,
        key=lambda s: (
            *(s.time, user_of[s.user], item_of[s.item], s.label),
            *(hour_of.get(s.hour, 0), kind_of.get(category.get(s.item), 0)),
        ),
    )
    ends = {}
    for domain in DOMAINS:
        rows = sorted(
            {
                (user_of[e.user], known[e], e.time, item_of[e.item], act_of.get(e.act, 0), e.act)
                for e in events
                if (int(category.get(e.item) or 0) >= 5) == (domain == "target")
            },
            key=lambda row: row[:5],
        )
        place = f"events/{domain}"
        result[f"{place}/item"] = [row[3] for row in rows]
        result[f"{place}/time"] = [(BASE + row[2]) * 1000 for row in rows]
        result[f"{place}/context"] = [[index["event/act"](row[5])] for row in rows]
        result[f"{place}/offsets"] = [
            sum(row[0] < user for row in rows) for user in range(len(user_of) + 2)
        ]
        ends[domain] = [
            sum(row[0] < user_of[s.user] for row in rows)
            + sum(row[0] == user_of[s.user] and row[1] < s.time for row in rows)
            for s in samples
        ]
    for split, (low, high) in zip(SPLITS, ((-(10**9), 30), (30, 40), (40, 10**9)), strict=True):
        chosen = [k for k, s in enumerate(samples) if low <= s.time < high]
        place = f"samples/{split}"
        part = [samples[k] for k in chosen]
        result[f"{place}/user"] = [user_of[s.user] for s in part]
        result[f"{place}/item"] = [item_of[s.item] for s in part]
        result[f"{place}/time"] = [(BASE + s.time) * 1000 for s in part]
        result[f"{place}/label"] = [s.label for s in part]
        result[f"{place}/context"] = [[index["request/hour"](s.hour)] for s in part]
        result[f"{place}/candidate"] = [
            [index["candidate/kind"](category.get(s.item))] for s in part
        ]
        for domain in DOMAINS:
            result[f"{place}/{domain}_end"] = [ends[domain][k] for k in chosen]
    return result


def found(dataset: Dataset) -> dict[str, object]:
    """Return the same arrays of a prepared dataset."""
    result: dict[str, object] = {
        "items": dataset.item_IF.tolist(),
        "users": dataset.user_UP.tolist(),
    }
    for path in sorted((dataset.folder / "vocabulary").rglob("*.parquet")):
        table = pq.read_table(path)
        pairs = zip(table["value"].to_pylist(), table["index"].to_pylist(), strict=True)
        name = path.relative_to(dataset.folder).with_suffix("").as_posix()
        result[name] = sorted(pairs, key=lambda pair: pair[1])
    for domain, store in dataset.events.items():
        result[f"events/{domain}/item"] = store.item_E.tolist()
        result[f"events/{domain}/time"] = store.time_E.tolist()
        result[f"events/{domain}/context"] = store.context_EG.tolist()
        result[f"events/{domain}/offsets"] = store.offsets_U.tolist()
    for split, s in dataset.samples.items():
        columns: dict[str, NDArray] = {
            "user": s.user_S,
            "item": s.item_S,
            "time": s.time_S,
            "label": s.label_S,
            "context": s.context_SR,
            "candidate": s.candidate_SA,
            "source_end": s.source_end_S,
            "target_end": s.target_end_S,
        }
        result |= {f"samples/{split}/{name}": np.asarray(c).tolist() for name, c in columns.items()}
    return result


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _order(text: str) -> tuple[int, bytes]:
    return len(text.encode()), text.encode()


def _numbered(texts: list[str | None]) -> dict[str, int]:
    values = sorted({text for text in texts if text is not None}, key=_order)
    return {text: number for number, text in enumerate(values, start=1)}


def _vocabulary(counts: Counter, min_count: int) -> dict[str, int]:
    kept = [text for text, n in counts.items() if text is not None and n >= min_count]
    kept.sort(key=lambda text: (-counts[text], _order(text)))
    return {text: index for index, text in enumerate(kept, start=2)}
