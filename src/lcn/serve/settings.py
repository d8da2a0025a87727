"""How a server runs."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from lcn.config import Config
from lcn.serve.auth import is_loopback
from lcn.serve.store.base import Limits

DAY_MS = 86_400_000


class ServeConfig(Config):
    """Every setting of `lcn serve`."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    store: str = ""
    """A folder or redis://host:port/db; default: `store` in the data folder."""
    data_dir: str = "lcn-data"
    """For the embedded store and generated tokens."""
    durability: Literal["always", "everysec"] = "always"
    """Of the embedded store: on disk before an acknowledgement, or at most a second later."""
    history: NonNegativeInt = 0
    """Events kept per user and domain; 0 keeps twice what the longest model reads, 2000 at
    least."""
    age_days: NonNegativeFloat = 0.0
    """Older events are forgotten; 0 keeps them."""
    earliest_ms: int = 1_104_537_600_000
    """Events before this time (UTC milliseconds; 2005) are refused as mistakes."""
    cache_mib: PositiveInt = 1024
    """Memory for users' states, for each model."""
    workers: NonNegativeInt = 0
    """Threads that score; 0: one per processor, at most 4."""
    part: int = Field(500, ge=1)
    """Candidates scored together; of more, idle workers take parts. A part costs some milliseconds
    of processor time whatever its size, so a large one serves more requests, a small one sooner."""
    queue: PositiveInt = 64
    """Requests that wait or run at once; more are turned away."""
    deadline_ms: PositiveFloat = 100.0
    """Of requests that bring none; those with more time are not let wait longer for a worker."""
    stale_s: NonNegativeFloat = 600.0
    """How old a state may be that is used when the store does not answer."""
    max_candidates: PositiveInt = 1000
    max_body_bytes: PositiveInt = 1 << 20
    max_events: PositiveInt = 1000
    """Events in one request."""
    ingest_queue: PositiveInt = 20_000
    """Events that wait for the store; more are turned away."""
    body_timeout_s: PositiveFloat = 5.0
    header_timeout_s: PositiveFloat = 5.0
    """For the headers of a request, from the opening of its connection or its first byte."""
    max_header_bytes: PositiveInt = 32 * 1024
    """Of a request's first line and headers."""
    max_connections: PositiveInt = 512
    """Open at once; beyond, the one that has waited longest without a request is closed."""
    drain_s: NonNegativeFloat = 10.0
    """How long running requests may take after SIGTERM."""
    warm_users: NonNegativeInt = 1000
    """Users whose states are built before a new version takes over."""
    audit_s: NonNegativeFloat = 60.0
    """Seconds between audits of cached states; 0 makes none."""
    bundles: str = ""
    """Folder that POST /v1/models/load may load from; default: the one of the first bundle."""

    @field_validator("host")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value:
            raise ValueError("give an address; 0.0.0.0 is all of them")
        return value

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    def limits(self, longest: int) -> Limits:
        """What the store keeps, for models that read `longest` events at most."""
        return Limits(self.history or max(2 * longest, 2000), round(self.age_days * DAY_MS))
