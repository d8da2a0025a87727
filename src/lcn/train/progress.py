"""The bar on stderr: loss, samples per second, time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingBar:
    """Shows where training stands; shows nothing when not wanted or stderr is no terminal."""

    def __init__(self, shown: bool, label: str) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} samples/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self._label = label
        self._task = self._progress.add_task(label, total=None, loss=float("nan"), speed=0.0)
        self._loss, self._since, self._samples = float("nan"), time.perf_counter(), 0

    def __enter__(self) -> TrainingBar:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing."""
        self._progress.stop()

    def epoch(self, number: int, epochs: int, total: int, done: int) -> None:
        """A new epoch of `total` batches begins, `done` of them used already."""
        name = f"{self._label} epoch {number + 1}/{epochs}"
        self._progress.reset(
            self._task, description=name, total=total, completed=done, loss=self._loss, speed=0.0
        )
        self._since, self._samples = time.perf_counter(), 0

    def step(self, step: int, loss: float, samples: int) -> None:
        """A step is done."""
        self._loss = loss if self._loss != self._loss else 0.95 * self._loss + 0.05 * loss
        self._samples += samples
        speed = self._samples / max(time.perf_counter() - self._since, 1e-9)
        self._progress.update(self._task, advance=1, loss=self._loss, speed=speed)

    def validating(self) -> None:
        """Validation runs; steps stand still."""
        self._progress.update(self._task, description=f"{self._label} validating")
