"""`lcn bench`: what this machine does, beside what it could do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from lcn.cli.output import result_console

if TYPE_CHECKING:
    from lcn.bench.train import Record

NAMES = ("none", "full", "sim_hard", "sim_soft", "eta", "sdim", "twin", "lap")
"""Written out, so that `lcn bench --help` needs no torch; a test compares it with BACKBONES."""


class _List(click.ParamType):
    """One value or several with commas between them; numbers may be written 10k, 1M, 1_000."""

    def __init__(self, choices: Sequence[str] = ()) -> None:
        self._choices = choices
        self.name = "LIST" if choices else "NUMBERS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        return tuple(self._one(part, param, ctx) for part in parts)

    def _one(self, part: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self._choices:
            if part not in self._choices:
                self.fail(f"{part!r} is none of {', '.join(self._choices)}", param, ctx)
            return part
        factor = {"k": 1000, "m": 1_000_000}.get(part[-1:].lower(), 1)
        digits = part[:-1] if factor > 1 else part
        try:
            number = int(digits) * factor
        except ValueError:
            self.fail(f"{part!r} is no whole number (500, 10k, 1M)", param, ctx)
        if number < 1:
            self.fail(f"{part!r} must be at least 1", param, ctx)
        return number


def _lists(*names: str, default: str, choices: Sequence[str] = (), help: str) -> Any:
    return click.option(
        *names, type=_List(choices), multiple=True, default=(default,), show_default=True,
        help=help + " Several: commas, or repeat the option.",
    )  # fmt: skip


def _flat(values: tuple[tuple[Any, ...], ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(value for several in values for value in several))


@click.group()
def bench() -> None:
    """Measure training, scoring and preparation on this machine."""


@bench.command()
@_lists("--backbone", default="lap", choices=NAMES, help="Lifelong backbones.")
@_lists("--n", default="500,2000", help="Events of a lifelong history.")
@_lists("--items", default="100k", help="Items of the catalogue: rows of the largest table.")
@_lists("--group", default="8", help="Impressions of one user in a batch.")
@_lists("--threads", default="1", help="Compute threads.")
@_lists("--lengths", default="full", choices=("full", "ragged"), help="Lengths of histories.")
@click.option("--batch", default=1024, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--popularity",
    default="power",
    show_default=True,
    type=click.Choice(["power", "uniform", "head"]),
    help="How items are drawn: rank^-1.2, alike, or rank^-1.2 over 100,000 of them.",
)
@click.option(
    "--variant",
    default="both",
    show_default=True,
    type=click.Choice(["both", "fast", "reference"]),
    help="reference is the padded implementation.",
)
@click.option(
    "--steps", default=4, show_default=True, type=click.IntRange(min=1),
    help="Steps of the fast variant for each of the padded one.",
)  # fmt: skip
@click.option(
    "--seconds", default=240.0, show_default=True, type=click.FloatRange(min=0),
    help="For all cases together; each makes three turns at least.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One record a line.")
def train(**options: Any) -> None:
    """Training steps: the padded implementation and ours in turns, beside the machine's bound."""
    from lcn.bench.train import Grid, run

    both = options["variant"] == "both"
    grid = Grid(
        backbones=_flat(options["backbone"]),
        n=_flat(options["n"]),
        items=_flat(options["items"]),
        group=_flat(options["group"]),
        threads=_flat(options["threads"]),
        lengths=_flat(options["lengths"]),
        batch=options["batch"],
        popularity=options["popularity"],
        variants=("reference", "fast") if both else (options["variant"],),
        steps=options["steps"],
        seconds=options["seconds"],
    )
    records = list(_followed(run(grid, _tell), options["as_json"]))
    if records and not options["as_json"]:
        result_console().print(_train_table(records))
        _say_training(records[0])


@bench.command()
@_lists("--backbone", default="lap", choices=NAMES, help="Lifelong backbones.")
@_lists("--n", default="2000", help="Events of the user's history, up to 100k.")
@_lists("--items", default="100k", help="Items of the catalogue.")
@click.option("--candidates", default=500, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--requests", default=100, show_default=True, type=click.IntRange(min=10))
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(min=0))
@click.option(
    "--variant",
    default="both",
    show_default=True,
    type=click.Choice(["both", "fast", "reference"]),
    help="reference is the padded implementation.",
)
@click.option("--json", "as_json", is_flag=True, help="One record a line.")
def score(**options: Any) -> None:
    """Candidates of one user against an encoded history: milliseconds a request."""
    from lcn.bench.score import ScoreGrid, run

    both = options["variant"] == "both"
    grid = ScoreGrid(
        backbones=_flat(options["backbone"]),
        n=_flat(options["n"]),
        items=_flat(options["items"]),
        candidates=options["candidates"],
        threads=options["threads"],
        requests=options["requests"],
        seconds=options["seconds"],
        variants=("reference", "fast") if both else (options["variant"],),
    )
    records = list(_followed(run(grid, _tell), options["as_json"]))
    if options["as_json"]:
        return
    table = Table("backbone", "variant")
    for name in ("N", "items", "candidates", "threads", "p50 ms", "p99 ms", "encode ms"):
        table.add_column(name, justify="right")
    for r in records:
        cells = (f"{r.n:,}", f"{r.items:,}", f"{r.candidates:,}", f"{r.threads}")
        times = (f"{r.p50_ms:.1f}", f"{r.p99_ms:.1f}", f"{r.encode_ms:.1f}")
        table.add_row(r.backbone, r.variant, *cells, *times)
    result_console().print(table)


@bench.command()
@_lists("--backbone", default="lap,sim_soft", choices=NAMES, help="Models of one server.")
@click.option("--n", default=2000, show_default=True, type=click.IntRange(min=1))
@click.option("--candidates", default=100, show_default=True, type=click.IntRange(1, 1000))
@click.option("--items", default=100_000, show_default=True, type=click.IntRange(min=2))
@click.option("--users", default=40, show_default=True, type=click.IntRange(min=4))
@click.option("--load", default="0.5", show_default=True, help="Shares of saturation: 0.5,2")
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(min=0.5))
@click.option("--workers", default=0, show_default=True, help="Scoring threads; 0: per processor.")
@click.option("--deadline", default=100.0, show_default=True, help="Milliseconds.")
@click.option("--json", "as_json", is_flag=True, help="One record a line.")
def serve(**options: Any) -> None:
    """A server under open-loop load, its models in turns: latency from the planned departure."""
    from lcn.cli.serve import installed

    with installed():
        from lcn.bench.serve import ServeGrid, run
    try:
        loads = tuple(float(part) for part in options["load"].split(","))
    except ValueError as error:
        raise click.BadParameter("give numbers: 0.5,2", param_hint="--load") from error
    grid = ServeGrid(
        backbones=_flat(options["backbone"]),
        n=options["n"],
        candidates=options["candidates"],
        items=options["items"],
        users=options["users"],
        seconds=options["seconds"],
        loads=loads,
        workers=options["workers"],
        deadline_ms=options["deadline"],
    )
    table = Table("load", "model")
    for name in ("planned/s", "good/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "away", "late"):
        table.add_column(name, justify="right")
    for record in run(grid, _tell):
        if options["as_json"]:
            click.echo(_line(record))
            continue
        rates = (f"{record.planned_per_s:.0f}", f"{record.goodput_per_s:.0f}")
        for m in record.models:
            times = (f"{x:.1f}" for x in (m.p50_ms, m.p90_ms, m.p99_ms, m.max_ms))
            ends = (f"{record.turned_away}", f"{record.late}")
            table.add_row(f"{record.load:g}", m.model, *rates, *times, *ends)
        if record.lap_minus_sim_p50_ms is not None and record.lap_minus_sim_p50_ms_interval:
            low, high = record.lap_minus_sim_p50_ms_interval
            click.echo(
                f"load {record.load:g}: LAP minus SIM-soft p50 {record.lap_minus_sim_p50_ms:+.2f} "
                f"ms ({low:+.2f} to {high:+.2f}), p99 {record.lap_minus_sim_p99_ms:+.2f} ms"
            )
    if not options["as_json"]:
        result_console().print(table)


@bench.command()
@click.option("--events", default=10_000_000, show_default=True, type=click.IntRange(min=1))
@click.option("--impressions", default=500_000, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--memory", default="2GB", show_default=True, help="Limit of the SQL engine.")
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="For the logs.")
@click.option("--json", "as_json", is_flag=True)
def prepare(
    events: int, impressions: int, threads: int, memory: str, folder: Path | None, as_json: bool
) -> None:
    """Preparation of generated logs: time and memory of each stage."""
    from lcn.bench.prepare import Size, run

    _tell(f"generating {events:,} events and {impressions:,} impressions, then preparing them")
    result = run(Size(events, impressions), threads=threads, memory=memory, folder=folder)
    if as_json:
        click.echo(json.dumps(asdict(result), indent=1))
        return
    table = Table("stage")
    for name in ("seconds", "CPU s", "rows", "rows/s", "peak MiB"):
        table.add_column(name, justify="right")
    for row in result.stages:
        times = (f"{row.seconds:.1f}", f"{row.cpu_seconds:.1f}")
        cells = (f"{row.rows:,}", f"{row.rows_per_second:,.0f}", f"{row.peak_mib:,.0f}")
        table.add_row(row.stage, *times, *cells)
    result_console().print(table)
    click.echo(
        f"dataset {result.dataset_mib:,.0f} MiB; load {result.load_before:.1f} before, "
        f"{result.load_after:.1f} after (1 min)"
    )


def _followed(cases: Iterator[list[Any]], as_json: bool) -> Iterator[Any]:
    """Hand the records on, printing each as it comes where a program reads."""
    for records in cases:
        for record in records:
            if as_json:
                click.echo(_line(record))
            yield record


def _tell(text: str) -> None:
    Console(stderr=True).print(f"[dim]{text}[/dim]", highlight=False)


def _train_table(records: Sequence[Record]) -> Table:
    table = Table("backbone", "variant", "lengths", box=box.SIMPLE, padding=(0, 1, 0, 0))
    names = ("N", "items", "g", "thr", "batch", "samples/s", "per CPU s", "speed-up", "first",
             "MiB", "GFLOP", "GiB", "ideal/s", "over", "reach/s", "over", "wait")  # fmt: skip
    for name in names:
        table.add_column(name, justify="right")
    for r in records:
        size = (f"{r.n}", f"{r.items}", f"{r.group}", f"{r.threads}", f"{r.batch}")
        speed = (f"{r.samples_per_s:,.0f}", f"{r.samples_per_cpu_s:,.0f}")
        ratio = "-" if r.speedup is None else f"{r.speedup:.1f}x"
        first = "-" if r.over_first_items is None else f"{r.over_first_items:.2f}x"
        peak = "-" if r.peak_mib is None else f"{r.peak_mib:,.0f}"
        need = (f"{r.gflop:.2f}", f"{r.gib:.2f}", f"{r.bound_samples_per_s:,.0f}")
        wait = "-" if r.wait_share is None else f"{100 * r.wait_share:.1f} %"
        table.add_row(
            r.backbone, r.variant, r.lengths, *size, *speed, ratio, first, peak, *need,
            f"{r.over_bound:.1f}x", f"{r.reachable_samples_per_s:,.0f}",
            f"{r.over_reachable:.1f}x", wait,
        )  # fmt: skip
    return table


def _say_training(first: Record) -> None:
    click.echo(
        "reference: every candidate's rows looked up for itself, padded [C, N, D] copies, dense "
        "gradients, torch.optim.Adam over whole tables. fast: what `lcn train` does.\n"
        f"Medians of turns in one run; allocator of both: {first.allocator}. Machine, measured "
        f"with {first.threads} thread(s): {first.matrix_gflop_per_s:.0f} GFLOP/s in a matrix "
        f"product, {first.piece_gflop_per_s:.0f} in pieces of 64 rows and g={first.group} columns, "
        f"{first.read_gib_per_s:.1f} GiB/s reading; load {first.load:.1f}.\n"
        "first: time over that with the first number of items, in turns. "
        "MiB: peak above the idle process. ideal: needed operations and bytes at the rates of "
        "large products and of reading, whichever takes longer. reach: all parts one after the "
        "other, each at the rate of its size. over: our time as a multiple of each."
    )


def _line(record: Any) -> str:
    """A record as one line of JSON; what is undefined is null."""
    from lcn.evaluate.tables import plain

    return json.dumps(plain(asdict(record)), allow_nan=False)
