"""Where users' behaviour events live: one interface, embedded (LMDB) or on a Redis server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lcn.errors import StoreError
from lcn.serve.store.base import BehaviourStore, Limits, LocalDurability

__all__ = ["open_store"]


def open_store(
    place: str | Path,
    fields: Sequence[str],
    limits: Limits,
    durability: LocalDurability = "always",
) -> BehaviourStore:
    """Open a behaviour store, making it when it is not there.

    Args:
        place: a folder, or `redis://host:port/db`, `rediss://...`, `unix://...` for a server;
            `redis://one:6379,two:6379/0?replicas=1` for a primary and its replicas.
        fields: names of the event context fields to keep.
        limits: how much of a user's history is kept.
        durability: of a folder; a server has its own, which acknowledgements name.

    Raises:
        StoreError: damaged, locked, unreachable, or made for other fields.
    """
    text = str(place)
    if "://" in text:
        scheme = text.partition("://")[0]
        if scheme not in ("redis", "rediss", "unix", "valkey", "valkeys"):
            raise StoreError(
                f"no behaviour store speaks {scheme}://; give a folder or redis://host:port/db"
            )
        from lcn.serve.store.redis_store import RedisStore

        return RedisStore(re.sub("^valkey", "redis", text), fields, limits)
    from lcn.serve.store.lmdb_store import LmdbStore

    return LmdbStore(Path(place), fields, limits, durability)
