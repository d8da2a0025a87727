"""`lcn data`: list, fetch, find and generate logs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lcn.errors import LcnError

if TYPE_CHECKING:
    from lcn.data.sources import LogSource

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
_PATH = click.option(
    "--path",
    type=click.Path(path_type=Path, exists=True),
    help="Files you already have, instead of the cache or a download.",
)
_SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the source; repeat for several.",
)


@click.group()
def data() -> None:
    """Fetch public logs, or generate some; they are kept in LCN_DATA."""


@data.command("list")
@_JSON
def list_sources(as_json: bool) -> None:
    """List the built-in sources, their options and their licences."""
    from lcn.data.cache import cache_home
    from lcn.data.sources import SOURCES

    if as_json:
        rows = [
            {"name": name, "about": s.about, "options": list(s.options), "licence": s.licence}
            for name, s in SOURCES.items()
        ]
        _print_json({"cache": str(cache_home(os.environ)), "sources": rows})
        return
    click.echo(f"Cache: {cache_home(os.environ)} (set LCN_DATA to move it)")
    for name, source in SOURCES.items():
        click.echo(f"\n{name}\n  {source.about}")
        for option in source.options:
            click.echo(f"  --set {option}")
        click.echo("  " + source.licence.replace("\n", "\n  "))
    click.echo("\nYour own logs need only a mapping file: see docs/data.md.")


@data.command()
@click.argument("name")
@_PATH
@_JSON
def fetch(name: str, path: Path | None, as_json: bool) -> None:
    """Fetch and convert the source NAME once, and print its licence and folder."""
    source = _source(name)
    click.echo(source.licence + "\n", err=as_json)
    folder = _fetch(source, path)
    if as_json:
        _print_json({"name": name, "folder": str(folder), "licence": source.licence})
    else:
        click.echo(f"{name} is in {folder}")


@data.command("path")
@click.argument("name")
@_PATH
@_JSON
def show_path(name: str, path: Path | None, as_json: bool) -> None:
    """Print the folder of source NAME, fetching it if necessary, and nothing else."""
    source = _source(name)
    click.echo(source.licence, err=True)
    folder = _fetch(source, path)
    if as_json:
        _print_json({"name": name, "folder": str(folder)})
    else:
        click.echo(folder)


@data.command("mapping")
@click.argument("name")
@_PATH
@_SET
@_JSON
def show_mapping(name: str, path: Path | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Print the mapping of source NAME as YAML: a pattern for your own."""
    from lcn.config import dump_config

    source = _source(name)
    options = source_options(name, settings)
    click.echo(source.licence, err=True)
    mapping = source.mapping(_fetch(source, path), **options)
    if as_json:
        _print_json(mapping.model_dump(mode="json"))
    else:
        click.echo(dump_config(mapping), nl=False)


@data.group()
def generate() -> None:
    """Write generated logs into a folder."""


def _size_options(command: Any) -> Any:
    """The dials that most people turn; the rest by --set."""
    for name, text in (
        ("users", "Number of users."),
        ("source-events", "Mean source behaviours of a user."),
        ("rho", "Strength of the interest both domains share, 0 to 1."),
        ("seed", "Seed of all randomness."),
    ):
        kind = float if name == "rho" else int
        command = click.option(f"--{name}", type=kind, help=text)(command)
    return command


@generate.command("synthetic")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@_size_options
@_SET
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A YAML file.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
@_JSON
def generate_synthetic(
    out: Path,
    settings: tuple[str, ...],
    config: Path | None,
    workers: int,
    as_json: bool,
    **dials: float | None,
) -> None:
    """Generate logs with planted truth into the new folder OUT.

    Afterwards OUT/mapping.yaml describes them to `lcn prepare`.
    """
    from lcn.config import load_config
    from lcn.data.sources import synthetic

    given = [f"{name}={value}" for name, value in dials.items() if value is not None]
    size = load_config(synthetic.SyntheticConfig, config, [*settings, *given])
    with _progress("users", size.users) as advance:
        synthetic.generate(out, size, workers, advance)
    _report(out, out / "mapping.yaml", size.model_dump(mode="json"), as_json)


@generate.command("taobao-ad")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--behaviours", type=click.IntRange(min=1), help="Rows of behavior_log.csv.")
@click.option("--impressions", type=click.IntRange(min=1), help="Rows of raw_sample.csv.")
@click.option("--users", type=click.IntRange(min=1), help="Number of users.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of all randomness.")
@_SET
@_JSON
def generate_taobao(
    out: Path, settings: tuple[str, ...], as_json: bool, **dials: int | None
) -> None:
    """Generate files of the Taobao log's form into OUT, to prove the path without the login."""
    from lcn.config import load_config
    from lcn.data.sources import taobao_generator

    given = [f"{name}={value}" for name, value in dials.items() if value is not None]
    size = load_config(taobao_generator.Size, None, [*settings, *given])
    with _progress("rows", size.behaviours + size.impressions + size.ads + size.users) as advance:
        taobao_generator.generate(out, size, advance)
    _report(out, None, size.model_dump(mode="json"), as_json)


def _report(out: Path, mapping: Path | None, config: dict[str, Any], as_json: bool) -> None:
    if as_json:
        shown = {"folder": str(out), "config": config}
        _print_json(shown | ({"mapping": str(mapping)} if mapping else {}))
    elif mapping is not None:
        click.echo(f"Wrote {out}; describe it to `lcn prepare` by {mapping}")
    else:
        click.echo(f"Wrote {out}; read it by `lcn data fetch taobao-ad --path {out}`")


def _source(name: str, options: Iterable[str] = ()) -> LogSource:
    """A source; what it does not have is wrong usage."""
    from lcn.data.sources import find_source

    try:
        return find_source(name, options)
    except LcnError as error:
        raise click.UsageError(str(error)) from error


def _fetch(source: LogSource, path: Path | None) -> Path:
    from rich.console import Console

    from lcn.data.cache import cache_home

    with Console(stderr=True).status("Fetching and converting"):
        return source.fetch(cache_home(os.environ), path)


def source_options(name: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """Parse `--set key=value`; only options the source declares are known."""
    import yaml

    options = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting!r} is not of the form KEY=VALUE")
        try:
            options[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise click.UsageError(f"--set {setting!r}: the value is not valid YAML") from error
    _source(name, options)
    return options


def _progress(unit: str, total: int) -> Any:
    """A progress bar on stderr; entering it gives the function to advance it by."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    @contextmanager
    def bar():
        columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), Remaining())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(unit, total=total)
            yield lambda done: progress.update(task, advance=done)

    return bar()


def _print_json(tree: Any) -> None:
    click.echo(json.dumps(tree, indent=1, ensure_ascii=False))
