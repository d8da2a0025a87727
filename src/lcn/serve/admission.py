"""Who is let in: a request that cannot be answered in time is turned away before it costs anything.

Three rules, so that beyond saturation a server does as much useful work as at its best:

* the queue has a largest length;
* the expected wait is at most a share of the time a request has, or of the default where it has
  more: a longer queue would answer no more requests, only later (workers never run dry with a few
  waiting each), and patient clients would fill it so that the others are turned away;
* expected wait, service and a margin fit the time. The margin follows the errors of these very
  expectations: its target is that one request in twenty takes longer than expected, whether other
  programs take the processor or some users' requests are larger than others'.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

WAIT_SHARE = 0.4
"""Of a request's time that it may wait: 40 ms of the default 100."""
LATE_SHARE = 0.05
"""Of admitted requests that may take longer than expected."""
_STEP = 0.25
"""Of a mean service time, by which the margin follows an error."""


class Overloaded(Exception):
    """Turned away unserved; come again after some seconds."""

    def __init__(self, reason: str, retry_after: int = 1) -> None:
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that was let in."""

    at_s: float
    """Monotonic seconds when it was."""
    expected_s: float
    """How long wait and service were expected to take."""
    waits: bool
    """Whether all workers had something to do."""


class Admission:
    """See the module; safe to use from several threads.

    Args:
        workers: requests that run at once.
        queue: requests that may wait or run.
    """

    def __init__(self, workers: int, queue: int, usual_s: float = math.inf) -> None:
        self._workers, self._queue, self._usual_s = workers, queue, usual_s
        self._lock = threading.Lock()
        self.pending = 0
        """Requests that wait or run."""
        self.service_s = 0.0
        """Running mean of what a request takes once it runs."""
        self.margin_s = 0.0
        """What nineteen in twenty requests take at most beyond what is expected of them."""

    def refusal(self, left_s: float) -> Overloaded | None:
        """Why a request with so many seconds left would be turned away now, if it would."""
        wait = self._wait_s()
        if self.pending >= self._queue:
            return Overloaded("queue", max(1, math.ceil(wait)))
        # One that need not wait is always let in, or a wrong idea of the time that requests take
        # would never be corrected.
        if self.pending < self._workers:
            return None
        most = WAIT_SHARE * min(left_s, self._usual_s)
        if wait > most or wait + self.service_s + self.margin_s > left_s:
            return Overloaded("deadline", max(1, math.ceil(wait)))
        return None

    def enter(self, now_s: float, left_s: float) -> Ticket:
        """Let a request in; `leave` must follow.

        Raises:
            Overloaded: no room in the queue, or no chance to be in time.
        """
        with self._lock:
            refusal = self.refusal(left_s)
            if refusal is not None:
                raise refusal
            waits = self.pending >= self._workers
            ticket = Ticket(now_s, self._wait_s() + self.service_s, waits)
            self.pending += 1
        return ticket

    def leave(self, ticket: Ticket, now_s: float, service_s: float | None) -> None:
        """Learn from a request that is over.

        Args:
            ticket: what `enter` gave.
            now_s: monotonic seconds.
            service_s: seconds that it ran; None when it was dropped before.
        """
        with self._lock:
            self.pending -= 1
            if service_s is not None:
                share = 0.05 if self.service_s else 1.0
                self.service_s += (service_s - self.service_s) * share
            late = now_s - ticket.at_s > ticket.expected_s + self.margin_s
            step = _STEP * self.service_s * (1 - LATE_SHARE if late else -LATE_SHARE)
            self.margin_s = min(max(self.margin_s + step, 0.0), 20 * self.service_s)

    def _wait_s(self) -> float:
        """Those that run are half done, on the average."""
        ahead = self.pending - self._workers / 2
        return max(ahead, 0.0) / self._workers * self.service_s
