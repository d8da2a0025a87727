"""The words of the native interface: what a client sends and gets, checked before any work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from lcn.serve.names import ITEM_LENGTH, KEY_TEXT, USER_LENGTH

MOST_MS = 2**53
"""Times beyond are not exact in JSON."""


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 3.0 is an integer there."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Key = Annotated[
    str,
    StringConstraints(min_length=1, max_length=USER_LENGTH, pattern=KEY_TEXT),
]
"""A user: any text without control characters."""
Long = Annotated[
    str,
    StringConstraints(min_length=1, max_length=ITEM_LENGTH, pattern=KEY_TEXT),
]
"""An item (in some logs its title), an event, a request: stores keep only a hash of them."""
Value = Annotated[str, StringConstraints(max_length=256)]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A model, a version, an experiment."""
Name = Annotated[str, StringConstraints(max_length=64)]
"""Of a field; those that the model or the store does not have are ignored, and answers say so."""
Values = Annotated[dict[Name, Value], Field(max_length=64)]
Moment = Annotated[int, Field(ge=0, le=MOST_MS, strict=True), BeforeValidator(_whole)]
"""UTC milliseconds."""
Size = Annotated[int, Field(ge=0, le=2000, strict=True), BeforeValidator(_whole)]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class WireCandidate(_Wire):
    """An item with its candidate-only fields."""

    item: Long
    fields: Values = {}


class RankRequest(_Wire):
    """One user, many candidates."""

    user: Key
    candidates: Annotated[list[Long | WireCandidate], Field(min_length=1, max_length=2000)]
    """Scored independently, duplicates too; answers keep this order."""
    context: Values = {}
    """Request fields, such as the hour."""
    profile: Values | None = None
    """Profile fields; default: what was known of the user in training."""
    time: Moment | None = None
    """When, UTC milliseconds; default: now. Only events known strictly before are used."""
    model: Word | None = None
    """Default: the first model the server was started with."""
    deadline_ms: Annotated[float, Field(ge=1, le=60_000, allow_inf_nan=False)] | None = None
    explain: bool = False
    """Also say which events each level kept, for the first 20 candidates."""
    request_id: Long | None = None
    experiment: Word | None = None
    """Given back as it is, for logs."""
    arm: Word | None = None


class KeptEvent(_Wire):
    """An event that a level kept."""

    event: int
    """Its place in the history of the answer."""
    weight: float


class LevelAnswer(_Wire):
    """What one level kept for one candidate, best first."""

    level: str
    kept: list[KeptEvent]


class HistoryEvent(_Wire):
    """An event of a user's history."""

    item: str | None
    """None for an item that the model does not know."""
    title: str | None
    time: int
    context: dict[str, str | None]


class Explanation(_Wire):
    """The lifelong history and what the levels kept of it, for each of the first 20 candidates."""

    history: list[HistoryEvent]
    candidates: list[list[LevelAnswer]]


class RankAnswer(_Wire):
    """Scores in the order of the candidates."""

    request_id: str | None
    model: str
    model_version: str
    state_version: int
    """Version of the user's history that was used; grows with every event of the user."""
    state_age_ms: float
    """Since that version was last known to be the newest; 0 unless `degraded` is `stale`."""
    degraded: Literal["stale", "short", "prior"] | None
    """None: the newest full state. stale: an older one. short: only the newest events. prior: no
    history, the store does not answer."""
    scores: list[float]
    """Click probabilities."""
    logits: list[float]
    unknown: list[int]
    """Places of candidates that the model does not know."""
    ignored: list[str]
    """Fields of the request that the model does not have, such as `context.hour`."""
    experiment: str | None
    arm: str | None
    explanation: Explanation | None = None


class WireEvent(_Wire):
    """One behaviour of a user."""

    event_id: Long
    """Names the event: one that comes again changes nothing."""
    user: Key
    item: Long
    time: Annotated[int, Field(ge=-(2**53), le=2 * 10**18, strict=True), BeforeValidator(_whole)]
    """UTC milliseconds. Seconds, microseconds and nanoseconds are recognised and refused."""
    domain: Literal["source", "target"] = "source"
    sequence: Annotated[int, Field(ge=0, le=2**53, strict=True), BeforeValidator(_whole)] = 0
    """Order among events of one time."""
    arrival: Moment | None = None
    """When the event became known, where that is later than its time."""
    context: Values = {}


class EventsRequest(_Wire):
    """Events of any users."""

    events: Annotated[list[WireEvent], Field(min_length=1, max_length=10_000)]


class EventsAnswer(_Wire):
    """What became of each event, in order."""

    outcomes: list[Literal["stored", "duplicate", "too_old", "unit", "early", "future"]]
    """stored; duplicate: known already; too_old: older than all that is kept; refused for its
    time: unit (not milliseconds), early, future."""
    state_versions: dict[str, int]
    """Of each user: answers with at least this version have seen the user's stored events."""
    ignored: list[str]
    """Context fields of the events that the store does not keep, such as `context.hour`."""
    durability: str
    """always: on disk; everysec: within a second; otherwise as the store's server is set."""


class StateAnswer(_Wire):
    """What is kept of a user."""

    user: str
    known: bool
    """Whether the user was in the training data."""
    state_version: int
    source: list[HistoryEvent]
    """Oldest first."""
    target: list[HistoryEvent]


class DeleteAnswer(_Wire):
    """Whether there was anything to remove."""

    deleted: bool


class LoadRequest(_Wire):
    """A bundle beside the one the server was started with."""

    bundle: Word


class ModelAnswer(_Wire):
    """A model and its versions."""

    model: str
    version: str
    previous: str | None
    """What a rollback would bring back."""
    backbone: str
    lifelong: int
    trained: dict[str, float | int | str | None]
    cached_states: int
    cached_bytes: int


class UsersAnswer(_Wire):
    """Some users."""

    users: list[str]


class ItemAnswer(_Wire):
    """An item of the catalogue."""

    item: str
    title: str | None


class ErrorAnswer(BaseModel):
    """Every error has this body."""

    error: str
    code: str
    request_id: str | None = None
