"""An event as a fixed-size record whose bytes sort as histories do.

A record is 5 + G big-endian 64-bit numbers:

    known  time  sequence  event  item  context_1 .. context_G

known is when the event became known (its time, or its arrival where that is later), so byte order
is (known, time, sequence, event): the order of a prepared dataset, and a history before a moment
is a prefix. event, item and context values are 64-bit hashes of their texts, the same in every
version of a model and on every replica; 0 is "no value". The result depends on the set of events
alone, never on the order of their arrival.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lcn.errors import StoreError
from lcn.schema import Domain

KNOWN, TIME, SEQUENCE, EVENT, ITEM, CONTEXT = range(6)
"""Columns of a record; the context fields come last."""

Records = NDArray[np.uint64]
"""[n, 5 + G], big-endian, in order."""

FUTURE_MS = 5 * 60_000
"""Clock differences that are forgiven: an event this far ahead waits until its time has come."""
MAX_FIELDS = 58
"""Context fields that fit a record of an LMDB store (511 bytes)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One behaviour of a user, as a producer reports it."""

    user: str
    event_id: str
    """Names the event; one that comes again changes nothing."""
    item: str
    time: int
    """UTC milliseconds."""
    domain: Domain = "source"
    sequence: int = 0
    """Order among events of one time."""
    arrival: int | None = None
    """When it became known, where that is not its time."""
    context: Mapping[str, str] = field(default_factory=dict)
    """Field name -> value."""


class EventLike(Protocol):
    """What stores read of an event, whoever made it: `Event`, or one just parsed."""

    @property
    def user(self) -> str:
        """See `Event`, for all of these."""
        ...

    @property
    def event_id(self) -> str: ...  # noqa: D102

    @property
    def item(self) -> str: ...  # noqa: D102

    @property
    def time(self) -> int: ...  # noqa: D102

    @property
    def domain(self) -> Domain: ...  # noqa: D102

    @property
    def sequence(self) -> int: ...  # noqa: D102

    @property
    def arrival(self) -> int | None: ...  # noqa: D102

    @property
    def context(self) -> Mapping[str, str]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Packed:
    """An event as stores take it."""

    user: str
    domain: Domain
    record: bytes


@lru_cache(maxsize=1 << 17)
def hash_text(text: str) -> int:
    """The 64-bit name of a text; never 0."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") or 1


def hash_texts(texts: Sequence[str]) -> NDArray[np.uint64]:
    """`hash_text` of many, for a vocabulary."""
    plain = hash_text.__wrapped__
    return np.fromiter((plain(text) for text in texts), np.uint64, len(texts))


def pack(event: EventLike, fields: Sequence[str]) -> Packed:
    """Turn an event into a record; context values of other names are left out."""
    known = max(event.time, event.arrival or 0)
    context = [
        hash_text(event.context[name]) if event.context.get(name) is not None else 0
        for name in fields
    ]
    record = struct.pack(
        f">{CONTEXT + len(fields)}Q",
        known,
        event.time,
        event.sequence,
        hash_text.__wrapped__(event.event_id),  # never asked for again: not worth remembering
        hash_text(event.item),
        *context,
    )
    return Packed(event.user, event.domain, record)


def record_bytes(fields: int) -> int:
    """Size of a record with so many context fields."""
    return 8 * (CONTEXT + fields)


def unpack(data: bytes | memoryview, fields: int) -> Records:
    """Read concatenated records."""
    return np.frombuffer(data, ">u8").reshape(-1, CONTEXT + fields)


def time_problem(time: int, now: int, earliest: int) -> str | None:
    """Say why a time cannot be that of an event: `unit`, `early` or `future`; None when it can.

    Args:
        time: UTC milliseconds, as claimed.
        now: UTC milliseconds.
        earliest: the first plausible time.
    """
    latest = now + FUTURE_MS
    if earliest <= time <= latest:
        return None
    for factor in (1000, 1 / 1000, 1 / 1_000_000):
        if earliest <= time * factor <= latest:
            return "unit"
    return "early" if time < earliest else "future"


def check_fields(fields: Sequence[str]) -> tuple[str, ...]:
    """Refuse more context fields than a record holds.

    Raises:
        StoreError: too many.
    """
    if len(fields) > MAX_FIELDS:
        raise StoreError(
            f"a behaviour store keeps at most {MAX_FIELDS} event context fields, got "
            f"{len(fields)}; leave out those that no model reads"
        )
    return tuple(fields)
