"""The Open Inference Protocol, version 2, in JSON.

Inputs of infer: `user` BYTES [1], `candidate` BYTES [C]; optional `time` INT64 [1] (UTC
milliseconds), and one BYTES input per field: `context.<field>` [1], `profile.<field>` [1],
`candidate.<field>` [C]. Outputs: `score` and `logit`, FP32 [C].
Source: the protocol's REST specification (KServe).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from lcn import __version__
from lcn.evaluate.metrics import sigmoid
from lcn.serve.names import ITEM_LENGTH, KEY_TEXT, USER_LENGTH
from lcn.serve.parts import FastRoute, Parts, allowed, as_json, rank
from lcn.serve.problems import problem
from lcn.serve.ranker import Candidate, Job, Ranked
from lcn.serve.registry import UnknownModel, Version
from lcn.serve.wire import Long, Moment, Size, Word

_TEXT = re.compile(KEY_TEXT)

Parameters = dict[str, str | int | float | bool]


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=128)]
    shape: Annotated[list[Size], Field(min_length=1, max_length=1)]
    parameters: Parameters | None = None


class Texts(_Input):
    """An input of texts."""

    datatype: Literal["BYTES"]
    data: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=2000)]


class Moments(_Input):
    """An input of times."""

    datatype: Literal["INT64"]
    data: Annotated[list[Moment], Field(max_length=2000)]


Tensor = Annotated[Texts | Moments, Field(discriminator="datatype")]


class RequestedOutput(BaseModel):
    """An output that is wanted."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["score", "logit"]
    parameters: Parameters | None = None


class InferRequest(BaseModel):
    """An inference request."""

    model_config = ConfigDict(extra="forbid")

    id: Long | None = None
    inputs: Annotated[list[Tensor], Field(min_length=2, max_length=256)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=2)] | None = None
    parameters: Parameters | None = None


class OutputTensor(BaseModel):
    """An output."""

    name: str
    shape: list[int]
    datatype: Literal["FP32"]
    data: list[float]


class InferAnswer(BaseModel):
    """An inference answer."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: Parameters
    outputs: list[OutputTensor]


class ServerMetadata(BaseModel):
    """About the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """About an input or output."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """About a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Alive(BaseModel):
    """The server answers."""

    live: bool


class Ready(BaseModel):
    """It can rank."""

    ready: bool


class ModelReady(BaseModel):
    """A model can rank."""

    name: str
    ready: bool


def oip_router(parts: Parts) -> APIRouter:
    """The routes under /v2 that tell."""
    router = APIRouter(prefix="/v2", route_class=FastRoute)
    can_rank = [allowed(parts, "rank")]

    @router.get("", response_model=ServerMetadata)
    async def server_metadata() -> Response:
        """Name and version of the server."""
        return as_json({"name": "lcn", "version": __version__, "extensions": []})

    @router.get("/health/live", response_model=Alive)
    async def live() -> Response:
        """Whether the process answers."""
        return as_json({"live": True})

    @router.get("/health/ready", response_model=Ready)
    async def ready() -> Response:
        """Whether every model is loaded and the server does not stop."""
        if not parts.ready():
            return problem(503, "not ready")
        return as_json({"ready": True})

    @router.get("/models/{model}", response_model=ModelMetadata, dependencies=can_rank)
    async def model_metadata(model: Annotated[Word, Path()]) -> Response:
        """Inputs and outputs of a model."""
        return as_json(_metadata(parts.registry.get(model)))

    @router.get(
        "/models/{model}/versions/{version}", response_model=ModelMetadata, dependencies=can_rank
    )
    async def model_version_metadata(
        model: Annotated[Word, Path()], version: Annotated[Word, Path()]
    ) -> Response:
        """Inputs and outputs of the version that serves."""
        return as_json(_metadata(parts.registry.get(model, version)))

    @router.get("/models/{model}/ready", response_model=ModelReady)
    async def model_ready(model: Annotated[Word, Path()]) -> Response:
        """Whether a model ranks."""
        return as_json({"name": parts.registry.get(model).name, "ready": True})

    @router.get("/models/{model}/versions/{version}/ready", response_model=ModelReady)
    async def model_version_ready(
        model: Annotated[Word, Path()], version: Annotated[Word, Path()]
    ) -> Response:
        """Whether a version serves."""
        return as_json({"name": parts.registry.get(model, version).name, "ready": True})

    return router


def infer_router(parts: Parts) -> APIRouter:
    """The routes that rank."""
    router = APIRouter(prefix="/v2", route_class=FastRoute)
    can_rank = [allowed(parts, "rank")]

    @router.post("/models/{model}/infer", response_model=InferAnswer, dependencies=can_rank)
    async def infer(body: InferRequest, http: Request, model: Annotated[Word, Path()]) -> Response:
        """Score candidates for a user."""
        return await _infer(parts, body, http, model, None)

    @router.post(
        "/models/{model}/versions/{version}/infer",
        response_model=InferAnswer,
        dependencies=can_rank,
    )
    async def infer_version(
        body: InferRequest,
        http: Request,
        model: Annotated[Word, Path()],
        version: Annotated[Word, Path()],
    ) -> Response:
        """Score candidates for a user with the version that serves."""
        return await _infer(parts, body, http, model, version)

    return router


async def _infer(
    parts: Parts, body: InferRequest, http: Request, model: str, version: str | None
) -> Response:
    try:
        found = parts.registry.get(model, version)
    except UnknownModel as error:
        return problem(404, str(error), body.id)
    job = _job(body, parts.config.max_candidates)
    ranked = await rank(parts, http, found, job, parts.config.deadline_ms)
    return as_json(_answer(body, ranked))


def _job(body: InferRequest, most: int) -> Job:
    """Read the inputs.

    Raises:
        HTTPException: one is missing, unknown, or of another shape.
    """
    given = _values(body)
    users, items = given.pop("user", None), given.pop("candidate", None)
    if users is None or len(users) != 1 or not _is_key(users[0], USER_LENGTH):
        raise HTTPException(400, f"input 'user' names one user, 1 to {USER_LENGTH} characters")
    if not items or len(items) > most or not all(_is_key(item, ITEM_LENGTH) for item in items):
        raise HTTPException(
            400, f"input 'candidate' names 1 to {most} items, {ITEM_LENGTH} characters each"
        )
    moments = given.pop("time", None)
    if moments is not None and len(moments) != 1:
        raise HTTPException(400, "input 'time' is one moment")
    fields: list[dict[str, str]] = [{} for _ in items]
    context: dict[str, str] = {}
    profile: dict[str, str] = {}
    for name, values in given.items():
        group, _, field = name.partition(".")
        if group not in ("context", "profile", "candidate") or not field:
            raise HTTPException(400, f"no input is called {name!r}")
        if len(values) != (len(items) if group == "candidate" else 1):
            raise HTTPException(400, f"input {name!r} has {len(values)} values")
        if group == "candidate":
            for each, value in zip(fields, values, strict=True):
                each[field] = value
        else:
            (context if group == "context" else profile)[field] = values[0]
    candidates = [Candidate(item, each) for item, each in zip(items, fields, strict=True)]
    moment = None if moments is None else moments[0]
    return Job(users[0], candidates, context, profile or None, moment)


def _values(body: InferRequest) -> dict[str, list[Any]]:
    """The inputs by name, each of the shape and type it claims."""
    given: dict[str, list[Any]] = {}
    for tensor in body.inputs:
        if tensor.name in given:
            raise HTTPException(400, f"input {tensor.name!r} is given twice")
        if tensor.shape != [len(tensor.data)]:
            raise HTTPException(
                400, f"input {tensor.name!r} has shape {tensor.shape} but {len(tensor.data)} values"
            )
        wanted = int if tensor.name == "time" else str
        if tensor.datatype != ("INT64" if wanted is int else "BYTES") or not all(
            isinstance(value, wanted) for value in tensor.data
        ):
            raise HTTPException(400, f"input {tensor.name!r}: values of another type")
        given[tensor.name] = list(tensor.data)
    return given


def _is_key(text: str, most: int) -> bool:
    return len(text) <= most and _TEXT.fullmatch(text) is not None


def _answer(body: InferRequest, ranked: Ranked) -> dict[str, Any]:
    wanted = {each.name for each in body.outputs} if body.outputs else {"score", "logit"}
    values: dict[str, Any] = {
        "score": sigmoid(ranked.logit_C).tolist(),
        "logit": ranked.logit_C,
    }
    count = len(ranked.logit_C)
    return {
        "model_name": ranked.version.name,
        "model_version": ranked.version.version,
        "id": body.id,
        "parameters": {
            "state_version": ranked.state_version,
            "state_age_ms": ranked.state_age_ms,
            "degraded": ranked.degraded or "",
        },
        "outputs": [
            {"name": name, "shape": [count], "datatype": "FP32", "data": values[name]}
            for name in ("score", "logit")
            if name in wanted
        ],
    }


def _metadata(version: Version) -> dict[str, Any]:
    dataset = version.manifest.dataset
    inputs = [("user", "BYTES", 1), ("candidate", "BYTES", -1), ("time", "INT64", 1)]
    inputs += [(f"context.{field.name}", "BYTES", 1) for field in dataset.request_context]
    inputs += [(f"profile.{field.name}", "BYTES", 1) for field in dataset.profile_fields]
    inputs += [(f"candidate.{field.name}", "BYTES", -1) for field in dataset.candidate_fields]
    outputs = [("score", "FP32", -1), ("logit", "FP32", -1)]
    described = {
        kind: [{"name": name, "datatype": of, "shape": [size]} for name, of, size in tensors]
        for kind, tensors in (("inputs", inputs), ("outputs", outputs))
    }
    return {
        "name": version.name,
        "versions": [version.version],
        "platform": f"lcn_{version.manifest.config.backbone.name}",
        **described,
    }
