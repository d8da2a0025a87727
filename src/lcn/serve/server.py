"""A server put together: store, models, queue, interface; started, drained, stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from lcn.errors import LcnError, ServeError
from lcn.serve.app import build_app
from lcn.serve.auth import tokens_for
from lcn.serve.bundle import Bundle, BundleManifest, load_bundle
from lcn.serve.clock import SteadyClock
from lcn.serve.guard import Guard
from lcn.serve.ingest import Ingest
from lcn.serve.metrics import ServerMetrics
from lcn.serve.parts import Parts
from lcn.serve.ranker import Ranker
from lcn.serve.registry import Registry
from lcn.serve.settings import ServeConfig
from lcn.serve.store import open_store
from lcn.serve.store.base import BehaviourStore

_log = logging.getLogger("lcn.serve")

FULL_TURNS = 1000
"""Turns of the middle generation before the garbage collector looks at everything; usually 10."""


@dataclass(slots=True)
class Running:
    """An open server's parts."""

    parts: Parts
    app: FastAPI
    state: str = "starting"
    """starting, ready, draining."""


def open_server(
    config: ServeConfig,
    bundles: Sequence[Path | str | Bundle],
    *,
    token_file: Path | None = None,
    store: BehaviourStore | None = None,
    now: Callable[[], int] | None = None,
) -> Running:
    """Load models and store and make the application; nothing listens yet.

    Args:
        config: every setting.
        bundles: folders, or loaded; the first is the default model.
        token_file: tokens to use; see `lcn.serve.auth`.
        store: to use instead of the one the config names.
        now: the time of day, UTC milliseconds; the default does not follow jumps at once.

    Raises:
        CheckpointError: a bundle cannot be served.
        StoreError: the store cannot be opened.
        ServeError: two bundles of one name, or a token file that cannot be read.
    """
    loaded = [each if isinstance(each, Bundle) else load_bundle(each) for each in bundles]
    names = [each.manifest.name for each in loaded]
    if not loaded or len(set(names)) < len(names):
        raise ServeError(f"bundles need names of their own, got {names}; export one with `--name`")
    if not config.bundles:
        config = config.model_copy(update={"bundles": str(loaded[0].folder.absolute().parent)})
    data_dir = Path(config.data_dir)
    tokens = tokens_for(token_file, data_dir, loopback=config.loopback)
    longest = max(each.manifest.reads for each in loaded)
    fields = event_fields([each.manifest for each in loaded])
    metrics = ServerMetrics()
    if store is None:
        place = config.store or data_dir / "store"
        store = open_store(place, fields, config.limits(longest), config.durability)
    registry = _load_all(loaded, store, config.cache_mib << 20)
    now = now or SteadyClock()
    workers = config.workers or min(os.cpu_count() or 1, 4)
    ranker = Ranker(
        registry, store, metrics, now=now, workers=workers, queue=config.queue,
        stale_s=config.stale_s, part=config.part, usual_s=config.deadline_ms / 1000,
        short=max(each.manifest.short for each in loaded),
    )  # fmt: skip
    ingest = Ingest(
        store, registry, metrics, now=now, earliest=config.earliest_ms, most=config.ingest_queue
    )
    metrics.watch(registry, store, lambda: ranker.admission.pending)
    holder: list[Running] = []
    parts = Parts(
        config, store, registry, ranker, ingest, metrics, tokens,
        ready=lambda: bool(holder) and holder[0].state == "ready",
        now=now,
    )  # fmt: skip
    holder.append(Running(parts, build_app(parts), "ready"))
    return holder[0]


def _load_all(bundles: Sequence[Bundle], store: BehaviourStore, cache_bytes: int) -> Registry:
    """The models over the store, which is closed again where one of them cannot be loaded."""
    try:
        registry = Registry(store, cache_bytes)
        for bundle in bundles:
            registry.load(bundle)
    except BaseException:
        store.close()
        raise
    return registry


def close_server(running: Running) -> None:
    """Finish what runs, leave everything on disk."""
    running.state = "draining"
    parts = running.parts
    parts.ranker.close()
    parts.ingest.close()
    parts.store.close()


def run_server(running: Running, *, started: Callable[[str], None] = lambda url: None) -> None:
    """Listen until SIGTERM or SIGINT, then drain and close.

    Args:
        running: an open server.
        started: told the address once requests are answered.

    Raises:
        ServeError: the address is taken.
    """
    # One thread for each request: more would only wait for each other on a busy machine.
    torch.set_num_threads(1)
    config = running.parts.config
    listener = _listen(config)
    try:
        port = listener.getsockname()[1]
        server = _Server(running, config, lambda: started(f"http://{config.host}:{port}"))
        with _audits(running):
            # What lives as long as the server is never looked at again by the garbage collector,
            # whose full turns would each hold up every request for a tenth of a second.
            gc.collect()
            gc.freeze()
            # States come and go by reference count alone; what is in cycles (exceptions, tasks) is
            # young. So full turns, which would walk all states, come after millions of objects.
            first, second, _ = gc.get_threshold()
            gc.set_threshold(first, second, FULL_TURNS)
            # Threads that score hand the interpreter over sooner than after Python's 5 ms.
            sys.setswitchinterval(0.001)
            server.listen_on(listener)
    finally:
        listener.close()
        close_server(running)


@contextmanager
def background(running: Running) -> Iterator[str]:
    """Listen in a thread of this process, for tests and notebooks; closes the server at the end.

    Yields:
        The address.
    """
    torch.set_num_threads(1)
    up = threading.Event()
    listener = _listen(running.parts.config)
    server = _Server(running, running.parts.config, up.set)
    thread = threading.Thread(target=server.listen_on, args=(listener,), name="server")
    thread.start()
    try:
        if not up.wait(60):
            raise ServeError("the server did not start in a minute")
        yield f"http://{running.parts.config.host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        close_server(running)


class _Server(uvicorn.Server):
    """Uvicorn that says it is not ready before it stops accepting."""

    def __init__(self, running: Running, config: ServeConfig, started: Callable[[], None]) -> None:
        guard = Guard(config.header_timeout_s, config.max_header_bytes, config.max_connections)
        super().__init__(
            uvicorn.Config(
                running.app,
                http=guard.protocol,  # type: ignore[arg-type]
                ws="none",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, round(config.drain_s)),
                timeout_keep_alive=30,
            )
        )
        self._running, self._told = running, started

    def listen_on(self, listener: socket.socket) -> None:
        """Run until told to stop, on the fastest event loop there is."""
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve(sockets=[listener]))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell when requests are answered."""
        await super().startup(sockets)
        self._told()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not ready from now on; what runs is finished."""
        self._running.state = "draining"
        super().handle_exit(sig, frame)
        # Draining is the normal way to stop, so the process ends with status 0.
        captured = getattr(self, "_captured_signals", [])
        captured[:] = [each for each in captured if each not in (signal.SIGTERM, signal.SIGINT)]


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ServeError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror or error}; give "
            "another --port"
        ) from error
    listener.listen(1024)
    listener.setblocking(False)
    return listener


@contextmanager
def _audits(running: Running) -> Iterator[None]:
    """Check cached states against rebuilt ones from time to time."""
    parts, stop = running.parts, threading.Event()

    def audit() -> None:
        draw = random.Random(0)
        while not stop.wait(parts.config.audit_s):
            for version in parts.registry.active():
                try:
                    wrong = version.cache.audit(parts.now(), draw)
                except LcnError as error:
                    _log.warning("audit: %s", error)
                    continue
                if wrong:
                    _log.error("audit: %d states of %s were wrong", wrong, version.name)

    thread = threading.Thread(target=audit, name="audit", daemon=True)
    if parts.config.audit_s:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()


def event_fields(manifests: Sequence[BundleManifest]) -> tuple[str, ...]:
    """Every event context field that some model reads."""
    names: dict[str, None] = {}
    for manifest in manifests:
        names |= dict.fromkeys(field.name for field in manifest.dataset.event_context)
    return tuple(names)
