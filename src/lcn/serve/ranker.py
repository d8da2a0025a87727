"""Whole requests, in time or not at all: a bounded queue, deadlines, and what is done without.

Who is let in is decided in `lcn.serve.admission`. Many candidates are scored in parts of one size,
so an idle worker can take some and the logits are the same whether one did.
When a state is not at hand: rebuild it if there is time; else a stale one; else the short-term
part; without the store a stale one, else no history at all. Each is named in the answer. A state
there was no time for is rebuilt beside the requests, one at a time, so that the user's next request
finds it and the idea of how long a rebuild takes is corrected.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lcn.backbones.base import Level
from lcn.errors import StoreError
from lcn.serve.admission import Admission, Ticket
from lcn.serve.metrics import ServerMetrics
from lcn.serve.registry import Registry, Version
from lcn.serve.scorer import Request
from lcn.serve.state_cache import StateCache
from lcn.serve.store.base import BehaviourStore
from lcn.serve.user_state import View

Degraded = Literal["stale", "short", "prior"]

REBUILD_S = 1.0
"""Between rebuilds beside the requests while requests wait; with idle workers there is no pause."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item to score, with its candidate-only fields."""

    item: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Job:
    """One request, as a client words it."""

    user: str
    candidates: Sequence[Candidate]
    context: dict[str, str]
    profile: dict[str, str] | None = None
    """None takes the profile known from training."""
    moment: int | None = None
    """UTC milliseconds; None is now, with every event up to now."""
    explain: int = 0
    """So many candidates, the first ones, are explained."""
    cancelled: bool = False


@dataclass(slots=True)
class _Run:
    """A job on its way."""

    job: Job
    version: Version
    ticket: Ticket
    deadline: float
    """Monotonic seconds."""
    clock: Callable[[], float]
    service_s: float | None = None
    """How long it ran, once it did."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """An answer."""

    logit_C: NDArray[np.float32]
    version: Version
    state_version: int
    state_age_ms: float
    degraded: Degraded | None
    unknown: tuple[int, ...]
    """Places of candidates that the model does not know."""
    view: View
    moment: int
    """UTC milliseconds; events known strictly before were seen."""
    levels: tuple[Level, ...]


class Late(Exception):
    """The deadline passed; `where` says in which stage."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


class Ranker:
    """See the module.

    Args:
        registry: the versions.
        store: where histories are.
        metrics: counted here.
        now: the time of day, UTC milliseconds.
        workers: threads that score.
        queue: requests that may wait or run.
        stale_s: how old a state may be when the store does not answer.
        short: events of the short-term part.
        part: candidates that are scored together; more are cut into parts of nearly one size.
        usual_s: the time that most requests have; see `lcn.serve.admission`.
    """

    def __init__(  # noqa: PLR0913
        self,
        registry: Registry,
        store: BehaviourStore,
        metrics: ServerMetrics,
        *,
        now: Callable[[], int],
        workers: int = 1,
        queue: int = 64,
        stale_s: float = 600.0,
        short: int = 50,
        part: int = 500,
        usual_s: float = math.inf,
    ) -> None:
        self._registry, self._store, self._metrics = registry, store, metrics
        self._now, self._workers = now, workers
        self._stale_s, self._short, self._part = stale_s, short, part
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="rank")
        self._rebuilder = ThreadPoolExecutor(1, thread_name_prefix="rebuild")
        self._rebuilding, self._rebuild_at_s = threading.Lock(), 0.0
        self.admission = Admission(workers, queue, usual_s)

    async def rank(
        self,
        job: Job,
        version: Version,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> Ranked:
        """Score a job before a deadline.

        Args:
            job: the request.
            version: the model version that answers it.
            deadline: monotonic seconds.
            clock: monotonic seconds.

        Raises:
            Overloaded: no room in the queue, or no chance to be in time.
            Late: the deadline passed.
        """
        queued = clock()
        ticket = self.admission.enter(queued, deadline - queued)
        running = _Run(job, version, ticket, deadline, clock)
        work = asyncio.get_running_loop().run_in_executor(self._pool, self._work, running)
        work.add_done_callback(lambda _: self.admission.leave(ticket, clock(), running.service_s))
        try:
            ranked = await work
        except asyncio.CancelledError:
            job.cancelled = True
            raise
        if clock() > deadline:
            raise Late("score")
        return ranked

    def close(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._rebuilder.shutdown(wait=True)

    def _work(self, run: _Run) -> Ranked:
        job, version, clock = run.job, run.version, run.clock
        started = clock()
        self._metrics.stage.labels("queue").observe(started - run.ticket.at_s)
        # What waited and is now unlikely to be in time is not begun; what found an idle worker is,
        # or a wrong idea of the time it takes would never be corrected.
        hopeless = run.ticket.waits and started + self.admission.service_s > run.deadline
        if hopeless or started > run.deadline or job.cancelled:
            raise Late("queue")
        now = self._now()
        moment = now + 1 if job.moment is None else job.moment
        view, age, degraded = self._view(job.user, version, now, run.deadline - started)
        ready = clock()
        self._metrics.stage.labels("state").observe(ready - started)
        request, unknown = self._request(job, version, moment)
        logit_C = self._logits(version, view, request)
        if not bool(np.isfinite(logit_C).all()):
            self._metrics.nonfinite.inc()
            raise ArithmeticError(f"model {version.name} {version.version} gave non-finite logits")
        levels: tuple[Level, ...] = ()
        if job.explain:
            first = request.first(job.explain)
            levels = version.scorer.score(view, first, levels=True).levels
        run.service_s = clock() - started
        self._metrics.stage.labels("score").observe(clock() - ready)
        return Ranked(
            logit_C, version, view.version, 1000 * age, degraded, unknown, view, moment,
            levels,
        )  # fmt: skip

    def _logits(self, version: Version, view: View, request: Request) -> NDArray[np.float32]:
        """Score in parts; workers with nothing to do help.

        Whoever comes takes the next part, so a helper that comes late finds none and nobody waits
        for a helper that has not begun.
        """
        parts = request.parts(self._part)
        if len(parts) == 1:
            return version.scorer.score(view, request).logit_C
        todo = deque(enumerate(parts))
        logit_PC: list[NDArray[np.float32] | None] = [None] * len(parts)

        def take() -> None:
            while True:
                try:
                    place, part = todo.popleft()
                except IndexError:
                    return
                logit_PC[place] = version.scorer.score(view, part).logit_C

        idle = min(self._workers - self.admission.pending, len(parts) - 1)
        helpers: list[Future[None]] = []
        try:
            for _ in range(idle):
                with suppress(RuntimeError):  # shutting down: no helpers any more
                    helpers.append(self._pool.submit(take))
            take()
        finally:
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
        return np.concatenate([each for each in logit_PC if each is not None])

    def _view(
        self, user: str, version: Version, now: int, left: float
    ) -> tuple[View, float, Degraded | None]:
        """The best view there is time for."""
        cache = version.cache
        try:
            found = cache.find(user, now)
            if not isinstance(found, int):
                return found.view, found.age_s, None
            if cache.counts.rebuild_seconds + self.admission.service_s <= left:
                with self._metrics.stage.labels("rebuild").time():
                    built = cache.build(user, found, now)
                return built.view, built.age_s, None
            # Looked up first: a quick rebuild beside would be there already, and called stale.
            stale = self._stale(user, version, now)
            self._rebuild_beside(cache, user, found, now)
            if stale is not None:
                return stale
            scorer = version.scorer
            stored = self._store.read(user, now, newest=self._short)
            return scorer.view(scorer.build(stored), now), 0.0, self._note("short")
        except StoreError:
            self._metrics.store_errors.labels("read").inc()
            stale = self._stale(user, version, now)
            if stale is not None:
                return stale
            return version.scorer.empty(), 0.0, self._note("prior")

    def _rebuild_beside(self, cache: StateCache, user: str, version: int, now: int) -> None:
        """Rebuild a state for later requests, unless another one is being rebuilt so.

        Without it one slow moment would teach that rebuilds do not fit the time of a request, and
        no rebuild would ever teach otherwise.
        """
        if not self._rebuilding.acquire(blocking=False):
            return
        busy = self.admission.pending > self._workers
        if busy and time.monotonic() < self._rebuild_at_s + REBUILD_S:
            self._rebuilding.release()
            return
        self._rebuild_at_s = time.monotonic()

        def work() -> None:
            try:
                cache.build(user, version, now)
            except StoreError:
                self._metrics.store_errors.labels("read").inc()
            finally:
                self._rebuilding.release()

        try:
            self._rebuilder.submit(work)
        except RuntimeError:  # shutting down
            self._rebuilding.release()

    def _stale(
        self, user: str, version: Version, now: int
    ) -> tuple[View, float, Degraded | None] | None:
        lease = version.cache.peek(user, now)
        if lease is None or lease.age_s > self._stale_s:
            return None
        return lease.view, lease.age_s, self._note("stale")

    def _note(self, reason: Degraded) -> Degraded:
        self._metrics.degraded.labels(reason).inc()
        return reason

    def _request(self, job: Job, version: Version, moment: int) -> tuple[Request, tuple[int, ...]]:
        """Translate the words of a job into the model's indices."""
        bundle, catalogue = version.scorer.bundle, version.scorer.bundle.catalogue
        manifest = version.manifest.dataset
        address_C = np.fromiter(
            (catalogue.address(each.item) for each in job.candidates), np.int32, len(job.candidates)
        )
        candidate_CA = np.ones((len(address_C), len(manifest.candidate_fields)), np.int32)
        for place, known in enumerate(manifest.candidate_fields):
            for row, each in enumerate(job.candidates):
                value = each.fields.get(known.name)
                candidate_CA[row, place] = catalogue.index("candidate", known.name, value)
        context_R = np.array(
            [
                catalogue.index("request", known.name, job.context.get(known.name))
                for known in manifest.request_context
            ],
            np.int32,
        )
        if job.profile is None:
            profile_P = bundle.user_UP[catalogue.user(job.user)].numpy()
        else:
            fields = manifest.profile_fields
            profile = job.profile
            profile_P = np.array(
                [catalogue.index("profile", each.name, profile.get(each.name)) for each in fields],
                np.int32,
            )
        unknown = tuple(int(at) for at in np.flatnonzero(address_C == catalogue.items))
        self._metrics.candidates.inc(len(address_C))
        self._metrics.unknown_items.inc(len(unknown))
        return Request(address_C, candidate_CA, context_R, profile_P, moment), unknown
