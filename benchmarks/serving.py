"""The parts of a server by themselves: store, states, update. CPU time, so a busy machine is fair.

    python benchmarks/serving.py [--n 2000,100000] [--events 20000] [--only ingest,padded]

The whole server under load is `lcn bench serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from lcn import ops
from lcn.bench.open_loop import closed_loop, post
from lcn.bench.score import Served
from lcn.bench.serve import ServeGrid, cpu_s, prepare, serving
from lcn.bench.workload import Workload
from lcn.serve.bundle import load_bundle
from lcn.serve.scorer import Request, Scorer
from lcn.serve.state_cache import StateCache
from lcn.serve.store.base import Limits
from lcn.serve.store.lmdb_store import LmdbStore
from lcn.serve.store.records import Event, pack

NOW = 1_800_000_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    what: str
    n: int
    value: float
    unit: str


def ingest(events: int) -> list[Row]:
    """Events a second into the embedded store, packing included, batches of 100."""
    rows = []
    for level in ("always", "everysec"):
        with tempfile.TemporaryDirectory() as folder:
            store = LmdbStore(Path(folder), ("kind",), Limits(), level)  # type: ignore[arg-type]
            made = [
                Event(f"u{n % 500}", f"e{n}", f"i{n % 9000}", NOW + n, context={"kind": "a"})
                for n in range(events)
            ]
            started, cpu = time.perf_counter(), time.process_time()
            for at in range(0, events, 100):
                store.append([pack(each, store.fields) for each in made[at : at + 100]], NOW)
            wall, spent = time.perf_counter() - started, time.process_time() - cpu
            store.close()
        rows.append(Row(f"store events/s, {level}, wall", 0, events / wall, "1/s"))
        rows.append(Row(f"store events/s, {level}, CPU", 0, events / spent, "1/s"))
    return rows


def ingest_http(seconds: float) -> list[Row]:
    """Events a second over HTTP, 100 in a request, four connections, level everysec."""
    grid = ServeGrid(("lap",), n=100, items=1000, users=4)

    def body(number: int) -> bytes:
        events = [
            {
                "event_id": f"{number}-{k}",
                "user": f"u{(number * 100 + k) % 1000}",
                "item": str(k),
                "time": 1_700_000_000_000 + number,
                "context": {"behaviour": "v2"},
            }
            for k in range(100)
        ]
        return post("/v1/events", json.dumps({"events": events}).encode())

    made = [body(number) for number in range(4000)]
    with tempfile.TemporaryDirectory() as folder:
        bundles = prepare(grid, Path(folder))
        with serving(bundles, Path(folder) / "data", grid) as (process, port):
            before = cpu_s(process.pid)
            rate = asyncio.run(
                closed_loop("127.0.0.1", port, lambda at: made[at % len(made)], 4, seconds)
            )
            spent = cpu_s(process.pid) - before
    return [
        Row("HTTP events/s, everysec, wall", 0, 100 * rate, "1/s"),
        Row("HTTP events/s, everysec, CPU", 0, 100 * rate * seconds / spent, "1/s"),
    ]


def states(n: int, candidates: int) -> list[Row]:
    """Rebuild, update and score of one user with N events."""
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        grid = ServeGrid(n=n, users=8)
        limits = Limits(max(2 * n, 2000))
        for bundle_folder in prepare(grid, folder):
            bundle = load_bundle(bundle_folder)
            store = LmdbStore(folder / "data" / "store", ("behaviour",), limits, "everysec")
            scorer = Scorer(bundle, store.fields, limits)
            cache = StateCache(scorer, store, 8 << 30)
            name = bundle.manifest.name
            draw = np.random.default_rng(0)

            def ask(
                scorer: Scorer = scorer,
                cache: StateCache = cache,
                draw: np.random.Generator = draw,
            ) -> None:
                request = Request(
                    draw.integers(1, grid.items, candidates).astype(np.int32),
                    np.ones((candidates, 0), np.int32),
                    np.ones(1, np.int32),
                    np.ones(1, np.int32),
                    NOW,
                )
                scorer.score(cache.get("1", NOW).view, request)

            def rebuild(scorer: Scorer = scorer, store: LmdbStore = store) -> None:
                scorer.view(scorer.build(store.read("2", NOW)), NOW)

            rows.append(_timed(f"{name}: rebuild from the store", n, rebuild, 10))
            ask()
            rows.append(_timed(f"{name}: score, C = {candidates}, warm", n, ask, 60))
            if name == "lap":
                rows += _updates(n, store, cache)
            store.close()
    return rows


def beside_padded(n: int, candidates: int, times: int) -> list[Row]:
    """A warm request beside the same one in a framework without states, in turns.

    There every candidate brings a history of its own, looked up, encoded and searched in one padded
    batch, for every request; the model and its weights are the same. It also stands beside one that
    at least keeps the encoded history.
    """
    rows = []
    for backbone in ("lap", "sim_soft"):
        served = Served(Workload(backbone, n, 100_000, group=1), candidates)
        spent: dict[str, list[float]] = {"warm": [], "state": [], "padded": []}

        def clocked(name: str, work: Callable[[], object], spent=spent) -> None:
            started = time.process_time()
            work()
            spent[name].append(1000 * (time.process_time() - started))

        with torch.inference_mode():
            state, stateless = served.encode(), served.stateless()
            with ops.force("reference"):
                padded_state = served.encode()
            for _ in range(times + 1):
                field_CF = served.items()
                clocked("warm", lambda: served.score(*state, field_CF))  # noqa: B023
                with ops.force("reference"):
                    clocked("state", lambda: served.score(*padded_state, field_CF))  # noqa: B023
                    clocked("padded", stateless)
        warm, kept, padded = (float(np.median(spent[name][1:])) for name in spent)
        what = f"{backbone}: C = {candidates}, "
        rows += [
            Row(what + "warm request", n, warm, "ms CPU"),
            Row(what + "padded, history encoded beforehand", n, kept, "ms CPU"),
            Row(what + "padded, history encoded for each candidate", n, padded, "ms CPU"),
            Row(what + "warm request, times faster than that", n, padded / warm, ""),
        ]
    return rows


def _updates(n: int, store: LmdbStore, cache: StateCache) -> list[Row]:
    spent, alone = [], []
    for turn in range(5):
        cache.drop("1")
        cache.get("1", NOW)
        for k in range(30 if n < 300 else 200):
            event = Event(
                "1", f"x{turn}-{k}", f"{k}", NOW + 1000 * turn + k, context={"behaviour": "v2"}
            )
            (change,) = store.append([pack(event, store.fields)], NOW).changes
            switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
            started = time.perf_counter()
            cache.apply(change)
            spent.append(time.perf_counter() - started)
            alone.append(resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw == switches)
    assert cache.counts.dropped == 0
    # An update that another program interrupted tells of the machine, not of the update.
    spent_E, alone_E = 1e6 * np.array(spent), np.array(alone)
    what = "lap: update of a state with one event"
    return [
        Row(f"{what}, p50", n, float(np.quantile(spent_E, 0.5)), "us"),
        Row(f"{what}, p99", n, float(np.quantile(spent_E, 0.99)), "us"),
        Row(f"{what}, p99, not interrupted", n, float(np.quantile(spent_E[alone_E], 0.99)), "us"),
        Row(f"{what}, interrupted", n, float(1 - alone_E.mean()), "share"),
    ]


def _timed(what: str, n: int, work: Callable[[], None], times: int) -> Row:
    work()
    started = time.process_time()
    for _ in range(times):
        work()
    return Row(what, n, 1000 * (time.process_time() - started) / times, "ms CPU")


def main() -> None:
    """Measure and print one record a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", default="2000")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--only", default="ingest,http,states,padded", help="Parts to run.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts, lengths = arguments.only.split(","), [int(n) for n in arguments.n.split(",")]
    works: list[Callable[[], list[Row]]] = []
    if "ingest" in parts:
        works.append(lambda: ingest(arguments.events))
    if "http" in parts:
        works.append(lambda: ingest_http(5.0))
    if "states" in parts:
        works += [lambda n=n: states(n, arguments.candidates) for n in lengths]
    if "padded" in parts:
        short = min([*lengths, 2000])  # 500 copies of a longer history do not fit everywhere
        works += [lambda c=c: beside_padded(short, c, 5) for c in (100, 500)]
    for work in works:
        for row in work():
            print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    main()
