"""Crashes and damage: R-01 to R-05, F-07, F-08."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lcn.errors import StoreError
from lcn.serve.store import folder as folder_module
from lcn.serve.store import lmdb_store as lmdb_module
from lcn.serve.store.base import Limits
from lcn.serve.store.folder import StoreFolder
from lcn.serve.store.lmdb_store import LmdbStore
from lcn.serve.store.records import Event, pack
from lcn.serve.store.tail import Entry, Frame, Tail, read_tail

NOW = 1_700_000_000_000

WRITER = """
import sys
from pathlib import Path
from lcn.serve.store.base import Limits
from lcn.serve.store.lmdb_store import LmdbStore
from lcn.serve.store.records import Event, pack
store = LmdbStore(Path(sys.argv[1]), (), Limits(events=100_000), sys.argv[2])
first = int(sys.argv[3])
print("open", flush=True)
for n in range(first, first + 100_000):
    batch = [pack(Event(f"u{n % 5}", f"{n}-{k}", "i", 1_700_000_000_000 + n), ()) for k in range(3)]
    store.append(batch, 0)
    print(n, flush=True)
"""


def event(number: int, user: str = "u"):
    return pack(Event(user, f"e{number}", "i", NOW + number), ())


def kill_repeatedly(folder: Path, level: str, kills: int, seed: int) -> None:
    """Kill a writer at random instants; nothing acknowledged is lost, nothing is there twice."""
    draw, first, acknowledged = random.Random(seed), 0, set()
    for _ in range(kills):
        command = [sys.executable, "-c", WRITER, str(folder), level, str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            time.sleep(draw.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            numbers = [int(line) for line in process.stdout.read().split("\n")[:-1] if line]
        acknowledged |= set(numbers)
        first = max([first, *(n + 1 for n in numbers)])
        # The producer does not know whether the last batch arrived: it sends it again.
    store = LmdbStore(folder, (), Limits(events=100_000), level)
    assert acknowledged
    for n in sorted(acknowledged):
        ack = store.append(
            [pack(Event(f"u{n % 5}", f"{n}-{k}", "i", NOW + n), ()) for k in range(3)], 0
        )
        assert ack.outcomes == ("duplicate",) * 3, n
    rows = sum(len(store.read(f"u{u}", 0).source) for u in range(5))
    # At most the batch under way at each kill was stored without an acknowledgement.
    assert 3 * len(acknowledged) <= rows <= 3 * (len(acknowledged) + kills)
    store.close()


@pytest.mark.parametrize("level", ["always", "everysec"])
def test_killed_writers_lose_nothing_acknowledged(tmp_path, level: str) -> None:
    kill_repeatedly(tmp_path / "store", level, kills=5, seed=1)


@pytest.mark.slow
def test_a_thousand_kills(tmp_path) -> None:
    """R-04."""
    kill_repeatedly(tmp_path / "store", "always", kills=1000, seed=2)


def filled(folder: Path, batches: int = 8, boot: str = "one") -> LmdbStore:
    store = LmdbStore(folder, (), Limits(), "everysec")
    still(store)
    for n in range(batches):
        store.append([event(2 * n), event(2 * n + 1)], 0)
    return store


def still(store: LmdbStore) -> None:
    """End the thread that keeps a store durable: a test does its turns by hand."""
    store._stop.set()
    assert store._syncer is not None
    store._syncer.join()


def crash(store: LmdbStore, folder: Path, copy: Path) -> Path:
    """The folder as a power cut would leave it: the store is not closed."""
    shutil.copytree(folder, copy)
    store.close()
    return copy


def test_after_a_power_cut_snapshot_and_tail_make_the_store(tmp_path, monkeypatch) -> None:
    """F-07, F-08, R-02: the database file is not trusted; nothing synced is lost."""
    store = filled(tmp_path / "a")
    store.snapshot()
    store.append([event(100)], 0)
    store.delete("nobody")
    copy = crash(store, tmp_path / "a", tmp_path / "b")
    (copy / "lmdb" / "data.mdb").write_bytes(b"torn" * 1000)
    monkeypatch.setattr(folder_module, "boot_id", lambda: "another boot")
    again = LmdbStore(copy, (), Limits(), "everysec")
    assert again.recovered == 1
    assert len(again.read("u", 0).source) == 17
    assert again.append([event(100), event(3)], 0).outcomes == ("duplicate", "duplicate")
    again.close()


def test_a_killed_process_does_not_need_the_tail(tmp_path) -> None:
    store = filled(tmp_path / "a")
    copy = crash(store, tmp_path / "a", tmp_path / "b")
    again = LmdbStore(copy, (), Limits(), "everysec")
    assert again.recovered == 0
    assert len(again.read("u", 0).source) == 16
    again.close()


def test_a_damaged_snapshot_is_refused(tmp_path, monkeypatch) -> None:
    store = filled(tmp_path / "a")
    store.snapshot()
    copy = crash(store, tmp_path / "a", tmp_path / "b")
    data = bytearray((copy / "snapshot" / "data.mdb").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "snapshot" / "data.mdb").write_bytes(data)
    monkeypatch.setattr(folder_module, "boot_id", lambda: "another boot")
    with pytest.raises(StoreError, match="is damaged"):
        LmdbStore(copy, (), Limits(), "everysec")


def test_a_store_that_cannot_be_recovered_stays_as_it_is(tmp_path, monkeypatch) -> None:
    store = filled(tmp_path / "a")
    store.snapshot()
    copy = crash(store, tmp_path / "a", tmp_path / "b")
    before = (copy / "lmdb" / "data.mdb").read_bytes()
    monkeypatch.setattr(folder_module, "boot_id", lambda: "another boot")
    (copy / "snapshot" / "sha256").write_text("of something else")
    with pytest.raises(StoreError, match="is damaged"):
        LmdbStore(copy, (), Limits(), "everysec")
    shutil.rmtree(copy / "snapshot")
    with pytest.raises(StoreError, match="its snapshot is gone"):
        LmdbStore(copy, (), Limits(), "everysec")
    assert (copy / "lmdb" / "data.mdb").read_bytes() == before
    assert not (copy / "lmdb.untrusted").exists()


def test_a_log_that_cannot_be_synced_takes_no_events(tmp_path, monkeypatch) -> None:
    """F-07: an acknowledgement at `everysec` means on disk in a second, or there is none."""
    store = filled(tmp_path)
    monkeypatch.setattr(lmdb_module, "RETRY_S", 0.0)

    def broken(self) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Tail, "sync", broken)
        patch.setattr(StoreFolder, "write_snapshot", lambda *_: broken(None))
        store._keep_durable()
        for refused in (lambda: store.append([event(90)], 0), lambda: store.delete("u")):
            with pytest.raises(StoreError, match=r"cannot be put on disk.*Input/output error"):
                refused()
    store._retry_at = 0.0
    store._keep_durable()  # a snapshot makes it whole again
    assert store.append([event(90)], 0).outcomes == ("stored",)
    assert len(store.read("u", 0).source) == 17
    store.close()


def test_a_failed_snapshot_ends_no_thread(tmp_path, monkeypatch) -> None:
    store = filled(tmp_path)
    tries = []

    def full(self, copy) -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lmdb_module, "SNAPSHOT_BYTES", 0)
        patch.setattr(StoreFolder, "write_snapshot", full)
        store._keep_durable()
        store._keep_durable()
        assert len(tries) == 1  # the next one waits
        assert store.append([event(90)], 0).durability == "everysec"
    assert not store.failure
    store.close()


def test_a_removed_user_leaves_the_logs(tmp_path, monkeypatch) -> None:
    """F-12: within a minute, or when the store is closed, or after a crash."""
    monkeypatch.setattr(lmdb_module, "FORGET_S", 0.0)
    store = filled(tmp_path / "a")
    store.append([event(500, user="somebody")], 0)
    assert b"somebody" in logs(tmp_path / "a")
    store.delete("somebody")
    copy = crash(store, tmp_path / "a", tmp_path / "b")
    assert b"somebody" not in logs(tmp_path / "a")
    again = LmdbStore(copy, (), Limits(), "everysec")
    again._keep_durable()
    assert b"somebody" not in logs(copy)
    again.close()


def test_a_user_removed_while_a_snapshot_is_made_is_not_forgotten(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lmdb_module, "FORGET_S", 0.0)
    store = filled(tmp_path)
    store.append([event(500, user="alice"), event(501, user="bob")], 0)
    store.delete("alice")
    write = StoreFolder.write_snapshot

    def meanwhile(self, copy) -> None:
        write(self, copy)
        store.delete("bob")

    with monkeypatch.context() as patch:
        patch.setattr(StoreFolder, "write_snapshot", meanwhile)
        store.snapshot()
    assert store._fold_at
    store.close()
    assert b"bob" not in logs(tmp_path)


def test_closing_waits_for_a_snapshot_under_way(tmp_path, monkeypatch) -> None:
    """Its copy reads the database that closing takes away."""
    store = filled(tmp_path / "a")
    write, under_way, errors = StoreFolder.write_snapshot, threading.Event(), []

    def slow(self, copy) -> None:
        under_way.set()
        time.sleep(0.5)
        write(self, copy)

    def fold() -> None:
        try:
            store.snapshot()
        except StoreError as error:
            errors.append(error)

    monkeypatch.setattr(StoreFolder, "write_snapshot", slow)
    folding = threading.Thread(target=fold)
    folding.start()
    assert under_way.wait(10)
    store.close()
    folding.join()
    assert not errors and not (tmp_path / "a" / "snapshot.partial").exists()
    store.close()  # once more is nothing
    again = LmdbStore(tmp_path / "a", (), Limits(), "everysec")
    assert len(again.read("u", 0).source) == 16
    again.close()


def test_a_fold_that_failed_at_closing_is_made_at_the_next_start(tmp_path, monkeypatch) -> None:
    store = filled(tmp_path)
    store.append([event(500, user="alice")], 0)
    store.delete("alice")

    def full(self, copy) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(StoreFolder, "write_snapshot", full)
        store.close()
    assert b"alice" in logs(tmp_path)
    LmdbStore(tmp_path, (), Limits(), "everysec").close()
    assert b"alice" not in logs(tmp_path)


def test_a_restart_does_not_trust_a_log_that_failed(tmp_path, monkeypatch) -> None:
    """What was acknowledged and is not in the log stands in the database: a snapshot first."""
    store = filled(tmp_path / "a")
    store.failure = "Input/output error"
    copy = crash(store, tmp_path / "a", tmp_path / "b")
    for path in copy.glob("tail-*.log"):
        path.write_bytes(b"")  # it never reached the disk
    LmdbStore(copy, (), Limits(), "everysec")._lock.close()  # and is killed at once
    monkeypatch.setattr(folder_module, "boot_id", lambda: "another boot")
    again = LmdbStore(copy, (), Limits(), "everysec")
    assert len(again.read("u", 0).source) == 16
    again.close()


def logs(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("tail-*.log"))


def test_logs_of_many_starts_are_folded(tmp_path, monkeypatch) -> None:
    for n in range(4):
        store = LmdbStore(tmp_path, (), Limits(), "everysec")
        store.append([event(n)], 0)
        store.close()
    assert len(list(tmp_path.glob("tail-*.log"))) == 4
    monkeypatch.setattr(lmdb_module, "SNAPSHOT_BYTES", 200)
    store = LmdbStore(tmp_path, (), Limits(), "everysec")
    still(store)
    store._keep_durable()
    assert len(list(tmp_path.glob("tail-*.log"))) == 1
    store.close()


def test_zeros_at_the_end_of_a_log_are_a_torn_end(tmp_path, log: bytes) -> None:
    """What file systems leave where a last write was cut off by the power."""
    path = tmp_path / "tail"
    frames = len(list(read_tail(whole(path, log))))
    for zeros in (1, 7, 8, 12, 4096):
        path.write_bytes(log + bytes(zeros))
        assert len(list(read_tail(path))) == frames
        for cut in (1, 9, 20):  # and where its end is zeros
            path.write_bytes(log[:-cut] + bytes(cut + zeros))
            assert len(list(read_tail(path))) in (frames - 1, frames)
    path.write_bytes(log + bytes(64) + log)
    with pytest.raises(StoreError, match="damaged"):
        list(read_tail(path))


def whole(path: Path, log: bytes) -> Path:
    path = path.with_name("whole")
    path.write_bytes(log)
    return path


def test_levels_may_change_between_runs(tmp_path, monkeypatch) -> None:
    filled(tmp_path).close()
    store = LmdbStore(tmp_path, (), Limits(), "always")
    store.append([event(50)], 0)
    store.close()
    assert not list(tmp_path.glob("tail-*"))
    store = LmdbStore(tmp_path, (), Limits(), "everysec")
    store.append([event(51)], 0)
    copy = crash(store, tmp_path, tmp_path.parent / "copy")
    monkeypatch.setattr(folder_module, "boot_id", lambda: "another boot")
    again = LmdbStore(copy, (), Limits(), "everysec")
    assert len(again.read("u", 0).source) == 18
    again.close()


@pytest.fixture
def log(tmp_path) -> bytes:
    tail = Tail(tmp_path / "tail")
    for n in range(4):
        tail.write(Frame(n + 1, (Entry(f"u{n}", "s", b"x" * 40), Entry("v", "", b""))))
    tail.close()
    return (tmp_path / "tail").read_bytes()


def test_a_log_cut_anywhere_is_read_up_to_there(tmp_path, log: bytes) -> None:
    """R-05, F-08: every offset."""
    path = tmp_path / "cut"
    size = len(log) // 4
    for end in range(len(log) + 1):
        path.write_bytes(log[:end])
        frames = list(read_tail(path))
        assert [frame.version for frame in frames] == list(range(1, end // size + 1))


def test_a_flipped_byte_anywhere_is_found(tmp_path, log: bytes) -> None:
    """R-05: in the last frame it reads as a torn end, before it is refused and can be repaired."""
    path, size = tmp_path / "flipped", len(log) // 4
    for at in range(len(log)):
        data = bytearray(log)
        data[at] ^= 0xFF
        path.write_bytes(data)
        whole = at // size
        if whole == 3:
            assert len(list(read_tail(path))) == 3
            continue
        with pytest.raises(StoreError, match="--repair-store"):
            list(read_tail(path))
        assert len(list(read_tail(path, repair=True))) == whole


def test_a_full_disk_stores_nothing_and_says_so(tmp_path, monkeypatch) -> None:
    """R-03, R-48: the batch is not acknowledged, older data is intact."""
    store = filled(tmp_path)

    def full(self, frame) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tail, "write", full)
    with pytest.raises(StoreError, match="No space"):
        store.append([event(99)], 0)
    assert len(store.read("u", 0).source) == 16
    monkeypatch.undo()
    assert store.append([event(99)], 0).outcomes == ("stored",)
    store.close()
