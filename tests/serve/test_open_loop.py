"""The load generator charges the server for what it kept waiting. R-45."""

from __future__ import annotations

import asyncio

import numpy as np

from lcn.bench.open_loop import Planned, closed_loop, fire, poisson, post


async def with_server(stall_s: float, work):
    """Run `work(port)` beside a server that once falls silent."""
    answered = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
                answered += 1
                if answered == 50 and stall_s:
                    import time

                    time.sleep(stall_s)  # the whole server, not this connection
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        return await work(server.sockets[0].getsockname()[1])
    finally:
        server.close()


def plan(rate: float, seconds: float) -> list[Planned]:
    return [Planned(float(at), 0, post("/", b"{}")) for at in poisson(rate, seconds, 0)]


def test_a_stall_shows_in_the_tail() -> None:
    """A closed loop would send one request during the stall and report a fast server."""
    shots = asyncio.run(with_server(1.0, lambda port: fire("127.0.0.1", port, plan(100, 3))))
    latency_S = np.array([shot.latency_s for shot in shots])
    assert all(shot.status == 200 for shot in shots)
    assert np.quantile(latency_S, 0.99) >= 0.5
    assert (latency_S > 0.3).sum() >= 30


def test_without_a_stall_there_is_no_tail() -> None:
    shots = asyncio.run(with_server(0.0, lambda port: fire("127.0.0.1", port, plan(100, 1))))
    assert np.median([shot.latency_s for shot in shots]) < 0.1
    assert 60 <= len(shots) <= 140


def test_a_closed_loop_counts_good_answers() -> None:
    def work(port: int):
        return closed_loop("127.0.0.1", port, lambda at: post("/", b"{}"), 2, 0.3)

    assert asyncio.run(with_server(0.0, work)) > 10


def test_a_server_that_is_gone_is_an_error_not_a_wait() -> None:
    shots = asyncio.run(fire("127.0.0.1", 1, plan(50, 0.2)))
    assert shots
    assert {shot.status for shot in shots} == {0}
