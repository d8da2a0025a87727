"""S-19: where a request's time went, as its client saw it."""

from __future__ import annotations

import time

from serve_world import World
from test_http import ITEMS, event, live


def test_stages_add_up_to_what_clients_wait_for(tmp_path, world: World, monkeypatch) -> None:
    with live(tmp_path, world.bundle) as (running, client):
        client.add([event(n, f"u{user}") for user in range(3) for n in range(9)])
        scorer = running.parts.registry.get().scorer
        score = scorer.score

        def slow(self, view, request, **more):
            time.sleep(0.1)  # so that what surrounds a request is small beside it
            return score(view, request, **more)

        monkeypatch.setattr(type(scorer), "score", slow)
        started = time.monotonic()
        for number in range(9):
            client.rank(f"u{number % 3}", ITEMS)
        waited = time.monotonic() - started
        read = running.parts.metrics.registry.get_sample_value

        def total(name: str, **labels: str) -> float:
            found = read(f"{name}_sum", labels)
            assert found is not None
            return found

        stages = [
            total("lcn_stage_seconds", stage=stage)
            for stage in ("parse", "queue", "state", "score", "answer")
        ]
        whole = total("lcn_request_seconds", endpoint="/v1/rank")
        assert all(each > 0 for each in stages)
        assert total("lcn_stage_seconds", stage="rebuild") <= stages[2]
        assert read("lcn_stage_seconds_count", {"stage": "rebuild"}) == 3
        # Between stages a busy machine may take its time.
        assert 0.5 * whole <= sum(stages) <= whole
        assert 0.5 * waited <= whole <= waited
