"""The outermost layer: body size, media type, slow bodies, and how long answers take."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lcn.serve.admission import Overloaded
from lcn.serve.metrics import ServerMetrics
from lcn.serve.problems import overloaded, problem

_DEADLINE = re.compile(rb'"deadline_ms"\s*:\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)(?![0-9.eE])')
"""Numbers worded otherwise (1e4) are none here: the default counts until they are parsed."""

STARTED = "lcn.started"
"""Where a request's arrival (monotonic seconds) stands in its scope."""


class RequestLimits:
    """See the module.

    Args:
        app: what is protected.
        metrics: counted here.
        max_bytes: of a body.
        timeout_s: for a whole body to arrive.
        busy: why a ranking request with so many seconds would be turned away now, None when it
            would not.
        deadline_ms: of requests that bring none.
        routes: of the application.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: ServerMetrics,
        max_bytes: int,
        timeout_s: float,
        busy: Callable[[float], Overloaded | None],
        deadline_ms: float,
        routes: Sequence[Route] = (),
    ) -> None:
        self._app, self._metrics, self._busy = app, metrics, busy
        self._deadline_ms, self._routes = deadline_ms, routes
        self._max_bytes, self._timeout_s = max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[STARTED] = started = time.monotonic()
        # What the application raises passes through here and is answered further out, with 500.
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refused = self._refuse(scope)
        body: Message | None = None
        if refused is None and scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
            try:
                body = await asyncio.wait_for(self._read(receive), self._timeout_s)
            except TimeoutError:
                refused = problem(408, f"the body did not arrive in {self._timeout_s:g} s")
            if body is not None and len(body["body"]) > self._max_bytes:
                refused = problem(413, f"a body has at most {self._max_bytes} bytes")
        try:
            if refused is not None:
                refused.headers["Connection"] = "close"
                await refused(scope, receive, counted)
            elif _ranks(scope) and (busy := self._busy(self._left_s(body, started))) is not None:
                await overloaded(busy, self._metrics)(scope, receive, counted)
            elif body is not None and body["type"] == "http.disconnect":
                return
            else:
                await self._app(scope, _replay(body, receive), counted)
        finally:
            if body is None or body["type"] != "http.disconnect":
                endpoint = self._endpoint(scope)
                self._metrics.requests.labels(endpoint, str(status)).inc()
                self._metrics.seconds.labels(endpoint).observe(time.monotonic() - started)

    def _left_s(self, body: Message | None, started: float) -> float:
        """Seconds a request has, without parsing it: at twice saturation, parsing what is then
        refused would cost a part of the useful work."""
        found = _DEADLINE.search(body["body"]) if body is not None else None
        # A number that is none is refused later, by name.
        limit_ms = float(found[1]) if found is not None else self._deadline_ms
        return limit_ms / 1000 - (time.monotonic() - started)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_bytes:
            return problem(413, f"a body has at most {self._max_bytes} bytes")
        if headers.get(b"content-encoding", b"identity") != b"identity":
            return problem(415, "compressed bodies are not taken")
        has_body = length != b"0" or b"transfer-encoding" in headers
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] == "POST" and has_body and kind != b"application/json":
            return problem(415, "a body is application/json")
        return None

    def _endpoint(self, scope: Scope) -> str:
        """The template of a request's route, whether or not the request reached it."""
        if "route" in scope:
            return getattr(scope["route"], "path", "other")
        method, path = scope["method"], scope["path"]
        for each in self._routes:
            if method in (each.methods or ()) and each.path_regex.match(path):
                return each.path
        return "other"

    async def _read(self, receive: Receive) -> Message:
        """The whole body, or a little more than the limit of it."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return {"type": "http.disconnect", "body": b""}
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes or not message.get("more_body"):
                return {"type": "http.request", "body": b"".join(parts), "more_body": False}


def _ranks(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] == "POST" and (path == "/v1/rank" or path.endswith("/infer"))


def _replay(body: Message | None, receive: Receive) -> Receive:
    """Hand the body that was read to the application."""
    waiting = [body] if body is not None else []

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
