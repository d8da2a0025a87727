"""What a server keeps of one user for one model version: rows ready for the backbone.

Rows stand in arrays with room at their end. A newer event is written behind the last row, and
readers hold views that end before it, so no reader ever sees half an event. An older event, or a
full array, means building the state again from the store; both ways give the same rows.
Shapes: n rows, I unique items, D item width, G event context fields.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcn.backbones.base import History
from lcn.ops import HistoryRows
from lcn.serve.store.records import CONTEXT, ITEM, KNOWN, TIME, Records


@dataclass(frozen=True, slots=True)
class ItemTable:
    """Vectors and fields of every item of a model version; the last row is the unknown item."""

    vector_ID: Tensor
    """As candidates are read."""
    search_ID: Tensor | None
    """What search ranks candidates by, where it is not the same."""
    stored_ID: Tensor
    """As histories are read (half as wide, if the model says so)."""
    stored_search_ID: Tensor | None
    item_IF: Tensor


@dataclass(frozen=True, slots=True)
class DomainView:
    """Rows of one domain as they were at one moment; never changes."""

    rows: HistoryRows
    known_T: NDArray[np.int64]
    address_T: NDArray[np.int32]
    item_IF: Tensor
    search_ID: Tensor | None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.known_T)

    def before(self, moment: int) -> int:
        """Rows known strictly before a moment."""
        return int(np.searchsorted(self.known_T, moment, side="left"))

    def history(self) -> History:
        """As a backbone sees them."""
        offsets_U1 = torch.tensor([0, len(self)])
        return History(self.rows, offsets_U1, self.item_IF, self.search_ID)


@dataclass(frozen=True, slots=True)
class View:
    """A user's rows and what the backbone made of them."""

    source: DomainView
    target: DomainView
    encoded: object
    version: int


class DomainRows:
    """Growing rows of one domain."""

    def __init__(
        self,
        records: Records,
        address_T: NDArray[np.int32],
        code_TG: NDArray[np.int32],
        table: ItemTable,
        limit: int,
    ) -> None:
        count = len(records)
        room = count + max(count // 8, 32)
        self._limit = limit
        self._known_T = np.empty(room, np.int64)
        self._time_T = np.empty(room, np.int64)
        self._address_T = np.empty(room, np.int32)
        self._slot_T = np.empty(room, np.int32)
        self._code_TG = np.empty((room, code_TG.shape[1]), np.int32)
        for array in (
            self._known_T, self._time_T, self._address_T, self._slot_T, self._code_TG,
        ):  # fmt: skip
            array[count:] = 0  # touches the room's pages now, or some updates would wait for them
        self._known_T[:count] = records[:, KNOWN]
        self._time_T[:count] = records[:, TIME]
        self._address_T[:count] = address_T
        self._code_TG[:count] = code_TG
        unique_I, self._slot_T[:count] = np.unique(address_T, return_inverse=True)
        slots = len(unique_I) + room - count
        address_I = torch.from_numpy(unique_I.astype(np.int64))
        self._vector_ID = _with_room(table.stored_ID, address_I, slots)
        self._search_ID = None
        if table.stored_search_ID is not None:
            self._search_ID = _with_room(table.stored_search_ID, address_I, slots)
        self._item_IF = _with_room(table.item_IF, address_I, slots)
        pairs = [(self._vector_ID, table.stored_ID), (self._item_IF, table.item_IF)]
        if self._search_ID is not None and table.stored_search_ID is not None:
            pairs.append((self._search_ID, table.stored_search_ID))
        # As bytes: a row is then copied in a tenth of the time that a tensor's takes.
        self._copied = [(_bytes(own), _bytes(all_)) for own, all_ in pairs]
        self._slots = len(unique_I)
        self._count = count
        self._last = records[-1].tobytes() if count else b""

    def add(self, record: NDArray[np.uint64], address: int, code_G: NDArray[np.int32]) -> bool:
        """Write a newer event behind the last; False when it is older or there is no room."""
        at, slot, data = self._count, self._slots, record.tobytes()
        if data <= self._last or at == len(self._known_T):
            return False
        self._known_T[at], self._time_T[at] = record[KNOWN], record[TIME]
        self._address_T[at] = address
        self._slot_T[at] = slot
        self._code_TG[at] = code_G
        # A slot of its own: finding the item's would cost more than its vector, and the next
        # rebuild shares them again.
        for own_IB, all_IB in self._copied:
            own_IB[slot] = all_IB[address]
        self._last, self._count, self._slots = data, at + 1, slot + 1
        return True

    def view(self, oldest: int) -> DomainView:
        """The newest rows within the limits.

        Args:
            oldest: rows known before are left out.
        """
        last, slots = self._count, self._slots
        first = max(last - self._limit, 0)
        if oldest:
            first += int(np.searchsorted(self._known_T[first:last], oldest))
        rows = HistoryRows(
            self._vector_ID[:slots],
            torch.from_numpy(self._slot_T[first:last]),
            torch.from_numpy(self._code_TG[first:last]),
            torch.from_numpy(self._time_T[first:last]),
        )
        return DomainView(
            rows,
            self._known_T[first:last],
            self._address_T[first:last],
            self._item_IF[:slots],
            None if self._search_ID is None else self._search_ID[:slots],
        )

    def storages(self) -> Iterator[Tensor]:
        """Every tensor this keeps alive."""
        yield self._vector_ID
        yield self._item_IF
        if self._search_ID is not None:
            yield self._search_ID

    @property
    def bytes(self) -> int:
        """Memory of the rows."""
        arrays = (self._known_T, self._time_T, self._address_T, self._slot_T, self._code_TG)
        tensors = sum(each.nbytes for each in self.storages())
        return sum(each.nbytes for each in arrays) + tensors


class UserState:
    """A user's rows, their version, and the backbone's state for them."""

    def __init__(self, source: DomainRows, target: DomainRows, version: int) -> None:
        self.lock = threading.Lock()
        self.source, self.target, self.version = source, target, version
        self.view: View | None = None
        """The newest view, while nothing changed since."""
        self.encoded_bytes = 0
        self.verified = 0.0
        """Monotonic seconds at which the version was last known to be the store's."""

    @property
    def bytes(self) -> int:
        """Memory of rows and encoding."""
        return self.source.bytes + self.target.bytes + self.encoded_bytes


def encoded_bytes(encoded: object, shared: Iterator[Tensor]) -> int:
    """Memory of a backbone's state beyond the tensors it shares."""
    seen = {each.untyped_storage().data_ptr() for each in shared}
    total = 0
    for tensor in _tensors(encoded):
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in seen:
            seen.add(pointer)
            total += tensor.untyped_storage().nbytes()
    return total


def split(records: Records) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Item hashes and context hashes of records, in the machine's byte order."""
    return records[:, ITEM].astype(np.uint64), records[:, CONTEXT:].astype(np.uint64)


def _with_room(table: Tensor, address_I: Tensor, slots: int) -> Tensor:
    out = table.new_empty(slots, table.shape[1])
    torch.index_select(table, 0, address_I, out=out[: len(address_I)])
    out[len(address_I) :] = 0
    return out


def _bytes(table: Tensor) -> NDArray[np.uint8]:
    return table.view(torch.uint8).numpy()


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for each in fields(value):
            yield from _tensors(getattr(value, each.name))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
