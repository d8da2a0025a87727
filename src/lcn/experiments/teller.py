"""Tells how far an experiment is: a bar, lines, or a callback."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


class Teller:
    """A bar on stderr, lines where stderr is no terminal, or a callback."""

    def __init__(self, say: Say | None, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            "{task.description}",
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=say is not None or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=0)
        self._say = say
        self._done, self._total = 0, 0

    def __enter__(self) -> Teller:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def expect(self, runs: int) -> None:
        """So many runs more will be reported."""
        self._total += runs
        self._bar.update(self._task, total=self._total)

    def advance(self, line: str) -> None:
        """A run is finished; an empty line for one that was there before."""
        self._done += 1
        self._bar.update(self._task, advance=1)
        if not line:
            return
        text = f"[{self._done}/{self._total}] {line}"
        if self._say is not None:
            self._say(text)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
