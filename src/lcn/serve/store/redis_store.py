"""The behaviour store on a Redis or Valkey server, for several replicas.

Per user one hash slot: `{prefix:user}:s` and `:t` are sorted sets whose members are records (equal
scores, so their order is that of their bytes), `:i` the set of event ids, `:v` the version. One
script adds a user's events, so a batch is atomic per user and an id counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis

from lcn.errors import StoreError
from lcn.schema import Domain
from lcn.serve.store.base import Ack, Change, Limits, Outcome, Stored, StoreFacts, failed
from lcn.serve.store.records import Packed, check_fields, record_bytes, unpack
from lcn.serve.store.redis_servers import Servers, parse_address

REPLICATE_S = 0.5
"""For replicas to confirm a batch; less than a writer waits for its server."""

T = TypeVar("T")

_DOMAINS: tuple[Domain, Domain] = ("source", "target")

_APPEND = """
local outcomes, before, added = {}, redis.call('GET', KEYS[4]) or '0', 0
local cap, oldest = tonumber(ARGV[1]), tonumber(ARGV[2])
-- A number: comparing texts would follow the server's locale.
local function known(record)
  local high, low = struct.unpack('>I4I4', record)
  return high * 4294967296 + low
end
for place = 3, #ARGV, 2 do
  local key, record = KEYS[tonumber(ARGV[place])], ARGV[place + 1]
  local id, outcome = string.sub(record, 25, 32), 'stored'
  if redis.call('SADD', KEYS[3], id) == 0 then
    outcome = 'duplicate'
  else
    redis.call('ZADD', key, 0, record)
    local first = redis.call('ZRANGE', key, 0, 0)[1]
    while first and (redis.call('ZCARD', key) > cap or known(first) < oldest) do
      redis.call('SREM', KEYS[3], string.sub(first, 25, 32))
      redis.call('ZREM', key, first)
      if first == record then outcome = 'too_old' end
      first = redis.call('ZRANGE', key, 0, 0)[1]
    end
    if outcome == 'stored' then added = added + 1 end
  end
  outcomes[#outcomes + 1] = outcome
end
local after = before
if added > 0 then
  -- Larger than before, and never one that a removed user had.
  local time = redis.call('TIME')
  after = math.max(tonumber(before) + 1, tonumber(time[1]) * 1000000 + tonumber(time[2]))
  after = string.format('%.0f', after)
  redis.call('SET', KEYS[4], after)
end
return {outcomes, before, after}
"""


class RedisStore:
    """See `BehaviourStore`.

    Args:
        url: of the server, or `redis://one:6379,two:6379/0?replicas=1`: of several, one of which is
            the primary, and how many replicas must have a batch before it is acknowledged.
        fields: event context fields.
        limits: how much of a history is kept.
        prefix: of every key.

    Raises:
        StoreError: unreachable, or made for other fields.
    """

    def __init__(
        self, url: str, fields: Sequence[str], limits: Limits, prefix: str = "lcn"
    ) -> None:
        self.fields, self.limits = check_fields(fields), limits
        self._prefix = prefix
        address = parse_address(url)
        self._replicas = address.replicas
        # A command sent again on another connection would be one that WAIT knows nothing of.
        self._servers = Servers(address.urls, again=not address.replicas)
        self._script = redis.Redis().register_script(_APPEND)
        self.fields = self._ask("open the store", self._kept_fields, write=True)
        self._cap = max(limits.count(record_bytes(len(self.fields))), 1)
        self._asked = -1
        """At which election the primary's durability was asked for."""
        self.durability = ""
        self._ask("open the store", self._ask_durability, write=True)

    def append(self, batch: Sequence[Packed], now: int) -> Ack:
        """See `BehaviourStore`; atomic per user."""
        of_user: dict[str, list[int]] = {}
        for place, event in enumerate(batch):
            of_user.setdefault(event.user, []).append(place)
        outcomes: list[Outcome] = ["stored"] * len(batch)
        changes = []
        versions = {}

        def work(server: redis.Redis) -> None:
            # WAIT covers what its own connection has written, and nothing else.
            with server.client() as one:
                self._ask_durability(one)
                for user, places in of_user.items():
                    found, change, versions[user] = self._append_user(
                        one, user, [batch[at] for at in places], now
                    )
                    for at, outcome in zip(places, found, strict=True):
                        outcomes[at] = outcome
                    if change is not None:
                        changes.append(change)
                if of_user:
                    # Every time: an earlier try may have been cut off between the two.
                    one.zadd(f"{self._prefix}:users", dict.fromkeys(of_user, 0))
                    self._replicate(one, outcomes.count("stored"))

        self._ask("store a batch", work, write=True)
        return Ack(tuple(outcomes), versions, self.durability, tuple(changes))

    def version(self, user: str) -> int:
        """See `BehaviourStore`."""
        key = self._keys(user)[3]
        return self._ask("read", lambda server: int(server.get(key) or 0))  # type: ignore[arg-type]

    def read(self, user: str, now: int, newest: int = 0) -> Stored:
        """See `BehaviourStore`."""
        keys = self._keys(user)

        def work(server: redis.Redis) -> list[Any]:
            pipe = server.pipeline(transaction=True)
            pipe.get(keys[3])
            for key in keys[:2]:
                pipe.zrange(key, -newest if newest else 0, -1)
            return pipe.execute()

        version, source, target = self._ask("read", work)
        records = [
            self.limits.young(unpack(b"".join(rows), len(self.fields)), now)
            for rows in (source, target)
        ]
        return Stored(int(version or 0), *records)

    def delete(self, user: str) -> bool:
        """See `BehaviourStore`."""

        def work(server: redis.Redis) -> bool:
            with server.client() as one:
                removed = int(one.delete(*self._keys(user)))  # type: ignore[arg-type]
                one.zrem(f"{self._prefix}:users", user)
                self._replicate(one, 0)
            return removed > 0

        return self._ask("delete a user", work, write=True)

    def users(self, first: str, count: int) -> list[str]:
        """See `BehaviourStore`; in byte order."""
        key = f"{self._prefix}:users"
        found = self._ask(
            "list users",
            lambda server: server.zrangebylex(key, f"[{first}", "+", start=0, num=count),
            write=True,
        )
        return [name.decode() for name in found]  # type: ignore[union-attr]

    def facts(self) -> StoreFacts:
        """See `BehaviourStore`; `events` counts what was ever added."""

        def work(server: redis.Redis) -> StoreFacts:
            users = int(server.zcard(f"{self._prefix}:users"))  # type: ignore[arg-type]
            events = int(server.get(f"{self._prefix}:events") or 0)  # type: ignore[arg-type]
            memory = server.info("memory")
            return StoreFacts("redis", users, events, int(memory["used_memory"]))  # type: ignore[index]

        return self._ask("read", work)

    def close(self) -> None:
        """See `BehaviourStore`."""
        self._servers.close()

    def _append_user(
        self, server: redis.Redis, user: str, batch: list[Packed], now: int
    ) -> tuple[list[Outcome], Change | None, int]:
        arguments: list[bytes | int] = [self._cap, max(self.limits.oldest(now), 0)]
        for event in batch:
            arguments += [_DOMAINS.index(event.domain) + 1, event.record]
        texts, before, after = self._script(self._keys(user), arguments, server)  # type: ignore[misc]
        outcomes: list[Outcome] = [text.decode() for text in texts]
        added = {
            domain: sorted(
                event.record
                for event, outcome in zip(batch, outcomes, strict=True)
                if outcome == "stored" and event.domain == domain
            )
            for domain in _DOMAINS
        }
        if not any(added.values()):
            return outcomes, None, int(after)
        source, target = (unpack(b"".join(added[name]), len(self.fields)) for name in _DOMAINS)
        return outcomes, Change(user, int(before), int(after), source, target), int(after)

    def _keys(self, user: str) -> list[str]:
        base = f"{{{self._prefix}:{user}}}"
        return [f"{base}:{part}" for part in "stiv"]

    def _replicate(self, one: redis.Redis, added: int) -> None:
        """Count what was added, then wait until as many replicas as asked for have everything.

        Counting is a write even where nothing was added: WAIT has nothing to wait for on a
        connection that wrote nothing, and a batch that comes again because too few replicas had it
        is made of duplicates. Its place in the stream of changes is behind whatever they repeat.

        Args:
            one: a client of a single connection, which is not opened again when it is cut.
            added: events.

        Raises:
            StoreError: too few have it in time; it may be there, so it is not acknowledged.
        """
        one.incrby(f"{self._prefix}:events", added)
        if not self._replicas:
            return
        have = int(one.wait(self._replicas, round(1000 * REPLICATE_S)))  # type: ignore[arg-type]
        if have < self._replicas:
            raise StoreError(
                f"{have} of {self._replicas} replicas have the batch after {REPLICATE_S:g} s; it "
                "may be stored: send it again"
            )

    def _ask_durability(self, server: redis.Redis) -> None:
        """Know how durable the primary's writes are; a promoted one may be set otherwise."""
        elections = self._servers.elections
        if elections != self._asked:
            replicas = f"+{self._replicas}" if self._replicas else ""
            self.durability = _server_durability(server) + replicas
            self._asked = elections

    def _kept_fields(self, server: redis.Redis) -> tuple[str, ...]:
        """The fields that the store was made for; those of the models must be among them."""
        key, own = f"{self._prefix}:fields", "\n".join(self.fields)
        server.set(key, own, nx=True)
        found = server.get(key)
        kept = found.decode() if isinstance(found, bytes) else own
        names = tuple(kept.split("\n")) if kept else ()
        if not set(self.fields) <= set(names):
            raise StoreError(
                f"the store keeps the event context fields {list(names)}, the model needs "
                f"{list(self.fields)}; use another database number and load the events again"
            )
        return names

    def _ask(self, doing: str, work: Callable[[redis.Redis], T], *, write: bool = False) -> T:
        try:
            return self._servers.ask(work, write=write)
        except redis.RedisError as error:
            raise failed(f"cannot {doing}: the Redis server says: {error}") from error


def _server_durability(server: redis.Redis) -> str:
    try:
        config = server.config_get("append*")
    except redis.ResponseError:
        return "server"  # managed servers hide their settings
    if config.get("appendonly") != "yes":  # type: ignore[union-attr]
        return "memory"
    return str(config.get("appendfsync"))  # type: ignore[union-attr]
