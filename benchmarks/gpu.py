"""Time the Triton ops on a GPU, and compile them for one without having it.

    python benchmarks/gpu.py                    # table: time, throughput, share of the bandwidth
    python benchmarks/gpu.py --json             # one record a line
    python benchmarks/gpu.py --profile          # the profiler's table of the kernels as well
    python benchmarks/gpu.py --compile 90       # no GPU: registers, spills, shared memory

Each line is one op, forward and backward where it has a gradient, timed by events on the device:
the median of many runs, after the answer has been compared with a float64 reference on a smaller
problem. The bytes are those that the op cannot do without (the unique history rows: read forward,
read backward, gradient read and written), the bandwidth is that of a large copy on the same device,
measured in the same run; the share says how near the op comes. Batches are fresh random numbers.

`--compile` runs the ops' host code on small problems with a stand-in for the driver that never
launches: every kernel that would be launched is compiled down to machine code for the given compute
capability. It says nothing about speed or right answers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from ops import KEEP, Case, build, needed

from lcn import ops
from lcn.ops import HistoryRows, Pool, Scoring, reference

OPS = ("span_pool", "span_pool keep", "kept_pool", "span_score", "select_span_topk")


@dataclass(frozen=True)
class Problem:
    """A case's tensors on a device."""

    rows: HistoryRows
    span_C2: torch.Tensor
    scoring: Scoring
    kept_CK: torch.Tensor

    def leaves(self) -> tuple[torch.Tensor, ...]:
        """What gradients are taken of."""
        return self.rows.vector_ID, self.scoring.query_CHD, self.scoring.bias_CHV


@dataclass(frozen=True)
class Record:
    """What came out; one line of the output."""

    device: str
    op: str
    candidates: int
    n: int
    group: int
    heads: int
    codes: bool
    ms: float
    reference_ms: float | None
    """None where the padded copies do not fit into the device's memory."""
    samples_per_s: float
    gib_per_s: float
    share_of_bandwidth: float
    peak_mib: float
    error: float
    """Largest relative difference of answers and gradients from float64, on a smaller problem."""


def on_device(case: Case, device: str, dtype: torch.dtype = torch.float32) -> Problem:
    """Build a case and move it."""
    rows, span_C2, scoring, kept_CK = build(case)

    def leaf(x: torch.Tensor) -> torch.Tensor:
        return x.detach().to(device, dtype).requires_grad_()

    time_C = None if scoring.time_C is None else scoring.time_C.to(device)
    moved = (x.to(device) for x in (rows.item_T, rows.code_TG, rows.time_T))
    return Problem(
        HistoryRows(leaf(rows.vector_ID), *moved),
        span_C2.to(device),
        Scoring(leaf(scoring.query_CHD), leaf(scoring.bias_CHV), time_C),
        kept_CK.to(device),
    )


def pooled(p: Problem, op: str, form=ops) -> Pool:
    """The forward of a pooling op."""
    if op == "kept_pool":
        return form.kept_pool(p.rows, p.kept_CK, p.scoring, "softmax")
    return form.span_pool(p.rows, p.span_C2, p.scoring, "softmax", KEEP if "keep" in op else 0)


def answers(p: Problem, op: str, form=ops) -> list[torch.Tensor]:
    """Outputs and gradients."""
    if op == "span_score":
        return [form.span_score(p.rows, p.span_C2, p.scoring)]
    if op == "select_span_topk":
        score_S = form.span_score(p.rows, p.span_C2, p.scoring)[:, 0].contiguous()
        return [score_S.sort().values]
    pool = pooled(p, op, form)
    outputs = [pool.vector_CHD, pool.weight_CHV]
    slopes = [x.detach() for x in outputs]
    found = torch.autograd.grad(outputs, p.leaves(), slopes, allow_unused=True)
    return [*outputs, *(x for x in found if x is not None)]


def run_of(p: Problem, op: str, form=ops) -> Callable[[], object]:
    """One timed run."""
    if op == "select_span_topk":
        score_S = ops.span_score(p.rows, p.span_C2, p.scoring)[:, 0].contiguous()
        return lambda: form.select_span_topk(score_S, p.span_C2, KEEP)
    return lambda: answers(p, op, form)


def error_of(case: Case, device: str) -> float:
    """Largest error against float64, relative to the largest number of each tensor."""
    small = replace(case, candidates=64, n=min(case.n, 300), items=2000)
    fast = answers(on_device(small, device), case.op)
    exact = answers(on_device(small, device, torch.float64), case.op, reference)
    return max(
        float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-9))
        for a, b in zip(fast, exact, strict=True)
        if b.numel()
    )


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of a run on the device."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2]


def bandwidth() -> float:
    """Bytes per second of a copy of 1 GiB, read and written."""
    source = torch.randn(1 << 28, device="cuda")
    into = torch.empty_like(source)
    return 2 * 4 * source.numel() / (1e-3 * milliseconds(lambda: into.copy_(source), 20))


def measure(case: Case, repeats: int, rate: float, *, twin: bool) -> Record:
    """Compare, time, and read the peak of the memory."""
    error = error_of(case, "cuda")
    p = on_device(case, "cuda")
    run = run_of(p, case.op)
    ms = milliseconds(run, repeats)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    peak = torch.cuda.max_memory_allocated() - before
    reference_ms = None
    if twin:
        try:
            reference_ms = milliseconds(run_of(p, case.op, reference), max(repeats // 5, 3))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
    _, moved = needed(case)
    return Record(
        device=torch.cuda.get_device_name(),
        op=case.op,
        candidates=case.candidates,
        n=case.n,
        group=case.group,
        heads=case.heads,
        codes=case.codes,
        ms=ms,
        reference_ms=reference_ms,
        samples_per_s=1e3 * case.candidates / ms,
        gib_per_s=moved / (1e-3 * ms) / 2**30,
        share_of_bandwidth=moved / (1e-3 * ms) / rate,
        peak_mib=peak / 2**20,
        error=error,
    )


def show(record: Record) -> str:
    """Lay one record out as a line of the table."""
    name = record.op + (" codes" if record.codes else "")
    padded = "-" if record.reference_ms is None else f"{record.reference_ms:.2f}"
    return (
        f"{name:22}{record.n:6}{record.group:4}{record.heads:3}{record.ms:9.3f}{padded:>10}"
        f"{record.samples_per_s / 1e3:10.0f}{record.gib_per_s:9.0f}"
        f"{record.share_of_bandwidth:8.0%}{record.peak_mib:9.0f}{record.error:10.1e}"
    )


def profile(case: Case) -> str:
    """Time of each kernel over ten runs."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    run = run_of(on_device(case, "cuda"), case.op)
    run()
    torch.cuda.synchronize()
    with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(10):
            run()
        torch.cuda.synchronize()
    return seen.key_averages().table(sort_by="cuda_time_total", row_limit=15)


@dataclass(frozen=True)
class Compiled:
    """What one compiled kernel needs."""

    kernel: str
    sizes: str
    registers: int
    spilled: int
    """Bytes of each thread's registers that did not fit."""
    shared: int
    """Bytes."""


def compile_all(cases: list[Case], capability: int) -> list[Compiled]:
    """Compile every kernel that the cases launch, for a compute capability such as 90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Absent:
        """As much of a driver as compiling asks for."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int = 0) -> int:
            return 0

    driver.set_active(Absent())
    launch, found = JITFunction.run, {}

    def compile_only(self, *args, grid, warmup, **sizes):
        kernel = launch(self, *args, grid=grid, warmup=True, **sizes)
        found[self.__name__, kernel.hash] = (kernel, sizes)

    from lcn.ops import cuda

    JITFunction.run = compile_only
    cuda._precision = lambda device: "tf32x3" if capability >= 80 else "ieee"
    try:
        for case in cases:
            answers(on_device(case, "cpu"), case.op, cuda)
            run_of(on_device(case, "cpu"), case.op, cuda)()
    finally:
        JITFunction.run = launch
    dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return sorted((_resources(dump, *each) for each in found.values()), key=lambda x: x.kernel)


def _resources(dump: Path, kernel, sizes: dict) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        text = subprocess.run(
            [str(dump), "--dump-resource-usage", cubin.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    used = dict(part.split(":")[:2] for part in text.split() if part[:3] in ("REG", "STA"))
    named = " ".join(
        f"{name}={int(value) if isinstance(value, bool) else value}"
        for name, value in sizes.items()
        if name in ("Q", "R", "D", "V", "N", "FIELDS", "RECENT", "LISTED", "NORM", "POOL")
    )
    name = kernel.metadata.name
    return Compiled(name, named, int(used["REG"]), int(used["STACK"]), kernel.metadata.shared)


def compile_cases(chosen: list[str]) -> list[Case]:
    """Small problems that reach every kind of launch."""
    return [
        Case(op, 2 * group, 300, 64, group, heads, 500, codes)
        for op in chosen
        for group in (1, 8)
        for heads in (1, 4)
        for codes in (False, True)
    ]


def main() -> None:
    """Run the chosen cases."""
    parser = argparse.ArgumentParser(description="time the Triton ops on a GPU")
    parser.add_argument("--candidates", type=int, default=8192)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--n", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--g", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--codes", action="store_true", help="three context fields and recency")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--no-reference", action="store_true", help="time the fast form alone")
    parser.add_argument("--profile", action="store_true", help="also the kernels of each line")
    parser.add_argument("--compile", type=int, metavar="CAPABILITY", help="only compile, e.g. 90")
    parser.add_argument("--json", action="store_true", help="one record a line")
    options = parser.parse_args()
    if find_spec("triton") is None:
        sys.exit("Triton is not installed: pip install 'lcn[cuda]' (Linux), or `make test-gpu`")
    if options.compile:
        for compiled in compile_all(compile_cases(options.op), options.compile):
            print(json.dumps(asdict(compiled)) if options.json else _line(compiled))
        return
    if not torch.cuda.is_available():
        sys.exit(
            "no GPU here, so there is nothing to time: run this where torch.cuda.is_available(), "
            "with a CUDA build of PyTorch; `--compile 90` compiles the kernels without a GPU, and "
            "benchmarks/ops.py times the CPU forms"
        )
    rate = bandwidth()
    if not options.json:
        print(f"{torch.cuda.get_device_name()}: {rate / 2**30:.0f} GiB/s copying;")
        print(f"{options.candidates} candidates, width {options.width}, {options.items} items")
        print(
            f"{'op':22}{'N':>6}{'g':>4}{'H':>3}{'ms':>9}{'padded':>10}{'samples/ms':>10}"
            f"{'GiB/s':>9}{'share':>8}{'MiB':>9}{'error':>10}"
        )
    for op in options.op:
        for n in options.n:
            for group in options.g:
                for heads in options.heads:
                    case = Case(
                        op, options.candidates, n, options.width, group, heads, options.items,
                        options.codes,
                    )  # fmt: skip
                    record = measure(case, options.repeats, rate, twin=not options.no_reference)
                    print(json.dumps(asdict(record)) if options.json else show(record), flush=True)
                    if options.profile:
                        print(profile(case), file=sys.stderr)


def _line(compiled: Compiled) -> str:
    return (
        f"{compiled.kernel:16}{compiled.registers:4} registers {compiled.spilled:4} B spilled "
        f"{compiled.shared:7} B shared   {compiled.sizes}"
    )


if __name__ == "__main__":
    main()
