"""How a server runs."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, field_validator

from lcn.config import Config
from lcn.serve.store.base import Limits

DAY_MS = 86_400_000


class ServeConfig(Config):
    """Every setting of `lcn serve`."""

    host: str = "127.0.0.1"
    port: int = 8080
    store: str = ""
    """A folder or redis://host:port/db; default: `store` in the data folder."""
    data_dir: str = "lcn-data"
    """For the embedded store and generated tokens."""
    durability: Literal["always", "everysec"] = "always"
    """Of the embedded store: on disk before an acknowledgement, or at most a second later."""
    history: int = 0
    """Events kept per user and domain; 0 keeps twice what the longest model reads, 2000 at
    least."""
    age_days: float = 0.0
    """Older events are forgotten; 0 keeps them."""
    earliest_ms: int = 1_104_537_600_000
    """Events before this time (UTC milliseconds; 2005) are refused as mistakes."""
    cache_mib: int = 1024
    """Memory for users' states, for each model."""
    workers: int = 0
    """Threads that score; 0: one per processor, at most 4."""
    part: int = Field(500, ge=1)
    """Candidates scored together; of more, idle workers take parts. A part costs some milliseconds
    of processor time whatever its size, so a large one serves more requests, a small one sooner."""
    queue: int = 64
    """Requests that wait or run at once; more are turned away."""
    deadline_ms: float = 100.0
    """Of requests that bring none; those with more time are not let wait longer for a worker."""
    stale_s: float = 600.0
    """How old a state may be that is used when the store does not answer."""
    max_candidates: int = 1000
    max_body_bytes: int = 1 << 20
    max_events: int = 1000
    """Events in one request."""
    ingest_queue: int = 20_000
    """Events that wait for the store; more are turned away."""
    body_timeout_s: float = 5.0
    header_timeout_s: float = 5.0
    """For the headers of a request, from the opening of its connection or its first byte."""
    max_header_bytes: int = 32 * 1024
    """Of a request's first line and headers."""
    max_connections: int = 512
    """Open at once; beyond, the one that has waited longest without a request is closed."""
    drain_s: float = 10.0
    """How long running requests may take after SIGTERM."""
    warm_users: int = 1000
    """Users whose states are built before a new version takes over."""
    audit_s: float = 60.0
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
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def limits(self, longest: int) -> Limits:
        """What the store keeps, for models that read `longest` events at most."""
        return Limits(self.history or max(2 * longest, 2000), round(self.age_days * DAY_MS))
