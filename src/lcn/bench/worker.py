"""The process that trains for `lcn bench train`: one variant of one case, a step when asked.

`python -m lcn.bench.worker SPEC` reads commands from stdin, one a line, and answers each with a
line of JSON: `step`, `loader`, `memory`. The parent lets two such processes take turns.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from lcn import ops
from lcn.bench import memory
from lcn.bench.bound import measure_machine, train_need
from lcn.bench.workload import Workload, build_dataset, build_model, per_sample
from lcn.data.batch import Batch
from lcn.data.dataset import Dataset
from lcn.data.loader import Collator, load_batches
from lcn.model import Model
from lcn.train.config import TrainConfig
from lcn.train.loss import click_loss
from lcn.train.optimiser import build_optimisers

Variant = Literal["reference", "fast"]
BATCHES = 4
ROUNDS = 4
"""Times the batches are loaded when the loader is timed."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a worker does."""

    work: Workload
    variant: Variant
    threads: int


class Trainer:
    """A model, its optimisers and a loop of batches."""

    def __init__(self, spec: Spec, work: Workload) -> None:
        torch.manual_seed(0)
        self._spec, self._work = spec, work
        fast = spec.variant == "fast"
        self.model: Model = build_model(work, sparse=fast)
        self.model.train()
        if fast:
            self._optimisers = build_optimisers([self.model], TrainConfig())
        else:
            self._optimisers = [torch.optim.Adam(self.model.parameters(), lr=1e-3)]
        self.dataset: Dataset = build_dataset(work, BATCHES)
        collate = Collator(self.dataset, "train", work.batches)
        started = time.perf_counter()
        self.batches = [collate(part) for part in np.split(self._order(), BATCHES)]
        self.collate_s = (time.perf_counter() - started) / BATCHES
        self.need = train_need(self.model, self.batches[0])
        self.rows = len(self.batches[0].source.item_T)
        self.unique_items = len(self.batches[0].item_IF)
        if not fast:
            self.batches = [per_sample(batch) for batch in self.batches]
        self.steps = 0

    def step(self) -> float:
        """One optimiser step on the next batch; returns the loss."""
        self.steps += 1
        return self._learn(self.batches[self.steps % BATCHES])

    def with_loader(self) -> float:
        """An epoch fed by a loader thread; returns the share of time spent waiting for it.

        The wait for the epoch's first batch counts: in sixteen batches, where a real epoch has
        hundreds.
        """
        waited, started = 0.0, time.perf_counter()
        feed = self._feed()
        while True:
            asked = time.perf_counter()
            batch = next(feed, None)
            waited += time.perf_counter() - asked
            if batch is None:
                return waited / (time.perf_counter() - started)
            self._learn(batch)

    def _order(self) -> np.ndarray:
        return np.arange(self._work.batch * BATCHES)

    def _feed(self) -> Iterator[Batch]:
        order = np.tile(self._order(), ROUNDS)
        yield from load_batches(self.dataset, "train", self._work.batches, order, workers=1)

    def _learn(self, batch: Batch) -> float:
        with ops.force(self._spec.variant):
            for optimiser in self._optimisers:
                optimiser.zero_grad(set_to_none=True)
            total, terms = click_loss(self.model, self.model(batch), batch)
            total.backward()
            for optimiser in self._optimisers:
                optimiser.step()
            return terms["ctr"]


def main() -> None:
    """Build, report, obey."""
    tree = json.loads(sys.argv[1])
    if tree.get("machine"):
        torch.set_num_threads(tree["threads"])
        _say(asdict(measure_machine(tree["group"])))
        return
    spec = Spec(Workload(**tree["work"]), tree["variant"], tree["threads"])
    torch.set_num_threads(spec.threads)
    # Loads libraries and compiled kernels, so that they count for neither time nor memory.
    small = replace(spec.work, n=64, items=3000, batch=16, group=min(spec.work.group, 8))
    Trainer(spec, small).step()
    trainer = Trainer(spec, spec.work)
    gc.collect()
    memory.reset_peak()
    idle = memory.resident_mib()
    _say(
        {
            "need": asdict(trainer.need),
            "rows": trainer.rows,
            "unique_items": trainer.unique_items,
            "collate_s": trainer.collate_s,
        }
    )
    for command in sys.stdin:
        _say(_obey(command.strip(), trainer, idle))


def _obey(command: str, trainer: Trainer, idle: float | None) -> dict[str, Any]:
    if command == "loader":
        return {"wait_share": trainer.with_loader()}
    if command == "memory":
        peak = memory.peak_mib()
        return {"peak_mib": None if peak is None or idle is None else peak - idle}
    started, spent = time.perf_counter(), time.process_time()
    loss = trainer.step()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - spent,
        "loss": loss,
    }


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
