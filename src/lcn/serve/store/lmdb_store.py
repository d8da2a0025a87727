"""The embedded behaviour store: LMDB, one process, nothing to start.

lmdb/          the database; see lmdb_tables.py
snapshot/      a copy with its checksum                  } level `everysec` only: LMDB then leaves
tail-<n>.log   what came after it, synced every second   } ordering to the page cache
store.json     fields, level, whether it was closed, and on which boot of the machine
lock           held while open

At level `always` every batch is on disk before it is acknowledged, and LMDB's copy-on-write pages
survive any crash. At `everysec` a killed process loses nothing either; after a power cut the
database file is not trusted (its writes may have reached the disk in any order) and is built again
from snapshot and tail.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import lmdb

from lcn.errors import StoreError, StoreFullError
from lcn.schema import Domain
from lcn.serve.store.base import Ack, Limits, LocalDurability, Outcome, Stored, StoreFacts, failed
from lcn.serve.store.folder import StoreFolder
from lcn.serve.store.lmdb_tables import LmdbTables
from lcn.serve.store.records import Packed, check_fields
from lcn.serve.store.tail import Entry, Frame, Tail

_log = logging.getLogger("lcn.serve")

SNAPSHOT_BYTES = 256 << 20
"""Tails this long together are folded into a new snapshot."""
FORGET_S = 60.0
"""Within so long after a user was removed, logs and snapshot no longer hold the user's events."""
RETRY_S = 60.0
"""From a failed snapshot to the next try."""
FAILING_S = 10.0
"""The same while events are refused until a snapshot succeeds."""


class LmdbStore:
    """See `BehaviourStore`.

    Args:
        folder: made when it is not there.
        fields: event context fields.
        limits: how much of a history is kept.
        durability: what an acknowledgement means.
        repair: go on without what is behind damage in the log.

    Raises:
        StoreError: damaged, in use by another process, or made for other fields.
    """

    def __init__(
        self,
        folder: Path,
        fields: Sequence[str],
        limits: Limits,
        durability: LocalDurability = "always",
        *,
        repair: bool = False,
    ) -> None:
        self.limits = limits
        self.durability: str = durability
        self.failure = ""
        """Why acknowledged events may not be on disk; while it is so, none are taken."""
        self._fold_at = self._retry_at = 0.0
        self._write = threading.RLock()
        self._folding = threading.Lock()
        """Held by who makes a snapshot; taken before `_write`."""
        self._syncer: threading.Thread | None = None
        self._folder = StoreFolder(folder)
        self._lock = _take_lock(self._folder.lock)
        try:
            self._tail: Tail | None = None
            self._stop = threading.Event()
            trusted = self._folder.begin(check_fields(fields))
            self.fields = self._folder.fields
            if not trusted:
                self._folder.restore_snapshot()
            with self._errors("open the database"):
                sync, count = durability == "always", len(self.fields)
                self._tables = LmdbTables(self._folder.database, count, limits, sync=sync)
                self._sequence = self._tables.sequence()
            self.recovered = 0 if trusted else self._replay(repair)
            """Records read back from the tail."""
            self._start(durability, trusted)
            self._folder.drop_untrusted()
        except BaseException:
            self._lock.close()
            raise

    # Reading

    def version(self, user: str) -> int:
        """See `BehaviourStore`."""
        with self._errors("read"):
            return self._tables.version(user)

    def read(self, user: str, now: int, newest: int = 0) -> Stored:
        """See `BehaviourStore`."""
        with self._errors("read"):
            version, source, target = self._tables.read(user, newest)
        return Stored(version, self.limits.young(source, now), self.limits.young(target, now))

    def users(self, first: str, count: int) -> list[str]:
        """See `BehaviourStore`; in byte order."""
        with self._errors("read"):
            return self._tables.users_from(first, count)

    def facts(self) -> StoreFacts:
        """See `BehaviourStore`."""
        with self._errors("read"):
            users, events = self._tables.counts()
        size = sum(path.stat().st_size for path in self._folder.database.glob("data.mdb"))
        return StoreFacts("lmdb", users, events, size)

    # Writing

    def append(self, batch: Sequence[Packed], now: int) -> Ack:
        """See `BehaviourStore`."""
        with self._write, self._errors("store a batch"):
            self._refuse_while_failing()
            with self._tables.batch(now, self._sequence) as written:
                outcomes: tuple[Outcome, ...] = tuple(written.add(each) for each in batch)
                changes = written.finish()
                if self._tail is not None and changes:
                    entries = (
                        Entry(user, letter.decode(), b"".join(records))
                        for (user, letter), records in written.added.items()
                    )
                    self._tail.write(Frame(written.sequence, tuple(entries)))
            self._sequence = written.sequence
            return Ack(outcomes, written.versions(), self.durability, changes)

    def delete(self, user: str) -> bool:
        """See `BehaviourStore`."""
        with self._write, self._errors("delete a user"):
            self._refuse_while_failing()
            with self._tables.batch(0, self._sequence) as written:
                known = written.remove(user)
                if known and self._tail is not None:
                    self._tail.write(Frame(written.sequence, (Entry(user, "", b""),)))
                    self._fold_at = self._fold_at or time.monotonic() + FORGET_S
            self._sequence = written.sequence
            return known

    def snapshot(self) -> None:
        """Copy the database and start a new tail; writers wait only for the new tail.

        Raises:
            StoreError: it cannot be written; the tails before it stay.
        """
        with self._folding:
            with self._write, self._errors("write a snapshot"):
                fresh, old = Tail(self._folder.next_tail()), self._tail
                if old is not None and not self.failure:
                    try:
                        old.sync()
                    except OSError as error:
                        self.failure = str(error)
                        fresh.discard()
                        raise
                self._tail = fresh
                if old is not None:
                    old.close(sync=False)
                # Who is removed from now on is in the new tail.
                due, self._fold_at = self._fold_at, 0.0
            try:
                with self._errors("write a snapshot"):
                    # Not `compact`: LMDB's compacting copy crashes on sorted records of fixed size.
                    self._folder.write_snapshot(lambda to: self._tables.env.copy(str(to)))
            except BaseException:
                with self._write:
                    self._fold_at = due or self._fold_at
                raise
            with self._write:
                self.failure = ""

    def close(self) -> None:
        """See `BehaviourStore`."""
        self._stop.set()
        if self._syncer is not None:
            self._syncer.join()
        if self._fold_at or self.failure:
            self._try_snapshot()
        with self._folding, self._write:
            if self._lock.closed:
                return
            try:
                with self._errors("close"):
                    self._tables.env.sync(True)
                    if self._tail is not None:
                        self._tail.close(sync=not self.failure)
                    # What is still due is done at the next start, after an unclean end.
                    if not self.failure and not self._fold_at:
                        self._folder.end()
            finally:
                self._tail = None
                self._tables.env.close()
                self._lock.close()

    # Inside

    def _start(self, durability: LocalDurability, trusted: bool) -> None:
        """From here on the database file and, at `everysec`, snapshot and tail are whole."""
        if durability == "always":
            self._tables.env.sync(True)
            self._folder.note_open(durability)
            self._folder.drop_snapshot()
            return
        if trusted and self._folder.was_closed and self._folder.has_snapshot:
            self._tail = Tail(self._folder.next_tail())
        else:
            # After a crash too: the log may have failed to sync, or hold a user who was removed.
            self.snapshot()
        self._folder.note_open(durability)
        self._syncer = threading.Thread(target=self._sync_forever, daemon=True, name="store-sync")
        self._syncer.start()

    def _replay(self, repair: bool) -> int:
        """Apply the tails to the snapshot; the number of records they hold."""
        count = 0
        for frame in self._folder.frames(repair=repair):
            for entry in frame.entries:
                if not entry.domain:
                    self.delete(entry.user)
                    continue
                domain: Domain = "source" if entry.domain == "s" else "target"
                size = self._tables.record_bytes
                records = [
                    entry.records[at : at + size] for at in range(0, len(entry.records), size)
                ]
                # Age was judged when they came; 0 keeps whatever was acknowledged.
                self.append([Packed(entry.user, domain, record) for record in records], 0)
                count += len(records)
            self._sequence = max(self._sequence, frame.version)
        return count

    def _sync_forever(self) -> None:
        while not self._stop.wait(1.0):
            self._keep_durable()

    def _keep_durable(self) -> None:
        """What is due every second: tail on disk, and a snapshot where tails are long, hold a
        removed user, or could not be put on disk."""
        with self._write:
            tail = self._tail
        if tail is None:
            return
        if not self.failure:
            try:
                tail.sync()
            except ValueError:
                return  # closed by a snapshot meanwhile, which synced it
            except OSError as error:
                self.failure = str(error)
                _log.error("behaviour log not on disk, events are refused: %s", error)
        now = time.monotonic()
        due = bool(self.failure) or (self._fold_at and now >= self._fold_at)
        if (due or self._folder.tail_bytes > SNAPSHOT_BYTES) and now >= self._retry_at:
            self._try_snapshot()

    def _try_snapshot(self) -> None:
        try:
            self.snapshot()
        except StoreError as error:
            self._retry_at = time.monotonic() + (FAILING_S if self.failure else RETRY_S)
            _log.error("snapshot failed, tried again later: %s", error)

    def _refuse_while_failing(self) -> None:
        if self.failure:
            raise failed(
                f"{self._folder.path} cannot be put on disk ({self.failure}); events are refused "
                "until a snapshot succeeds: look at the disk"
            )

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except lmdb.MapFullError as error:
            raise StoreFullError(f"cannot {doing}: the database has its largest size") from error
        except (lmdb.Error, OSError) as error:
            raise failed(f"cannot {doing} in {self._folder.path}: {error}") from error


def _take_lock(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StoreError(
            f"{path.parent} is in use by another process; several servers share a store through "
            "--store redis://host:port/db"
        ) from error
    return file
