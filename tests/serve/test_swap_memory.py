"""R-46: a version that was replaced goes away by itself.

What lives when a server begins to listen is never looked at again by the garbage collector, so a
version must not need it: one that hung in a cycle of references would stay for ever.
"""

from __future__ import annotations

import gc
import shutil
import weakref

from serve_world import World, make_world

from lcn.serve.server import close_server, open_server
from lcn.serve.settings import ServeConfig


def test_a_replaced_version_needs_no_garbage_collector(tmp_path, world: World) -> None:
    for seed in (1, 2):
        other = make_world(tmp_path / f"w{seed}", seed=seed, dataset=world.dataset)
        shutil.move(other.bundle, tmp_path / f"v{seed}")
    config = ServeConfig(data_dir=str(tmp_path / "data"), durability="everysec")
    running = open_server(config, [tmp_path / "v1"])
    registry = running.parts.registry
    registry.get().cache.get("u1", 0)
    gc.collect()
    gc.disable()
    try:
        first = registry.get()
        gone = [weakref.ref(first.scorer), weakref.ref(first.scorer.bundle.model)]
        del first
        for bundle in ("v2", "v1"):  # the version before is kept for a rollback
            assert all(each() is not None for each in gone)
            registry.load(tmp_path / bundle)
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()
        close_server(running)
