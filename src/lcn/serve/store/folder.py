"""The folder of an embedded store: which of its files can be trusted, snapshots, tails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from lcn.errors import StoreError
from lcn.files import sha256_of, sync, write_whole
from lcn.serve.store.base import LocalDurability
from lcn.serve.store.tail import Frame, read_tail

FORMAT = 1


class StoreFolder:
    """Paths and their upkeep; see `lcn.serve.store.lmdb_store`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "lmdb"
        self.lock = path / "lock"
        self._facts = path / "store.json"
        self._snapshot = path / "snapshot"
        self._untrusted = path / "lmdb.untrusted"
        self.fields: tuple[str, ...] = ()
        self.was_closed = True

    def begin(self, fields: tuple[str, ...]) -> bool:
        """Whether the database file can be trusted: it was closed, or its writes were ordered, or
        the page cache it was written to is still there.

        From here on `fields` are those that the store keeps: the ones it was made for.

        Args:
            fields: what models read; must be among those that the store keeps.

        Raises:
            StoreError: some field is not kept, or made by a newer program.
        """
        before = self._read_facts()
        if before is not None and before["format"] != FORMAT:
            raise StoreError(
                f"{self.path} has store format {before['format']}, this program reads {FORMAT}"
            )
        kept = tuple(before["fields"]) if before is not None else fields
        if not set(fields) <= set(kept):
            raise StoreError(
                f"{self.path} keeps the event context fields {list(kept)}, the model needs "
                f"{list(fields)}; give another --data-dir and load the events again"
            )
        self.fields = kept
        self.was_closed = before is None or bool(before["closed"])
        trusted = (
            before is None
            or before["closed"]
            or before["durability"] == "always"
            or before["boot"] == boot_id()
        )
        self.database.mkdir(parents=True, exist_ok=True)
        self._facts_now: dict = {"format": FORMAT, "fields": list(kept), "durability": "always"}
        return trusted

    def note_open(self, durability: LocalDurability) -> None:
        """Note that the store is open and whole."""
        self._facts_now["durability"] = durability
        self._write_facts(closed=False)

    def end(self) -> None:
        """Note that everything is on disk."""
        self._write_facts(closed=True)

    def restore_snapshot(self) -> None:
        """Put the snapshot in the place of a database that cannot be trusted, which stays beside it
        until `drop_untrusted`.

        Raises:
            StoreError: the snapshot is damaged too, or gone, or cannot be copied; nothing was
                changed.
        """
        found = self._newest_snapshot()
        if found is None:
            raise StoreError(
                f"{self.path} was not closed before the machine stopped, and its snapshot is gone; "
                "restore it from a backup, or remove it and load the events again"
            )
        data = found / "data.mdb"
        expected = (found / "sha256").read_text().strip()
        if sha256_of(data) != expected:
            raise StoreError(
                f"{data} is damaged (its SHA-256 is not {expected}); restore {self.path} from a "
                "backup, or remove it and load the events again"
            )
        fresh = self.database.with_name("lmdb.new")
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            shutil.copyfile(data, fresh / "data.mdb")
            sync(fresh / "data.mdb")
            shutil.rmtree(self._untrusted, ignore_errors=True)
            self.database.rename(self._untrusted)
            fresh.rename(self.database)
            sync(self.path)
        except OSError as error:
            raise StoreError(f"cannot restore the snapshot of {self.path}: {error}") from error

    def drop_untrusted(self) -> None:
        """Remove the database that `restore_snapshot` put aside."""
        shutil.rmtree(self._untrusted, ignore_errors=True)

    def frames(self, *, repair: bool) -> Iterator[Frame]:
        """What came after the snapshot, in order."""
        for path in self._tails():
            yield from read_tail(path, repair=repair)

    @property
    def tail_bytes(self) -> int:
        """Of all tails: what a recovery would read."""
        return sum(path.stat().st_size for path in self._tails())

    def next_tail(self) -> Path:
        """A new name for a tail."""
        numbers = [int(path.stem.partition("-")[2]) for path in self._tails()]
        return self.path / f"tail-{max(numbers, default=0) + 1:012d}.log"

    def write_snapshot(self, copy: Callable[[Path], None]) -> None:
        """Make a snapshot and drop the tails before the newest one, atomically.

        Args:
            copy: writes the database into the folder it is given.
        """
        keep = self._tails()[-1]
        partial = self.path / "snapshot.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        copy(partial)
        data = partial / "data.mdb"
        sync(data)
        write_whole(partial / "sha256", sha256_of(data))
        old = self.path / "snapshot.old"
        shutil.rmtree(old, ignore_errors=True)
        if self._snapshot.exists():
            self._snapshot.rename(old)
        partial.rename(self._snapshot)
        sync(self.path)
        shutil.rmtree(old, ignore_errors=True)
        for path in self._tails():
            if path < keep:
                path.unlink()

    @property
    def has_snapshot(self) -> bool:
        """Whether there is a whole snapshot with its tails (only `everysec` keeps them)."""
        return self._newest_snapshot() is not None

    def drop_snapshot(self) -> None:
        """Remove what level `always` does not keep up to date."""
        for path in (self._snapshot, self.path / "snapshot.old"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self._tails():
            path.unlink()

    def _newest_snapshot(self) -> Path | None:
        for path in (self._snapshot, self.path / "snapshot.old"):
            if (path / "sha256").exists():
                return path
        return None

    def _tails(self) -> list[Path]:
        return sorted(self.path.glob("tail-*.log"))

    def _read_facts(self) -> dict | None:
        try:
            return json.loads(self._facts.read_text())
        except FileNotFoundError:
            return None
        except (OSError, json.JSONDecodeError) as error:
            raise StoreError(f"cannot read {self._facts}: {error}") from error

    def _write_facts(self, *, closed: bool) -> None:
        facts = {**self._facts_now, "closed": closed, "boot": boot_id()}
        write_whole(self._facts, json.dumps(facts, indent=1) + "\n")


def boot_id() -> str:
    """Names this run of the machine: what the page cache holds outlives a process, not a boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
