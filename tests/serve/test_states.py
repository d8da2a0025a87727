"""States of users: updated equals rebuilt, bounded, built once, audited. F-10, F-11, S-02."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
import torch
from serve_world import make_world

from lcn.backbones import BACKBONES
from lcn.serve.bundle import load_bundle
from lcn.serve.scorer import Request, Scorer, same_rows
from lcn.serve.state_cache import StateCache
from lcn.serve.store.base import Limits
from lcn.serve.store.lmdb_store import LmdbStore
from lcn.serve.store.records import Event, pack

NOW = 1_700_000_000_000
LIMITS = Limits(events=40)


class Place:
    """A store, a scorer and a cache."""

    def __init__(self, folder, world, max_bytes: int = 1 << 30) -> None:
        self.scorer = Scorer(load_bundle(world.bundle), ("kind",), LIMITS)
        self.store = LmdbStore(folder / "store", ("kind",), LIMITS, "everysec")
        self.cache = StateCache(self.scorer, self.store, max_bytes)

    def add(self, *events: Event) -> None:
        ack = self.store.append([pack(each, ("kind",)) for each in events], NOW)
        for change in ack.changes:
            self.cache.apply(change)

    def scores(self, user: str, moment: int = NOW + 10**9) -> np.ndarray:
        view = self.cache.get(user, NOW).view
        return self.scorer.score(view, ask(self.scorer, moment)).logit_C

    def fresh_scores(self, user: str, moment: int = NOW + 10**9) -> np.ndarray:
        state = self.scorer.build(self.store.read(user, NOW))
        return self.scorer.score(self.scorer.view(state, NOW), ask(self.scorer, moment)).logit_C


def ask(scorer: Scorer, moment: int, items: int = 7) -> Request:
    fields = scorer.bundle.manifest.dataset
    return Request(
        np.arange(1, items + 1, dtype=np.int32),
        np.ones((items, len(fields.candidate_fields)), np.int32),
        np.ones(len(fields.request_context), np.int32),
        np.ones(len(fields.profile_fields), np.int32),
        moment,
    )


def event(number: int, time: int, user: str = "u", domain: str = "source") -> Event:
    item = f"i{1 + number % 60}"
    return Event(user, f"e{number}", item, time, domain, context={"kind": f"v{2 + number % 4}"})


@pytest.fixture
def place(tmp_path, world):
    found = Place(tmp_path, world)
    yield found
    found.store.close()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_updated_states_are_rebuilt_ones(tmp_path, backbone: str) -> None:
    """F-10: live events, some out of order, past the cap; bit for bit what a rebuild gives."""
    place = Place(tmp_path, make_world(tmp_path, backbone))
    draw = random.Random(3)
    for number in range(120):
        late = draw.random() < 0.15
        domain = "target" if number % 5 == 0 else "source"
        place.add(event(number, NOW + 1000 * number - (50_000 if late else 0), domain=domain))
        if number % 7 == 0:
            np.testing.assert_array_equal(place.scores("u"), place.fresh_scores("u"))
    counts = place.cache.counts
    assert counts.updates > 60
    assert 0 < counts.dropped < 40
    place.store.close()


def test_an_update_does_not_touch_a_view_in_use(place) -> None:
    place.add(*(event(n, NOW + n) for n in range(10)))
    view = place.cache.get("u", NOW).view
    before = place.scorer.score(view, ask(place.scorer, NOW + 10**9)).logit_C
    for n in range(10, 30):
        place.add(event(n, NOW + n))
    after = place.scorer.score(view, ask(place.scorer, NOW + 10**9)).logit_C
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(before, place.scores("u"))


def test_only_what_was_known_before_the_moment_counts(place) -> None:
    """F-04: an event ahead of the clock waits until its time has come."""
    place.add(event(1, NOW), event(2, NOW + 60_000))
    early = place.scores("u", NOW + 1)
    place.store.delete("u")
    place.cache.drop("u")
    place.add(event(1, NOW))
    np.testing.assert_array_equal(early, place.scores("u", NOW + 1))


def test_memory_is_bounded_and_the_oldest_go(tmp_path, world) -> None:
    """F-11: at every moment, with ten times more users than fit."""
    roomy = Place(tmp_path / "a", world)
    for user in range(4):
        roomy.add(*(event(n, NOW + n, f"u{user}") for n in range(20)))
        roomy.cache.get(f"u{user}", NOW)
    limit = roomy.cache.bytes
    roomy.store.close()
    place = Place(tmp_path / "b", world, max_bytes=limit)
    for user in range(40):
        place.add(*(event(n, NOW + n, f"u{user}") for n in range(20)))
    for user in range(40):
        place.cache.get(f"u{user}", NOW)
        assert place.cache.bytes <= limit
    assert len(place.cache) <= 4
    assert place.cache.counts.evictions >= 36
    assert place.cache.hot_users(2) == ["u39", "u38"]
    place.store.close()


def test_a_state_larger_than_the_cache_is_used_and_forgotten(tmp_path, world) -> None:
    place = Place(tmp_path, world, max_bytes=10)
    place.add(event(1, NOW))
    assert place.scores("u").shape == (7,)
    assert len(place.cache) == 0
    place.store.close()


def test_a_hundred_misses_build_once(place, monkeypatch) -> None:
    """F-11: single flight."""
    place.add(*(event(n, NOW + n) for n in range(10)))
    build, calls = place.scorer.build, []

    def slow(stored):
        calls.append(stored)
        time.sleep(0.05)
        return build(stored)

    monkeypatch.setattr(place.scorer, "build", slow)
    threads = [threading.Thread(target=place.cache.get, args=("u", NOW)) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_rebuild_that_fails_frees_those_who_wait(place, monkeypatch) -> None:
    place.add(event(1, NOW))
    read = place.store.read
    monkeypatch.setattr(place.store, "read", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place.cache.get("u", NOW)
    monkeypatch.setattr(place.store, "read", read)
    assert place.cache.get("u", NOW).found == "rebuilt"


def test_the_auditor_finds_a_wrong_state(place) -> None:
    place.add(*(event(n, NOW + n) for n in range(10)))
    state = place.cache.get("u", NOW)
    assert place.cache.audit(NOW, random.Random(0)) == 0
    state.view.source.rows.time_T[3] += 1
    assert place.cache.audit(NOW, random.Random(0)) == 1
    assert place.cache.counts.mismatches == 1
    np.testing.assert_array_equal(place.scores("u"), place.fresh_scores("u"))
    assert place.cache.audit(NOW, random.Random(0)) == 0


def test_scores_do_not_depend_on_the_other_candidates(place) -> None:
    """S-13: order, split, duplicates."""
    place.add(*(event(n, NOW + n) for n in range(30)))
    view = place.cache.get("u", NOW).view
    whole = place.scorer.score(view, ask(place.scorer, NOW + 10**9, 40))
    order = np.random.default_rng(0).permutation(40)
    for part in (order, order[:7], np.repeat(order[:3], 2)):
        request = ask(place.scorer, NOW + 10**9, 40)
        request = Request(
            request.address_C[part], request.candidate_CA[part], request.context_R,
            request.profile_P, request.moment,
        )  # fmt: skip
        found = place.scorer.score(view, request)
        np.testing.assert_allclose(found.logit_C, whole.logit_C[part], rtol=0, atol=1e-6)
    again = place.scorer.score(view, ask(place.scorer, NOW + 10**9, 40))
    assert again.logit_C.tobytes() == whole.logit_C.tobytes()


def test_encoding_does_not_depend_on_the_clock(place) -> None:
    """F-14: a state at t and a day later holds the same."""
    place.add(*(event(n, NOW + n) for n in range(10)))
    stored = place.store.read("u", NOW)
    one = place.scorer.view(place.scorer.build(stored), NOW)
    other = place.scorer.view(place.scorer.build(stored), NOW + 86_400_000)
    assert same_rows(one, other)


def test_user_side_work_does_not_grow_with_candidates(place, monkeypatch) -> None:
    """S-01, S-02: a warm request encodes nothing and looks no history item up."""
    place.add(*(event(n, NOW + n) for n in range(30)))
    place.scores("u")
    calls: list[str] = []
    model = place.scorer.bundle.model
    for name, module in model.named_modules():
        if name.startswith(("item.", "search_item.")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    monkeypatch.setattr(model.backbone, "encode", lambda history: 1 / 0)
    view = place.cache.get("u", NOW).view
    for count in (1, 60):
        place.scorer.score(view, ask(place.scorer, NOW + 10**9, count))
    assert calls == []


def test_a_poison_user_is_harmless(place) -> None:
    """R-13: one item over and over; only the newest events are kept."""
    events = [Event("u", f"x{n}", "i3", NOW + n, context={"kind": "v2"}) for n in range(3000)]
    for at in range(0, 3000, 500):
        place.add(*events[at : at + 500])
    assert len(place.store.read("u", NOW).source) == LIMITS.events
    assert bool(torch.isfinite(torch.from_numpy(place.scores("u"))).all())


def test_a_state_that_is_given_up_is_never_served(place, monkeypatch) -> None:
    """R-47: a batch of a newer and an older event does not fit; nobody sees half of it."""
    place.add(*(event(n, NOW + 10 * n) for n in range(10)))
    place.cache.get("u", NOW)
    drop = place.cache.drop
    seen: list[int] = []

    def dawdle(user: str) -> None:
        # The state is wrong now and still in the cache.
        assert place.cache.peek("u", NOW) is None
        seen.append(len(place.cache.get("u", NOW).view.source))
        drop(user)

    monkeypatch.setattr(place.cache, "drop", dawdle)
    place.add(event(20, NOW + 15), event(21, NOW + 500))
    assert seen == [12]
    np.testing.assert_array_equal(place.scores("u"), place.fresh_scores("u"))
