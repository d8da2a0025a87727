"""Time the CPU ops beside their padded twins, in one process, taking turns.

    python benchmarks/ops.py                    # table
    python benchmarks/ops.py --json             # one record a line
    python benchmarks/ops.py --n 2000 --g 8 --heads 1 --threads 1

Each line is one op (forward and backward, or forward alone where it has no gradient). Both sides
do the same work in turns, so a busy machine slows both; times are medians, the ratio is the
median of the ratios of neighbouring runs. The bound is the larger of two times: the operations
needed at this machine's matrix rate, and the bytes of the unique history rows (read forward, read
backward, gradient read and written) at its rate of reading memory. Peak memory is that of the
process above its state before the op (Linux only).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lcn import ops
from lcn.ops import HistoryRows, Scoring

KEEP = 200


@dataclass(frozen=True)
class Case:
    """What is timed."""

    op: str
    candidates: int
    n: int
    width: int
    group: int
    heads: int
    items: int
    codes: bool


@dataclass(frozen=True)
class Record:
    """What came out; one line of the output."""

    op: str
    n: int
    group: int
    heads: int
    items: int
    codes: bool
    threads: int
    reference_ms: float | None
    fast_ms: float
    ratio: float | None
    bound_ms: float
    gflop: float
    gflop_per_s: float
    row_gib: float
    row_gib_per_s: float
    reference_mib: float | None
    fast_mib: float | None


def build(case: Case) -> tuple[HistoryRows, torch.Tensor, Scoring, torch.Tensor]:
    """Users with full histories of random items; `group` candidates each, at one moment."""
    gen = torch.Generator().manual_seed(0)
    users = -(-case.candidates // case.group)
    rows = users * case.n
    user_C = torch.arange(case.candidates) // case.group
    fields, values = (3, 300) if case.codes else (0, 0)
    columns = values + (ops.RECENCY_BUCKETS if case.codes else 0)
    shape = (case.candidates, case.heads)
    now = 1_700_000_000_000
    age_T = (torch.rand(users, case.n, generator=gen) * 180 * 86_400_000).long()
    kept_CK = torch.rand(case.candidates, case.n, generator=gen).topk(min(KEEP, case.n)).indices
    return (
        HistoryRows(
            torch.randn(case.items, case.width, generator=gen).mul_(0.3).requires_grad_(),
            torch.randint(0, case.items, (rows,), generator=gen, dtype=torch.int32),
            torch.randint(0, max(values, 1), (rows, fields), generator=gen, dtype=torch.int32),
            (now - age_T).sort(1).values.reshape(-1),
        ),
        torch.stack([user_C * case.n, (user_C + 1) * case.n], 1),
        Scoring(
            torch.randn(*shape, case.width, generator=gen).mul_(0.3).requires_grad_(),
            torch.randn(*shape, columns, generator=gen).requires_grad_(),
            torch.full((case.candidates,), now) if case.codes else None,
        ),
        kept_CK + user_C[:, None] * case.n,
    )


def work(case: Case) -> Callable[[], object]:
    """One run of the op."""
    rows, span_C2, scoring, kept_CK = build(case)
    leaves = (rows.vector_ID, scoring.query_CHD, scoring.bias_CHV)
    slope = torch.randn(scoring.query_CHD.shape)
    flat_S = ops.span_score(rows, span_C2, scoring)[:, 0].contiguous()

    def pooled() -> None:
        if case.op == "kept_pool":
            pool = ops.kept_pool(rows, kept_CK, scoring)
        else:
            pool = ops.span_pool(rows, span_C2, scoring, keep=KEEP if "keep" in case.op else 0)
        outputs, slopes = [pool.vector_CHD], [slope]
        if case.codes:
            outputs, slopes = [*outputs, pool.weight_CHV], [slope, pool.weight_CHV.detach()]
        torch.autograd.grad(outputs, leaves, slopes, allow_unused=True)

    if case.op == "span_score":
        return lambda: ops.span_score(rows, span_C2, scoring)
    if case.op == "select_span_topk":
        return lambda: ops.select_span_topk(flat_S, span_C2, KEEP)
    return pooled


def seconds(run: Callable[[], object], implementation: ops.Implementation) -> float:
    """Wall time of one run."""
    with ops.force(implementation):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def peak_mib(run: Callable[[], object], implementation: ops.Implementation) -> float | None:
    """Highest resident memory during a run, above what was resident before."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None

    def resident(name: str) -> float:
        line = next(x for x in status.read_text().splitlines() if x.startswith(name))
        return int(line.split()[1]) / 1024

    with contextlib.suppress(OSError, AttributeError):
        # Memory that an earlier run freed would hide what this one takes.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset.write_text("5")
    before = resident("VmRSS")
    seconds(run, implementation)
    return resident("VmHWM") - before


def machine() -> tuple[float, float]:
    """Matrix operations per second (float32) and bytes read per second, best of several."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    flat = torch.ones(64 << 20)
    flops, bandwidth = 0.0, 0.0
    for _ in range(7):
        start = time.perf_counter()
        a @ b
        flops = max(flops, 2 * 1024**3 / (time.perf_counter() - start))
        start = time.perf_counter()
        flat.sum()
        bandwidth = max(bandwidth, 4 * flat.numel() / (time.perf_counter() - start))
    return flops, bandwidth


def needed(case: Case) -> tuple[float, float]:
    """Floating-point operations and bytes of row vectors that the op cannot do without."""
    pairs = case.candidates * case.heads * case.n * case.width
    read = 4 * case.width * case.n * -(-case.candidates // case.group)
    if case.op == "select_span_topk":
        return 0.0, 4.0 * case.candidates * case.n
    if case.op == "span_score":
        return 2.0 * pairs, read
    if case.op == "kept_pool":
        kept = min(KEEP, case.n)
        return 12.0 * pairs * kept / case.n, 16.0 * case.width * kept * case.candidates
    return 12.0 * pairs, 4.0 * read


def measure(case: Case, repeats: int, reference: bool, rates: tuple[float, float]) -> Record:
    """Time both sides in turns, after one run of each that counts for nothing."""
    run = work(case)
    for implementation in ("fast", *(["reference"] if reference else [])):
        seconds(run, implementation)
    fast_mib = peak_mib(run, "fast")
    reference_mib = peak_mib(run, "reference") if reference else None
    fast, padded = [], []
    for _ in range(repeats):
        fast.append(min(seconds(run, "fast") for _ in range(3)))
        if reference:
            padded.append(seconds(run, "reference"))
    flops, read = needed(case)
    time_s = statistics.median(fast)
    ratios = [p / f for p, f in zip(padded, fast, strict=False)]
    return Record(
        op=case.op,
        n=case.n,
        group=case.group,
        heads=case.heads,
        items=case.items,
        codes=case.codes,
        threads=torch.get_num_threads(),
        reference_ms=1e3 * statistics.median(padded) if padded else None,
        fast_ms=1e3 * time_s,
        ratio=statistics.median(ratios) if ratios else None,
        bound_ms=1e3 * max(flops / rates[0], read / rates[1]),
        gflop=flops / 1e9,
        gflop_per_s=flops / time_s / 1e9,
        row_gib=read / 2**30,
        row_gib_per_s=read / time_s / 2**30,
        reference_mib=reference_mib,
        fast_mib=fast_mib,
    )


def show(record: Record) -> str:
    """Lay one record out as a line of the table."""

    def number(value: float | None, digits: int = 1) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    name = record.op + (" codes" if record.codes else "")
    return (
        f"{name:22}{record.n:6}{record.group:4}{record.heads:4}{number(record.reference_ms):>10}"
        f"{number(record.fast_ms):>9}{number(record.ratio):>8}{number(record.bound_ms):>9}"
        f"{number(record.gflop_per_s):>9}{number(record.row_gib_per_s):>8}"
        f"{number(record.reference_mib, 0):>9}{number(record.fast_mib, 0):>8}"
    )


OPS = ("span_pool", "span_pool keep", "kept_pool", "span_score", "select_span_topk")


def main() -> None:
    """Run the chosen cases."""
    parser = argparse.ArgumentParser(description="time the CPU ops beside their padded twins")
    parser.add_argument("--candidates", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--n", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--g", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--codes", action="store_true", help="three context fields and recency")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-reference", action="store_true", help="time the fast form alone")
    parser.add_argument("--json", action="store_true", help="one record a line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rates = machine()
    if not options.json:
        print(f"one run, {options.threads} thread(s): {rates[0] / 1e9:.0f} GFLOP/s in a matrix ")
        print(f"product, {rates[1] / 2**30:.1f} GiB/s reading; {options.candidates} candidates, ")
        print(f"width {options.width}, {options.items} items, keep {KEEP}; times in ms")
        print(
            f"{'op':22}{'N':>6}{'g':>4}{'H':>4}{'reference':>10}{'fast':>9}{'ratio':>8}{'bound':>9}"
            f"{'GFLOP/s':>9}{'GiB/s':>8}{'ref MiB':>9}{'MiB':>8}"
        )
    for op in options.op:
        for n in options.n:
            for group in options.g:
                for heads in options.heads:
                    case = Case(
                        op, options.candidates, n, options.width, group, heads, options.items,
                        options.codes,
                    )  # fmt: skip
                    record = measure(case, options.repeats, not options.no_reference, rates)
                    print(json.dumps(asdict(record)) if options.json else show(record))
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
