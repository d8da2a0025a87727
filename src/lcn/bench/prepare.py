"""Time and memory of preparation, stage by stage, on generated Parquet logs.

    lcn bench prepare --events 100_000_000 --impressions 5_000_000 [--json]

The logs are seeded and streamed to a temporary folder: many users of unequal activity, items by a
power law, seconds shared by many events, rows of all users mixed in time order. Preparation runs
in a process of its own, whose resident memory is sampled twenty times a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEED = 7
BLOCK = 2_000_000
BEGIN, DAYS = 1_700_000_000, 30
CHILD = """
import json, sys, time
from pathlib import Path
from lcn.data.mapping import read_mapping
from lcn.data.prepare import prepare
def tell(stage):
    spent = time.process_time()
    line = [stage.name, stage.started, stage.seconds, spent - told[-1], stage.rows]
    told.append(spent)
    print(json.dumps(line), flush=True)
told = [time.process_time()]
folder = Path(sys.argv[1])
prepare(read_mapping(folder / "mapping.yaml"), folder / "dataset", base=folder,
        threads=int(sys.argv[2]), memory_limit=sys.argv[3], listener=tell)
"""
MAPPING = """
name: benchmark
events:
  - {files: [events/*.parquet], user: user_id, item: item_id, time: time, time_unit: s,
     domain_rule: "items.category < 20", context: {behaviour: behaviour, hour: hour}}
impressions:
  - {files: [impressions/*.parquet], user: user_id, item: item_id, time: time, time_unit: s,
     label: click, dwell: dwell, context: {hour: hour}, candidate: {price: items.price}}
items:
  - {files: [items.parquet], key: item_id, fields: {category: category, brand: brand}}
users:
  - {files: [users.parquet], key: user_id, fields: {age: age, city: city}}
"""


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    stage: str
    seconds: float
    cpu_seconds: float
    """Of all threads: on a shared machine it says more than the seconds by the clock."""
    rows: int
    rows_per_second: float
    peak_mib: float


@dataclass(frozen=True)
class Size:
    """How large the logs are."""

    events: int
    impressions: int

    @property
    def users(self) -> int:
        """200 events a user on average."""
        return max(1000, self.events // 200)

    @property
    def items(self) -> int:
        """A tenth of a million at least, a million at most."""
        return min(1_000_000, max(10_000, self.events // 100))


def write_logs(folder: Path, size: Size) -> None:
    """Write events, impressions, items, users and a mapping for them."""
    rng = np.random.default_rng(SEED)
    _write_log(folder / "events", size.events, size, rng, is_impression=False)
    _write_log(folder / "impressions", size.impressions, size, rng, is_impression=True)
    item = np.arange(size.items) * 31 + 5
    columns = {
        "item_id": item,
        "category": rng.integers(0, 100, size.items),
        "brand": (5000 * rng.random(size.items) ** 2).astype(np.int64),
        "price": rng.integers(0, 20, size.items),
    }
    pq.write_table(pa.table(columns), folder / "items.parquet")
    columns = {
        "user_id": _user_key(np.arange(size.users)),
        "age": rng.integers(0, 8, size.users),
        "city": rng.integers(0, 300, size.users),
    }
    pq.write_table(pa.table(columns), folder / "users.parquet")
    (folder / "mapping.yaml").write_text(MAPPING, encoding="utf-8")


def _user_key(user: np.ndarray) -> np.ndarray:
    return user * 7919 + 10**12


def _write_log(
    folder: Path, rows: int, size: Size, rng: np.random.Generator, *, is_impression: bool
) -> None:
    folder.mkdir()
    span = DAYS * 86_400
    for number, first in enumerate(range(0, rows, BLOCK)):
        count = min(BLOCK, rows - first)
        begin, end = (BEGIN + span * edge // rows for edge in (first, first + count))
        when = np.sort(rng.integers(begin, end + 1, count))
        columns = {
            "user_id": _user_key((size.users * rng.random(count) ** 1.5).astype(np.int64)),
            "item_id": (size.items * rng.random(count) ** 3).astype(np.int64) * 31 + 5,
            "time": when,
            "hour": (when // 3600 % 24).astype(np.int8),
        }
        if is_impression:
            columns["click"] = (rng.random(count) < 0.1).astype(np.int8)
            columns["dwell"] = rng.exponential(20, count).astype(np.float32)
        else:
            columns["behaviour"] = rng.integers(0, 4, count).astype(np.int8)
        path = folder / f"part-{number:04}.parquet"
        pq.write_table(pa.table(columns), path, compression="zstd")


def measure(folder: Path, threads: int, memory: str) -> list[Row]:
    """Run preparation in a process and return a row per stage and one for the whole."""
    command = [sys.executable, "-c", CHILD, str(folder), str(threads), memory]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        samples: list[tuple[float, float]] = []
        sampler = threading.Thread(target=_sample, args=(child, samples))
        sampler.start()
        assert child.stdout is not None
        stages = [json.loads(line) for line in child.stdout]
    sampler.join()
    if child.returncode:
        raise SystemExit(f"preparation failed with exit code {child.returncode}")
    spent = sum(stage[3] for stage in stages)
    whole = ["whole process", started, time.monotonic() - started, spent, _log_rows(stages)]
    return [
        _row(name, begun, seconds, cpu, count, samples)
        for name, begun, seconds, cpu, count in (*stages, whole)
    ]


def _sample(child: subprocess.Popen[str], samples: list[tuple[float, float]]) -> None:
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            if line.startswith("VmRSS:"):
                samples.append((time.monotonic(), int(line.split()[1]) / 1024))
        time.sleep(0.05)


def _log_rows(stages: list[list]) -> int:
    return sum(rows for name, *_, rows in stages if name in ("read events", "read impressions"))


def _row(
    name: str,
    started: float,
    seconds: float,
    cpu: float,
    rows: int,
    samples: list[tuple[float, float]],
) -> Row:
    during = [mib for when, mib in samples if started - 0.05 <= when <= started + seconds + 0.05]
    return Row(name, seconds, cpu, rows, rows / max(seconds, 1e-9), max(during, default=0.0))


@dataclass(frozen=True)
class Result:
    """What a benchmark of preparation found."""

    stages: tuple[Row, ...]
    """The last one is the whole process."""
    dataset_mib: float
    load_before: float
    """Of the machine (1 min)."""
    load_after: float


def run(size: Size, *, threads: int, memory: str, folder: Path | None = None) -> Result:
    """Generate logs in a temporary folder, prepare them, measure.

    Args:
        size: of the logs.
        threads: of preparation.
        memory: limit of its SQL engine.
        folder: where the temporary folder is made.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="lcn-prepare-") as name:
        place = Path(name)
        write_logs(place, size)
        load_before = os.getloadavg()[0]
        rows = measure(place, threads, memory)
        files = [path for path in (place / "dataset").rglob("*") if path.is_file()]
        mib = sum(path.stat().st_size for path in files) / 2**20
        return Result(tuple(rows), mib, load_before, os.getloadavg()[0])
