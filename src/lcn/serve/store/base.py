"""What every behaviour store promises.

* an event that comes twice changes nothing: replaying a day leaves the same state;
* a user's history is the newest `Limits.events` events of each domain, in the order of records,
  whatever the order of arrival; an event older than the tail of a full history is counted only;
* after `append` returns, every `read` sees its events (read-your-writes);
* what an acknowledgement means is in it: `Ack.durability`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lcn.errors import StoreError, StoreFullError
from lcn.schema import Domain
from lcn.serve.store.records import KNOWN, Packed, Records

LocalDurability = Literal["always", "everysec"]
"""always: on disk before it is acknowledged; everysec: at most a second later (a killed process
loses nothing, a power cut up to a second)."""

Outcome = Literal["stored", "duplicate", "too_old"]
"""too_old: older than the tail of a full history, or than its age limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a user's history is kept, for each domain; what is over goes oldest first."""

    events: int = 2000
    age_ms: int = 0
    """Older events are not read and go when the user's next event comes; 0 keeps them."""
    bytes: int = 0
    """Most bytes of records; 0 sets no such limit."""

    def count(self, record_bytes: int) -> int:
        """Events that fit both limits."""
        return min(self.events, self.bytes // record_bytes) if self.bytes else self.events

    def oldest(self, now: int) -> int:
        """The first moment that is young enough."""
        return now - self.age_ms if self.age_ms else 0

    def young(self, records: Records, now: int) -> Records:
        """The records within the age limit."""
        if not self.age_ms:
            return records
        return records[np.searchsorted(records[:, KNOWN], max(self.oldest(now), 0)) :]


@dataclass(frozen=True, slots=True)
class Change:
    """What a batch changed of one user, for caches of what follows from the history."""

    user: str
    before: int
    """Version of the user's history before the batch."""
    after: int
    """Version of the user's history after it."""
    source: Records
    """Events added, in the order of records (some may be older than what was there)."""
    target: Records


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a batch."""

    outcomes: tuple[Outcome, ...]
    versions: Mapping[str, int]
    """Of each user of the batch after it: a history read later has at least this one."""
    durability: str
    """`always`, `everysec`, or what the server says of itself."""
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A user's history."""

    version: int
    """Grows with every change of this user; 0 for a user without events."""
    source: Records
    target: Records

    def of(self, domain: Domain) -> Records:
        """Records of one domain."""
        return self.source if domain == "source" else self.target


def failed(text: str) -> StoreError:
    """A StoreError; a StoreFullError where the text of the system or a Redis server says so."""
    return (StoreFullError if "No space left" in text else StoreError)(text)


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """Kind and size of a store, for people and metrics."""

    kind: str
    users: int
    events: int
    bytes: int


class BehaviourStore(Protocol):
    """A behaviour store; safe to use from several threads."""

    fields: tuple[str, ...]
    limits: Limits
    durability: str

    def append(self, batch: Sequence[Packed], now: int) -> Ack:
        """Add events, all or none; idempotent by event id.

        Args:
            batch: events of any users and domains.
            now: UTC milliseconds, for the age limit.

        Raises:
            StoreError: full or unreachable; nothing of the batch is acknowledged.
        """
        ...

    def version(self, user: str) -> int:
        """Version of a user's history; 0 without one."""
        ...

    def read(self, user: str, now: int, newest: int = 0) -> Stored:
        """A user's history within its limits.

        Args:
            user: any key.
            now: UTC milliseconds, for the age limit.
            newest: only so many events of each domain; 0 reads all.
        """
        ...

    def delete(self, user: str) -> bool:
        """Remove everything known of a user; False when nothing was."""
        ...

    def users(self, first: str, count: int) -> list[str]:
        """Users with events, in some order, from a key on (after it, where it is not there)."""
        ...

    def facts(self) -> StoreFacts:
        """Size and kind."""
        ...

    def close(self) -> None:
        """Leave everything on disk."""
        ...
