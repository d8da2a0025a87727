"""Connections that cost a server without asking it anything: slow or endless headers, idle crowds.

A connection has so long to send the headers of a request, from its opening or from the request's
first byte; headers have a largest size; and of the connections that wait (for headers, or between
two requests) the one that has waited longest makes room for a new one. Running requests are never
cut off, unless their peer does not read the answer. Bodies have limits of their own, in
`lcn.serve.limits`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lcn.serve.problems import CODES


@dataclass(slots=True)
class Guard:
    """Limits on connections, and who waits; one for each server.

    Args:
        header_s: seconds until the headers of a request are complete.
        header_bytes: of request line and headers.
        connections: open at once.
        write_s: seconds that a peer may leave an answer unread.
    """

    header_s: float
    header_bytes: int
    connections: int
    write_s: float = 10.0
    waiting: dict[GuardedProtocol, None] = field(default_factory=dict)
    """Connections without a running request, the one that has waited longest first."""

    def protocol(self, **settings: Any) -> GuardedProtocol:
        """Make what handles one connection, as uvicorn asks for it."""
        return GuardedProtocol(self, **settings)


class GuardedProtocol(HttpToolsProtocol):
    """See the module."""

    def __init__(self, guard: Guard, **settings: Any) -> None:
        super().__init__(**settings)
        self._guard = guard
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        """Runs while the peer does not read."""
        self._header_bytes = 0
        """Of headers that are not complete; what came together with something else is left out."""
        self._in_headers = True
        """Or between two requests."""
        self._begun = False
        """Whether a first byte of incomplete headers is here."""
        self._completed = False
        """Whether headers became complete in the bytes that are being read."""
        self._ended = False
        """Nothing more is read: a request is running, the one after it was refused."""
        self._refusal: tuple[str, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room, then wait for headers."""
        super().connection_made(transport)
        # Any byte that the peer leaves unread counts: a few would hold a closing connection too.
        transport.set_write_buffer_limits(high=0)
        guard = self._guard
        if len(self.connections) > guard.connections:
            oldest = next(iter(guard.waiting), None)
            if oldest is None:
                self._refuse("503 Service Unavailable", "too many connections; come again")
                return
            oldest.abandon()
        guard.waiting[self] = None
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._disarm()
        self.resume_writing()
        self._guard.waiting.pop(self, None)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer does not read what it asked for; it has so long to go on."""
        super().pause_writing()
        if self._unread is None:
            # Not `close`, which would wait for the very bytes that nobody reads.
            self._unread = self.loop.call_later(self._guard.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser; endless headers end here."""
        if self._ended:
            return
        waited, self._completed = self._in_headers, False
        super().data_received(data)
        if waited and self._in_headers and not self._completed:
            self._header_bytes += len(data)
            if self._header_bytes > self._guard.header_bytes:
                self._refuse(*self._too_large())

    def on_message_begin(self) -> None:
        """Headers begin."""
        super().on_message_begin()
        self._in_headers = self._begun = True
        if self._timer is None:
            self._arm()

    def on_headers_complete(self) -> None:
        """Headers are in: the application takes over.

        Raises:
            ValueError: they are too large; the parser stops, and `send_400_response` says so.
        """
        self._disarm()
        self._in_headers = self._begun = False
        self._completed, self._header_bytes = True, 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._guard.header_bytes:
            self._refusal = self._too_large()
            raise ValueError("headers too large")
        self._guard.waiting.pop(self, None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is in: other headers may follow."""
        super().on_message_complete()
        self._in_headers = True

    def on_response_complete(self) -> None:
        """The connection waits again."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._guard.waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request, in the words of every other error."""
        self._refuse(*(self._refusal or ("400 Bad Request", msg)))

    def abandon(self) -> None:
        """Close a connection that only waits."""
        self._guard.waiting.pop(self, None)
        self._disarm()
        self.transport.close()

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self._guard.header_s, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self._begun and self._header_bytes == 0:
            self.abandon()  # nobody asked anything
        else:
            text = f"the headers did not arrive in {self._guard.header_s:g} s"
            self._refuse("408 Request Timeout", text, "slow_headers")

    def _too_large(self) -> tuple[str, str]:
        text = f"request line and headers have at most {self._guard.header_bytes} bytes"
        return "431 Request Header Fields Too Large", text

    def _refuse(self, status: str, text: str, code: str = "") -> None:
        """Answer with an error and close; after the answers still owed, close without one."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        running = cycle is not None and not cycle.response_complete
        if running and (not cycle.more_body or cycle.response_started or self.pipeline):
            # An error now would be taken for the answer to the request that is running; only one
            # in the body of that very request is its answer.
            cycle.keep_alive, self._ended = False, True
            self._disarm()
            return
        code = code or CODES.get(int(status[:3]), "error")
        body = orjson.dumps({"error": text, "code": code, "request_id": None})
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.abandon()
