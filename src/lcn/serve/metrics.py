"""What a server says of itself to Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lcn.errors import StoreError
from lcn.serve.registry import Registry
from lcn.serve.store.base import BehaviourStore

_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
)  # fmt: skip


class ServerMetrics:
    """Counters and histograms, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "lcn_requests", "Requests answered.", ["endpoint", "status"], registry=own
        )
        self.seconds = Histogram(
            "lcn_request_seconds", "Time to answer a request, first byte to last.", ["endpoint"],
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.stage = Histogram(
            "lcn_stage_seconds",
            "Time in a stage of a ranking request; rebuild is a part of state.", ["stage"],
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.rejected = Counter(
            "lcn_rejected", "Requests turned away, by reason.", ["reason"], registry=own
        )
        self.degraded = Counter(
            "lcn_degraded", "Requests answered without a fresh full state.", ["reason"],
            registry=own,
        )  # fmt: skip
        self.candidates = Counter("lcn_candidates", "Candidates scored.", registry=own)
        self.unknown_items = Counter(
            "lcn_unknown_items", "Candidates the model does not know.", registry=own
        )
        self.nonfinite = Counter(
            "lcn_nonfinite", "Requests whose logits were not finite.", registry=own
        )
        self.events = Counter(
            "lcn_events", "Events received, by outcome.", ["outcome"], registry=own
        )
        self.store_errors = Counter(
            "lcn_store_errors", "Failed store operations.", ["operation"], registry=own
        )
        self.swaps = Counter("lcn_model_changes", "Loads and rollbacks.", ["result"], registry=own)
        self.pending = Gauge("lcn_pending", "Ranking requests that wait or run.", registry=own)
        for name in ("parse", "queue", "state", "rebuild", "score", "answer"):
            self.stage.labels(name)

    def watch(self, models: Registry, store: BehaviourStore, pending: Callable[[], int]) -> None:
        """Also report caches, models and the store, read when asked for."""
        self.pending.set_function(pending)
        self.registry.register(_Watched(models, store))  # type: ignore[arg-type]

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


class _Watched:
    def __init__(self, models: Registry, store: BehaviourStore) -> None:
        self._models, self._store = models, store

    def collect(self) -> Iterator[Metric]:
        """Read everything once."""
        info = GaugeMetricFamily(
            "lcn_model_info", "Versions that serve.", labels=["model", "version", "backbone"]
        )
        size = GaugeMetricFamily("lcn_cache_bytes", "Memory of users' states.", labels=["model"])
        states = GaugeMetricFamily("lcn_cache_states", "Users' states held.", labels=["model"])
        counts = CounterMetricFamily(
            "lcn_cache", "What happened to users' states.", labels=["model", "what"]
        )
        for version in self._models.active():
            name = version.name
            info.add_metric([name, version.version, version.manifest.config.backbone.name], 1)
            size.add_metric([name], version.cache.bytes)
            states.add_metric([name], len(version.cache))
            seen = version.cache.counts
            for what in ("hits", "misses", "rebuilds", "evictions", "updates", "dropped",
                         "audits", "mismatches"):  # fmt: skip
                counts.add_metric([name, what], getattr(seen, what))
        yield from (info, size, states, counts)
        try:
            facts = self._store.facts()
        except StoreError:
            return  # counted where requests ask it; all else is still told
        for name, value, text in (
            ("users", facts.users, "Users with events."),
            ("events", facts.events, "Events kept."),
            ("bytes", facts.bytes, "Bytes of the store."),
        ):
            yield GaugeMetricFamily(f"lcn_store_{name}", text, value=value)
