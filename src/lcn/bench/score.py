"""Serving speed: many candidates of one user, whose history is encoded already.

A request looks the candidates up, attends to the encoded state, scores. The padded path beside it
runs the same model with the reference ops; the two take turns, request by request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from lcn import ops
from lcn.backbones.base import Query
from lcn.bench.worker import Variant
from lcn.bench.workload import Workload, build_dataset, build_model, per_sample
from lcn.data.batch import Batch
from lcn.data.loader import Collator
from lcn.errors import ConfigError
from lcn.model import Embedded, Model

PADDED_MOST = 20_000
"""N above which the padded path is left out: it needs 500 copies of such a history."""


@dataclass(frozen=True, slots=True)
class ScoreGrid:
    """Which cases to run: every combination."""

    backbones: Sequence[str] = ("lap",)
    n: Sequence[int] = (2000,)
    items: Sequence[int] = (100_000,)
    candidates: int = 500
    threads: int = 1
    requests: int = 100
    seconds: float = 60.0
    """For all cases together; a case makes at least ten requests of each variant."""
    variants: Sequence[Variant] = ("reference", "fast")


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """One variant of one case."""

    backbone: str
    n: int
    items: int
    candidates: int
    threads: int
    variant: Variant
    p50_ms: float
    p99_ms: float
    encode_ms: float
    """What the state costs once: looking items up and encoding."""
    samples_per_s: float
    requests: int


class Served:
    """One user's state, and requests on it."""

    def __init__(self, work: Workload, candidates: int) -> None:
        torch.manual_seed(0)
        self._model: Model = build_model(work, sparse=True).eval()
        one = replace(work, batch=1, group=1)
        dataset = build_dataset(one, 1)
        base = Collator(dataset, "train", one.batches)(np.zeros(1, np.int64))
        self._item_IF = torch.from_numpy(dataset.item_IF)
        self._user = base
        self._request = _repeat(base, candidates)
        self._draw = torch.Generator().manual_seed(0)

    def encode(self) -> tuple[Embedded, object]:
        """What a server does when it first sees a user's history."""
        parts = self._model.embed(self._user)
        return parts, self._model.backbone.encode(parts.history)

    def items(self) -> Tensor:
        """Draw the fields of a request's candidates."""
        count = len(self._request)
        place_C = torch.randint(len(self._item_IF), (count,), generator=self._draw)
        return self._item_IF[place_C]

    def score(self, parts: Embedded, state: object, field_CF: Tensor) -> Tensor:
        """Score candidates against the state."""
        request = self._request
        query = Query(self._model.item(field_CF), field_CF, request.time_C, request.user_of_C)
        return self._model.score(request, replace(parts, query=query), state).logit_C

    def stateless(self) -> Callable[[], Tensor]:
        """Prepare the request of a framework without states: each candidate brings a history of
        its own, and each call looks it up, encodes and searches it."""
        batch = per_sample(self._request)
        return lambda: self._model(batch).logit_C


def run(
    grid: ScoreGrid, tell: Callable[[str], None] = lambda text: None
) -> Iterator[list[ScoreRecord]]:
    """Run every case; yields the records of each, the padded variant first."""
    torch.set_num_threads(grid.threads)
    cases = list(product(grid.backbones, grid.n, grid.items))
    end = time.monotonic() + grid.seconds
    for number, (backbone, n, items) in enumerate(cases):
        tell(f"{number + 1}/{len(cases)} {backbone} N={n} items={items}")
        work = Workload(backbone, n, items, group=1)
        until = time.monotonic() + (end - time.monotonic()) / (len(cases) - number)
        yield run_case(work, grid, until)


def run_case(work: Workload, grid: ScoreGrid, until: float) -> list[ScoreRecord]:
    """One case, variants in turns."""
    served = Served(work, grid.candidates)
    variants: list[Variant] = [
        each for each in grid.variants if each == "fast" or work.n <= PADDED_MOST
    ]
    if not variants:
        raise ConfigError(f"the padded path is timed up to N={PADDED_MOST:,}, got N={work.n:,}")
    encoded: dict[Variant, tuple[Embedded, object]] = {}
    encode_s: dict[Variant, float] = {}
    spent: dict[Variant, list[float]] = {}
    with torch.inference_mode():
        for variant in variants:
            with ops.force(variant):
                served.encode()  # compiles, loads
                started = time.perf_counter()
                encoded[variant] = served.encode()
                encode_s[variant] = time.perf_counter() - started
                served.score(*encoded[variant], served.items())
            spent[variant] = []
        while len(spent[variants[0]]) < grid.requests:
            field_CF = served.items()
            for variant in variants:
                with ops.force(variant):
                    started = time.perf_counter()
                    served.score(*encoded[variant], field_CF)
                    spent[variant].append(time.perf_counter() - started)
            if time.monotonic() > until and len(spent[variants[0]]) >= 10:
                break
    return [_record(work, grid, variant, spent[variant], encode_s[variant]) for variant in variants]


def _record(
    work: Workload, grid: ScoreGrid, variant: Variant, spent: list[float], encode_s: float
) -> ScoreRecord:
    p50, p99 = np.percentile(spent, [50, 99])
    return ScoreRecord(
        backbone=work.backbone,
        n=work.n,
        items=work.items,
        candidates=grid.candidates,
        threads=grid.threads,
        variant=variant,
        p50_ms=1e3 * float(p50),
        p99_ms=1e3 * float(p99),
        encode_ms=1e3 * encode_s,
        samples_per_s=grid.candidates / float(p50),
        requests=len(spent),
    )


def _repeat(base: Batch, count: int) -> Batch:
    """The user's one impression as a request of `count` candidates."""

    def spread(column: Tensor) -> Tensor:
        return column.expand(count, *column.shape[1:]).contiguous()

    names = [name for name in base.__slots__ if name.endswith(("_C", "_C2", "_CA", "_CR"))]
    return replace(base, **{name: spread(getattr(base, name)) for name in names})
