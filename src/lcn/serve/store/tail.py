"""The tail: an append-only log of batches since the last snapshot, for the `everysec` level.

A frame is [length u32][CRC-32 of the payload u32][payload]. A log that ends in the middle of a
frame lost its last write and is read up to there; a bad frame with more behind it is damage and is
refused, with what to do.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lcn.errors import StoreError

_HEAD = struct.Struct("<II")
_ENTRY = struct.Struct("<BHI")
_BATCH, _DELETE = 0, 1
_LEAST = 12
"""Bytes of a frame without entries."""
_MOST = 1 << 28
"""Bytes of a frame; a longer length is damage."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Records added to one history, or (no domain) a user's removal."""

    user: str
    domain: str
    """`s`, `t`, or empty: everything of the user is gone."""
    records: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """One acknowledged batch."""

    version: int
    """Of the store after it."""
    entries: tuple[Entry, ...]


class Tail:
    """The log being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self.bytes = path.stat().st_size

    def write(self, frame: Frame) -> None:
        """Hand a frame to the operating system; `sync` puts it on disk."""
        payload = _encode(frame)
        data = _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
        written = self._file.write(data)
        if written != len(data):
            # A torn frame in the middle would read as damage later.
            os.ftruncate(self._file.fileno(), self.bytes)
            raise OSError(28, "short write to the behaviour log")
        self.bytes += len(data)

    def sync(self) -> None:
        """Wait until everything written is on disk."""
        os.fdatasync(self._file.fileno())

    def close(self, *, sync: bool = True) -> None:
        """Sync, unless that is done, and close."""
        if sync:
            self.sync()
        self._file.close()

    def discard(self) -> None:
        """Close and remove a log that nothing was written to."""
        self._file.close()
        self.path.unlink()


def read_tail(path: Path, *, repair: bool = False) -> Iterator[Frame]:
    """Yield the frames of a log.

    Args:
        path: the log.
        repair: take damage in the middle for the end, leaving out what is behind it.

    Raises:
        StoreError: damage in the middle; says how to repair.
    """
    # File systems may leave zeros in the place of a last write, or of its end, that was cut off.
    data = path.read_bytes()
    written = len(data.rstrip(b"\0"))
    at = 0
    while at < written:
        end, payload = _frame_at(data, at, written)
        if payload is None:
            if end < len(data) and not repair:
                raise StoreError(
                    f"{path} is damaged at byte {at} of {len(data)}, not at its end: "
                    f"{len(data) - at} bytes behind it cannot be trusted. Restore the file, or "
                    "start once with `lcn serve --repair-store` to go on without them"
                )
            return
        try:
            frame = _decode(payload)
        except (struct.error, UnicodeDecodeError) as error:
            raise StoreError(
                f"{path} holds a record at byte {at} that this program cannot read ({error!r}); "
                "restore the file, or open it with the program that wrote it"
            ) from error
        yield frame
        at = end


def _frame_at(data: bytes, at: int, written: int) -> tuple[int, bytes | None]:
    """Where the frame ends (if its length is to be believed) and its payload, None if damaged."""
    if at + _HEAD.size > len(data):
        return len(data), None
    length, checksum = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + length
    if not _LEAST <= length <= _MOST or end > len(data):
        return _resume(data, at), None
    payload = data[at + _HEAD.size : end]
    if zlib.crc32(payload) == checksum:
        return end, payload
    return len(data) if end >= written else end, None


def _resume(data: bytes, at: int) -> int:
    """Where a whole frame follows behind a bad one, or the end: tells damage from a torn end."""
    for start in range(at + 1, len(data) - _HEAD.size):
        length, checksum = _HEAD.unpack_from(data, start)
        end = start + _HEAD.size + length
        plausible = _LEAST < length <= _MOST and end <= len(data)
        if plausible and zlib.crc32(data[start + _HEAD.size : end]) == checksum:
            return start
    return len(data)


def _encode(frame: Frame) -> bytes:
    parts = [struct.pack("<QI", frame.version, len(frame.entries))]
    for entry in frame.entries:
        user = entry.user.encode()
        kind = _DELETE if not entry.domain else _BATCH
        parts += [_ENTRY.pack(kind, len(user), len(entry.records)), user]
        parts += [entry.domain.encode() or b"-", entry.records]
    return b"".join(parts)


def _decode(payload: bytes) -> Frame:
    version, count = struct.unpack_from("<QI", payload)
    at, entries = 12, []
    for _ in range(count):
        kind, user_length, length = _ENTRY.unpack_from(payload, at)
        at += _ENTRY.size
        user = payload[at : at + user_length].decode()
        at += user_length
        domain = "" if kind == _DELETE else payload[at : at + 1].decode()
        at += 1
        entries.append(Entry(user, domain, payload[at : at + length]))
        at += length
    return Frame(version, tuple(entries))
