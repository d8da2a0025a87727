"""Which event context fields an attention sees, and the rows with those alone.

Shapes: T rows, G fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lcn.errors import ConfigError, nearest
from lcn.ops import HistoryRows
from lcn.schema import Field


class SeenContext:
    """Some event context fields, in the data's order, on an axis of codes of their own.

    Args:
        known: the data's event context fields.
        names: those that are seen; None: all of them.

    Raises:
        ConfigError: a name that the data does not have.
    """

    def __init__(self, known: Sequence[Field], names: Sequence[str] | None) -> None:
        of_data = [field.name for field in known]
        for name in names or ():
            if name not in of_data:
                raise ConfigError(
                    f"the dataset has no event context field {name!r}{nearest(name, of_data)}"
                )
        places = [place for place, name in enumerate(of_data) if names is None or name in names]
        self.fields = [known[place] for place in places]
        self._places = None if len(places) == len(known) else places
        sizes = [field.size for field in known]
        before = [sum(sizes[:place]) for place in places]
        now = [sum(field.size for field in self.fields[:number]) for number in range(len(places))]
        self._shift_G = [here - there for here, there in zip(now, before, strict=True)]

    def of(self, rows: HistoryRows) -> HistoryRows:
        """The rows with the fields that are seen."""
        if self._places is None:
            return rows
        code_TG = rows.code_TG[:, self._places] + rows.code_TG.new_tensor(self._shift_G)
        return replace(rows, code_TG=code_TG)
