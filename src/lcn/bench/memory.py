"""Resident memory of this process (Linux; elsewhere unknown)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_mib() -> float | None:
    """What is resident now."""
    return _read("VmRSS")


def peak_mib() -> float | None:
    """The most that was resident since the last `reset_peak`."""
    return _read("VmHWM")


def reset_peak() -> None:
    """Forget earlier peaks, where the system allows it."""
    with contextlib.suppress(OSError):
        _RESET.write_text("5")


def available_mib() -> float | None:
    """What could be taken without swapping."""
    return _read("MemAvailable", Path("/proc/meminfo"))


def allocator() -> str:
    """The settings of the allocator that this process and its children run with."""
    names = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_")
    found = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith(names)]
    return " ".join(found) or "glibc defaults"


def _read(name: str, file: Path = _STATUS) -> float | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), None)
