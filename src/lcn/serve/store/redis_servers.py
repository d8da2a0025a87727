"""Which Redis server to ask: the primary among those that an address names, if it answers.

A server that fails is left alone for a moment, so requests that can be answered without it are
answered at once instead of waiting for it one by one; then one caller tries it again while the
others still go without. Where an address names several servers, the primary is looked for after
every failure and checked every second, so a promoted replica takes over by itself and a server
that was demoted is not read for long.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lcn.errors import StoreError

READ_S = 0.25
"""For an answer to a reader, who has other ways to go on."""
WRITE_S = 1.0
"""For an answer to a writer, who has none."""
DOWN_S = 0.5
"""How long a server that failed is left alone."""
CHECK_S = 1.0
"""How often a primary among several servers is asked whether it still is."""

_ADDRESS = re.compile(r"(?P<scheme>\w+://)(?P<auth>[^@/]*@)?(?P<hosts>[^/?]*)(?P<rest>.*)", re.S)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """What `redis://user:secret@one:6379,two:6379/0?replicas=1` says."""

    urls: tuple[str, ...]
    """One for each server."""
    replicas: int
    """How many replicas must have a batch before it is acknowledged."""


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        StoreError: `replicas` is no number.
    """
    asked = re.search(r"[?&]replicas=([^&]*)", text)
    if asked is not None and not asked[1].isdigit():
        raise StoreError(f"replicas={asked[1]} is no number; give redis://host,host/0?replicas=1")
    text = re.sub(r"\?$", "", re.sub(r"(?<=[?&])replicas=[^&]*&?", "", text))
    parts = _ADDRESS.fullmatch(text)
    hosts = parts["hosts"].split(",") if parts is not None else []
    replicas = int(asked[1]) if asked is not None else 0
    if parts is None or len(hosts) < 2:
        return Address((text,), replicas)
    urls = (f"{parts['scheme']}{parts['auth'] or ''}{host}{parts['rest']}" for host in hosts)
    return Address(tuple(urls), replicas)


@dataclass(slots=True)
class _Server:
    """One server, for those in a hurry and for those who are not."""

    read: redis.Redis
    write: redis.Redis


class Servers:
    """See the module; safe to use from several threads.

    Args:
        urls: of the servers; one of them is the primary.
        again: whether a writer whose connection was cut sends its command once more on a new one.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        *,
        again: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers = [
            _Server(_client(url, READ_S), _client(url, WRITE_S, again=again)) for url in urls
        ]
        self._clock, self._lock = clock, threading.Lock()
        self._primary: _Server | None = self._servers[0] if len(urls) == 1 else None
        self._checked_s = 0.0
        self._failing, self._again_s = False, 0.0
        self.elections = 0
        """How often another server than before became the one to ask."""
        self._last: _Server | None = self._primary

    def ask(self, work: Callable[[redis.Redis], T], *, write: bool = False) -> T:
        """Do something on the primary.

        Args:
            work: told the client.
            write: has time, and what it does may be done again where an answer was lost.

        Raises:
            StoreError: no server answers, or none did a moment ago.
            redis.RedisError: the server refused.
        """
        self._wait_outside()
        try:
            server = self._find()
            done = work(server.write if write else server.read)
        except (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError) as error:
            self._failed()
            raise StoreError(f"the Redis server says: {error}") from error
        except (redis.RedisError, StoreError):
            self._failing = False  # it answers
            raise
        self._failing = False
        return done

    def close(self) -> None:
        """Close every connection."""
        for server in self._servers:
            server.read.close()
            server.write.close()

    def _wait_outside(self) -> None:
        """Let one caller try a server that failed; the others go without."""
        with self._lock:
            if not self._failing:
                return
            now = self._clock()
            if now < self._again_s:
                raise StoreError(f"the Redis server did not answer less than {DOWN_S:g} s ago")
            self._again_s = now + DOWN_S

    def _failed(self) -> None:
        with self._lock:
            self._failing, self._again_s = True, self._clock() + DOWN_S
            if len(self._servers) > 1:
                self._primary = None

    def _find(self) -> _Server:
        """The primary; of several that think they are, the one that has seen most."""
        known, now = self._primary, self._clock()
        if known is not None and (len(self._servers) == 1 or now - self._checked_s < CHECK_S):
            return known
        self._checked_s = now
        if known is not None and _offset(known) is not None:
            return known
        found = [(offset, server) for server in self._servers if (offset := _offset(server))]
        if not found:
            raise redis.ConnectionError("none of the servers is a primary that answers")
        primary = max(found, key=lambda each: each[0])[1]
        if primary is not self._last:
            self._last = primary
            self.elections += 1
        self._primary = primary
        return primary


def _client(url: str, seconds: float, *, again: bool = True) -> redis.Redis:
    # One more try on a new connection, for those that a restart of the server has cut; the
    # client's own default would wait for seconds.
    retry = Retry(NoBackoff(), int(again), supported_errors=(redis.ConnectionError,))
    return redis.Redis.from_url(
        url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=retry
    )


def _offset(server: _Server) -> int | None:
    """How far a primary's stream of changes is, from 1; None when it is none or does not answer."""
    try:
        role = cast("list[Any]", server.read.role())
    except redis.RedisError:
        return None
    return int(role[1]) + 1 if role[0] in (b"master", "master") else None
