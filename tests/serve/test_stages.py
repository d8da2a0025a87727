"""S-19: where a request's time went, as its client saw it."""

from __future__ import annotations

import time

from serve_world import World
from test_http import ITEMS, event, live

STAGES = ("parse", "queue", "state", "score", "answer")
RANK = "/v1/rank"


def test_stages_add_up_to_what_clients_wait_for(tmp_path, world: World, monkeypatch) -> None:
    with live(tmp_path, world.bundle) as (running, client):
        client.add([event(n, f"u{user}") for user in range(3) for n in range(9)])
        scorer = running.parts.registry.get().scorer
        score = scorer.score

        def slow(self, view, request, **more):
            time.sleep(0.1)  # so that what surrounds a request is small beside it
            return score(view, request, **more)

        monkeypatch.setattr(type(scorer), "score", slow)
        read = running.parts.metrics.registry.get_sample_value

        def total(name: str, **labels: str) -> float:
            found = read(f"{name}_sum", labels)
            assert found is not None
            return found

        def added_up() -> bool:
            """Whether nine more requests leave less than a twentieth between stages, or outside."""
            before = spent() if read("lcn_request_seconds_sum", {"endpoint": RANK}) else (0.0, 0.0)
            started = time.monotonic()
            for number in range(9):
                client.rank(f"u{number % 3}", ITEMS)
            waited = time.monotonic() - started
            stages, whole = (now - then for now, then in zip(spent(), before, strict=True))
            assert stages <= whole <= waited
            return 0.95 * whole <= stages and 0.95 * waited <= whole

        def spent() -> tuple[float, float]:
            return sum(total("lcn_stage_seconds", stage=stage) for stage in STAGES), total(
                "lcn_request_seconds", endpoint=RANK
            )

        first = added_up()
        assert all(total("lcn_stage_seconds", stage=stage) > 0 for stage in STAGES)
        rebuilt, state = (total("lcn_stage_seconds", stage=name) for name in ("rebuild", "state"))
        assert rebuilt <= state
        assert read("lcn_stage_seconds_count", {"stage": "rebuild"}) == 3
        # A busy machine may take its time between two stages, but not every time.
        assert first or any(added_up() for _ in range(5))
