"""Users' states of one model version: bounded, least recently used out first, rebuilt once.

A state is served only at the version that the store has (`fresh`), unless the caller asks for
whatever there is (`stale`). A miss is built by one thread while others wait for it.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lcn.serve.scorer import Scorer, same_rows
from lcn.serve.store.base import BehaviourStore, Change
from lcn.serve.user_state import UserState, View

Found = Literal["hit", "rebuilt"]

FIRST_REBUILD_S = 0.02
"""What the first rebuild counts for at most: it also pays for what is made only once."""
OUTLIER = 4
"""Times the mean that a rebuild counts for at most: one that was held up says little of others."""


@dataclass(slots=True)
class CacheCounts:
    """What happened so far."""

    hits: int = 0
    misses: int = 0
    rebuilds: int = 0
    evictions: int = 0
    updates: int = 0
    """Events' batches written into cached states."""
    dropped: int = 0
    """States that had to be built again: an event older than the newest, or no room."""
    audits: int = 0
    mismatches: int = 0
    rebuild_seconds: float = 0.0
    """Running mean of what a rebuild takes."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A state found, with how good it is."""

    view: View
    found: Found | Literal["stale"]
    age_s: float
    """Since its version was last known to be the store's."""


@dataclass(slots=True)
class _Build:
    """One rebuild that others may wait for."""

    done: threading.Event = field(default_factory=threading.Event)
    state: UserState | None = None


class StateCache:
    """See the module.

    Args:
        scorer: of the model version.
        store: where histories are.
        max_bytes: of all states together; one that is larger than this is used and forgotten.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        scorer: Scorer,
        store: BehaviourStore,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scorer, self._store, self._clock = scorer, store, clock
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._states: OrderedDict[str, UserState] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._building: dict[str, _Build] = {}
        self.bytes = 0
        self.counts = CacheCounts()

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self._states)

    def get(self, user: str, now: int) -> Lease:
        """The user's state at the store's version, from the cache or built.

        Raises:
            StoreError: the store cannot be read.
        """
        version = self._store.version(user)
        return self._hit(user, version, now) or self.build(user, version, now)

    def find(self, user: str, now: int) -> Lease | int:
        """The user's state if it is here at the store's version, else that version.

        Raises:
            StoreError: the store cannot be asked.
        """
        version = self._store.version(user)
        return self._hit(user, version, now) or version

    def build(self, user: str, version: int, now: int) -> Lease:
        """Build the user's state, at least at a version, or wait for who builds it.

        Raises:
            StoreError: the store cannot be read.
        """
        self.counts.misses += 1
        view = self._viewed(user, self._build(user, version, now), now)
        if view.version < version:
            # An event came in between that did not fit the state: one nobody else can reach.
            view = self._scorer.view(self._scorer.build(self._store.read(user, now)), now)
        return Lease(view, "rebuilt", 0.0)

    def peek(self, user: str, now: int) -> Lease | None:
        """Whatever state there is, without asking the store."""
        with self._lock:
            state = self._states.get(user)
        if state is None:
            return None
        view = self._viewed(user, state, now)
        if view.version < 0:
            return None
        return Lease(view, "stale", self._clock() - state.verified)

    def apply(self, change: Change) -> None:
        """Write a batch's events into the user's state, if it is here."""
        with self._lock:
            state = self._states.get(change.user)
        if state is None:
            return
        if self._scorer.extend(state, change):
            state.verified = self._clock()
            self.counts.updates += 1
        else:
            self.counts.dropped += 1
            self.drop(change.user)

    def drop(self, user: str) -> None:
        """Forget a user."""
        with self._lock:
            self._remove(user)

    def clear(self) -> None:
        """Forget everybody."""
        with self._lock:
            for user in list(self._states):
                self._remove(user)

    def hot_users(self, count: int) -> list[str]:
        """The users asked for last, newest first."""
        with self._lock:
            return list(reversed(self._states))[:count]

    def audit(self, now: int, draw: random.Random, share: float = 0.01) -> int:
        """Build a share of the states again and compare; what differs is dropped.

        Returns:
            How many were wrong.
        """
        with self._lock:
            users = list(self._states)
        wrong = 0
        for user in draw.sample(users, min(len(users), max(1, round(share * len(users))))):
            stored, state = self._store.read(user, now), self._at(user, None)
            if state is None:
                continue
            view = self._scorer.view(state, now)
            if view.version != stored.version:
                continue  # an event came in between
            self.counts.audits += 1
            rebuilt = self._scorer.view(self._scorer.build(stored), now)
            if not same_rows(view, rebuilt):
                wrong += 1
                self.counts.mismatches += 1
                self.drop(user)
        return wrong

    def _hit(self, user: str, version: int, now: int) -> Lease | None:
        state = self._at(user, version)
        if state is None:
            return None
        view = self._viewed(user, state, now)
        if view.version < version:
            return None  # being given up: part of a batch did not fit
        self.counts.hits += 1
        state.verified = self._clock()
        return Lease(view, "hit", 0.0)

    def _at(self, user: str, version: int | None) -> UserState | None:
        with self._lock:
            state = self._states.get(user)
            if state is None or (version is not None and state.version != version):
                return None
            self._states.move_to_end(user)
            return state

    def _build(self, user: str, version: int, now: int) -> UserState:
        """Build a state, or wait for the one who does."""
        for _ in range(3):
            with self._lock:
                build, mine = self._building.get(user), False
                if build is None:
                    build, mine = self._building.setdefault(user, _Build()), True
            if mine:
                return self._build_now(user, build, now)
            build.done.wait()
            # What was read before the asked-for version does not serve; then it is our turn.
            if build.state is not None and build.state.version >= version:
                return build.state
        return self._scorer.build(self._store.read(user, now))

    def _build_now(self, user: str, build: _Build, now: int) -> UserState:
        started = self._clock()
        try:
            build.state = state = self._scorer.build(self._store.read(user, now))
            state.verified = self._clock()
            self._insert(user, state)
        finally:
            with self._lock:
                self._building.pop(user, None)
            build.done.set()
        counts, spent = self.counts, self._clock() - started
        counts.rebuilds += 1
        spent = min(spent, max(FIRST_REBUILD_S, OUTLIER * counts.rebuild_seconds))
        counts.rebuild_seconds += (spent - counts.rebuild_seconds) * max(0.05, 1 / counts.rebuilds)
        return state

    def _viewed(self, user: str, state: UserState, now: int) -> View:
        view = self._scorer.view(state, now)
        with self._lock:
            if self._states.get(user) is state and self._sizes.get(user) != state.bytes:
                self._insert_locked(user, state)
        return view

    def _insert(self, user: str, state: UserState) -> None:
        with self._lock:
            self._insert_locked(user, state)

    def _insert_locked(self, user: str, state: UserState) -> None:
        self._remove(user)
        size = state.bytes
        if size > self._max_bytes:
            return
        while self.bytes + size > self._max_bytes:
            oldest = next(iter(self._states))
            self._remove(oldest)
            self.counts.evictions += 1
        self._states[user], self._sizes[user] = state, size
        self.bytes += size

    def _remove(self, user: str) -> None:
        if self._states.pop(user, None) is not None:
            self.bytes -= self._sizes.pop(user)
