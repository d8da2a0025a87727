"""Which versions of which models are served, and how one takes over from another.

A request takes a version once and keeps it to its end, states included, so no answer mixes two.
A version that does not load leaves everything as it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lcn.errors import LcnError, ServeError, nearest
from lcn.serve.bundle import NAME, Bundle, BundleManifest, load_bundle
from lcn.serve.scorer import Scorer
from lcn.serve.state_cache import StateCache
from lcn.serve.store.base import BehaviourStore, Change
from lcn.serve.store.records import record_bytes


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model, ready to serve."""

    manifest: BundleManifest
    scorer: Scorer
    cache: StateCache

    @property
    def name(self) -> str:
        """Of the model."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Of its bytes."""
        return self.manifest.version


@dataclass(slots=True)
class _Slot:
    active: Version
    previous: Version | None = None


class UnknownModel(LcnError):
    """No such model or version is served."""


class Registry:
    """See the module.

    Args:
        store: where histories are.
        cache_bytes: for the states of each model.
    """

    def __init__(self, store: BehaviourStore, cache_bytes: int) -> None:
        self._store, self._cache_bytes = store, cache_bytes
        self._slots: dict[str, _Slot] = {}
        self._warming: list[Version] = []
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        self.default: str | None = None
        """Name of the model that serves requests which name none: the first one."""

    def load(
        self,
        bundle: Path | Bundle,
        *,
        warm_users: int = 0,
        now: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> Version:
        """Load a bundle, build the states of users asked for last, then let it take over.

        Args:
            bundle: a folder, or already loaded.
            warm_users: at most so many, one after the other, resting as long as each takes.
            now: UTC milliseconds.

        The version that serves already stays as it is, and so does the one before it.

        Raises:
            CheckpointError: the bundle cannot be served; what was served still is.
            ServeError: the store does not keep what the model reads, or another bundle of this
                name and version serves.
        """
        with self._changing:
            opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
            here = self._same(opened.manifest)
            if here is not None:
                return here
            self._check_store(opened.manifest)
            scorer = Scorer(opened, self._store.fields, self._store.limits)
            cache = StateCache(scorer, self._store, self._cache_bytes)
            version = Version(opened.manifest, scorer, cache)
            with self._lock:
                slot = self._slots.get(version.name)
                self._warming.append(version)
            try:
                scorer.warm_up()
                if slot is not None:
                    self._warm(version, slot.active.cache.hot_users(warm_users), now)
                self._activate(version)
            finally:
                with self._lock:
                    self._warming.remove(version)
            return version

    def rollback(self, name: str) -> Version:
        """Put the version before back in its place.

        Raises:
            UnknownModel: no such model.
            ServeError: it had no version before.
        """
        with self._lock:
            slot = self._slot(name)
            if slot.previous is None:
                raise ServeError(f"model {name!r} has no version before {slot.active.version}")
            slot.active, slot.previous = slot.previous, slot.active
            slot.previous.cache.clear()
            return slot.active

    def get(self, name: str | None = None, version: str | None = None) -> Version:
        """The version that serves a name (None: the default).

        Raises:
            UnknownModel: no such model, or it serves another version.
        """
        found = self._slot(name if name is not None else self.default or "").active
        if version is not None and version != found.version:
            raise UnknownModel(f"model {found.name!r} serves version {found.version}")
        return found

    def active(self) -> list[Version]:
        """Every version that serves."""
        with self._lock:
            return [slot.active for slot in self._slots.values()]

    def previous(self, name: str) -> Version | None:
        """The version that a rollback would bring back."""
        return self._slot(name).previous

    def apply(self, change: Change) -> None:
        """Tell every cache of new events."""
        for version in self._all():
            version.cache.apply(change)

    def forget(self, user: str) -> None:
        """Drop a user's states."""
        for version in self._all():
            version.cache.drop(user)

    def _all(self) -> list[Version]:
        with self._lock:
            slots = list(self._slots.values())
            found = [slot.active for slot in slots] + self._warming
            return found + [slot.previous for slot in slots if slot.previous is not None]

    def _slot(self, name: str) -> _Slot:
        slot = self._slots.get(name)
        if slot is None:
            raise UnknownModel(f"no model {name!r} is served{nearest(name, self._slots)}")
        return slot

    def _activate(self, version: Version) -> None:
        with self._lock:
            slot = self._slots.get(version.name)
            if slot is None:
                self._slots[version.name] = _Slot(version)
                self.default = self.default or version.name
                return
            slot.previous, slot.active = slot.active, version
            # Its states would only take memory; a rollback builds them on demand.
            slot.previous.cache.clear()

    def _same(self, manifest: BundleManifest) -> Version | None:
        """The active version, if it is this one.

        Raises:
            ServeError: it has its name and other bytes.
        """
        slot = self._slots.get(manifest.name)
        if slot is None or slot.active.version != manifest.version:
            return None
        if slot.active.manifest.files != manifest.files:
            raise ServeError(
                f"model {manifest.name!r} serves another bundle of version {manifest.version}; "
                "export this one under a version of its own"
            )
        return slot.active

    def _check_store(self, manifest: BundleManifest) -> None:
        """Refuse a model that would see less of a history than it was trained on."""
        store = self._store
        missing = [
            each.name for each in manifest.dataset.event_context if each.name not in store.fields
        ]
        if missing:
            raise ServeError(
                f"model {manifest.name!r} {manifest.version} reads the event context fields "
                f"{missing}, which the store does not keep (it keeps {list(store.fields)}); start "
                "a server with this bundle and another --data-dir, and load the events again"
            )
        kept = store.limits.count(record_bytes(len(store.fields)))
        if kept < manifest.reads:
            raise ServeError(
                f"model {manifest.name!r} {manifest.version} reads {manifest.reads} events of a "
                f"domain, the store keeps {kept}; start the server with "
                f"--set history={manifest.reads} or more"
            )

    @staticmethod
    def _warm(version: Version, users: list[str], now: Callable[[], int]) -> None:
        # The hottest last: the cache forgets those first that came in first.
        for user in reversed(users):
            started = time.monotonic()
            version.cache.get(user, now())
            time.sleep(time.monotonic() - started)


def bundle_path(root: Path, name: str) -> Path:
    """The folder of a bundle that a request names.

    Raises:
        ServeError: not a plain name, or no folder inside the root.
    """
    if not NAME.fullmatch(name):
        raise ServeError("a bundle is named by letters, digits, '.', '_' and '-' (64 at most)")
    path = root / name
    if path.is_symlink() or path.resolve().parent != root.resolve() or not path.is_dir():
        raise ServeError(f"there is no bundle {name!r} to load")
    return path
