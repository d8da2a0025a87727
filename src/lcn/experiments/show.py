"""A record on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcn.experiments.record import ExperimentRecord, ForestPanel, TablePanel

if TYPE_CHECKING:
    from rich.console import Console

_COLOUR = {"better": "green", "worse": "red", "best": "bold", "quoted": "dim", "open": ""}
_HOLDING = {"holds": "green", "does not hold": "red", "open": "yellow"}


def print_record(record: ExperimentRecord, console: Console) -> None:
    """Print tables and verdicts; pictures are for the report."""
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{escape(record.title)}[/bold]  {escape(record.origin.dataset)}")
    if record.summary:
        console.print(escape(record.summary))
    for panel in record.panels:
        if isinstance(panel, TablePanel):
            table = Table(title=panel.title, title_justify="left")
            for place, name in enumerate(panel.head):
                table.add_column(name, justify="right" if place else "left")
            for row in panel.rows:
                cells = []
                for cell in row:
                    text = escape(cell.text)
                    style = _COLOUR.get(cell.mark)
                    text = f"[{style}]{text}[/{style}]" if style else text
                    cells.append(
                        f"{text}\n[dim]{escape(cell.detail)}[/dim]" if cell.detail else text
                    )
                table.add_row(*cells)
            console.print(table)
        elif not isinstance(panel, ForestPanel):
            console.print(f"[dim]({panel.title}: a picture, see `lcn experiment report`)[/dim]")
    for verdict in record.verdicts:
        style = _HOLDING[verdict.holding]
        console.print(
            f"[{style}]{verdict.holding}[/{style}]: {escape(verdict.claim)} "
            f"[dim]({escape(verdict.evidence)})[/dim]"
        )
