"""What every group of routes stands on: the server's parts, tokens, bodies, ranking in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, HTTPException, Request
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response

from lcn.serve.auth import Scope, Tokens, foreign
from lcn.serve.ingest import Ingest
from lcn.serve.limits import STARTED
from lcn.serve.metrics import ServerMetrics
from lcn.serve.ranker import Job, Ranked, Ranker
from lcn.serve.registry import Registry, Version
from lcn.serve.settings import ServeConfig
from lcn.serve.store.base import BehaviourStore
from lcn.serve.store.records import time_problem


@dataclass(frozen=True, slots=True)
class Parts:
    """What the interface stands on."""

    config: ServeConfig
    store: BehaviourStore
    registry: Registry
    ranker: Ranker
    ingest: Ingest
    metrics: ServerMetrics
    tokens: Tokens | None
    ready: Callable[[], bool]
    now: Callable[[], int]
    """The time of day, UTC milliseconds."""


class FastRoute(APIRoute):
    """Bodies are parsed by orjson, which refuses NaN and deep nesting."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
        """As the framework's, on requests that read JSON faster."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_FastRequest(request.scope, request.receive))

        return handler  # type: ignore[return-value]


class _FastRequest(Request):
    async def json(self) -> Any:
        """The body as orjson reads it."""
        return orjson.loads(await self.body())


_BEARER = HTTPBearer(auto_error=False, description="a token: rank, ingest or admin")
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def allowed(parts: Parts, scope: Scope) -> Any:
    """A dependency: the request may do what a scope allows."""

    async def check(
        http: Request,
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        if parts.tokens is None:
            why = foreign(http.headers)
            if why is not None:
                raise HTTPException(
                    403,
                    f"this server asks for no tokens and answers this machine alone, but {why}; "
                    "start it with --tokens FILE",
                )
            return
        if given is None:
            raise HTTPException(401, "give a token: Authorization: Bearer ...", _CHALLENGE)
        verdict = parts.tokens.verdict(scope, given.credentials)
        if verdict == "unknown":
            raise HTTPException(401, "this token is not known", _CHALLENGE)
        if verdict == "other scope":
            raise HTTPException(403, f"this token is not of scope {scope!r}")

    return Depends(check)


async def rank(parts: Parts, http: Request, version: Version, job: Job, limit_ms: float) -> Ranked:
    """Rank within a deadline counted from the request's arrival; stop when the client leaves.

    Raises:
        HTTPException: 400 for a moment that is not in milliseconds.
    """
    earliest = parts.config.earliest_ms
    if job.moment and time_problem(job.moment, parts.now(), earliest) == "unit":
        raise HTTPException(400, f"time: UTC milliseconds, got {job.moment}")
    watch = None
    if parts.ranker.admission.pending >= 1:
        watch = asyncio.create_task(_watch(http, job))
    try:
        return await parts.ranker.rank(job, version, http.scope[STARTED] + limit_ms / 1000)
    finally:
        if watch is not None:
            watch.cancel()


async def _watch(http: Request, job: Job) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
    job.cancelled = True


def as_json(body: Any) -> Response:
    """A body that orjson can write."""
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json")
