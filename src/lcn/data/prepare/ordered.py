"""Streams of encoded rows in a total order, so that equal rows are neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lcn.data.prepare.codes import ITEMS, USERS, Coded
from lcn.data.prepare.staging import Staged, usable

Columns = dict[str, NDArray]
"""Columns of one batch, by name as the SQL names them."""


def encoded(
    staged: Staged, columns: dict[str, str], fields: list[tuple[Coded, str]], where: str = "true"
) -> str:
    """Return a SELECT of a staged table with addresses and codes in place of texts.

    Args:
        columns: output name -> SQL over `log`, `user_code` and `item_code`.
        fields: (numbered field, staged column); they come out as k0, k1, ...
        where: condition on rows.

    Returns:
        A SELECT of the columns, the codes, and `part`, the table's number.
    """
    names = [f"{sql} AS {name}" for name, sql in columns.items()]
    joins = [
        f'JOIN {USERS} ON log."user" = {USERS}.key',
        f"JOIN {ITEMS} ON log.item = {ITEMS}.key",
    ]
    for number, (coded, column) in enumerate(fields):
        names.append(f"coalesce(v{number}.code, 0) AS k{number}")
        joins.append(f"LEFT JOIN {coded.table} v{number} ON log.{column} = v{number}.value")
    return (
        f"SELECT {', '.join(names)}, {staged.number} AS part "
        f"FROM (SELECT * FROM {staged.name} WHERE {usable(staged)} AND {where}) log "
        + " ".join(joins)
    )


class Deduplicator:
    """Drops rows that equal the row before them in every column, `part` included.

    Args:
        drops: for each part, whether its equal rows are duplicates (without ids, they are).
    """

    def __init__(self, drops: list[bool]) -> None:
        self._drops = np.array(drops)
        self.dropped = [0] * len(drops)
        """Rows dropped, by part."""

    def of(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Columns]:
        """Yield the batches' columns without duplicates; rows must come in a total order."""
        last: Columns | None = None
        for batch in batches:
            columns = {
                name: batch.column(name).to_numpy(zero_copy_only=False)
                for name in batch.schema.names
            }
            again = self._equals_previous(columns, last)
            last = {name: values[-1:] for name, values in columns.items()}
            if again.any():
                counts = np.bincount(columns["part"][again], minlength=len(self.dropped))
                self.dropped = [a + int(b) for a, b in zip(self.dropped, counts, strict=True)]
                columns = {name: values[~again] for name, values in columns.items()}
            if len(columns["part"]):
                yield columns

    def _equals_previous(self, columns: Columns, last: Columns | None) -> NDArray[np.bool_]:
        again = self._drops[columns["part"]]
        for name, values in columns.items():
            # Bits, so that a missing number (NaN) equals itself.
            bits = values.view(f"u{values.itemsize}")
            again[1:] &= bits[1:] == bits[:-1]
            again[0] &= last is not None and bits[0] == last[name].view(bits.dtype)[0]
        return again
