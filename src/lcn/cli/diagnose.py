"""`lcn diagnose`: would a lifelong source history pay on this log?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lcn.cli.output import resamples_option

if TYPE_CHECKING:
    from lcn.experiments.expect import Expectation
    from lcn.experiments.facts import LogFacts

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("dataset", type=_PATH)
@click.option(
    "--conditions",
    type=_PATH,
    help="A record of `lcn experiment conditions`; by default the packaged one.",
)
@resamples_option(200)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def diagnose(dataset: Path, conditions: Path | None, resamples: int, as_json: bool) -> None:
    """Read from a prepared DATASET whether lifelong cross-domain modelling is likely to pay.

    Prints the facts that decide it (how long histories are, how sparse the target domain is,
    whether counting source behaviours helps to predict target clicks) and the gain measured on
    generated logs with like facts. Trains no model; takes seconds.
    """
    import json

    from lcn.data.dataset import open_dataset
    from lcn.evaluate.tables import plain
    from lcn.experiments.expect import expect, load_known, undefined
    from lcn.experiments.facts import read_facts

    facts = read_facts(open_dataset(dataset), resamples=resamples)
    known = load_known(conditions)
    missing = undefined(facts.drivers)
    expectation = expect(facts.drivers, known) if known and not missing else None
    if as_json:
        tree = {
            "facts": facts.numbers(),
            "expectation": expectation.numbers() if expectation else None,
            "undefined": missing,
        }
        click.echo(json.dumps(plain(tree), indent=1, allow_nan=False))
        return
    _print(facts, expectation, missing)


def _print(facts: LogFacts, expectation: Expectation | None, missing: tuple[str, ...]) -> None:
    from rich.table import Table

    from lcn.cli.output import result_console
    from lcn.evaluate.tables import interval_text, p_value_text

    console = result_console()
    table = Table(title=f"{facts.name} ({facts.fingerprint})", title_justify="left")
    table.add_column("fact")
    table.add_column("value", justify="right")
    lift = facts.probe.lift
    rows = [
        ("source events before a test impression (10, 25, 50, 75, 90 %)",
         ", ".join(f"{value:,}" for value in facts.source_history)),
        ("target events before a test impression (likewise)",
         ", ".join(f"{value:,}" for value in facts.target_history)),
        ("test impressions whose user has source events", f"{facts.with_source:.1%}"),
        ("users, shown target items", f"{facts.users:,}, {facts.target_items:,}"),
        ("training impressions", f"{facts.impressions['train']:,}"),
        ("training impressions per user", f"{facts.impressions_per_user:.1f}"),
        ("training clicks per shown item", f"{facts.clicks_per_item:.1f}"),
        ("click rate: train, validation, test",
         ", ".join(f"{rate:.1%}" for rate in facts.click_rate.values())),
        ("source category's information on the clicked category",
         _defined(facts.category_information, ".2%")),
        ("AUC of counting in the target log alone", _defined(facts.probe.target_auc)),
        ("AUC gained by counting source behaviours too",
         f"{interval_text(lift, 'auc')}, p {p_value_text(lift.p_value)}"),
    ]  # fmt: skip
    if facts.neighbours is not None:
        near = facts.neighbours.lift
        rows += [
            ("AUC of responses to like items of the target log", _defined(near.reference)),
            ("AUC gained by responses to like source items too",
             f"{interval_text(near, 'auc')}, p {p_value_text(near.p_value)}"),
        ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if missing:
        console.print(
            f"Nothing can be said of a gain: {', '.join(missing)} is undefined on this log (are "
            "there test impressions of both labels?)."
        )
        return
    if expectation is None:
        console.print(
            "No dose-response is packaged: run `lcn experiment conditions` and give its record "
            "with --conditions for an expectation."
        )
        return
    console.print(f"[bold]Lifelong source history:[/bold] {expectation.words}.")
    near = "; ".join(f"{one.name}: {one.gain:+.4f}" for one in expectation.nearest)
    console.print(f"Nearest generated logs: {near}.")
    if expectation.outside:
        console.print(
            "[yellow]This extrapolates:[/yellow] outside of what was generated in "
            + ", ".join(expectation.outside)
            + "."
        )


def _defined(value: float, form: str = ".4f") -> str:
    return "-" if math.isnan(value) else format(value, form)
