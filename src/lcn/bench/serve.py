"""A whole server under open-loop load: histories in the store, candidates over HTTP.

The server runs in a process of its own with one model per backbone (untrained: only sizes
matter); requests for the models alternate, and several loads take turns, so what disturbs the
machine disturbs all alike.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from lcn.bench.open_loop import Planned, Shot, closed_loop, fire, poisson, post
from lcn.bench.workload import Workload, build_dataset, build_model
from lcn.data.loader import Collator
from lcn.errors import ServeError
from lcn.schema import FIRST_VALUE
from lcn.serve.bundle import BundleParts, write_bundle
from lcn.serve.client import Client
from lcn.serve.names import NameTables
from lcn.serve.store import open_store
from lcn.serve.store.base import Limits
from lcn.serve.store.bulk import load_dataset

BLOCKS = 20
"""Parts of a run whose differences are averaged, for an interval."""


@dataclass(frozen=True, slots=True)
class ServeGrid:
    """What to serve and how hard to push."""

    backbones: Sequence[str] = ("lap", "sim_soft")
    n: int = 2000
    candidates: int = 100
    items: int = 100_000
    users: int = 40
    seconds: float = 20.0
    """Of each load."""
    loads: Sequence[float] = (0.5,)
    """Shares of the measured saturation; 2 is twice what the server can do."""
    turns: int = 6
    """Parts that each load's time is cut into, when there are several."""
    workers: int = 0
    deadline_ms: float = 100.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the accepted requests of one model, milliseconds from the planned departure."""

    model: str
    requests: int
    accepted: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class ServeRecord:
    """One load."""

    n: int
    candidates: int
    items: int
    load: float
    saturation_per_s: float
    """Answers a second, both models in turns, when clients wait for answers."""
    planned_per_s: float
    goodput_per_s: float
    """Requests answered with scores in time."""
    goodput_of_turns_per_s: tuple[float, ...]
    """The same for each turn, to compare with the same turn of another load."""
    turned_away: int
    """429 or 503."""
    turned_away_p99_ms: float
    late: int
    """504."""
    failed: int
    """Any other status."""
    models: tuple[Latency, ...]
    lap_minus_sim_p50_ms: float | None
    lap_minus_sim_p50_ms_interval: tuple[float, float] | None
    """95 %, from the differences of 20 parts of the run."""
    lap_minus_sim_p99_ms: float | None
    server_cpu_ms: float
    """Processor time of the server for each request it answered, whatever else the machine did."""
    server_rss_mib: float
    machine_load: float
    """Processes that wanted to run (1 minute) when the load began."""


def run(grid: ServeGrid, tell: Callable[[str], None] = lambda text: None) -> Iterator[ServeRecord]:
    """Start a server, find its saturation, push it as hard as asked."""
    with tempfile.TemporaryDirectory(prefix="lcn-bench-") as folder:
        tell(f"writing {len(grid.backbones)} bundles and {grid.users} histories of {grid.n:,}")
        bundles = prepare(grid, Path(folder))
        with serving(bundles, Path(folder) / "data", grid) as (process, port):
            warm(grid, port)
            asked, patient = requests_of(grid), requests_of(grid, deadline_ms=30_000)
            tell("finding saturation")
            # Two clients a worker keep it busy; more would be turned away and try again at once,
            # which measures refusals.
            clients = 2 * (grid.workers or os.cpu_count() or 1)
            saturation = asyncio.run(
                closed_loop(
                    "127.0.0.1", port, lambda at: patient[at % len(patient)][1], clients, 4.0
                )
            )
            if not saturation:
                raise ServeError("the server answered nothing in four seconds")
            turns = grid.turns if len(grid.loads) > 1 else 1
            of_load: dict[float, list[_Turn]] = {load: [] for load in grid.loads}
            wanted = os.getloadavg()[0]
            for number in range(turns):
                for load in grid.loads:
                    rate, seconds = load * saturation, grid.seconds / turns
                    tell(f"load {load:g}: {rate:.0f} requests/s for {seconds:g} s")
                    plan = _plan(asked, rate, seconds, grid.seed + number)
                    before = cpu_s(process.pid)
                    shots = _push(port, plan, 3 * len(grid.backbones))
                    of_load[load].append(_Turn(shots, seconds, cpu_s(process.pid) - before))
            for load, parts in of_load.items():
                record = _record(grid, load, saturation, parts)
                yield replace(record, server_rss_mib=_rss_mib(process.pid), machine_load=wanted)


def prepare(grid: ServeGrid, folder: Path) -> list[Path]:
    """Write bundles and fill the store that the server will open."""
    torch.manual_seed(grid.seed)
    bundles = []
    for backbone in grid.backbones:
        work = Workload(backbone, grid.n, grid.items, group=1, batch=grid.users)
        dataset = build_dataset(work, 1, grid.seed)
        parts = BundleParts(
            name=backbone,
            model=build_model(work, sparse=True),
            batch=work.batches,
            manifest=dataset.manifest,
            item_IF=dataset.item_IF,
            user_UP=dataset.user_UP,
            names=_names(grid.items, grid.users),
            canary=Collator(dataset, "train", work.batches)(np.arange(min(grid.users, 4))),
            trained={},
        )
        write_bundle(folder / backbone, parts)
        bundles.append(folder / backbone)
        if len(bundles) == 1:
            limits = Limits(max(2 * grid.n, 2000))
            store = open_store(folder / "data" / "store", ("behaviour",), limits, "everysec")
            load_dataset(store, dataset, names=parts.names)
            store.close()
    return bundles


@contextmanager
def serving(
    bundles: Sequence[Path], data: Path, grid: ServeGrid
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server process and its port."""
    settings = [f"workers={grid.workers}", f"deadline_ms={grid.deadline_ms}", "audit_s=0"]
    command = [
        sys.executable, "-m", "lcn", "serve", *map(str, bundles), "--port", "0",
        "--data-dir", str(data), "--durability", "everysec",
        *(part for setting in settings for part in ("--set", setting)),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "serving on" in line:
                break
        else:
            raise ServeError("the server did not start: " + "".join(said[-3:]))
        try:
            yield process, int(line.rstrip().rpartition(":")[2])
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()  # its store is thrown away anyway


def warm(grid: ServeGrid, port: int) -> None:
    """Every user's state of every model, and the code paths."""
    with Client(f"http://127.0.0.1:{port}", timeout=60) as client:
        for _ in range(3):
            for backbone in grid.backbones:
                for user in range(grid.users):
                    client.rank(str(user), ["0"], model=backbone, deadline_ms=60_000)


def requests_of(
    grid: ServeGrid, count: int = 400, deadline_ms: float | None = None
) -> list[tuple[int, bytes]]:
    """Requests to repeat: (kind, data), kinds in turns."""
    rng = np.random.default_rng(grid.seed + 1)
    asked = []
    for number in range(count):
        kind = number % len(grid.backbones)
        items = rng.integers(0, grid.items, grid.candidates)
        body = {
            "user": str(rng.integers(grid.users)),
            "candidates": [str(item) for item in items],
            "context": {"hour": "v3"},
            "model": grid.backbones[kind],
            "deadline_ms": deadline_ms,
        }
        asked.append((kind, post("/v1/rank", json.dumps(body).encode())))
    return asked


def difference(shots: Sequence[Shot], one: int, other: int, share: float) -> float:
    """Milliseconds between two kinds' quantiles of latency."""
    mine, theirs = (_latency(shots, kind) for kind in (one, other))
    return 1000 * float(np.quantile(mine, share) - np.quantile(theirs, share))


@dataclass(frozen=True, slots=True)
class _Turn:
    """A part of a load's time."""

    shots: list[Shot]
    seconds: float
    cpu_s: float

    @property
    def good(self) -> int:
        return sum(shot.status == 200 for shot in self.shots)

    @property
    def span_s(self) -> float:
        """Until the last answer."""
        return max((shot.planned_s + shot.latency_s for shot in self.shots), default=self.seconds)


def _plan(asked: list[tuple[int, bytes]], rate: float, seconds: float, seed: int) -> list[Planned]:
    at_S = poisson(rate, seconds, seed)
    return [Planned(float(at), *asked[number % len(asked)]) for number, at in enumerate(at_S)]


def _push(port: int, plan: list[Planned], first: int) -> list[Shot]:
    # A few first, which nobody counts.
    asyncio.run(fire("127.0.0.1", port, plan[:first]))
    return asyncio.run(fire("127.0.0.1", port, plan, connections=256))


def _record(grid: ServeGrid, load: float, saturation: float, turns: Sequence[_Turn]) -> ServeRecord:
    shots = [
        replace(shot, planned_s=shot.planned_s + number * turn.seconds)
        for number, turn in enumerate(turns)
        for shot in turn.shots
    ]
    good = sum(turn.good for turn in turns)
    away = [shot for shot in shots if shot.status in (429, 503)]
    late = sum(shot.status == 504 for shot in shots)
    kinds = {name: kind for kind, name in enumerate(grid.backbones)}
    p50 = p99 = interval = None
    if {"lap", "sim_soft"} <= kinds.keys():
        lap, sim = kinds["lap"], kinds["sim_soft"]
        p50, p99 = (difference(shots, lap, sim, share) for share in (0.5, 0.99))
        interval = _interval(shots, lap, sim)
    return ServeRecord(
        n=grid.n,
        candidates=grid.candidates,
        items=grid.items,
        load=load,
        saturation_per_s=saturation,
        planned_per_s=len(shots) / sum(turn.seconds for turn in turns),
        goodput_per_s=good / sum(turn.span_s for turn in turns),
        goodput_of_turns_per_s=tuple(turn.good / turn.span_s for turn in turns),
        turned_away=len(away),
        turned_away_p99_ms=_quantile_ms([shot.latency_s for shot in away], 0.99),
        late=late,
        failed=len(shots) - good - len(away) - late,
        models=tuple(_summary(grid, shots, kind) for kind in range(len(grid.backbones))),
        lap_minus_sim_p50_ms=p50,
        lap_minus_sim_p50_ms_interval=interval,
        lap_minus_sim_p99_ms=p99,
        server_cpu_ms=1000 * sum(turn.cpu_s for turn in turns) / max(good, 1),
        server_rss_mib=math.nan,
        machine_load=math.nan,
    )


def _interval(shots: Sequence[Shot], one: int, other: int) -> tuple[float, float] | None:
    """Of the mean over parts of the run of the difference of medians."""
    end = max(shot.planned_s for shot in shots) + 1e-9
    parts: list[list[Shot]] = [[] for _ in range(BLOCKS)]
    for shot in shots:
        parts[int(BLOCKS * shot.planned_s / end)].append(shot)
    found = [
        difference(part, one, other, 0.5)
        for part in parts
        if min(len(_latency(part, one)), len(_latency(part, other))) > 0
    ]
    if len(found) < 2:
        return None
    mean, spread = float(np.mean(found)), float(np.std(found, ddof=1)) / math.sqrt(len(found))
    return mean - 2.09 * spread, mean + 2.09 * spread  # Student's t, 19 degrees of freedom


def _latency(shots: Sequence[Shot], kind: int) -> NDArray[np.float64]:
    return np.array([s.latency_s for s in shots if s.kind == kind and s.status == 200])


def _summary(grid: ServeGrid, shots: Sequence[Shot], kind: int) -> Latency:
    latency_S = _latency(shots, kind)
    p50, p90, p99, p999, most = (
        _quantile_ms(latency_S, share) for share in (0.5, 0.9, 0.99, 0.999, 1.0)
    )
    asked = sum(shot.kind == kind for shot in shots)
    return Latency(grid.backbones[kind], asked, len(latency_S), p50, p90, p99, p999, most)


def _quantile_ms(latency: Sequence[float] | NDArray[np.float64], share: float) -> float:
    return 1000 * float(np.quantile(latency, share)) if len(latency) else float("nan")


def _names(items: int, users: int) -> NameTables:
    def values(size: int) -> pa.Table:
        index = range(FIRST_VALUE, size)
        return pa.table({"value": [f"v{n}" for n in index], "index": pa.array(index, pa.int32())})

    keys = [str(item) for item in range(items)]
    # Address 0 is an item like the others here; its key must be found, so none is left out.
    table = pa.table({"address": pa.array(range(items), pa.int32()), "key": keys, "title": keys})
    people = {"address": pa.array(range(users), pa.int32()), "key": [str(u) for u in range(users)]}
    return NameTables(
        table,
        pa.table(people),
        {("event", "behaviour"): values(6), ("request", "hour"): values(26)},
    )


def _rss_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
