"""Training speed: the plain padded implementation and ours, taking turns in one run.

`reference` is the padded path as open frameworks have it: rows of its own for every candidate,
looked up one by one, [C, N, D] copies in every stage, dense gradients of whole tables,
`torch.optim.Adam` over all parameters. `fast` is what
`lcn train` does. Each variant has a process of its own, started with the same environment; the
two take turns, step by step, so that a busy machine slows both. So do catalogues of several sizes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import product
from statistics import median
from types import TracebackType
from typing import Any

from lcn.bench import memory
from lcn.bench.bound import Machine, Need
from lcn.bench.worker import Spec, Variant
from lcn.bench.workload import Lengths, Popularity, Workload
from lcn.errors import LcnError

MOST_MEMORY = 0.6
"""Share of the available memory that the padded path may be expected to fill."""
ROUNDS = (3, 15)
"""Turns: at least, also when time is over; at most."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Which cases to run: every combination."""

    backbones: Sequence[str] = ("lap",)
    n: Sequence[int] = (500, 2000)
    items: Sequence[int] = (100_000,)
    group: Sequence[int] = (8,)
    threads: Sequence[int] = (1,)
    lengths: Sequence[Lengths] = ("full",)
    batch: int = 1024
    popularity: Popularity = "power"
    variants: Sequence[Variant] = ("reference", "fast")
    steps: int = 4
    """Steps of the fast variant per turn; the padded one makes one."""
    seconds: float = 240.0
    """For all cases together, starting up included, as far as the fewest turns allow."""

    def cases(self) -> list[tuple[list[Workload], int]]:
        """Every combination, with its threads; those that differ by their items alone together."""
        every = product(self.backbones, self.n, self.group, self.lengths, self.threads)
        return [
            (
                [
                    Workload(name, n, items, group, lengths, self.batch, popularity=self.popularity)
                    for items in self.items
                ],
                threads,
            )
            for name, n, group, lengths, threads in every
        ]


@dataclass(frozen=True, slots=True)
class Record:
    """One variant of one case."""

    backbone: str
    n: int
    items: int
    group: int
    threads: int
    variant: Variant
    samples_per_s: float
    peak_mib: float | None
    """Above the idle process, which holds model, data and libraries."""
    bound_samples_per_s: float
    lengths: str
    batch: int
    """Of this variant: the padded path gets a smaller one where memory asks for it."""
    samples_per_cpu_s: float
    """By processor time: says more than the clock on a shared machine."""
    speedup: float | None
    """Of the fast variant over the padded one: median over neighbouring turns."""
    over_first_items: float | None
    """Time over that of this variant with the first catalogue: median over neighbouring turns."""
    over_bound: float
    """Time by the clock over the time of the ideal bound."""
    reachable_samples_per_s: float
    """The bound of all parts one after the other at the rates of their sizes."""
    over_reachable: float
    piece_gflop_per_s: float
    """In products of 64 rows with g columns."""
    gflop: float
    gib: float
    """Operations and bytes that a step of `batch` samples needs."""
    matrix_gflop_per_s: float
    read_gib_per_s: float
    rows: int
    unique_items: int
    collate_samples_per_s: float
    """How fast one loader thread makes batches."""
    wait_share: float | None
    """Share of training time spent waiting for the loader thread (fast variant)."""
    steps: int
    allocator: str
    load: float
    """Of the machine (1 min) when the case was over."""


class Worker:
    """A training process."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._process = _start(asdict(spec))
        self.facts = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            hint = "; it was killed, probably for memory: choose a smaller --batch or --n"
            raise LcnError(
                f"the {self.spec.variant} process of {self.spec.work} ended with exit code {code}"
                + (hint if code < 0 else "")
            )
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


def measure(threads: int, group: int) -> Machine:
    """The machine's rates, in a process of its own."""
    with _start({"machine": True, "threads": threads, "group": group}) as process:
        out, _ = process.communicate()
    return Machine(**json.loads(out))


def run(grid: Grid, tell: Callable[[str], None] = lambda text: None) -> Iterator[list[Record]]:
    """Run every case; yields the records of each, the padded variant first.

    Args:
        grid: which cases.
        tell: called with a word on what happens next.
    """
    cases = grid.cases()
    machines: dict[tuple[int, int], Machine] = {}
    end = time.monotonic() + grid.seconds
    for number, (works, threads) in enumerate(cases):
        work = works[0]
        size = threads, work.group
        if size not in machines:
            tell(f"measuring the machine with {threads} thread(s), g={work.group}")
            machines[size] = measure(threads, work.group)
        items = ", ".join(f"{each.items:,}" for each in works)
        tell(
            f"{number + 1}/{len(cases)} {work.backbone} N={work.n} items={items} "
            f"g={work.group} {work.lengths} threads={threads}"
        )
        left = (end - time.monotonic()) / (len(cases) - number)
        yield run_case(works, threads, machines[size], grid, time.monotonic() + left)


def run_case(
    works: Sequence[Workload], threads: int, machine: Machine, grid: Grid, until: float
) -> list[Record]:
    """One case: both variants, with each catalogue, in turns until time is over."""
    with ExitStack() as processes:
        workers = [
            processes.enter_context(
                Worker(
                    Spec(
                        work if variant == "fast" else replace(work, batch=_padded_batch(work)),
                        variant,
                        threads,
                    )
                )
            )
            for work in works
            for variant in grid.variants
        ]
        turns = _take_turns(workers, grid.steps, until)
        padded = {w.spec.work.items: w for w in workers if w.spec.variant == "reference"}
        first = {w.spec.variant: w for w in reversed(workers)}
        records = []
        for worker in workers:
            spec = worker.spec
            slow = padded.get(spec.work.items) if spec.variant == "fast" else None
            small = first[spec.variant]
            records.append(
                _record(
                    worker,
                    turns[worker],
                    machine,
                    speedup=slow and _ratio(slow, worker, turns),
                    over_first=None if small is worker else _ratio(worker, small, turns),
                )
            )
        return records


Turns = dict[Worker, list[list[dict[str, float]]]]
"""Of each process, its turns, each of some steps."""


def _take_turns(workers: Sequence[Worker], steps: int, until: float) -> Turns:
    turns: Turns = {worker: [] for worker in workers}
    for worker in workers:
        worker.ask("step")  # the first step makes optimiser state
    fewest, most = ROUNDS
    for number in range(1, most + 1):
        for worker in workers:
            count = steps if worker.spec.variant == "fast" else 1
            turns[worker].append([worker.ask("step") for _ in range(count)])
        if number >= fewest and time.monotonic() > until:
            break
    return turns


def _per_sample(worker: Worker, turn: list[dict[str, float]], clock: str = "seconds") -> float:
    return median(step[clock] for step in turn) / worker.spec.work.batch


def _ratio(slow: Worker, fast: Worker, turns: Turns) -> float:
    """A sample's time in one process over that in another: median over neighbouring turns."""
    pairs = zip(turns[slow], turns[fast], strict=True)
    return median(_per_sample(slow, one) / _per_sample(fast, other) for one, other in pairs)


def _record(
    worker: Worker,
    turns: list[list[dict[str, float]]],
    machine: Machine,
    *,
    speedup: float | None,
    over_first: float | None,
) -> Record:
    work, facts, variant = worker.spec.work, worker.facts, worker.spec.variant
    peak = worker.ask("memory")["peak_mib"]
    wait = worker.ask("loader")["wait_share"] if variant == "fast" else None
    need = Need(**facts["need"])
    bound = work.batch / need.seconds(machine)
    reachable = work.batch / need.reachable_seconds(machine)
    speed = 1 / median(_per_sample(worker, turn) for turn in turns)
    return Record(
        backbone=work.backbone,
        n=work.n,
        items=work.items,
        group=work.group,
        threads=worker.spec.threads,
        variant=variant,
        samples_per_s=speed,
        peak_mib=peak,
        bound_samples_per_s=bound,
        lengths=work.lengths,
        batch=work.batch,
        samples_per_cpu_s=1 / median(_per_sample(worker, turn, "cpu_seconds") for turn in turns),
        speedup=speedup,
        over_first_items=over_first,
        over_bound=bound / speed,
        reachable_samples_per_s=reachable,
        over_reachable=reachable / speed,
        piece_gflop_per_s=machine.piece_flops / 1e9,
        gflop=need.flops / 1e9,
        gib=need.bytes / 2**30,
        matrix_gflop_per_s=machine.flops / 1e9,
        read_gib_per_s=machine.bandwidth / 2**30,
        rows=facts["rows"],
        unique_items=facts["unique_items"],
        collate_samples_per_s=work.batch / facts["collate_s"],
        wait_share=wait,
        steps=sum(map(len, turns)),
        allocator=memory.allocator(),
        load=os.getloadavg()[0],
    )


def _padded_batch(work: Workload) -> int:
    """The largest halved batch whose padded copies are expected to fit in memory."""
    free = memory.available_mib()
    # Copies of [C, N, D] alive at once: two gathers and their gradients, of every pool.
    per_sample = 6 * 4 * work.width * work.n / 2**20
    batch = work.batch
    while free is not None and batch > 16 and batch * per_sample > MOST_MEMORY * free:
        batch //= 2
    return batch


def _start(spec: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lcn.bench.worker", json.dumps(spec)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(spec["threads"])},
    )
