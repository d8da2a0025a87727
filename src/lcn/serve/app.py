"""The HTTP interface: native endpoints under /v1, the Open Inference Protocol under /v2."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, HTTPException, Path, Query, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lcn import __version__
from lcn.evaluate.metrics import sigmoid
from lcn.serve import problems
from lcn.serve.explain import describe, explain
from lcn.serve.limits import STARTED, RequestLimits
from lcn.serve.oip import infer_router, oip_router
from lcn.serve.parts import FastRoute, Parts, allowed, as_json, rank
from lcn.serve.ranker import Candidate, Job, Ranked
from lcn.serve.registry import Version, bundle_path
from lcn.serve.settings import ServeConfig
from lcn.serve.wire import (
    DeleteAnswer,
    ErrorAnswer,
    EventsAnswer,
    EventsRequest,
    ItemAnswer,
    Key,
    LoadRequest,
    ModelAnswer,
    RankAnswer,
    RankRequest,
    StateAnswer,
    UsersAnswer,
    WireCandidate,
    Word,
)

MOST_EXPLAINED = 20

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in (
        (400, "malformed"), (401, "no token"), (403, "a token of another scope"),
        (404, "no such model"), (408, "the body came too slowly"), (409, "refused"),
        (413, "too large"), (415, "not application/json"), (429, "overloaded, come again"),
        (503, "not available"), (504, "the deadline passed"), (507, "the store is full"),
    )
}  # fmt: skip


def build_app(parts: Parts) -> FastAPI:
    """Make the ASGI application."""
    app = FastAPI(
        title="lcn",
        version=__version__,
        summary="Click probabilities from lifelong histories.",
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.metrics = parts.metrics
    problems.install(app)
    routers = [
        _ranking(parts), _items(parts), _people(parts), _models(parts), oip_router(parts),
        infer_router(parts), _pages(parts),
    ]  # fmt: skip
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: _openapi(app, parts.config)  # type: ignore[method-assign]
    app.add_middleware(
        RequestLimits,
        metrics=parts.metrics,
        max_bytes=parts.config.max_body_bytes,
        timeout_s=parts.config.body_timeout_s,
        busy=parts.ranker.admission.refusal,
        deadline_ms=parts.config.deadline_ms,
        routes=[each for router in routers for each in router.routes if isinstance(each, Route)],
    )
    return app


def _ranking(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=FastRoute)

    @router.post("/rank", response_model=RankAnswer, dependencies=[allowed(parts, "rank")])
    async def rank_candidates(body: RankRequest, http: Request) -> Response:
        """Score candidates for a user."""
        limit = parts.config.max_candidates
        if len(body.candidates) > limit:
            raise HTTPException(400, f"candidates: at most {limit}, got {len(body.candidates)}")
        stage, parsed = parts.metrics.stage, time.monotonic()
        stage.labels("parse").observe(parsed - http.scope[STARTED])
        version = parts.registry.get(body.model)
        job = Job(
            user=body.user,
            candidates=[
                Candidate(each.item, each.fields)
                if isinstance(each, WireCandidate)
                else Candidate(each)
                for each in body.candidates
            ],
            context=body.context,
            profile=body.profile,
            moment=body.time,
            explain=MOST_EXPLAINED if body.explain else 0,
        )
        ranked = await rank(parts, http, version, job, body.deadline_ms or parts.config.deadline_ms)
        answered = time.monotonic()
        answer = as_json(_rank_answer(body, ranked))
        stage.labels("answer").observe(time.monotonic() - answered)
        return answer

    @router.post("/events", response_model=EventsAnswer, dependencies=[allowed(parts, "ingest")])
    async def add_events(body: EventsRequest) -> Response:
        """Store behaviour; answered when the store has it as durably as it says."""
        if len(body.events) > parts.config.max_events:
            raise HTTPException(
                400, f"events: at most {parts.config.max_events}, got {len(body.events)}"
            )
        done = await parts.ingest.add(body.events)
        given = set().union(*(event.context for event in body.events))
        return as_json(
            {
                "outcomes": done.outcomes,
                "state_versions": done.versions,
                "ignored": _others("context", given, parts.store.fields),
                "durability": done.durability,
            }
        )

    return router


def _items(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=FastRoute)

    @router.get("/items", response_model=list[ItemAnswer], dependencies=[allowed(parts, "rank")])
    async def some_items(
        count: Annotated[int, Query(ge=1, le=200)] = 20,
        seed: Annotated[int, Query(ge=0, le=2**31)] = 0,
        model: Annotated[Word | None, Query()] = None,
    ) -> Response:
        """Items of the catalogue, drawn at random: candidates to try."""
        catalogue = parts.registry.get(model).scorer.bundle.catalogue
        known = max(catalogue.items - 1, 0)
        draw = np.random.default_rng(seed)
        places = draw.choice(known, min(count, known), replace=False) + 1
        items = [
            {"item": catalogue.key(int(at)), "title": catalogue.title(int(at))} for at in places
        ]
        return as_json(items)

    return router


def _people(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1/users", route_class=FastRoute)
    admin = [allowed(parts, "admin")]

    @router.get("/{user:path}/state", response_model=StateAnswer, dependencies=admin)
    async def user_state(
        user: Annotated[Key, Path()], model: Annotated[Word | None, Query()] = None
    ) -> Response:
        """What is kept of a user, in words."""
        version = parts.registry.get(model)
        return as_json(await asyncio.to_thread(_state_answer, parts, version, user))

    @router.delete("/{user:path}/state", response_model=DeleteAnswer, dependencies=admin)
    async def delete_user(user: Annotated[Key, Path()]) -> Response:
        """Remove everything kept of a user."""
        return as_json({"deleted": await parts.ingest.delete(user)})

    @router.get("", response_model=UsersAnswer, dependencies=admin)
    async def list_users(
        prefix: Annotated[str, Query(max_length=64)] = "",
        count: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Response:
        """Users with events whose key starts with a text."""
        found = await asyncio.to_thread(parts.store.users, prefix, count)
        return as_json({"users": [user for user in found if user.startswith(prefix)]})

    return router


def _models(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1/models", route_class=FastRoute)

    @router.get("", response_model=list[ModelAnswer], dependencies=[allowed(parts, "rank")])
    async def list_models() -> Response:
        """Every model that serves, the default first."""
        return as_json([_model_answer(parts, version) for version in parts.registry.active()])

    @router.post("/load", response_model=ModelAnswer, dependencies=[allowed(parts, "admin")])
    async def load_model(body: LoadRequest) -> Response:
        """Load a bundle and let it take over; what served before goes on if it does not load."""
        from pathlib import Path as Folder

        folder = bundle_path(Folder(parts.config.bundles), body.bundle)
        try:
            version = await asyncio.to_thread(
                parts.registry.load, folder, warm_users=parts.config.warm_users, now=parts.now
            )
        except Exception:
            parts.metrics.swaps.labels("refused").inc()
            raise
        parts.metrics.swaps.labels("loaded").inc()
        return as_json(_model_answer(parts, version))

    @router.post(
        "/{model}/rollback", response_model=ModelAnswer, dependencies=[allowed(parts, "admin")]
    )
    async def rollback_model(model: Annotated[Word, Path()]) -> Response:
        """Put the version before back in its place."""
        version = parts.registry.rollback(model)
        parts.metrics.swaps.labels("rolled_back").inc()
        return as_json(_model_answer(parts, version))

    return router


def _pages(parts: Parts) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics", response_class=Response, include_in_schema=False)
    async def metrics() -> Response:
        text = await asyncio.to_thread(parts.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_page("page.html"))

    @router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page("docs.html"))

    return router


@cache
def _page(name: str) -> str:
    """One self-contained file: nothing is fetched from elsewhere."""
    return files("lcn.serve").joinpath(name).read_text("utf-8")


def _rank_answer(body: RankRequest, ranked: Ranked) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "request_id": body.request_id,
        "model": ranked.version.name,
        "model_version": ranked.version.version,
        "state_version": ranked.state_version,
        "state_age_ms": ranked.state_age_ms,
        "degraded": ranked.degraded,
        "scores": sigmoid(ranked.logit_C).tolist(),
        "logits": ranked.logit_C,
        "unknown": ranked.unknown,
        "ignored": _ignored(body, ranked.version),
        "experiment": body.experiment,
        "arm": body.arm,
    }
    if body.explain:
        answer["explanation"] = explain(ranked).model_dump()
    return answer


def _ignored(body: RankRequest, version: Version) -> list[str]:
    """Fields of a request that the model does not have: news of a misspelt one."""
    known, profile = version.manifest.dataset, body.profile or {}
    given = set().union(
        *(each.fields for each in body.candidates if isinstance(each, WireCandidate))
    )
    places = (
        ("context", set(body.context), known.request_context),
        ("profile", set(profile), known.profile_fields),
        ("candidates.fields", given, known.candidate_fields),
    )
    return [
        name
        for place, names, fields in places
        for name in _others(place, names, (field.name for field in fields))
    ]


def _others(place: str, given: set[str], known: Iterable[str]) -> list[str]:
    """Names that are not among the known ones, with their place in the request."""
    return [f"{place}.{name}" for name in sorted(given.difference(known))]


def _state_answer(parts: Parts, version: Version, user: str) -> dict[str, Any]:
    lease = version.cache.get(user, parts.now())
    view = lease.view
    return {
        "user": user,
        "known": version.scorer.bundle.catalogue.user(user) > 0,
        "state_version": view.version,
        "source": [e.model_dump() for e in describe(version, view.source, 0, len(view.source))],
        "target": [e.model_dump() for e in describe(version, view.target, 0, len(view.target))],
    }


def _model_answer(parts: Parts, version: Version) -> dict[str, Any]:
    manifest, previous = version.manifest, parts.registry.previous(version.name)
    trained = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in manifest.trained.items()
        if isinstance(value, float | int | str | None)
    }
    return {
        "model": version.name,
        "version": version.version,
        "previous": previous.version if previous is not None else None,
        "backbone": manifest.config.backbone.name,
        "lifelong": manifest.lifelong,
        "trained": trained,
        "cached_states": len(version.cache),
        "cached_bytes": version.cache.bytes,
    }


def _openapi(app: FastAPI, config: ServeConfig) -> dict[str, Any]:
    """The generated page with this server's limits, without an error that is never sent."""
    if app.openapi_schema is None:
        page = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        for path in page["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        schemas = page["components"]["schemas"]
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        most = schemas["RankRequest"]["properties"]["candidates"]
        most["maxItems"] = min(most["maxItems"], config.max_candidates)
        most = schemas["EventsRequest"]["properties"]["events"]
        most["maxItems"] = min(most["maxItems"], config.max_events)
        app.openapi_schema = page
    return app.openapi_schema
