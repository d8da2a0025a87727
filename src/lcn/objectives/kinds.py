"""Kinds of events by the value of a context field: clicked or only shown, bought or only viewed."""

from __future__ import annotations

import pyarrow.parquet as pq

from lcn.errors import ConfigError, nearest
from lcn.objectives.base import Setup


def read_values(setup: Setup, field: str, setting: str) -> tuple[int, dict[str, int]]:
    """The place of an event context field, and the index of each of its values.

    Args:
        setup: of the objective.
        field: name of an event context field.
        setting: what to call the setting in errors.

    Raises:
        ConfigError: no such field, or a dataset without its vocabulary.
    """
    names = [each.name for each in setup.manifest.event_context]
    if field not in names:
        raise ConfigError(
            f"{setting}.field: the dataset has no event context field {field!r}"
            f"{nearest(field, names)}"
        )
    path = setup.dataset.folder / "vocabulary" / "event" / f"{field}.parquet"
    try:
        table = pq.read_table(path, columns=["value", "index"])
    except FileNotFoundError as error:
        raise ConfigError(
            f"{setting}.field: {path} is missing; prepare the dataset again"
        ) from error
    index = dict(zip(table["value"].to_pylist(), table["index"].to_pylist(), strict=True))
    return names.index(field), index


def index_of(index: dict[str, int], field: str, value: str, setting: str) -> int:
    """The index of a value.

    Raises:
        ConfigError: the field's vocabulary does not have it.
    """
    if value not in index:
        raise ConfigError(
            f"{setting}.values: field {field!r} has no value {value!r}{nearest(value, index)}"
        )
    return index[value]
