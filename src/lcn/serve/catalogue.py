"""What a served model knows by name: items, users, values of fields. No torch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lcn.data.names import Group
from lcn.errors import CheckpointError
from lcn.schema import UNKNOWN, Manifest
from lcn.serve.names import NameTables
from lcn.serve.store.records import hash_text, hash_texts

Int32 = NDArray[np.int32]
_REMEMBERED = 1 << 20
"""Keys whose address needs no hashing any more; unknown ones are never among them."""


class Catalogue:
    """Translates texts of requests and hashes of records into a model's indices.

    Whatever the model has not seen becomes unknown: items the row after the last address, fields
    index 1, users address 0.

    Raises:
        CheckpointError: two items have the same hash (one chance in 10^13 for a million items).
    """

    def __init__(self, manifest: Manifest, names: NameTables) -> None:
        self._manifest = manifest
        self._names = names
        self._key_I = names.items["key"]
        self._title_I = names.items["title"]
        self.items = len(self._key_I)
        """Addresses, padding included; also the row of an item that is not known."""
        hash_I = hash_texts([text or "" for text in self._key_I.to_pylist()])
        order_I = np.argsort(hash_I[1:], kind="stable") + 1
        self._hash_I, self._address_I = hash_I[order_I], order_I.astype(np.int32)
        twice = np.flatnonzero(self._hash_I[1:] == self._hash_I[:-1])
        if len(twice):
            first, second = (self.key(int(self._address_I[at])) for at in (twice[0], twice[0] + 1))
            raise CheckpointError(f"items {first!r} and {second!r} have one hash; rename one")
        self._address: dict[str, int] = {}
        keys = names.users["key"].to_pylist()
        self._user = {key: address for address, key in enumerate(keys) if key is not None}
        self._value = {place: _by_text(table) for place, table in names.values.items()}
        self._text: dict[tuple[Group, str], dict[int, str]] = {}
        self._event = {
            name: _by_hash(table)
            for (group, name), table in names.values.items()
            if group == "event"
        }

    def address(self, key: str) -> int:
        """Address of an item by its key, `items` when it is not known."""
        found = self._address.get(key)
        if found is None:
            found = int(self.addresses(np.array([hash_text(key)], np.uint64))[0])
            if found != self.items and len(self._address) < _REMEMBERED:
                self._address[key] = found
        return found

    def addresses(self, hash_N: NDArray[np.uint64]) -> Int32:
        """Addresses of items by the hashes in records."""
        if not len(self._hash_I):
            return np.full(len(hash_N), self.items, np.int32)
        place_N = np.searchsorted(self._hash_I, hash_N)
        place_N[place_N == len(self._hash_I)] = 0
        return np.where(self._hash_I[place_N] == hash_N, self._address_I[place_N], self.items)

    def user(self, key: str) -> int:
        """Address of a user, 0 when not known."""
        return self._user.get(key, 0)

    def index(self, group: Group, field: str, value: str | None) -> int:
        """Vocabulary index of a value; 1 (unknown) for none and for new ones."""
        if value is None:
            return UNKNOWN
        return self._value.get((group, field), {}).get(value, UNKNOWN)

    def event_context(self, context_NG: NDArray[np.uint64], fields: tuple[str, ...]) -> Int32:
        """Indices of the model's event context fields from the hashes in records.

        Args:
            context_NG: one column per field of the store.
            fields: the store's fields; the model's are picked by name.
        """
        wanted = self._manifest.event_context
        out = np.full((len(context_NG), len(wanted)), UNKNOWN, np.int32)
        for place, field in enumerate(wanted):
            if field.name in fields and field.name in self._event:
                hash_V, index_V = self._event[field.name]
                column = context_NG[:, fields.index(field.name)]
                at = np.searchsorted(hash_V, column)
                at[at == len(hash_V)] = 0
                if len(hash_V):
                    out[:, place] = np.where(hash_V[at] == column, index_V[at], UNKNOWN)
        return out

    def key(self, address: int) -> str | None:
        """The key of an address; None for an unknown item."""
        return self._key_I[address].as_py() if 0 < address < self.items else None

    def title(self, address: int) -> str | None:
        """The title of an address, or its key."""
        known = self._title_I[address].as_py() if 0 < address < self.items else None
        return known if known is not None else self.key(address)

    def value(self, group: Group, field: str, index: int) -> str | None:
        """The text behind an index; None for padding and unknown."""
        place = (group, field)
        if place not in self._text:
            known = self._value.get(place, {})
            self._text[place] = {number: text for text, number in known.items()}
        return self._text[place].get(index)


def _by_text(table: pa.Table) -> dict[str, int]:
    values, indices = table["value"].to_pylist(), table["index"].to_pylist()
    return {str(value): int(index) for value, index in zip(values, indices, strict=True)}


def _by_hash(table: pa.Table) -> tuple[NDArray[np.uint64], Int32]:
    hash_V = hash_texts([str(value) for value in table["value"].to_pylist()])
    order_V = np.argsort(hash_V)
    return hash_V[order_V], table["index"].to_numpy()[order_V].astype(np.int32)
