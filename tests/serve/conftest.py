"""Fixtures of the serving tests: a world, stores, a Redis server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from serve_world import World, make_world

from lcn.serve.store.base import BehaviourStore, Limits
from lcn.serve.store.lmdb_store import LmdbStore
from lcn.serve.store.redis_store import RedisStore

_DEFAULT = Limits()
Opener = Callable[..., BehaviourStore]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A dataset and a bundle of a pyramid."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server of the system's packages (scripts/install-test-programs.sh)."""
    with _redis(tmp_path_factory.mktemp("redis"), {}) as url:
        yield url


@pytest.fixture
def redis_abroad(tmp_path: Path) -> Iterator[str]:
    """A server that sorts texts as people do."""
    name = "en_US.UTF-8"
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "en_US", "-f", "UTF-8", tmp_path / name],
        capture_output=True,
        check=False,
    )
    if not made or made.returncode:
        pytest.skip("localedef makes no en_US locale here; install the system's package `locales`")
    with _redis(tmp_path, {"LC_ALL": name, "LOCPATH": str(tmp_path)}) as url:
        yield url


@contextmanager
def _redis(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        pytest.skip(
            "no redis-server or valkey-server here; scripts/install-test-programs.sh installs one"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--dir", str(folder), "--appendonly", "yes",
               "--bind", "127.0.0.1", "--save", ""]  # fmt: skip
    settings = {**os.environ, **environment}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=settings) as process:
        client = redis.Redis(port=port)
        for _ in range(200):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        client.close()
        yield f"redis://127.0.0.1:{port}/0"
        process.terminate()


@pytest.fixture(params=["lmdb", "lmdb-everysec", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens stores of one kind; all are closed in the end."""
    opened: list[BehaviourStore] = []
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        redis.Redis.from_url(url).flushall()

    def opener(limits: Limits = _DEFAULT, fields: tuple[str, ...] = ("kind",)) -> BehaviourStore:
        if request.param == "redis":
            store: BehaviourStore = RedisStore(url, fields, limits)
        else:
            level = "always" if request.param == "lmdb" else "everysec"
            store = LmdbStore(tmp_path / f"store-{len(opened)}", fields, limits, level)
        opened.append(store)
        return store

    yield opener
    for store in opened:
        store.close()
