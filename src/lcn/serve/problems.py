"""Errors as answers: {"error", "code", "request_id"} with the right status, never a traceback."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lcn.errors import CheckpointError, ServeError, StoreError, StoreFullError
from lcn.serve.admission import Overloaded
from lcn.serve.metrics import ServerMetrics
from lcn.serve.ranker import Late
from lcn.serve.registry import UnknownModel

CODES = {
    400: "malformed",
    401: "no_token",
    403: "other_scope",
    404: "not_found",
    405: "method",
    408: "slow_body",
    409: "refused",
    413: "too_large",
    415: "media_type",
    431: "headers",
    429: "overloaded",
    500: "internal",
    503: "unavailable",
    504: "deadline",
    507: "store_full",
}


def problem(
    status: int, text: str, request_id: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as an answer."""
    body = {"error": text, "code": CODES.get(status, "error"), "request_id": request_id}
    return Response(
        orjson.dumps(body), status, headers=dict(headers or {}), media_type="application/json"
    )


def overloaded(error: Overloaded, metrics: ServerMetrics) -> Response:
    """A request turned away, counted."""
    metrics.rejected.labels(error.reason).inc()
    text = f"turned away ({error.reason}); come again in {error.retry_after} s"
    return problem(429, text, headers={"Retry-After": str(error.retry_after)})


def _methods(app: FastAPI, path: str) -> list[str]:
    """What a path takes, over all routes; each route knows its own methods only."""
    found = set()
    for template, operations in app.openapi()["paths"].items():
        parts = re.split(r"\{\w+\}", template)
        if re.fullmatch("[^/]+".join(map(re.escape, parts)), path):
            found |= {name.upper() for name in operations}
    return sorted(found) or ["GET"]


def _told(errors: Sequence[Any]) -> tuple[str, str]:
    """Place and text of the first error; of a candidate, that of the form which was sent.

    A candidate is a key or an object, and what is neither has an error for each: places of both
    begin with ("body", "candidates", number, name of the form).
    """
    first = errors[0]
    place = first["loc"]
    if place[:2] == ("body", "candidates") and len(place) > 3:
        of_it = [each for each in errors if each["loc"][:3] == place[:3]]
        first = next((each for each in of_it if len(each["loc"]) > 4), first)
        place = (*first["loc"][:3], *first["loc"][4:])
    words = place[1:] if place[:1] == ("body",) else place
    return ".".join(map(str, words)), first["msg"]


def install(app: FastAPI) -> None:
    """Turn the program's errors into answers."""

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        place, text = _told(error.errors())
        return problem(400, f"{place}: {text}" if place else text)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(app, request.url.path))
        return problem(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(UnknownModel)
    async def unknown(request: Request, error: UnknownModel) -> Response:
        return problem(404, str(error))

    @app.exception_handler(Overloaded)
    async def busy(request: Request, error: Overloaded) -> Response:
        return overloaded(error, app.state.metrics)

    @app.exception_handler(Late)
    async def late(request: Request, error: Late) -> Response:
        app.state.metrics.rejected.labels(f"late_{error.where}").inc()
        return problem(504, f"the deadline passed in stage {error.where!r}")

    @app.exception_handler(StoreError)
    async def store(request: Request, error: StoreError) -> Response:
        status = 507 if isinstance(error, StoreFullError) else 503
        return problem(status, str(error), headers={"Retry-After": "1"})

    @app.exception_handler(CheckpointError)
    async def bundle(request: Request, error: CheckpointError) -> Response:
        return problem(409, str(error))

    @app.exception_handler(ServeError)
    async def refused(request: Request, error: ServeError) -> Response:
        return problem(409, str(error))

    @app.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> Response:
        # The connection is closed after such an answer; a client that is told opens another one.
        text = "an error of the server; its log says more"
        return problem(500, text, headers={"Connection": "close"})
