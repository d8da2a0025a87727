"""`lcn models`: every backbone and objective, where it comes from and what can be set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import click
from pydantic_core import PydanticUndefined

from lcn.backbones import BACKBONES
from lcn.errors import ConfigError, nearest
from lcn.objectives import OBJECTIVES

Kind = Literal["backbone", "objective"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a config."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One backbone or objective."""

    name: str
    kind: Kind
    summary: str
    """First line of the class's docstring."""
    source: str
    assumes: str
    """What it asks of the data."""
    settings: tuple[Setting, ...]


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
def models(name: str | None, as_json: bool) -> None:
    """List backbones and objectives; with NAME, that one's settings.

    Any backbone goes with any objectives: `lcn train --recipe NAME`, or model.backbone.name and
    objectives in a config.
    """
    entries = list_models()
    if name is not None:
        known = [entry.name for entry in entries]
        if name not in known:
            raise ConfigError(f"no backbone or objective {name!r}{nearest(name, known)}")
        entries = [entry for entry in entries if entry.name == name]
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=1, ensure_ascii=False))
        return
    for entry in entries:
        _print(entry, whole=name is not None)


def list_models() -> list[Entry]:
    """Everything that a config can name, backbones first."""
    kinds: list[tuple[Kind, dict[str, Any]]] = [
        ("backbone", BACKBONES),
        ("objective", OBJECTIVES),
    ]
    return [
        Entry(
            name=name,
            kind=kind,
            summary=(model.__doc__ or "").strip().splitlines()[0],
            source=getattr(model, "source", ""),
            assumes=getattr(model, "assumes", ""),
            settings=_settings(model.Config),
        )
        for kind, models in kinds
        for name, model in models.items()
    ]


def _settings(config: Any) -> tuple[Setting, ...]:
    tree = config.model_json_schema().get("properties", {})
    plain = config().model_dump(mode="json")
    return tuple(
        Setting(
            name,
            _type_name(tree[name]),
            plain[name],
            " ".join((field.description or "").split()),
        )
        for name, field in config.model_fields.items()
        if name != "name" and field.default is not PydanticUndefined
    )


def _type_name(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_type_name(option) for option in schema["anyOf"])
    return schema.get("type", "group")


def _print(entry: Entry, *, whole: bool) -> None:
    click.echo(f"{click.style(entry.name, bold=True)} ({entry.kind})  {entry.summary}")
    click.echo(f"    source   {entry.source}")
    click.echo(f"    assumes  {entry.assumes}")
    if not whole:
        names = ", ".join(setting.name for setting in entry.settings)
        click.echo(f"    settings {names or 'none'}")
        return
    for setting in entry.settings:
        click.echo(f"    {setting.name} = {setting.default!r}  ({setting.type})  {setting.help}")
