"""The LMDB file of the embedded behaviour store: its tables, and one batch of writes.

events: (user, domain) -> sorted records; ids: (user, event) -> nothing; users: user -> version;
meta: the sequence, the version given last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import numpy as np

from lcn.schema import Domain
from lcn.serve.store.base import Change, Limits, Outcome
from lcn.serve.store.records import Packed, Records, record_bytes, unpack

MAP_BYTES = 1 << 38
"""Address space for the file, not disk space: it grows as needed."""

LETTERS: dict[Domain, bytes] = {"source": b"s", "target": b"t"}


class LmdbTables:
    """Every read is one transaction, and so is every batch. Writers take turns outside.

    Args:
        folder: of the database.
        fields: how many event context fields a record has.
        limits: how much of a history is kept.
        sync: whether a transaction is on disk when it is over.

    Raises:
        lmdb.Error: from every method; the file cannot be opened, read or written.
    """

    def __init__(self, folder: Path, fields: int, limits: Limits, *, sync: bool) -> None:
        self.limits, self.fields = limits, fields
        self.record_bytes = record_bytes(fields)
        self.most = max(limits.count(self.record_bytes), 1)
        """Events of a user and domain that are kept."""
        self.env = lmdb.open(
            str(folder), map_size=MAP_BYTES, max_dbs=4, max_readers=512, sync=sync, metasync=sync
        )
        self.events = self.env.open_db(b"events", dupsort=True, dupfixed=True)
        self.ids = self.env.open_db(b"ids")
        self.users = self.env.open_db(b"users")
        self.meta = self.env.open_db(b"meta")

    def sequence(self) -> int:
        """The version that was given last."""
        with self.env.begin() as txn:
            return int.from_bytes(txn.get(b"sequence", b"", db=self.meta), "big")

    def version(self, user: str) -> int:
        """Of a user; 0 where nothing is known."""
        with self.env.begin() as txn:
            return self._version(txn, user)

    def read(self, user: str, newest: int) -> tuple[int, Records, Records]:
        """Version, source and target events of one moment; the newest of each, 0 for all."""
        with self.env.begin(buffers=True) as txn:
            source, target = (
                self._records(txn, _key(user, letter), newest) for letter in LETTERS.values()
            )
            return self._version(txn, user), source, target

    def users_from(self, first: str, count: int) -> list[str]:
        """So many users in byte order, from `first` on."""
        found: list[str] = []
        with self.env.begin() as txn:
            cursor = txn.cursor(db=self.users)
            if cursor.set_range(first.encode()):
                for key in cursor.iternext(keys=True, values=False):
                    if len(found) == count:
                        break
                    found.append(key.decode())
        return found

    def counts(self) -> tuple[int, int]:
        """Users and events."""
        with self.env.begin() as txn:
            return txn.stat(self.users)["entries"], txn.stat(self.events)["entries"]

    @contextmanager
    def batch(self, now: int, sequence: int) -> Iterator[LmdbBatch]:
        """A write transaction: all of it, or nothing where the block raises."""
        with self.env.begin(write=True) as txn:
            yield LmdbBatch(self, txn, now, sequence)

    def _version(self, txn: lmdb.Transaction, user: str) -> int:
        return int.from_bytes(bytes(txn.get(user.encode(), b"", db=self.users)), "big")

    def _records(self, txn: lmdb.Transaction, key: bytes, newest: int) -> Records:
        cursor = txn.cursor(db=self.events)
        if not cursor.set_key(key):
            return unpack(b"", self.fields)
        if newest:
            cursor.last_dup()
            rows = [bytes(cursor.value())]
            while len(rows) < newest and cursor.prev_dup():
                rows.append(bytes(cursor.value()))
            return unpack(b"".join(reversed(rows)), self.fields)
        flat = cursor.getmulti([key], dupdata=True, dupfixed_bytes=self.record_bytes, keyfixed=True)
        table = np.frombuffer(flat, np.uint8).reshape(-1, len(key) + self.record_bytes)
        return unpack(table[:, len(key) :].tobytes(), self.fields)


class LmdbBatch:
    """One write transaction."""

    def __init__(self, tables: LmdbTables, txn: lmdb.Transaction, now: int, sequence: int) -> None:
        self.sequence = sequence
        """The version given last."""
        self.added: dict[tuple[str, bytes], list[bytes]] = {}
        """(user, letter of the domain) -> records that were stored."""
        self._tables, self._txn = tables, txn
        self._cursor = txn.cursor(db=tables.events)
        self._oldest = max(tables.limits.oldest(now), 0).to_bytes(8, "big")
        self._before: dict[str, int] = {}
        self._after: dict[str, int] = {}

    def add(self, event: Packed) -> Outcome:
        """Insert one record and evict what is over the limits."""
        tables, txn, cursor = self._tables, self._txn, self._cursor
        user, record = event.user.encode(), event.record
        if event.user not in self._before:
            found = txn.get(user, b"", db=tables.users)
            self._before[event.user] = int.from_bytes(found, "big")
        if not txn.put(_id_key(user, record), b"", db=tables.ids, overwrite=False):
            return "duplicate"
        letter = LETTERS[event.domain]
        key = _key(event.user, letter)
        txn.put(key, record, db=tables.events)
        cursor.set_key(key)
        kept = True
        while cursor.count() > tables.most or bytes(cursor.value()[:8]) < self._oldest:
            oldest = bytes(cursor.value())
            txn.delete(_id_key(user, oldest), db=tables.ids)
            cursor.delete()
            kept = kept and oldest != record
            if not cursor.set_key(key):
                break
        if not kept:
            return "too_old"
        self.sequence += 1
        self._after[event.user] = self.sequence
        self.added.setdefault((event.user, letter), []).append(record)
        return "stored"

    def remove(self, user: str) -> bool:
        """Remove a user; whether there was one."""
        tables, txn = self._tables, self._txn
        if not txn.delete(user.encode(), db=tables.users):
            return False
        for letter in LETTERS.values():
            txn.delete(_key(user, letter), db=tables.events)
        _delete_prefix(txn.cursor(db=tables.ids), user.encode() + b"\0")
        self.sequence += 1
        self._put_sequence()
        return True

    def finish(self) -> tuple[Change, ...]:
        """Write the versions; say what changed."""
        if self._after:
            self._put_sequence()
        changes = []
        for user, after in self._after.items():
            self._txn.put(user.encode(), after.to_bytes(8, "big"), db=self._tables.users)
            source, target = (
                unpack(b"".join(sorted(self.added.get((user, letter), []))), self._tables.fields)
                for letter in LETTERS.values()
            )
            changes.append(Change(user, self._before[user], after, source, target))
        return tuple(changes)

    def versions(self) -> dict[str, int]:
        """Of every user of the batch."""
        return {**self._before, **self._after}

    def _put_sequence(self) -> None:
        self._txn.put(b"sequence", self.sequence.to_bytes(8, "big"), db=self._tables.meta)


def _key(user: str, letter: bytes) -> bytes:
    return user.encode() + b"\0" + letter


def _id_key(user: bytes, record: bytes) -> bytes:
    return user + b"\0" + record[24:32]


def _delete_prefix(cursor: lmdb.Cursor, prefix: bytes) -> None:
    found = cursor.set_range(prefix)
    while found and bytes(cursor.key()).startswith(prefix):
        found = cursor.delete()
