"""`lcn demo`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("demo-out"))
@click.option("--epochs", default=4, show_default=True, type=click.IntRange(1))
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Runs of each.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def demo(folder: Path, epochs: int, seeds: int, as_json: bool) -> None:
    """Train LCN and its baselines on MovieLens 1M, compare them, write a report page.

    Everything goes into FOLDER (default demo-out); interrupt it and call it again to go on.
    """
    from lcn.cli.output import result_console
    from lcn.demo import DemoConfig, next_commands, run_demo
    from lcn.evaluate.tables import combined_json, differences_table, results_table

    def say(text: str) -> None:
        click.echo(text, err=True)

    result = run_demo(
        folder,
        DemoConfig(epochs=epochs, seeds=tuple(range(seeds))),
        now=datetime.now().astimezone(),
        command=f"lcn demo {folder} --epochs {epochs} --seeds {seeds}",
        say=say,
    )
    if as_json:
        click.echo(combined_json(result.results, result.differences))
        return
    console = result_console()
    console.print(results_table(result.results))
    console.print(differences_table(result.differences))
    click.echo(f"Report: {result.report} ({result.seconds:.0f} s in all)\n\nNext:")
    for command, meaning in next_commands(folder):
        click.echo(f"  {command}\n      {meaning}")
