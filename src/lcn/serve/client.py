"""A small client: rank, send events, look at a user. Standard library and orjson only."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from lcn.errors import ServeError
from lcn.serve.store.records import Event

LOAD_S = 600.0
"""Seconds for a bundle to be checked and its users' states to be built."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores of a user's candidates, in their order."""

    scores: list[float]
    logits: list[float]
    model: str
    model_version: str
    state_version: int
    state_age_ms: float
    degraded: str | None
    unknown: list[int]
    ignored: list[str] = field(default_factory=list)
    """Fields of the request that the model does not have."""
    explanation: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What became of events."""

    outcomes: list[str]
    state_versions: dict[str, int]
    durability: str
    ignored: list[str] = field(default_factory=list)
    """Context fields of the events that the store does not keep."""


class Refused(ServeError):
    """The server answered with an error."""

    def __init__(self, status: int, text: str, retry_after: float | None) -> None:
        super().__init__(f"{status}: {text}")
        self.status, self.retry_after = status, retry_after


class Client:
    """One connection to a server; not for several threads at once.

    Args:
        url: such as http://127.0.0.1:8080.
        token: for every call; a server's scopes have tokens of their own.
        timeout: seconds for an answer.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=timeout)
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Client:
        """Return the client."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connection."""
        self.close()

    def rank(
        self,
        user: str,
        candidates: Sequence[str | Mapping[str, Any]],
        *,
        context: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Answer:
        """Score candidates.

        Args:
            user: any key.
            candidates: item keys, or {"item": key, "fields": {...}}.
            context: request fields.
            settings: further fields of the request: time, model, deadline_ms, explain, profile.

        Raises:
            Refused: the server's error; `retry_after` when it is only busy.
        """
        body = {"user": user, "candidates": list(candidates), "context": dict(context or {})}
        answer = self.call("POST", "/v1/rank", {**body, **settings})
        names = Answer.__slots__
        return Answer(**{name: answer[name] for name in names if name in answer})

    def add(self, events: Sequence[Event]) -> Acknowledged:
        """Send events; sending them again changes nothing.

        Raises:
            Refused: none of them is acknowledged.
        """
        body = [{**asdict(event), "context": dict(event.context)} for event in events]
        answer = self.call("POST", "/v1/events", {"events": body})
        names = Acknowledged.__slots__
        return Acknowledged(**{name: answer[name] for name in names if name in answer})

    def state(self, user: str) -> dict[str, Any]:
        """What is kept of a user."""
        return self.call("GET", f"/v1/users/{quote(user, safe='')}/state")

    def delete(self, user: str) -> bool:
        """Remove a user; whether there was one."""
        return self.call("DELETE", f"/v1/users/{quote(user, safe='')}/state")["deleted"]

    def models(self) -> list[dict[str, Any]]:
        """The models that serve."""
        return self.call("GET", "/v1/models")

    def load(self, bundle: str) -> dict[str, Any]:
        """Let a bundle of the server's folder take over; it may take minutes."""
        body = {"bundle": bundle}
        return self.call("POST", "/v1/models/load", body, timeout=LOAD_S)

    def rollback(self, model: str) -> dict[str, Any]:
        """Put a model's version before back."""
        return self.call("POST", f"/v1/models/{model}/rollback")

    def call(
        self, method: str, path: str, body: Any = None, *, timeout: float | None = None
    ) -> Any:
        """Any request, JSON both ways.

        Args:
            method: of HTTP.
            path: with a leading slash.
            body: to be sent as JSON.
            timeout: seconds for the answer; default: the client's.

        Raises:
            Refused: an error of the server.
            ServeError: no answer.
        """
        data = None if body is None else json.dumps(body)
        try:
            response, text = self._ask(method, path, data, timeout)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ServeError(f"no answer from the server: {error}") from error
        if response.status >= 400:
            retry = response.getheader("Retry-After")
            try:
                message = json.loads(text)["error"]
            except (ValueError, KeyError, TypeError):
                message = text.decode(errors="replace")
            raise Refused(response.status, message, float(retry) if retry else None)
        return json.loads(text)

    def _ask(
        self, method: str, path: str, data: str | None, timeout: float | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """One request; once more on a new connection where the old one had been closed meanwhile,
        as servers do with idle ones. What changes which models serve is never sent twice."""
        connection = self._connection
        connection.timeout = timeout or self._timeout
        reused = connection.sock is not None
        if reused:
            connection.sock.settimeout(connection.timeout)
        try:
            connection.request(method, path, data, self._headers)
            response = connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not reused or path.startswith("/v1/models/"):
                raise
            connection.close()
            return self._ask(method, path, data, timeout)
        return response, response.read()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
