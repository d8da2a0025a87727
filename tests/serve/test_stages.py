"""S-19: where a request's time went: every moment is counted once, in the stage it belongs to."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from serve_world import World
from test_http import ITEMS, event, live

from lcn.serve import app, limits
from lcn.serve.parts import _FastRequest
from lcn.serve.ranker import Ranker
from lcn.serve.scorer import Scorer

TAKES_S = {"parse": 0.001, "queue": 0.002, "state": 0.004, "score": 0.008, "answer": 0.016}
RANK = "/v1/rank"


class Clock:
    """Time passes only where a test lets it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def before(self, stage: str, call):
        """The same call after as much time as a stage takes."""

        def late(*args, **more):
            self.now_s += TAKES_S[stage]
            return call(*args, **more)

        return late


def test_stages_add_up_to_the_request(tmp_path, world: World, monkeypatch) -> None:
    clock = Clock()
    for module in (app, limits):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(Ranker.rank, "__defaults__", (clock,))
    for stage, where, name in (
        ("parse", _FastRequest, "json"),
        ("queue", Ranker, "_work"),
        ("state", Ranker, "_view"),
        ("score", Scorer, "score"),
        ("answer", app, "_rank_answer"),
    ):
        monkeypatch.setattr(where, name, clock.before(stage, getattr(where, name)))
    with live(tmp_path, world.bundle) as (running, client):
        client.add([event(n, f"u{user}") for user in range(3) for n in range(9)])
        read = running.parts.metrics.registry.get_sample_value

        def done() -> float:
            return read("lcn_request_seconds_count", {"endpoint": RANK}) or 0

        for number in range(9):
            client.rank(f"u{number % 3}", ITEMS)
            while done() <= number:  # it is counted after it is answered
                time.sleep(0.001)
        for stage, takes_s in TAKES_S.items():
            spent = read("lcn_stage_seconds_sum", {"stage": stage})
            assert spent == pytest.approx(9 * takes_s), stage
        whole = read("lcn_request_seconds_sum", {"endpoint": RANK})
        assert whole == pytest.approx(9 * sum(TAKES_S.values()))
        assert read("lcn_stage_seconds_count", {"stage": "rebuild"}) == 3
