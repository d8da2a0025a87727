"""The behaviour store on a Redis or Valkey server, for several replicas.

Per user one hash slot: `{prefix:user}:s` and `:t` are sorted sets whose members are records (equal
scores, so their order is that of their bytes), `:i` the set of event ids, `:v` the version. One
script adds a user's events, so a batch is atomic per user and an id counts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import redis

from lcn.errors import StoreError
from lcn.schema import Domain
from lcn.serve.store.base import Ack, Change, Limits, Outcome, Stored, StoreFacts
from lcn.serve.store.records import CONTEXT, Packed, check_fields, unpack

_DOMAINS: tuple[Domain, Domain] = ("source", "target")

_APPEND = """
local outcomes, before, added = {}, redis.call('GET', KEYS[4]) or '0', 0
local cap, oldest = tonumber(ARGV[1]), ARGV[2]
for place = 3, #ARGV, 2 do
  local key, record = KEYS[tonumber(ARGV[place])], ARGV[place + 1]
  local id, outcome = string.sub(record, 25, 32), 'stored'
  if redis.call('SADD', KEYS[3], id) == 0 then
    outcome = 'duplicate'
  else
    redis.call('ZADD', key, 0, record)
    local first = redis.call('ZRANGE', key, 0, 0)[1]
    while first and (redis.call('ZCARD', key) > cap or string.sub(first, 1, 8) < oldest) do
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
        url: of the server.
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
        self._cap = max(limits.count(8 * (CONTEXT + len(self.fields))), 1)
        self._prefix = prefix
        self._redis = redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=2.0)
        self._script = self._redis.register_script(_APPEND)
        with self._errors("open the store"):
            self._check_fields()
            self.durability = self._server_durability()

    def append(self, batch: Sequence[Packed], now: int) -> Ack:
        """See `BehaviourStore`; atomic per user."""
        of_user: dict[str, list[int]] = {}
        for place, event in enumerate(batch):
            of_user.setdefault(event.user, []).append(place)
        outcomes: list[Outcome] = ["stored"] * len(batch)
        changes = []
        versions = {}
        with self._errors("store a batch"):
            for user, places in of_user.items():
                found, change, versions[user] = self._append_user(
                    user, [batch[at] for at in places], now
                )
                for at, outcome in zip(places, found, strict=True):
                    outcomes[at] = outcome
                if change is not None:
                    changes.append(change)
        return Ack(tuple(outcomes), versions, self.durability, tuple(changes))

    def version(self, user: str) -> int:
        """See `BehaviourStore`."""
        with self._errors("read"):
            return int(self._redis.get(self._keys(user)[3]) or 0)  # type: ignore[arg-type]

    def read(self, user: str, now: int, newest: int = 0) -> Stored:
        """See `BehaviourStore`."""
        keys = self._keys(user)
        with self._errors("read"):
            pipe = self._redis.pipeline(transaction=True)
            pipe.get(keys[3])
            for key in keys[:2]:
                pipe.zrange(key, -newest if newest else 0, -1)
            version, source, target = pipe.execute()
        records = [
            self.limits.young(unpack(b"".join(rows), len(self.fields)), now)
            for rows in (source, target)
        ]
        return Stored(int(version or 0), *records)

    def delete(self, user: str) -> bool:
        """See `BehaviourStore`."""
        with self._errors("delete a user"):
            removed = int(self._redis.delete(*self._keys(user)))  # type: ignore[arg-type]
            self._redis.zrem(f"{self._prefix}:users", user)
            return removed > 0

    def users(self, first: str, count: int) -> list[str]:
        """See `BehaviourStore`; in byte order."""
        with self._errors("list users"):
            found = self._redis.zrangebylex(
                f"{self._prefix}:users", f"[{first}", "+", start=0, num=count
            )
        return [name.decode() for name in found]  # type: ignore[union-attr]

    def facts(self) -> StoreFacts:
        """See `BehaviourStore`; `events` counts what was ever added."""
        with self._errors("read"):
            users = int(self._redis.zcard(f"{self._prefix}:users"))  # type: ignore[arg-type]
            events = int(self._redis.get(f"{self._prefix}:events") or 0)  # type: ignore[arg-type]
            memory = self._redis.info("memory")
        return StoreFacts("redis", users, events, int(memory["used_memory"]))  # type: ignore[index]

    def close(self) -> None:
        """See `BehaviourStore`."""
        self._redis.close()

    def _append_user(
        self, user: str, batch: list[Packed], now: int
    ) -> tuple[list[Outcome], Change | None, int]:
        oldest = max(self.limits.oldest(now), 0).to_bytes(8, "big")
        arguments: list[bytes | int] = [self._cap, oldest]
        for event in batch:
            arguments += [_DOMAINS.index(event.domain) + 1, event.record]
        texts, before, after = self._script(keys=self._keys(user), args=arguments)  # type: ignore[misc]
        outcomes: list[Outcome] = [text.decode() for text in texts]
        added = {
            domain: sorted(
                event.record
                for event, outcome in zip(batch, outcomes, strict=True)
                if outcome == "stored" and event.domain == domain
            )
            for domain in _DOMAINS
        }
        count = sum(len(records) for records in added.values())
        if not count:
            return outcomes, None, int(after)
        pipe = self._redis.pipeline(transaction=False)
        pipe.zadd(f"{self._prefix}:users", {user: 0})
        pipe.incrby(f"{self._prefix}:events", count)
        pipe.execute()
        source, target = (unpack(b"".join(added[name]), len(self.fields)) for name in _DOMAINS)
        return outcomes, Change(user, int(before), int(after), source, target), int(after)

    def _keys(self, user: str) -> list[str]:
        base = f"{{{self._prefix}:{user}}}"
        return [f"{base}:{part}" for part in "stiv"]

    def _check_fields(self) -> None:
        key, own = f"{self._prefix}:fields", "\n".join(self.fields)
        self._redis.set(key, own, nx=True)
        found = self._redis.get(key)
        if found != own.encode():
            names = found.decode().split("\n") if isinstance(found, bytes) else found
            raise StoreError(
                f"the store keeps the event context fields {names}, the model needs "
                f"{list(self.fields)}; use another database number and load the events again"
            )

    def _server_durability(self) -> str:
        try:
            config = self._redis.config_get("append*")
        except redis.ResponseError:
            return "server"  # managed servers hide their settings
        if config.get("appendonly") != "yes":  # type: ignore[union-attr]
            return "memory"
        return str(config.get("appendfsync"))  # type: ignore[union-attr]

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise StoreError(f"cannot {doing}: the Redis server says: {error}") from error
