"""The event store: each user's events once, and where every impression's history ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lcn.data.dataset import Int32, Int64
from lcn.data.mapping import Events
from lcn.data.prepare.codes import ITEMS, USERS, Codes, category
from lcn.data.prepare.engine import Engine, explained
from lcn.data.prepare.files import ColumnWriter, write_column
from lcn.data.prepare.impressions import Shown, moments_by_user
from lcn.data.prepare.ordered import Columns, Deduplicator, encoded
from lcn.data.prepare.staging import Staged
from lcn.data.prepare.vocabulary import Seen
from lcn.schema import Domain


@dataclass(frozen=True, slots=True)
class Stored:
    """One domain's store, written."""

    rows: int
    duplicates: dict[str, int]
    """table label -> rows dropped"""
    delays: frozenset[int]
    """Least and greatest milliseconds between an event's time and its becoming known; empty without
    events."""


def store_events(
    engine: Engine,
    tables: list[tuple[Staged, Events]],
    codes: Codes,
    domain: Domain,
    shown: Shown,
    seen: Seen,
    folder: Path,
) -> Stored:
    """Write one domain's events by (user, known, time, everything else), and the history ends.

    Known is the end of the later of time and arrival, as exactly as they are logged. Context
    columns hold codes; `write_vocabularies` turns them into vocabulary indices.

    Args:
        seen: counts what occurs in training days.
        folder: the store's folder; the ends go to `<domain>_end.npy` beside the impressions.
    """
    with explained(f"sorting {domain} events"), ExitStack() as stack:
        writers = [
            stack.enter_context(ColumnWriter(folder / "item.npy", np.int32)),
            stack.enter_context(ColumnWriter(folder / "time.npy", np.int64)),
            stack.enter_context(ColumnWriter(folder / "context.npy", np.int32, len(codes.event))),
        ]
        ends = np.lib.format.open_memmap(
            shown.folder / f"{domain}_end.npy", mode="w+", dtype=np.int64, shape=(shown.rows,)
        )
        cutter = HistoryCutter(moments_by_user(engine), ends)
        per_user_U = np.zeros(codes.users + 1, np.int64)
        unique = Deduplicator([not staged.query.has_id for staged, _ in tables])
        delays: set[int] = set()
        for columns in unique.of(engine.stream(_ordered(tables, codes, domain))):
            user_E, known_E = columns["user"], columns["known"]
            delay_E = known_E - columns["time"]
            delays |= {int(delay_E.min()), int(delay_E.max())}
            delays = {min(delays), max(delays)}
            codes_EG = _codes(columns, len(codes.event))
            for writer, values in zip(
                writers, (columns["item"], columns["time"], codes_EG), strict=True
            ):
                writer.append(values)
            cutter.pass_events(user_E, known_E)
            per_user_U[user_E[0] : user_E[-1] + 1] += np.bincount(user_E - user_E[0])
            seen.count_events(user_E, columns["item"], known_E, codes_EG)
        cutter.finish()
        ends.flush()
        write_column(folder / "offsets.npy", np.concatenate([[0], np.cumsum(per_user_U)]))
    labels = [staged.name for staged, _ in tables]
    dropped = dict(zip(labels, unique.dropped, strict=True))
    return Stored(writers[0].rows, dropped, frozenset(delays))


class HistoryCutter:
    """Finds, for impressions and events both in order of (user, time), where histories end.

    All rows of the store before (user, impression time) in that order are those of earlier users
    and those of this user known strictly before the impression; their number is the end.

    Args:
        moments: batches of (user, time, row) by user and time.
        end_S: written at `row`.
    """

    def __init__(self, moments: Iterator[tuple[Int32, Int64, Int64]], end_S: NDArray) -> None:
        self._moments = moments
        self._end_S = end_S
        self._passed = 0
        self._waiting: tuple[Int32, Int64, Int64] | None = next(moments, None)

    def pass_events(self, user_E: Int32, known_E: Int64) -> None:
        """Take the store's next rows."""
        while self._waiting is not None:
            user_S, time_S, row_S = self._waiting
            ready = _count_up_to(user_S, time_S, user_E[-1], known_E[-1])
            before = count_before(user_E, known_E, user_S[:ready], time_S[:ready])
            self._end_S[row_S[:ready]] = self._passed + before
            if ready < len(user_S):
                self._waiting = (user_S[ready:], time_S[ready:], row_S[ready:])
                break
            self._waiting = next(self._moments, None)
        self._passed += len(user_E)

    def finish(self) -> None:
        """Give impressions after the last event the whole store as their past."""
        while self._waiting is not None:
            self._end_S[self._waiting[2]] = self._passed
            self._waiting = next(self._moments, None)


def count_before(user_E: Int32, known_E: Int64, user_S: Int32, time_S: Int64) -> Int64:
    """Count, for each impression, the events before (user, time) in that order.

    Args:
        user_E, known_E: events in order of (user, known).
        user_S, time_S: impressions, in any order.
    """
    # One number per row that sorts as (user, time): users by rank, times counted from the least.
    is_new_E = np.concatenate([[True], user_E[1:] != user_E[:-1]])
    users_U, rank_E = user_E[is_new_E], np.cumsum(is_new_E) - 1
    low, high = int(known_E.min()), int(known_E.max())
    span = high - low + 2
    if len(users_U) * span >= 2**62:
        half = len(user_E) // 2
        return count_before(user_E[:half], known_E[:half], user_S, time_S) + count_before(
            user_E[half:], known_E[half:], user_S, time_S
        )
    key_E = rank_E * span + (known_E - low)
    rank_S = np.searchsorted(users_U, user_S)
    is_there_S = users_U[np.minimum(rank_S, len(users_U) - 1)] == user_S
    since_S = np.where(is_there_S, np.clip(time_S, low, high + 1) - low, 0)
    return np.searchsorted(key_E, rank_S * span + since_S, side="left")


def _count_up_to(user_S: Int32, time_S: Int64, user: int, time: int) -> int:
    """Count the leading impressions that are not after (user, time)."""
    first, last = np.searchsorted(user_S, [user, user + 1])
    return int(first + np.searchsorted(time_S[first:last], time, side="right"))


def _ordered(tables: list[tuple[Staged, Events]], codes: Codes, domain: Domain) -> str:
    columns = {
        '"user"': f"{USERS}.address",
        "known": "log.known",
        "time": "log.time",
        "item": f"{ITEMS}.address",
    }
    wanted = "target" if domain == "target" else "NOT target"
    selects = []
    for staged, mapped in tables:
        names = tuple(mapped.context)
        fields = [(coded, category(names, coded.name)) for coded in codes.event]
        selects.append(encoded(staged, columns, fields, wanted))
    keys = [*columns, *(f"k{number}" for number in range(len(codes.event))), "part"]
    return f"{' UNION ALL '.join(selects)} ORDER BY {', '.join(keys)}"


def _codes(columns: Columns, fields: int) -> Int32:
    if fields == 0:
        return np.empty((len(columns["user"]), 0), np.int32)
    return np.column_stack([columns[f"k{number}"] for number in range(fields)]).astype(
        np.int32, copy=False
    )
