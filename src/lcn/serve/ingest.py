"""Events into the store: checked, then committed in groups by one thread.

While one group is being written the next one gathers, so a disk that syncs slowly is waited for
once per group and not once per request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from lcn.errors import StoreError
from lcn.serve.admission import Overloaded
from lcn.serve.metrics import ServerMetrics
from lcn.serve.registry import Registry
from lcn.serve.store.base import Ack, BehaviourStore, Outcome
from lcn.serve.store.records import EventLike, pack, time_problem

Refused = Literal["unit", "early", "future"]


@dataclass(frozen=True, slots=True)
class Ingested:
    """The answer to a request's events."""

    outcomes: tuple[Outcome | Refused, ...]
    versions: dict[str, int]
    """Of each user's history."""
    durability: str


@dataclass(slots=True)
class _Waiting:
    events: Sequence[EventLike]
    done: asyncio.Future[Ack]


class Ingest:
    """See the module.

    Args:
        store: where events go.
        registry: whose caches follow.
        metrics: counted here.
        now: the time of day, UTC milliseconds.
        earliest: UTC milliseconds of the first plausible event.
        most: events that may wait.
    """

    def __init__(
        self,
        store: BehaviourStore,
        registry: Registry,
        metrics: ServerMetrics,
        *,
        now: Callable[[], int],
        earliest: int,
        most: int = 20_000,
    ) -> None:
        self._store, self._registry, self._metrics = store, registry, metrics
        self._now, self._earliest, self._most = now, earliest, most
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._waiting: list[_Waiting] = []
        self._count = 0
        self._running = False

    async def add(self, events: Sequence[EventLike]) -> Ingested:
        """Store events; those with impossible times are refused one by one.

        Raises:
            StoreError: nothing is acknowledged.
            Overloaded: too many events wait.
        """
        now = self._now()
        problems = [
            time_problem(event.time, now, self._earliest)
            or (time_problem(event.arrival, now, self._earliest) if event.arrival else None)
            for event in events
        ]
        good = [event for event, problem in zip(events, problems, strict=True) if problem is None]
        ack = await self._commit(good)
        stored = iter(ack.outcomes)
        outcomes = tuple(problem or next(stored) for problem in problems)
        for outcome, count in Counter(outcomes).items():
            self._metrics.events.labels(outcome).inc(count)
        versions = {event.user: ack.versions[event.user] for event in good}
        return Ingested(outcomes, versions, ack.durability)  # type: ignore[arg-type]

    async def delete(self, user: str) -> bool:
        """Remove a user from store and caches, after the events that wait."""

        def work() -> bool:
            try:
                return self._store.delete(user)
            finally:
                # An error does not say that the user is still there: caches must ask again.
                self._registry.forget(user)

        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Finish what waits."""
        self._pool.shutdown(wait=True)

    async def _commit(self, events: Sequence[EventLike]) -> Ack:
        if self._count + len(events) > self._most:
            raise Overloaded("ingest")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(events, loop.create_future())
        self._waiting.append(waiting)
        self._count += len(events)
        if not self._running:
            self._running = True
            task = loop.create_task(self._flush())
            self._task = task  # a task without a reference may be collected
        return await waiting.done

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                self._count = 0
                try:
                    ack = await loop.run_in_executor(self._pool, self._write, group)
                except Exception as error:
                    self._metrics.store_errors.labels("append").inc()
                    for each in group:
                        if not each.done.done():
                            each.done.set_exception(error)
                    continue
                at = 0
                for each in group:
                    part = ack.outcomes[at : at + len(each.events)]
                    at += len(each.events)
                    if not each.done.done():
                        each.done.set_result(Ack(part, ack.versions, ack.durability, ()))
        finally:
            self._running = False

    def _write(self, group: list[_Waiting]) -> Ack:
        fields = self._store.fields
        batch = [pack(event, fields) for each in group for event in each.events]
        try:
            ack = self._store.append(batch, self._now())
        except StoreError:
            # Part of the batch may be in (several users on a server): caches must ask again.
            for user in {each.user for each in batch}:
                self._registry.forget(user)
            raise
        for change in ack.changes:
            self._registry.apply(change)
        return ack
