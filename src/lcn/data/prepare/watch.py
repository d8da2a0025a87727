"""Which stage a preparation is in, how long each took and how many rows it passed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@dataclass(frozen=True, slots=True)
class Stage:
    """One finished stage."""

    name: str
    started: float
    """Seconds on the clock of `time.monotonic`."""
    seconds: float
    rows: int
    """Rows that went through it."""


@dataclass(slots=True)
class Step:
    """A running stage; whoever runs it counts its rows."""

    rows: int = 0


class Watch:
    """Shows stages on stderr and tells a listener about each finished one."""

    def __init__(self, *, progress: bool, listener: Callable[[Stage], None] | None) -> None:
        self._listener = listener
        self._display = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[rows]}"),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            disable=not progress,
        )

    def __enter__(self) -> Watch:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[Step]:
        """Run a block as a named stage."""
        task = self._display.add_task(name, total=1, rows="")
        step, started = Step(), time.monotonic()
        yield step
        seconds = time.monotonic() - started
        self._display.update(task, completed=1, rows=f"{step.rows:,} rows")
        if self._listener is not None:
            self._listener(Stage(name, started, seconds, step.rows))
