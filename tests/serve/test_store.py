"""Behaviour stores: F-01 to F-09, F-12, on every kind."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcn.errors import StoreError
from lcn.serve.store.base import Limits
from lcn.serve.store.lmdb_store import LmdbStore
from lcn.serve.store.records import EVENT, KNOWN, TIME, Event, Packed, pack, time_problem
from lcn.serve.store.redis_store import RedisStore

NOW = 1_700_000_000_000


def event(number: int, time: int, user: str = "u", **more) -> Packed:
    return pack(Event(user, f"e{number}", f"i{number % 7}", time, **more), ("kind",))


def test_what_is_stored_is_read_in_order_of_time(open_store) -> None:
    store = open_store()
    ack = store.append([event(1, NOW + 5), event(2, NOW), event(3, NOW + 5, sequence=1)], NOW)
    assert ack.outcomes == ("stored",) * 3
    found = store.read("u", NOW)
    assert found.source[:, TIME].tolist() == [NOW, NOW + 5, NOW + 5]
    assert found.version == store.version("u") == ack.versions["u"]
    assert len(found.target) == 0
    assert store.read("someone", NOW).version == 0


def test_an_event_that_comes_again_changes_nothing(open_store) -> None:
    """F-01: replaying a day twice leaves byte-identical state."""
    store = open_store(Limits(events=30))
    day = [event(n, NOW + 13 * n, user=f"u{n % 3}") for n in range(200)]
    store.append(day, NOW)
    before = [store.read(f"u{n}", NOW) for n in range(3)]
    again = store.append(day, NOW)
    assert set(again.outcomes) <= {"duplicate", "too_old"}
    assert again.changes == ()
    for user, old in enumerate(before):
        new = store.read(f"u{user}", NOW)
        assert new.source.tobytes() == old.source.tobytes()
        assert new.version == old.version


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), cap=st.integers(1, 12))
def test_the_state_depends_on_the_set_of_events_alone(tmp_path_factory, data, cap: int) -> None:
    """F-03, F-06: any order of arrival, any batches, duplicates included."""
    times = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=25))
    events = [event(n, NOW + time, sequence=time % 2) for n, time in enumerate(times)]
    order = data.draw(st.permutations([*events, *events[:5]]))
    store = LmdbStore(tmp_path_factory.mktemp("s"), ("kind",), Limits(events=cap), "everysec")
    at = 0
    while at < len(order):
        size = data.draw(st.integers(1, 7))
        store.append(order[at : at + size], NOW)
        at += size
    expected = b"".join(sorted(each.record for each in events)[-cap:])
    assert store.read("u", NOW).source.tobytes() == expected
    store.close()


def test_a_full_history_counts_older_events_only(open_store) -> None:
    """F-03: older than the tail of a full history is a counted no-op."""
    store = open_store(Limits(events=3))
    store.append([event(n, NOW + n) for n in range(10, 13)], NOW)
    version = store.version("u")
    ack = store.append([event(1, NOW)], NOW)
    assert ack.outcomes == ("too_old",)
    assert store.version("u") == version
    ack = store.append([event(20, NOW + 20)], NOW)
    assert ack.outcomes == ("stored",)
    assert store.read("u", NOW).source[:, TIME].tolist() == [NOW + 11, NOW + 12, NOW + 20]


def test_age_and_byte_limits(open_store) -> None:
    """F-06: age holds when reading, bytes when writing."""
    store = open_store(Limits(age_ms=1000))
    store.append([event(1, NOW), event(2, NOW + 600)], NOW + 600)
    assert len(store.read("u", NOW + 900).source) == 2
    assert len(store.read("u", NOW + 1200).source) == 1
    assert len(store.read("u", NOW + 5000).source) == 0
    assert store.append([event(3, NOW + 1)], NOW + 1200).outcomes == ("too_old",)
    few = Limits(bytes=48 * 2)
    assert few.count(48) == 2


def test_records_of_the_newest_events_only(open_store) -> None:
    store = open_store()
    store.append([event(n, NOW + n) for n in range(50)], NOW)
    assert store.read("u", NOW, newest=3).source[:, TIME].tolist() == [NOW + 47, NOW + 48, NOW + 49]


def test_arrival_after_its_time_orders_an_event(open_store) -> None:
    """As in a prepared dataset: sorted by when an event became known."""
    store = open_store()
    store.append([event(1, NOW, arrival=NOW + 50), event(2, NOW + 10)], NOW)
    assert store.read("u", NOW).source[:, KNOWN].tolist() == [NOW + 10, NOW + 50]


def test_a_deleted_user_is_gone(open_store) -> None:
    """F-12: history, ids and version; a version is never used again."""
    store = open_store()
    first = store.append([event(1, NOW), event(2, NOW, domain="target")], NOW)
    store.append([event(1, NOW, user="other")], NOW)
    assert store.users("", 10) == ["other", "u"]
    assert store.delete("u")
    assert not store.delete("u")
    found = store.read("u", NOW)
    assert (len(found.source), len(found.target), found.version) == (0, 0, 0)
    assert store.users("", 10) == ["other"]
    again = store.append([event(1, NOW)], NOW)
    assert again.outcomes == ("stored",)
    assert again.versions["u"] > first.versions["u"]


def test_deleted_stays_deleted_after_a_restart(tmp_path) -> None:
    for level in ("always", "everysec"):
        store = LmdbStore(tmp_path / level, ("kind",), Limits(), level)
        store.append([event(1, NOW), event(1, NOW, user="other")], NOW)
        store.delete("u")
        store.close()
        store = LmdbStore(tmp_path / level, ("kind",), Limits(), level)
        assert store.users("", 10) == ["other"]
        assert store.facts().events == 1
        store.close()


def test_changes_name_what_was_added(open_store) -> None:
    store = open_store()
    (change,) = store.append([event(2, NOW + 2), event(1, NOW + 1)], NOW).changes
    assert (change.user, change.before) == ("u", 0)
    assert change.source[:, TIME].tolist() == [NOW + 1, NOW + 2]
    (later,) = store.append([event(3, NOW + 3), event(1, NOW + 1)], NOW).changes
    assert later.before == change.after
    assert len(later.source) == 1


def test_writers_and_readers_of_one_user_agree(open_store) -> None:
    """R-47: versions only grow, and a version names one history."""
    store = open_store()
    seen: list[dict[int, bytes]] = []
    failures: list[BaseException] = []

    def write(first: int) -> None:
        for n in range(40):
            store.append([event(1000 * first + n, NOW + 7 * n + first)], NOW)

    def read() -> None:
        mine: dict[int, bytes] = {}
        last = 0
        for _ in range(60):
            found = store.read("u", NOW)
            if found.version < last:
                failures.append(AssertionError("version went back"))
            last = found.version
            mine[found.version] = found.source.tobytes()
        seen.append(mine)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    threads += [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(store.read("u", NOW).source) == 8 * 40
    together: dict[int, bytes] = {}
    for mine in seen:
        for version, data in mine.items():
            assert together.setdefault(version, data) == data


def test_other_fields_are_refused(tmp_path, redis_url) -> None:
    LmdbStore(tmp_path / "s", ("kind",), Limits()).close()
    with pytest.raises(StoreError, match="keeps the event context fields"):
        LmdbStore(tmp_path / "s", ("hour",), Limits())


def test_a_model_that_needs_fewer_fields_uses_the_store(tmp_path, redis_url) -> None:
    """Models come and go, in any order; the store keeps the fields it was made for."""
    two = ("hour", "kind")
    for reopen in (
        lambda fields: LmdbStore(tmp_path / "s", fields, Limits()),
        lambda fields: RedisStore(redis_url, fields, Limits(), prefix="fewer"),
    ):
        store = reopen(two)
        store.append([pack(Event("u", "e", "i", NOW), two)], NOW)
        store.close()
        for fields in (("kind",), (), ("kind", "hour")):
            store = reopen(fields)
            assert store.fields == two
            assert store.read("u", NOW).source.shape == (1, 7)
            store.close()
        with pytest.raises(StoreError, match="keeps the event context fields"):
            reopen(("kind", "device"))


def test_ages_are_numbers_in_every_locale(redis_abroad: str) -> None:
    """Bytes compared as texts come in another order where texts are sorted as people do."""
    day = 86_400_000
    store = RedisStore(redis_abroad, ("kind",), Limits(events=500, age_ms=30 * day))
    for number in range(40):
        now = NOW + 7_919_003 * number
        batch = [event(n, now - n * day - 1, user=f"u{number}") for n in range(29)]
        assert store.append(batch, now).outcomes == ("stored",) * 29
        assert store.append([event(99, now - 31 * day, f"u{number}")], now).outcomes == ("too_old",)
    store.close()


def test_a_folder_in_use_is_refused(tmp_path) -> None:
    store = LmdbStore(tmp_path, ("kind",), Limits())
    with pytest.raises(StoreError, match="in use"):
        LmdbStore(tmp_path, ("kind",), Limits())
    store.close()


def test_a_server_that_is_not_there(tmp_path) -> None:
    from lcn.serve.store import open_store as open_any

    with pytest.raises(StoreError, match="Redis server says"):
        open_any("redis://127.0.0.1:1/0", (), Limits())
    for scheme in ("redis", "valkey"):
        with pytest.raises(StoreError, match=r"valkey-1\.invalid"):
            open_any(f"{scheme}://valkey-1.invalid:1/0", (), Limits())
    with pytest.raises(StoreError, match="no behaviour store speaks"):
        open_any("mysql://x", (), Limits())


@pytest.mark.parametrize(
    ("factor", "expected"), [(1, None), (1e-3, "unit"), (1e3, "unit"), (1e6, "unit")]
)
def test_units_of_time_are_told_apart(factor: float, expected: str | None) -> None:
    """F-05: the same instant in ms, s, µs and ns."""
    assert time_problem(int(NOW * factor), NOW + 1000, 1_104_537_600_000) == expected


def test_times_that_cannot_be() -> None:
    """F-04: beyond the clock's tolerance, or before any log."""
    earliest = 1_104_537_600_000
    assert time_problem(NOW + 6 * 60_000, NOW, earliest) == "future"
    assert time_problem(NOW + 4 * 60_000, NOW, earliest) is None
    assert time_problem(earliest - 1, NOW, earliest) == "early"
    assert time_problem(0, NOW, earliest) == "early"
    assert time_problem(-5, NOW, earliest) == "early"


def test_event_ids_are_per_user(open_store) -> None:
    store = open_store()
    assert store.append([event(1, NOW), event(1, NOW, user="v")], NOW).outcomes == ("stored",) * 2
    assert store.read("v", NOW).source[0, EVENT] == store.read("u", NOW).source[0, EVENT]


def test_ingest_reaches_its_rate() -> None:
    """F-09 is measured by benchmarks/serving.py; here only that packing is not quadratic."""
    events = [Event("u", str(n), str(n), NOW + n) for n in range(2000)]
    packed = [pack(each, ()) for each in events]
    assert len({each.record for each in packed}) == 2000
    assert np.frombuffer(packed[0].record, ">u8")[TIME] == NOW
