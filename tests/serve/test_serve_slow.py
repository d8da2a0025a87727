"""What takes minutes: 10,000 samples over HTTP, fuzz, overload, soak. `make test-slow`."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from array import array
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serve_world import BATCH, make_world, named_toy
from test_http import ITEMS, event, live

from lcn.bench.serve import ServeGrid, run
from lcn.evaluate.metrics import auc
from lcn.evaluate.predict import predict_logits
from lcn.serve.client import Client
from lcn.serve.store.bulk import load_dataset

FUZZ = """
[checks]
# A deadline of a millisecond may pass: 504 is what the page says then.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 504]

[[operations]]
# Which inputs belong together cannot be said in JSON Schema.
include-path-regex = "/infer$"
checks.positive_data_acceptance.enabled = false
"""

pytestmark = pytest.mark.slow


def test_ten_thousand_samples_over_http_have_offline_logits(tmp_path) -> None:
    """S-12: logits to 1e-5, AUC to 1e-6."""
    dataset = named_toy(tmp_path / "d", users=700, items=400, impressions=100)
    world = make_world(tmp_path, dataset=dataset)
    offline_S = predict_logits(world.model, dataset, "test", BATCH)
    samples = dataset.samples["test"]
    assert len(samples) >= 10_000
    online_S = np.empty(10_000)
    # The toy's clock runs in January 1970, where milliseconds look like seconds of today.
    with live(tmp_path, world.bundle, history=100_000, earliest_ms=0) as (running, client):
        load_dataset(running.parts.store, dataset)
        assert client.models()[0]["version"]

        def replay(first: int) -> None:
            with Client(client.url) as own:
                for row in range(first, 10_000, 2):
                    user = int(samples.user_S[row])
                    campaign = f"v{samples.candidate_SA[row, 0]}"
                    answer = own.rank(
                        f"u{user}",
                        [{"item": f"i{samples.item_S[row]}", "fields": {"campaign": campaign}}],
                        context={"hour": f"v{samples.context_SR[row, 0]}"},
                        time=int(samples.time_S[row]),
                    )
                    online_S[row] = answer.logits[0]

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(replay, (0, 1)))
    assert np.abs(online_S - offline_S[:10_000]).max() <= 1e-5
    label_S = np.asarray(samples.label_S[:10_000])
    assert abs(auc(online_S, label_S) - auc(offline_S[:10_000], label_S)) <= 1e-6


def test_ten_thousand_cases_of_the_interface_page(tmp_path, world) -> None:
    """R-38, R-35: every check of schemathesis, tokens included; LCN_FUZZ_CASES for each path."""
    path = tmp_path / "tokens.json"
    token = "one-token-for-all-scopes"
    path.write_text(json.dumps({scope: [token] for scope in ("rank", "ingest", "admin")}))
    cases = os.environ.get("LCN_FUZZ_CASES", "700")
    (tmp_path / "schemathesis.toml").write_text(FUZZ)
    with live(tmp_path, world.bundle, tokens=path) as (_, client):
        command = [
            sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run",
            f"{client.url}/openapi.json",
            "--header", f"Authorization: Bearer {token}", "--max-examples", cases,
            "--continue-on-failure", "--max-response-time", "5", "--seed", "1", "--no-color",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_twice_saturation_is_as_useful_as_saturation() -> None:
    """S-06: goodput, bounded memory; the loads take turns, so the machine is the same for both."""
    grid = ServeGrid(
        ("lap",), n=500, items=5_000, users=20, seconds=18.0, loads=(1.0, 2.0), turns=9
    )
    full, over = run(grid)
    assert full.failed == over.failed == 0
    ratio_T = np.array(over.goodput_of_turns_per_s) / np.array(full.goodput_of_turns_per_s)
    print(f"goodput at 2 beside 1, turn by turn: {np.round(ratio_T, 2)}")
    assert np.median(ratio_T) >= 0.9
    assert over.turned_away > 0
    assert over.server_rss_mib < full.server_rss_mib + 100


def own_mib() -> float:
    """Memory of this process alone: pages of the store's file, which grows with the events, are
    the system's and are given back when it wants them."""
    with open("/proc/self/status") as file:
        kib = next(line.split()[1] for line in file if line.startswith("RssAnon"))
    return int(kib) / 1024


def test_a_soak_leaves_memory_flat(tmp_path, world) -> None:
    """R-46: ingest, ranking, swaps and evictions; LCN_SOAK_S seconds, 15 minutes by default."""
    seconds = float(os.environ.get("LCN_SOAK_S", "900"))
    for seed in (1, 2):
        other = make_world(tmp_path / f"w{seed}", seed=seed, dataset=world.dataset)
        shutil.move(other.bundle, tmp_path / f"v{seed}")
    with live(tmp_path, tmp_path / "v1", cache_mib=1, audit_s=5.0) as (running, client):
        # What the test itself notes is numbers in a row: a list of a hundred thousand turns would
        # look like a leak.
        stop, failures, laps = time.monotonic() + seconds, [], (array("d"), array("d"))

        def work(seed: int) -> None:
            draw = np.random.default_rng(seed)
            # A machine may starve this process for seconds; only an answer that never comes fails.
            with Client(client.url, timeout=60) as own:
                number = 0
                while time.monotonic() < stop:
                    user = f"u{draw.integers(2000)}"
                    started = time.monotonic()
                    try:
                        own.add([event(seed * 10**7 + number, user)])
                        own.rank(user, ITEMS)
                    except Exception as error:
                        failures.append(error)
                    laps[seed].extend((started, time.monotonic() - started))
                    number += 1

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        memory, mismatches = [], 0
        while time.monotonic() < stop:
            time.sleep(seconds / 60)
            mismatches += running.parts.registry.get().cache.counts.mismatches
            client.load(f"v{2 - len(memory) % 2}")
            gc.collect()
            handles = len(os.listdir("/proc/self/fd"))
            if time.monotonic() < stop:  # later the clients have closed their connections
                memory.append((own_mib(), handles, threading.active_count()))
        for thread in threads:
            thread.join()
        turns = np.concatenate(laps).reshape(-1, 2)
        turns = turns[turns[:, 0].argsort()]
        slowest = [
            f"{spent:.2f} s at {at - stop + seconds:.0f}" for at, spent in turns if spent > 1
        ]
        print(f"{len(turns)} turns, slower than a second: {slowest}; memory MiB: {memory[::10]}")
        assert failures == []
        assert mismatches == 0
        settled = np.array(memory[len(memory) // 3 :])
        assert settled[-1, 0] - settled[0, 0] < 20
        assert np.ptp(settled[:, 1]) <= 4
        assert np.ptp(settled[:, 2]) <= 2
        times = turns[:, 1]
        quarter = len(times) // 4
        first, last = (np.quantile(part, 0.99) for part in (times[:quarter], times[-quarter:]))
        assert last <= 1.5 * first
