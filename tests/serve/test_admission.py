"""Admission: S-06's rules on a simulated server, then on a real one."""

from __future__ import annotations

import heapq
import random
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from test_http import ITEMS, event, live, now

from lcn.serve.admission import LATE_SHARE, WAIT_SHARE, Admission, Overloaded, Ticket
from lcn.serve.client import Refused
from lcn.serve.limits import RequestLimits


@dataclass
class Outcome:
    """Of a simulated run."""

    useful: int = 0
    late: int = 0
    refused: int = 0
    longest_wait_s: float = 0.0


def simulate(load: float, *, seconds: float = 200.0, slow: float = 1.0, spread: float = 0.3,
             deadline: float = 0.1, seed: int = 0) -> Outcome:  # fmt: skip
    """Two workers of 10 ms a request, Poisson arrivals; from the middle on, `slow` times slower."""
    draw = random.Random(seed)
    admission, outcome = Admission(2, 64), Outcome()
    free = [0.0, 0.0]
    leaving: list[tuple[float, int, Ticket, float]] = []
    now, number = 0.0, 0
    while now < seconds:
        now += draw.expovariate(load * 200.0)
        while leaving and leaving[0][0] <= now:
            done, _, ticket, service = heapq.heappop(leaving)
            admission.leave(ticket, done, service)
        try:
            ticket = admission.enter(now, deadline)
        except Overloaded as refusal:
            assert refusal.retry_after >= 1
            outcome.refused += 1
            continue
        factor = slow if now > seconds / 2 else 1.0
        service = 0.01 * factor * draw.uniform(1 - spread, 1 + spread)
        if draw.random() < 0.02:
            service += 0.02  # another program took the processor
        begins = max(heapq.heappop(free), now)
        heapq.heappush(free, begins + service)
        heapq.heappush(leaving, (begins + service, number, ticket, service))
        number += 1
        outcome.longest_wait_s = max(outcome.longest_wait_s, begins - now)
        if begins + service - now <= deadline:
            outcome.useful += 1
        else:
            outcome.late += 1
    return outcome


@pytest.mark.parametrize("load", [1.5, 2.0, 5.0])
def test_beyond_saturation_as_much_is_done(load: float) -> None:
    """S-06: goodput, and how long those wait who are let in."""
    full, over = simulate(1.0), simulate(load)
    assert over.useful >= full.useful
    assert over.late <= LATE_SHARE * over.useful
    assert over.longest_wait_s < 2 * WAIT_SHARE * 0.1
    assert over.refused > 0


def test_below_saturation_nobody_is_turned_away() -> None:
    outcome = simulate(0.5)
    assert outcome.refused <= 0.002 * outcome.useful
    assert outcome.late == 0


def test_a_machine_that_becomes_slow_is_noticed() -> None:
    """Half of the run at a third of the speed, at twice the load."""
    outcome = simulate(2.0, slow=3.0)
    assert outcome.late <= 0.02 * outcome.useful
    assert outcome.useful >= 0.9 * 200 * (100 + 100 / 3)


def test_a_wrong_idea_of_the_time_is_corrected() -> None:
    """One very slow request does not close the door."""
    admission = Admission(1, 8)
    admission.leave(admission.enter(0.0, 0.1), 5.0, 5.0)
    assert admission.service_s == 5.0
    now = 10.0
    for _ in range(200):
        ticket = admission.enter(now, 0.1)
        admission.leave(ticket, now + 0.001, 0.001)
        now += 0.01
    assert admission.service_s < 0.002
    admission.enter(now, 0.1)
    admission.enter(now, 0.1)


def test_the_queue_is_bounded() -> None:
    admission = Admission(1, 3)
    for _ in range(3):
        admission.enter(0.0, 60.0)
    with pytest.raises(Overloaded, match="queue"):
        admission.enter(0.0, 60.0)
    refusal = admission.refusal(60.0)
    assert refusal is not None
    assert refusal.reason == "queue"


def test_patient_requests_leave_room_for_others() -> None:
    """Those with a minute do not fill a queue that others, with 100 ms, could not wait in."""
    admission = Admission(2, 64, usual_s=0.1)
    admission.service_s = 0.01
    admitted = 0
    while admission.refusal(60.0) is None:
        admission.enter(0.0, 60.0)
        admitted += 1
    assert 2 <= admitted <= 2 + 2 * WAIT_SHARE * 0.1 / admission.service_s
    for _ in range(2):  # two are done: there is room for one in a hurry
        admission.pending -= 1
    assert admission.refusal(0.1) is None


@pytest.mark.parametrize(
    ("body", "left_s"),
    [(b'"deadline_ms": 250', 0.25), (b'"deadline_ms":250.5,', 0.2505), (b'"deadline_ms":1e4', 0.1),
     (b'"deadline_ms":12.5E1', 0.1), (b"", 0.1)],
)  # fmt: skip
def test_the_time_a_request_says_it_has(body: bytes, left_s: float) -> None:
    """Read from its bytes; a number in other words counts as none."""
    asked = []
    limits = RequestLimits(None, None, 99, 1.0, asked.append, 100.0)  # type: ignore[arg-type]
    found = limits._left_s({"type": "http.request", "body": body}, time.monotonic())
    assert found == pytest.approx(left_s, abs=0.01)


def test_a_deadline_of_its_own_decides(tmp_path, world, monkeypatch) -> None:
    """What a request says itself counts, before it is parsed: a patient one is not turned away."""
    with live(tmp_path, world.bundle, workers=1, deadline_ms=400.0) as (running, client):
        admission = running.parts.ranker.admission
        monkeypatch.setattr(admission, "service_s", 0.3)
        monkeypatch.setattr(admission, "pending", 1)
        assert client.rank("u", ITEMS, deadline_ms=20_000).scores
        monkeypatch.setattr(admission, "service_s", 0.3)
        for hurried in (None, 380.5):
            with pytest.raises(Refused) as refused:
                client.rank("u", ITEMS, deadline_ms=hurried)
            assert refused.value.status == 429


def test_a_slow_thread_does_not_keep_a_wrong_idea(tmp_path, world, monkeypatch) -> None:
    """On a busy machine an idle worker takes a while to wake; its request is still begun."""
    with live(tmp_path, world.bundle, workers=1) as (running, client):
        client.rank("u", ITEMS)
        pool, admission = running.parts.ranker._pool, running.parts.ranker.admission
        submit = pool.submit

        def drowsy(work, *arguments):
            def late():
                time.sleep(0.02)
                return work(*arguments)

            return submit(late)

        monkeypatch.setattr(pool, "submit", drowsy)
        monkeypatch.setattr(admission, "service_s", 100.0)
        assert client.rank("u", ITEMS, deadline_ms=20_000).scores
        assert admission.service_s < 100.0


@pytest.mark.parametrize("workers", [1, 3])
def test_many_candidates_are_shared_between_workers(
    tmp_path, world, monkeypatch, workers: int
) -> None:
    """S-13: in parts, whoever scores them; the same bytes on one worker and on several."""
    items = [f"i{1 + n % 60}" for n in range(100)]
    with live(tmp_path, world.bundle, workers=workers) as (running, client):
        client.add([event(n, "u") for n in range(15)])
        moment = now() + 1000
        whole = client.rank("u", items, time=moment).logits
        monkeypatch.setattr(running.parts.ranker, "_part", 16)
        scorer = running.parts.registry.get().scorer
        score, threads = scorer.score, set()

        def slow(self, view, request, **more):
            assert len(request.address_C) <= 16
            threads.add(threading.get_ident())
            time.sleep(0.02)  # so that helpers come in time
            return score(view, request, **more)

        monkeypatch.setattr(type(scorer), "score", slow)
        first = client.rank("u", items, time=moment).logits
        assert len(threads) == workers
        assert first == client.rank("u", items, time=moment).logits
        assert np.abs(np.array(first) - np.array(whole)).max() <= 1e-6
