"""Bulk load of a prepared dataset: a server starts with the histories that a model was trained on.

Records carry hashes of the texts in the logs, as live events do. A row's position within its
user's history is its sequence, so equal times keep the dataset's order. Its event id is a hash of
time, domain and item and of how many such rows stand before it, so another dataset over the same
logs (of later days, say) adds what is new in it. Datasets do not keep the ids of the logs: what was
sent live and then stands in a dataset too is there twice, so feed a store from one of them. Nor
do they keep when a row became known; the latest time so far of the user's rows is the earliest
moment that fits their order, and equals it wherever events arrive in order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lcn.data.dataset import Dataset, EventStore
from lcn.errors import StoreError
from lcn.schema import DOMAINS, Domain
from lcn.serve.names import NameTables, read_names
from lcn.serve.store.base import BehaviourStore
from lcn.serve.store.records import CONTEXT, EVENT, ITEM, TIME, Packed, hash_texts

_BATCH = 20_000


def load_dataset(
    store: BehaviourStore,
    dataset: Dataset,
    tell: Callable[[int, int], None] = lambda done, total: None,
    names: NameTables | None = None,
) -> int:
    """Put every event of a dataset into a store; loading it again changes nothing.

    Args:
        store: every context field it keeps must be one of the dataset's.
        dataset: opened.
        tell: called with rows done and rows in all.
        names: keys and vocabularies; default: those in the dataset's folder.

    Returns:
        How many events were stored.

    Raises:
        StoreError: the dataset lacks a field that the store keeps.
    """
    names = names or read_names(dataset.folder)
    keys = names.users["key"].to_pylist()
    item_I = _hashes(names.items["key"].to_pylist())
    sizes = {field.name: field.size for field in dataset.manifest.event_context}
    missing = [name for name in store.fields if name not in sizes]
    if missing:
        raise StoreError(
            f"{dataset.folder} has no event context field {missing[0]!r}, which the store keeps "
            f"(the dataset has {list(sizes)}); prepare it with that field, or give a store of its "
            "own"
        )
    value_GV = [_vocabulary(names.values["event", name], sizes[name]) for name in store.fields]
    columns = [list(sizes).index(name) for name in store.fields]
    total = sum(len(events.item_E) for events in dataset.events.values())
    stored = done = 0
    waiting: list[Packed] = []
    for domain in DOMAINS:
        events = dataset.events[domain]
        for user in np.flatnonzero(np.diff(events.offsets_U)):
            rows = slice(*(int(at) for at in events.offsets_U[user : user + 2]))
            context = [value_GV[g][events.context_EG[rows, c]] for g, c in enumerate(columns)]
            kept = max(rows.stop - rows.start - store.limits.events, 0)
            records = _records(events, rows, item_I, context, domain)[kept:]
            waiting += [Packed(keys[user], domain, record.tobytes()) for record in records]
            done += rows.stop - rows.start
            if len(waiting) >= _BATCH:
                stored += _flush(store, waiting)
                tell(done, total)
    stored += _flush(store, waiting)
    tell(total, total)
    return stored


def _records(
    events: EventStore,
    rows: slice,
    item_I: NDArray[np.uint64],
    context: list[NDArray[np.uint64]],
    domain: Domain,
) -> NDArray[np.uint64]:
    time_E = np.asarray(events.time_E[rows])
    sequence_E = np.arange(len(time_E))
    out = np.empty((len(time_E), CONTEXT + len(context)), ">u8")
    out[:, 0] = np.maximum.accumulate(time_E)
    out[:, 1] = time_E
    out[:, 2] = sequence_E
    out[:, ITEM] = item_I[events.item_E[rows]]
    for place, column in enumerate(context):
        out[:, CONTEXT + place] = column
    out[:, EVENT] = _event_ids(out, domain)
    return out


def _event_ids(records: NDArray[np.uint64], domain: Domain) -> NDArray[np.uint64]:
    """A hash of each row's domain, time and item, and of its number among equal rows.

    Not of its context: what a later dataset's vocabulary knows may be unknown to this one's.
    """
    said = records[:, [TIME, ITEM]].astype(np.uint64)
    id_E = np.full(len(said), domain == "source", np.uint64)
    for column in said.T:
        id_E = _mixed(id_E ^ column)
    order = np.argsort(id_E, kind="stable")
    first = np.flatnonzero(np.r_[True, id_E[order][1:] != id_E[order][:-1]])
    number_E = np.empty(len(id_E), np.uint64)
    number_E[order] = np.arange(len(id_E)) - np.repeat(first, np.diff(np.r_[first, len(id_E)]))
    return _mixed(id_E ^ number_E)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: every bit of the result depends on every bit of x, one to one."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _vocabulary(table: pa.Table, size: int) -> NDArray[np.uint64]:
    """Hash of every index of an event context field; 0 for padding and unknown."""
    value_V = np.zeros(size, np.uint64)
    value_V[table["index"].to_numpy()] = hash_texts([str(v) for v in table["value"].to_pylist()])
    return value_V


def _hashes(texts: list[str | None]) -> NDArray[np.uint64]:
    known = hash_texts([text or "" for text in texts])
    return np.where([text is not None for text in texts], known, np.uint64(0))


def _flush(store: BehaviourStore, waiting: list[Packed]) -> int:
    ack = store.append(waiting, 0)
    waiting.clear()
    return ack.outcomes.count("stored")
