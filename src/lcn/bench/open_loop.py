"""An open-loop load generator: requests leave on schedule, whatever the server does.

Latency counts from the *planned* departure, so a server that stalls is charged for every request
that it kept waiting; a closed loop would simply send fewer.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Shot:
    """One request's fate."""

    kind: int
    """Which of the plan's kinds."""
    planned_s: float
    """Since the start."""
    latency_s: float
    status: int
    """HTTP status; 0 when the connection failed."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to be sent."""

    at_s: float
    kind: int
    data: bytes
    """The whole HTTP/1.1 request."""


def post(path: str, body: bytes, token: str | None = None) -> bytes:
    """A whole request with a JSON body."""
    auth = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{auth}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Arrival times of a Poisson process."""
    rng = np.random.default_rng(seed)
    gap_S = rng.exponential(1 / rate, round(rate * seconds * 1.5) + 10)
    at_S = np.cumsum(gap_S)
    return at_S[at_S < seconds]


async def fire(host: str, port: int, plan: Sequence[Planned], connections: int = 64) -> list[Shot]:
    """Send a plan; the answers in the order of departure.

    Args:
        host: of the server.
        port: of the server.
        plan: in order of time.
        connections: at most so many requests are under way at once; more wait (and are charged).
    """
    idle: deque[_Connection] = deque(_Connection(host, port) for _ in range(connections))
    free = asyncio.Semaphore(connections)
    shots: list[Shot] = []
    started = time.perf_counter()

    async def one(each: Planned) -> None:
        async with free:
            connection = idle.popleft()
            status = await connection.ask(each.data)
            idle.append(connection)
        now = time.perf_counter() - started
        shots.append(Shot(each.kind, each.at_s, now - each.at_s, status))

    # A garbage collection of this process would be charged to the server.
    gc.disable()
    try:
        async with asyncio.TaskGroup() as group:
            for each in plan:
                wait = each.at_s - (time.perf_counter() - started)
                if wait > 0:
                    await asyncio.sleep(wait)
                group.create_task(one(each))
    finally:
        gc.enable()
    for connection in idle:
        await connection.wait_closed()
    return shots


async def closed_loop(
    host: str, port: int, data: Callable[[int], bytes], connections: int, seconds: float
) -> float:
    """Requests a second that a server answers (status 200) when each client waits its turn."""
    end, done = time.perf_counter() + seconds, 0

    async def client(number: int) -> None:
        nonlocal done
        connection, sent = _Connection(host, port), number
        while time.perf_counter() < end:
            status = await connection.ask(data(sent))
            done += status == 200
            sent += connections
        await connection.wait_closed()

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(connections)))
    return done / (time.perf_counter() - started)


class _Connection:
    """A keep-alive connection; reconnects when the server has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.body = b""

    async def ask(self, data: bytes) -> int:
        """Send a request, read the answer; its status."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
            self.body = await reader.readexactly(length)
            if b"connection: close" in lines:
                self.close()
            return int(head[9:12])
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            return 0

    async def wait_closed(self) -> None:
        """Close and wait for it."""
        if self._streams is not None:
            writer = self._streams[1]
            self.close()
            with suppress(OSError):
                await writer.wait_closed()

    def close(self) -> None:
        """Close; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
