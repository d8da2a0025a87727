"""`lcn experiment`: the paper's tables and figures on any dataset, with intervals."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from lcn.cli.output import resamples_option
from lcn.evaluate.tables import plain
from lcn.experiments.names import EXPERIMENTS

_PATH = click.Path(path_type=Path)


class _SeedList(click.ParamType):
    """`5` is five seeds from 0; `0,3,7` are those."""

    name = "seeds"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            parts = [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is neither a number of seeds nor a list such as 0,1,2")
        seeds = tuple(parts) if "," in str(value) else tuple(range(parts[0]))
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            self.fail(f"{value!r}: give at least one seed, none negative and none twice")
        return seeds


class _Experiments(click.Group):
    """A command per experiment, and the report."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*EXPERIMENTS, "all", "report"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "report":
            return report
        if cmd_name == "all":
            return _command("all", "Every experiment above, one after the other.")
        if cmd_name in EXPERIMENTS:
            return _command(cmd_name, EXPERIMENTS[cmd_name])
        return None


@click.group(cls=_Experiments)
def experiment() -> None:
    """Run the paper's experiments: every row tuned alike, several seeds, honest intervals.

    Runs are kept in a results store and shared between experiments; an interrupted experiment goes
    on where it was. Example:

        lcn experiment table5 data/movielens --seeds 5
    """


_OPTIONS = [
    click.argument("datasets", metavar="[DATASET]...", type=_PATH, nargs=-1),
    click.option("--quick", is_flag=True, help="A first look: few users, one epoch, two trials."),
    click.option("--seeds", type=_SeedList(), default="3", show_default=True,
                 help="How many, or which: 5, or 0,1,2."),
    click.option("--trials", type=click.IntRange(min=1), default=6, show_default=True,
                 help="Settings tried per row, by validation; 1 does not tune."),
    click.option("--trial-epochs", type=click.IntRange(min=0), default=0,
                 help="Epochs of a trial; by default as many as of the final runs."),
    click.option("--tuning-seeds", type=click.IntRange(min=1), default=1, show_default=True,
                 help="Seeds that each setting is tried on; their mean decides."),
    click.option("--rows", multiple=True, metavar="NAME",
                 help="Only these rows (and those they are compared with); repeatable."),
    click.option("--beyond", is_flag=True, help="Also the rows beyond the paper."),
    click.option("--finished", is_flag=True,
                 help="Train nothing: show the rows that are finished."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                 help="A setting for every row, such as batch.lifelong=2000; repeatable."),
    click.option("--k1", type=click.IntRange(min=1), help="K1 of the pyramid (paper: 200)."),
    click.option("--k2", type=click.IntRange(min=1), help="K2, and K of two stages (paper: 50)."),
    click.option("--users", type=click.IntRange(min=100), default=8000, show_default=True,
                 help="Users of a generated log (questions, conditions)."),
    click.option("--jobs", type=click.IntRange(min=0), default=0,
                 help="Runs at once; by default one per core."),
    resamples_option(1000),
    click.option("--store", type=_PATH, default=Path("runs/experiments"), show_default=True,
                 help="Where runs and findings are kept."),
    click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON."),
]  # fmt: skip


def _command(name: str, about: str) -> click.Command:
    def call(**given: Any) -> None:
        _run(name, **given)

    call.__doc__ = about
    for option in reversed(_OPTIONS):
        call = option(call)
    return click.command(name)(call)


def _run(name: str, datasets: tuple[Path, ...], **given: Any) -> None:
    """Parse, call, print."""
    from lcn.cli.output import result_console
    from lcn.experiments.record import now
    from lcn.experiments.rows import Sizes
    from lcn.experiments.run import Call, run_experiments
    from lcn.experiments.settings import FIRST_TUNING_SEED, Options
    from lcn.experiments.show import print_record

    k1, k2 = given["k1"], given["k2"]
    if (k1 is None) != (k2 is None):
        raise click.UsageError("give --k1 and --k2 together")
    for setting in given["settings"]:
        if setting.partition("=")[0] in (
            "model.backbone.k1",
            "model.backbone.k2",
            "model.backbone.keep",
        ):
            raise click.UsageError(f"--set {setting}: tables set it by row; use --k1 and --k2")
        if setting.partition("=")[0] == "train.seed":
            raise click.UsageError(f"--set {setting}: every row has several; use --seeds")
    if given["trials"] == 1 and given["tuning_seeds"] > 1:
        raise click.UsageError("--tuning-seeds is for --trials 2 or more; --trials 1 does not tune")
    options = Options(
        seeds=given["seeds"],
        trials=given["trials"],
        trial_epochs=given["trial_epochs"],
        tuning_seeds=tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + given["tuning_seeds"])),
        extra=given["settings"],
        users=given["users"],
        sizes=None if k1 is None else Sizes(k1, k2),
        jobs=given["jobs"],
        resamples=given["resamples"],
        quick=given["quick"],
        rows=given["rows"],
        beyond=given["beyond"],
        finished=given["finished"],
    )
    names = list(EXPERIMENTS) if name == "all" else [name]
    call = Call(command=_command_line(), now=now())
    records = run_experiments(names, datasets, options, call, root=given["store"])
    if given["as_json"]:
        import json

        trees = [plain(record.model_dump(mode="json")) for record in records]
        click.echo(json.dumps(trees, indent=1, allow_nan=False))
        return
    console = result_console()
    for record in records:
        print_record(record, console)


@click.command()
@click.option(
    "--store",
    type=_PATH,
    default=Path("runs/experiments"),
    show_default=True,
    help="Where runs and findings are kept, or where findings were published.",
)
@click.option(
    "--docs",
    type=_PATH,
    help="Publish there: a Markdown page per finding, also of those published before.",
)
@click.option("--html", type=_PATH, help="The page to write; default: report.html in the store.")
@click.option("--quick", is_flag=True, help="Include the findings of quick looks.")
def report(store: Path, docs: Path | None, html: Path | None, quick: bool) -> None:
    """Write what was found as one HTML page and, with --docs, as Markdown pages."""
    from lcn.experiments.report import publish, read_records, write_site

    for note in publish(store, docs, quick=quick) if docs else []:
        click.echo(note, err=True)
    records = read_records(docs or store, quick=quick)
    for path in write_site(records, html or store / "report.html", docs):
        click.echo(path)


def _command_line() -> str:
    """The command as it was typed, for the provenance; paths of this machine shortened."""
    words = ["lcn", *sys.argv[1:]]
    words = [Path(word).name if Path(word).is_absolute() else word for word in words]
    return shlex.join(words)
