"""What a run writes down: config, environment, metric lines, TensorBoard curves."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

from lcn.config import dump_config
from lcn.files import write_whole
from lcn.train.config import RunConfig


def write_setup(folder: Path, config: RunConfig, fingerprint: str) -> None:
    """Write config.yaml (resolved) and environment.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", dump_config(config))
    environment = {
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": config.train.seed,
        "dataset_fingerprint": fingerprint,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "lcn": metadata.version("lcn"),
        "machine": platform.machine(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }
    write_whole(folder / "environment.json", json.dumps(environment, indent=1) + "\n")


@cache
def commit() -> str:
    """The commit of the code, with + when the tree has changes; read once per process.

    "unknown" where the package does not lie in a checkout of its own: another repository's commit
    says nothing about it.
    """
    package = Path(__file__).resolve().parents[1]
    try:
        top = Path(_git(package, "rev-parse", "--show-toplevel"))
        if (top / "src" / "lcn").resolve() != package:
            return "unknown"
        head = _git(package, "rev-parse", "--short=12", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def processor() -> str:
    """The processor's name and number of cores, for the provenance of timings."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name} x {os.cpu_count()}"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


class MetricLog:
    """metrics.jsonl and, where TensorBoard is installed, its event files.

    A resumed run drops what was written after its checkpoint, so curves have no doubled part.
    """

    def __init__(self, folder: Path, *, lines: int, step: int) -> None:
        path = folder / "metrics.jsonl"
        if path.exists():
            # In place: a full disk must not take the lines that are there.
            kept = path.read_bytes().splitlines(keepends=True)[:lines]
            os.truncate(path, sum(map(len, kept)))
        self._file = path.open("a", encoding="utf-8")
        self._board = None
        if util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, epoch: int, values: dict[str, float]) -> None:
        """Append a line: kind (pretraining, source, train, validation), step, epoch, values."""
        record: dict[str, Any] = {"kind": kind, "step": step, "epoch": epoch, **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()
