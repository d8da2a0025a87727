"""Kinds of events by the value of a context field: clicked or only shown, bought or only viewed."""

from __future__ import annotations

from lcn.data.names import read_vocabulary
from lcn.errors import ConfigError, nearest
from lcn.objectives.base import Setup


def read_values(setup: Setup, field: str, setting: str) -> tuple[int, dict[str, int]]:
    """The place of an event context field, and the index of each of its values.

    Args:
        setup: of the objective.
        field: name of an event context field.
        setting: what to call the setting in errors.

    Raises:
        ConfigError: no such field.
        DataError: the dataset lacks the field's vocabulary.
    """
    names = [each.name for each in setup.manifest.event_context]
    if field not in names:
        raise ConfigError(
            f"{setting}.field: the dataset has no event context field {field!r}"
            f"{nearest(field, names)}"
        )
    index = read_vocabulary(setup.dataset.folder, "event", field)
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
