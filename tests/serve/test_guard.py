"""R-37: slow, endless and half-open connections, over real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest
from serve_world import World
from test_http import ITEMS, live

from lcn.serve import server as server_module
from lcn.serve.client import Client
from lcn.serve.guard import Guard
from lcn.serve.scorer import Scorer

HEADER_S = 0.4
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def client(tmp_path_factory, world: World) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("guarded")
    settings = {"header_timeout_s": HEADER_S, "max_header_bytes": 2048, "max_connections": 8}
    with live(folder, world.bundle, **settings) as (_, client):
        yield client


def connect(client: Client) -> socket.socket:
    host, port = client.url.removeprefix("http://").split(":")  # type: ignore[attr-defined]
    return socket.create_connection((host, int(port)), timeout=10)


def until_closed(connection: socket.socket) -> bytes:
    got = b""
    with suppress(ConnectionResetError):  # closed while bytes of ours were on their way
        while chunk := connection.recv(65536):
            got += chunk
    return got


def error_of(answer: bytes) -> dict[str, object]:
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert set(body) == {"error", "code", "request_id"}
    return body


def test_headers_that_drip_are_cut_off(client: Client) -> None:
    """A byte now and then does not prolong the time; the next request's headers have their own."""
    with connect(client) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        started = time.monotonic()

        def drip() -> None:
            with pytest.raises(OSError):
                for byte in GET * 100:
                    connection.sendall(bytes([byte]))
                    time.sleep(HEADER_S / 8)

        dripping = threading.Thread(target=drip)
        dripping.start()
        answer = until_closed(connection)
        assert HEADER_S / 2 < time.monotonic() - started < HEADER_S + 3
        with suppress(OSError):  # it may be gone altogether by now
            connection.shutdown(socket.SHUT_RDWR)
        dripping.join()
    assert answer.startswith(b"HTTP/1.1 408")
    assert error_of(answer)["code"] == "slow_headers"


def test_a_connection_that_asks_nothing_is_closed(client: Client) -> None:
    with connect(client) as connection:
        started = time.monotonic()
        assert until_closed(connection) == b""
        assert time.monotonic() - started < HEADER_S + 3


@pytest.mark.parametrize("pieces", [1, 40])
def test_headers_that_are_too_large(client: Client, pieces: int) -> None:
    """At once or bit by bit, complete or without an end."""
    header = b"X-Much: " + b"a" * 3000
    for end in (b"\r\n\r\n", b""):
        with connect(client) as connection:
            data = GET + header + end
            size = -(-len(data) // pieces)
            for at in range(0, len(data), size):
                try:
                    connection.sendall(data[at : at + size])
                except OSError:
                    break  # refused before all was sent
            answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 431")
        assert error_of(answer)["code"] == "headers"


def test_what_is_no_request_is_told_so(client: Client) -> None:
    with connect(client) as connection:
        connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert error_of(answer)["code"] == "malformed"


def test_a_crowd_that_waits_makes_room(client: Client) -> None:
    """Four times as many connections as there may be, all silent: requests are still answered."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(connect(client)) for _ in range(32)]
        for connection in crowd[:16]:
            connection.send(GET[:9])
        with Client(client.url) as other:  # type: ignore[attr-defined]
            assert len(other.rank("u", ITEMS).scores) == len(ITEMS)
        first = crowd[0]
        first.settimeout(5)
        assert until_closed(first) == b""  # the one that waited longest went, long before its time


def test_peers_that_do_not_read_make_room(tmp_path, world: World, monkeypatch) -> None:
    """They ask for much, never read it, and would hold their connections for ever."""
    monkeypatch.setattr(server_module, "Guard", partial(Guard, write_s=0.5))
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with live(tmp_path, world.bundle, max_connections=4) as (_, client), ExitStack() as stack:
        client.close()
        host, port = client.url.removeprefix("http://").split(":")  # type: ignore[attr-defined]
        for much in (400, 400, 40, 4):
            peer = stack.enter_context(socket.socket())
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect((host, int(port)))
            peer.sendall(ask * much)
        time.sleep(3)
        with Client(client.url) as other:  # type: ignore[attr-defined]
            assert len(other.rank("u", ITEMS).scores) == len(ITEMS)


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    body = b'{"user": "u", "candidates": ["i41"], "request_id": "%d"}'
    head = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    data = b""
    for number in range(20):
        part = body % number
        data += head + b"Content-Length: %d\r\n\r\n" % len(part) + part
    with connect(client) as connection:
        connection.sendall(data)
        got = b""
        while got.count(b'"request_id"') < 20:
            got += connection.recv(65536)
    numbers = [int(part.split(b'"')[0]) for part in got.split(b'"request_id":"')[1:]]
    assert numbers == list(range(20))


RANK = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def ranking(**more: object) -> bytes:
    body = json.dumps({"user": "u", "candidates": ["i41"], **more}).encode()
    return RANK + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_a_body_is_not_counted_as_headers(client: Client) -> None:
    """It is longer than headers may be, and the next request's headers come in two pieces."""
    first = ranking(context={f"field{n}": "v" * 250 for n in range(12)})
    second = ranking(request_id="second")
    with connect(client) as connection:
        for piece in (first[:1500], first[1500:] + second[:40], second[40:90], second[90:]):
            connection.sendall(piece)
            time.sleep(0.05)
        got = b""
        while b'"second"' not in got and (chunk := connection.recv(65536)):
            got += chunk
    assert got.count(b"HTTP/1.1 200") == 2, got


@pytest.mark.parametrize(
    "rest", [b"GET /slow HT", b"no request\r\n\r\n", GET + b"X: " + b"a" * 4000]
)
def test_a_running_request_is_answered_before_the_next_is_refused(
    client: Client, monkeypatch, rest: bytes
) -> None:
    """An error written now would be taken for its answer."""
    score = Scorer.score

    def slow(self, *arguments, **more):
        time.sleep(3 * HEADER_S)
        return score(self, *arguments, **more)

    monkeypatch.setattr(Scorer, "score", slow)
    with connect(client) as connection:
        connection.sendall(ranking(request_id="first"))
        time.sleep(HEADER_S / 4)
        connection.sendall(rest)
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"}") and b'"first"' in answer


def test_others_are_served_while_headers_drip(client: Client) -> None:
    """Six slow connections; a request in between takes no longer than the machine makes it, which
    may be so long that the slow ones are cut off meanwhile."""
    with ExitStack() as stack, Client(client.url) as other:  # type: ignore[attr-defined]
        other.rank("u", ITEMS)
        started = time.monotonic()
        slow = [stack.enter_context(connect(client)) for _ in range(6)]
        for byte in GET[:5]:
            for connection in slow:
                try:
                    connection.send(bytes([byte]))
                except OSError:
                    assert time.monotonic() - started > HEADER_S, "cut off before its time"
            assert other.rank("u", ITEMS).degraded is None


STRANGE = {
    "authority": b"CONNECT h:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bad escape": b"GET /v1/users/%zz%ff/state HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "websocket": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "two lengths": b"POST /v1/rank HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "length and chunks": b"POST /v1/rank HTTP/1.1\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"POST /v1/rank HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
    "huge chunk": b"POST /v1/rank HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"ffffffffffffffffff\r\n",
    "nul in a header": GET + b"X: a\x00b\r\n\r\n",
    "old version": b"GET / HTTP/0.9\r\n\r\n",
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_requests_are_answered_or_refused(client: Client, name: str) -> None:
    """Never with a 5xx, and never so that the next client notices."""
    with connect(client) as connection:
        connection.sendall(STRANGE[name])
        connection.shutdown(socket.SHUT_WR)
        answer = until_closed(connection)
    status = answer[9:12]
    assert answer == b"" or status[:1] in (b"2", b"4"), answer[:200]
    assert client.call("GET", "/v2/health/live") == {"live": True}
