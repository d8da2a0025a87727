"""`lcn export` and `lcn serve`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lcn.cli.output import dataset_option
from lcn.errors import ConfigError


@contextmanager
def installed() -> Iterator[None]:
    """Say what to install where packages of the extra `serve` are missing.

    Raises:
        ConfigError: one is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serving needs the package {error.name!r}, which is not installed; run "
            "`pip install 'lcn[serve]'`"
        ) from error


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--name", help="Of the model; default: the run's title.")
@click.option("--version", help="Default: from the bytes.")
@dataset_option
def export(
    run: Path, bundle: Path, name: str | None, version: str | None, dataset: str | None
) -> None:
    """Make a BUNDLE, all that a server needs, of RUN's best model."""
    with installed():
        from lcn.serve.bundle import export_run
        from lcn.serve.names import ITEM_LENGTH, USER_LENGTH, read_names, unaskable

    manifest = export_run(run, bundle, name=name, version=version, dataset=dataset)
    size = sum(each.bytes for each in manifest.files.values()) / 2**20
    click.echo(
        f"{bundle}: model {manifest.name}, version {manifest.version}, {size:.1f} MiB; "
        f"next: lcn serve {bundle}"
    )
    for kind, keys in unaskable(read_names(bundle)).items():
        click.echo(
            f"warning: no request can name {len(keys)} of the {kind}, such as {keys[0][:60]!r}: "
            f"a key has at most {USER_LENGTH} characters (users) or {ITEM_LENGTH} (items) and no "
            "control characters",
            err=True,
        )


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 is every address.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--store", default="", help="redis://host:port/db; default: in the data folder.")
@click.option("--data-dir", default="lcn-data", show_default=True, help="Embedded store, tokens.")
@click.option(
    "--durability", type=click.Choice(["always", "everysec"]), default="always", show_default=True,
    help="Events are on disk before they are acknowledged, or at most a second later.",
)  # fmt: skip
@click.option("--history", default=0, help="Events kept per user and domain.  [default: 2 N]")
@click.option(
    "--dataset", type=click.Path(path_type=Path),
    help="A prepared dataset whose events are put into the store first.",
)  # fmt: skip
@click.option("--tokens", type=click.Path(path_type=Path), help="JSON: rank, ingest, admin.")
@click.option("--repair-store", is_flag=True, help="Go on without what is behind damage.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting.")
def serve(bundles: tuple[Path, ...], settings: tuple[str, ...], **options: Any) -> None:
    """Serve BUNDLES over HTTP; the first is the default model.

    Without --tokens a server that only this machine can reach asks for none; any other makes its
    own and says in which file they are.
    """
    from lcn.config import load_config

    with installed():
        from lcn.serve.server import open_server, run_server
    from lcn.serve.settings import ServeConfig

    names = ("host", "port", "store", "data_dir", "durability", "history")
    given = [f"{name}={options[name]}" for name in names if options[name] != ""]
    config = load_config(ServeConfig, None, [*given, *settings])
    if options["repair_store"]:
        _repair(config, bundles)
    running = open_server(config, bundles, token_file=options["tokens"])
    if options["dataset"] is not None:
        _load(running.parts.store, options["dataset"])
    if running.parts.tokens is not None:
        click.echo(f"tokens: {running.parts.tokens.path}", err=True)
    run_server(running, started=lambda url: click.echo(f"serving on {url}", err=True))


def _repair(config: Any, bundles: tuple[Path, ...]) -> None:
    from lcn.serve.bundle import read_bundle_manifest
    from lcn.serve.server import event_fields
    from lcn.serve.store.lmdb_store import LmdbStore

    manifests = [read_bundle_manifest(bundle) for bundle in bundles]
    longest = max(manifest.reads for manifest in manifests)
    folder = Path(config.store or Path(config.data_dir) / "store")
    store = LmdbStore(
        folder, event_fields(manifests), config.limits(longest), config.durability, repair=True
    )
    click.echo(f"{folder}: {store.recovered:,} records read back from the log", err=True)
    store.close()


def _load(store: Any, folder: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from lcn.data.dataset import open_dataset
    from lcn.serve.store.bulk import load_dataset

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("loading events", total=None)
        stored = load_dataset(
            store,
            open_dataset(folder),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    click.echo(f"{stored:,} new events from {folder}", err=True)
