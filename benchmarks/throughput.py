"""Training throughput and peak memory of the demo's models.

    python benchmarks/throughput.py DATASET [--steps 40] [--group 8] [--threads 0] [--json]

Each model trains in a process of its own; peak memory is that process's, less what it held
before the first batch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lcn.data.dataset import open_dataset
from lcn.demo import SYSTEMS
from lcn.train.record import commit, processor


@dataclass(frozen=True)
class Measured:
    """One model."""

    system: str
    samples_per_s: float
    peak_mib: float
    base_mib: float


def main() -> None:
    """Measure every system of the demo, or, inside a worker, one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.system:
        print(json.dumps(asdict(measure(arguments))))
        return
    rows = []
    for system in SYSTEMS:
        command = [sys.executable, __file__, *sys.argv[1:], "--system", system]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(Measured(**json.loads(done.stdout)))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    table = Table("model", "samples/s", "peak MiB above start")
    for row in rows:
        table.add_row(
            row.system, f"{row.samples_per_s:,.0f}",
            f"{row.peak_mib - row.base_mib:,.0f}",
        )  # fmt: skip
    Console(width=100).print(table)
    command = " ".join(["python", "benchmarks/throughput.py", *sys.argv[1:]])
    print(f"`{command}`, commit {commit()}, {processor()}, {date.today()}")


def measure(arguments: argparse.Namespace) -> Measured:
    """Train for some steps, warmed up by the first three."""
    import tempfile

    from lcn.demo import demo_recipe
    from lcn.train import train

    rows = len(open_dataset(arguments.dataset).samples["train"])
    config = demo_recipe(arguments.system, arguments.dataset, seed=0, epochs=1)
    batch = config.batch.model_copy(update={"group": arguments.group})
    limits = config.train.model_copy(update={"threads": arguments.threads})
    config = config.model_copy(update={"batch": batch, "train": limits})
    moments: list[float] = []
    base = peak_mib()

    class DoneError(Exception):
        pass

    def after_step(step: int) -> None:
        moments.append(time.perf_counter())
        if step >= min(arguments.steps + 3, rows // config.batch.size):
            raise DoneError

    with tempfile.TemporaryDirectory() as folder, suppress(DoneError):
        train(config, Path(folder) / "run", progress=False, after_step=after_step)
    steps = len(moments) - 3
    speed = steps * config.batch.size / (moments[-1] - moments[2])
    return Measured(arguments.system, speed, peak_mib(), base)


def peak_mib() -> float:
    """The process's largest resident memory so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
