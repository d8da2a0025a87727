"""The time of day for a server, that a jump of the machine's clock does not move.

Deadlines and ages are measured by the monotonic clock alone. What has to be the time of day (which
events are known by now, which times are in the future) is the monotonic clock plus an offset. The
offset follows the small corrections that keep a machine's clock right; a jump is believed only
after it has stood for a minute, so a clock that is an hour ahead for a moment shows no event early
and refuses none, and one that is set right for good is followed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger("lcn.serve")

JUMP_NS = 1_000_000_000
"""A correction larger than this is a jump."""
BELIEVED_NS = 60_000_000_000
"""How long a jump must have stood."""


class SteadyClock:
    """UTC milliseconds; see the module. Call it for the time; safe to use from several threads.

    Args:
        wall_ns: the machine's time of day.
        steady_ns: a clock that never jumps.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        steady_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._wall_ns, self._steady_ns = wall_ns, steady_ns
        self._lock = threading.Lock()
        self._offset = wall_ns() - steady_ns()
        self._jumped: tuple[int, int] | None = None
        """Offset after a jump, and the steady clock when it was first seen."""

    def __call__(self) -> int:
        """Return the time."""
        steady, wall = self._steady_ns(), self._wall_ns()
        offset = wall - steady
        if abs(offset - self._offset) > JUMP_NS:
            return (steady + self._after_jump(offset, steady)) // 1_000_000
        self._offset = offset
        if self._jumped is not None:
            self._jumped = None
        return wall // 1_000_000

    def _after_jump(self, offset: int, steady: int) -> int:
        """The offset to use while the machine's clock stands somewhere else."""
        with self._lock:
            known, seconds = self._jumped, (offset - self._offset) / 1e9
            if known is None or abs(offset - known[0]) > JUMP_NS:
                self._jumped = (offset, steady)
                _log.warning(
                    "the machine's clock jumped by %.1f s; that is followed if it stands for %d s",
                    seconds,
                    BELIEVED_NS // 1_000_000_000,
                )
            elif steady - known[1] >= BELIEVED_NS:
                _log.warning("following the machine's clock, which jumped by %.1f s", seconds)
                self._offset, self._jumped = offset, None
            return self._offset
