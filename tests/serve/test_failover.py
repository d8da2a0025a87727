"""R-49, S-18, F-07: real Redis servers that are killed, restarted, stopped and promoted."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
import redis
from serve_world import World
from test_http import ITEMS, event, live

from lcn.errors import StoreError
from lcn.serve.client import Refused
from lcn.serve.store import redis_servers, redis_store
from lcn.serve.store.base import Limits
from lcn.serve.store.records import Event, pack
from lcn.serve.store.redis_servers import DOWN_S, Address, Servers, parse_address
from lcn.serve.store.redis_store import RedisStore
from lcn.serve.store.tail import Tail

NOW = 1_700_000_000_000
PROGRAM = shutil.which("valkey-server") or shutil.which("redis-server")

needs_redis = pytest.mark.skipif(
    PROGRAM is None, reason="no redis-server here; scripts/install-test-programs.sh installs one"
)


class Redis:
    """A server of the system's packages, every write on disk before its answer."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self, *more: str) -> None:
        """Start, with what is on disk."""
        command = [str(PROGRAM), "--port", str(self.port), "--dir", str(self._folder), "--save", "",
                   "--appendonly", "yes", "--appendfsync", "always", "--bind", "127.0.0.1",
                   "--repl-diskless-sync-delay", "0", *more]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port)
        for _ in range(400):
            with suppress(redis.RedisError):
                if self.client.ping():
                    return
            time.sleep(0.025)
        raise AssertionError("the Redis server did not start")

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.client.close()
        with suppress(OSError):
            self.process.send_signal(signal.SIGCONT)
        self.kill()


@pytest.fixture
def one(tmp_path) -> Iterator[Redis]:
    server = Redis(tmp_path / "one")
    yield server
    server.close()


@pytest.fixture
def two(tmp_path, one: Redis) -> Iterator[Redis]:
    """A replica of `one`."""
    server = Redis(tmp_path / "two")
    follow(server, one)
    yield server
    server.close()


def follow(replica: Redis, primary: Redis) -> None:
    replica.client.replicaof("127.0.0.1", primary.port)
    for _ in range(400):
        if replica.client.info("replication")["master_link_status"] == "up":  # type: ignore[index]
            return
        time.sleep(0.025)
    raise AssertionError("the replica did not catch up")


def batch(number: int):
    return [pack(Event(f"u{number % 7}", f"e{number}-{k}", "i", NOW + number), ()) for k in (0, 1)]


def append_until_replicated(store: RedisStore, events: list) -> None:
    """As a client would: a replica that has just been started may still be copying."""
    end = time.monotonic() + 20
    while True:
        try:
            store.append(events, 0)
            return
        except StoreError:
            assert time.monotonic() < end, "the replica never has what the primary has"


class Producer(threading.Thread):
    """Sends batches one after the other, each again until it is acknowledged."""

    def __init__(self, store: RedisStore) -> None:
        super().__init__(daemon=True)
        self._store, self._halt = store, threading.Event()
        self.acknowledged: list[tuple[float, int]] = []
        self.refused = 0

    def run(self) -> None:
        number = 0
        while not self._halt.is_set():
            try:
                self._store.append(batch(number), 0)
            except StoreError:
                self.refused += 1
                time.sleep(0.02)
                continue
            self.acknowledged.append((time.monotonic(), number))
            number += 1

    def wait_for(self, count: int) -> None:
        """Until so many more batches are acknowledged."""
        goal, end = len(self.acknowledged) + count, time.monotonic() + 20
        while len(self.acknowledged) < goal:
            assert time.monotonic() < end, "nothing is acknowledged any more"
            time.sleep(0.01)

    def stop(self) -> None:
        self._halt.set()
        self.join()


def assert_all_there(store: RedisStore, producer: Producer) -> None:
    """Everything acknowledged, nothing twice, although batches were sent again."""
    for _, number in producer.acknowledged:
        assert store.append(batch(number), 0).outcomes == ("duplicate", "duplicate"), number
    rows = sum(len(store.read(f"u{user}", 0).source) for user in range(7))
    assert rows in (2 * len(producer.acknowledged), 2 * len(producer.acknowledged) + 2)


@needs_redis
def test_a_killed_server_comes_back_with_everything_acknowledged(one: Redis) -> None:
    """F-07 at `always`: its log on disk is enough; no process of ours is started again."""
    store = RedisStore(f"redis://127.0.0.1:{one.port}/0", (), Limits(100_000))
    assert store.durability == "always"
    producer = Producer(store)
    producer.start()
    for _ in range(3):
        producer.wait_for(40)
        one.kill()
        time.sleep(0.1)
        one.start()
    producer.wait_for(40)
    producer.stop()
    assert producer.refused > 0
    assert_all_there(store, producer)
    store.close()


@needs_redis
def test_a_promoted_replica_takes_over(one: Redis, two: Redis) -> None:
    """R-49: within five seconds, nothing acknowledged lost; then the other way round."""
    store = RedisStore(
        f"redis://127.0.0.1:{one.port},127.0.0.1:{two.port}/0?replicas=1", (), Limits(100_000)
    )
    assert store.durability == "always+1"
    producer = Producer(store)
    producer.start()
    for primary, replica in ((one, two), (two, one)):
        producer.wait_for(40)
        primary.kill()
        time.sleep(0.2)
        before = len(producer.acknowledged)
        replica.client.replicaof("NO", "ONE")
        promoted = time.monotonic()
        primary.start("--replicaof", "127.0.0.1", str(replica.port))
        producer.wait_for(20)
        assert producer.acknowledged[before][0] - promoted < 5
    producer.stop()
    assert_all_there(store, producer)
    store.close()


@needs_redis
def test_a_batch_without_its_replica_is_not_acknowledged(one: Redis, two: Redis) -> None:
    store = RedisStore(f"redis://127.0.0.1:{one.port}/0?replicas=1", (), Limits())
    append_until_replicated(store, batch(0))
    two.kill()
    with pytest.raises(StoreError, match="0 of 1 replicas"):
        store.append(batch(1), 0)
    store.close()


@needs_redis
def test_an_acknowledgement_waits_for_what_this_batch_wrote(
    one: Redis, two: Redis, monkeypatch
) -> None:
    """F-07: whatever connections the pool hands out, and for a batch of duplicates too."""
    monkeypatch.setattr(redis_store, "REPLICATE_S", 0.9)  # on a busy machine
    monkeypatch.setattr(redis_servers, "WRITE_S", 5.0)  # there answers come late
    store = RedisStore(f"redis://127.0.0.1:{one.port}/0?replicas=1", (), Limits())
    append_until_replicated(store, batch(0))
    pool = store._servers._servers[0].write.connection_pool
    for connection in [pool.get_connection() for _ in range(3)]:
        pool.release(connection)
    take = pool.get_connection

    def another(*arguments):
        """The worst that other callers can do to the order of idle connections."""
        pool._available_connections.insert(0, pool._available_connections.pop())
        return take(*arguments)

    monkeypatch.setattr(pool, "get_connection", another)
    for _ in range(400):  # until the replica has everything: idle connections want nothing more
        state = one.client.info("replication")
        if state["slave0"]["offset"] == state["master_repl_offset"]:  # type: ignore[index]
            break
        time.sleep(0.025)
    two.process.send_signal(signal.SIGSTOP)
    for _ in range(2):  # the second time everything is a duplicate
        with pytest.raises(StoreError, match="0 of 1 replicas"):
            store.append(batch(1), 0)
    with pytest.raises(StoreError, match="0 of 1 replicas"):
        store.delete("u1")
    two.process.send_signal(signal.SIGCONT)
    assert store.append(batch(0), 0).outcomes == ("duplicate", "duplicate")
    assert one.client.get("lcn:events") == b"4"
    store.close()


@needs_redis
def test_a_cut_connection_is_no_acknowledgement(one: Redis, two: Redis, monkeypatch) -> None:
    """WAIT on a new connection would have nothing to wait for."""
    store = RedisStore(f"redis://127.0.0.1:{one.port}/0?replicas=1", (), Limits())
    append_until_replicated(store, batch(0))
    two.process.send_signal(signal.SIGSTOP)
    wait = redis.Redis.wait

    def cut(client: redis.Redis, *arguments):
        one.client.client_kill_filter(_type="normal", skipme=True)
        return wait(client, *arguments)

    monkeypatch.setattr(redis.Redis, "wait", cut)
    with pytest.raises(StoreError, match="Redis server says"):
        store.append(batch(1), 0)
    store.close()


@needs_redis
def test_users_are_listed_whatever_was_cut_off(one: Redis) -> None:
    """A batch that was stored, but not its users' names: sending it again lists them."""
    store = RedisStore(f"redis://127.0.0.1:{one.port}/0", (), Limits())
    store.append(batch(1), 0)
    one.client.delete("lcn:users")
    store.append(batch(1), 0)
    assert store.users("", 9) == ["u1"]
    store.close()


@needs_redis
def test_a_demoted_primary_is_left(one: Redis, two: Redis) -> None:
    """No failure at all, only another role: writes go to the new primary, reads soon after."""
    store = RedisStore(f"redis://127.0.0.1:{one.port},127.0.0.1:{two.port}/0", (), Limits())
    store.append(batch(0), 0)
    one.client.wait(1, 2000)
    two.client.replicaof("NO", "ONE")
    follow(one, two)
    two.client.set("lcn:mark", "new")
    two.client.config_set("appendfsync", "everysec")
    with suppress(StoreError):
        store.append(batch(1), 0)
    time.sleep(DOWN_S + 0.1)
    assert store.append(batch(1), 0).durability == "everysec"  # of the one that is asked now
    assert two.client.role()[0] in (b"master", "master")  # type: ignore[index]
    assert len(store.read("u1", 0).source) == 2
    store.close()


@needs_redis
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_ranking_goes_on_without_the_server(tmp_path, world: World, one: Redis, how) -> None:
    """S-18, S-07: whether it is gone or silent, answers stay in time; then all is fresh again."""
    url = f"redis://127.0.0.1:{one.port}/0"
    with live(tmp_path, world.bundle, store=url, deadline_ms=2000.0) as (_, client):
        client.add([event(n, "u") for n in range(9)])
        fresh = client.rank("u", ITEMS)
        os.kill(one.process.pid, how)
        with suppress(Refused):
            client.rank("u", ITEMS)
        # The one request that tries again after a while may wait a quarter of a second.
        times = []
        for _ in range(12):
            started = time.monotonic()
            stale = client.rank("u", ITEMS)
            times.append(time.monotonic() - started)
            assert (stale.degraded, stale.scores) == ("stale", fresh.scores)
        assert client.rank("stranger", ITEMS).degraded == "prior"
        assert sorted(times)[6] < 0.15
        with pytest.raises(Refused) as refused:
            client.add([event(20, "u")])
        assert refused.value.status == 503
        assert client.call("GET", "/v2/health/live") == {"live": True}
        with urlopen(f"{client.url}/metrics", timeout=10) as page:  # type: ignore[attr-defined]
            assert b'lcn_degraded_total{reason="stale"}' in page.read()
        if how == signal.SIGSTOP:
            one.process.send_signal(signal.SIGCONT)
        else:
            one.kill()
            one.start()
        time.sleep(DOWN_S + 0.1)
        again = client.rank("u", ITEMS)
        assert (again.degraded, again.scores) == (None, fresh.scores)
        assert client.add([event(20, "u")]).outcomes in (["stored"], ["duplicate"])


def test_a_full_disk_refuses_events_and_ranks_on(tmp_path, world: World, monkeypatch) -> None:
    """R-48: 507, and everything else as before; with room again, events are stored again."""
    with live(tmp_path, world.bundle) as (_, client):
        client.add([event(n, "u") for n in range(9)])
        before = client.rank("u", ITEMS)

        def full(self, frame) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Tail, "write", full)
            with pytest.raises(Refused) as refused:
                client.add([event(20, "u")])
            assert refused.value.status == 507
            seen = client.rank("u", ITEMS)
            assert (seen.degraded, seen.scores) == (None, before.scores)
        assert client.add([event(20, "u")]).outcomes == ["stored"]
        assert client.rank("u", ITEMS).scores != before.scores


def test_only_one_caller_tries_a_server_that_failed() -> None:
    now = [100.0]
    servers = Servers(("redis://127.0.0.1:1/0",), clock=lambda: now[0])
    tried = []

    def work(server: redis.Redis) -> bool:
        tried.append(now[0])
        return bool(server.ping())

    for step in range(20):
        now[0] = 100 + 0.1 * step
        with pytest.raises(StoreError):
            servers.ask(work)
    assert len(tried) == 4
    servers.close()


def test_an_error_of_the_work_is_no_failure_of_the_server() -> None:
    """Such as too few replicas: the server answers, others need not leave it alone."""
    now = [100.0]
    servers = Servers(("redis://127.0.0.1:1/0",), clock=lambda: now[0])
    with pytest.raises(StoreError):
        servers.ask(lambda server: server.ping())
    now[0] += 2 * DOWN_S

    def refuse(server: redis.Redis) -> None:
        raise StoreError("too few replicas")

    with pytest.raises(StoreError, match="too few"):
        servers.ask(refuse)
    assert servers.ask(lambda server: 1) == 1
    servers.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("redis://h:1/0", Address(("redis://h:1/0",), 0)),
        ("redis://h:1/0?replicas=2", Address(("redis://h:1/0",), 2)),
        ("redis://h:1/0?replicas=2&db=3", Address(("redis://h:1/0?db=3",), 2)),
        (
            "rediss://me:a,b@h:1,g:2/0?ssl_cert_reqs=none&replicas=1",
            Address(
                (
                    "rediss://me:a,b@h:1/0?ssl_cert_reqs=none&",
                    "rediss://me:a,b@g:2/0?ssl_cert_reqs=none&",
                ),
                1,
            ),
        ),
        ("unix:///run/redis.sock?db=1", Address(("unix:///run/redis.sock?db=1",), 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


def test_a_bad_number_of_replicas() -> None:
    with pytest.raises(StoreError, match="replicas=two"):
        parse_address("redis://h/0?replicas=two")
