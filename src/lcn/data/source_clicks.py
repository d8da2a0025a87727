"""Source-domain events as impressions: what a history says about clicks, to learn from.

A log of behaviour often says how a user responded (clicked or only shown, five stars or one). Each
such event of the source domain is then an impression with a label: its history is what was known
strictly before it, as for any impression.
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lcn.data.dataset import Dataset, EventStore, Samples
from lcn.data.mapping import Responses
from lcn.errors import ConfigError
from lcn.schema import UNKNOWN, Field, Manifest


def stated_responses(manifest: Manifest) -> Responses | None:
    """What the dataset's mapping says about responses; None where it says nothing."""
    stated = manifest.mapping.get("responses")
    return Responses.model_validate(stated) if stated else None


def source_clicks(dataset: Dataset) -> Samples:
    """The training days' source-domain events with a known response, as impressions.

    Events of one moment do not see each other. Request context is taken from event context fields
    of the same name and value; candidate-only fields are unknown.

    Args:
        dataset: an open dataset.

    Raises:
        ConfigError: its mapping states no responses, or values that no event has.
    """
    responses, told = stated_responses(dataset.manifest), response_labels(dataset)
    if responses is None or told is None:
        raise ConfigError(
            "train.source_steps trains on source-domain clicks, but the dataset does not say which "
            "events are clicks; add `responses` to its mapping and prepare it again, or set "
            "train.source_steps to 0"
        )
    store, manifest = dataset.events["source"], dataset.manifest
    place, label_V = told
    label_E = label_V[np.asarray(store.context_EG[:, place])]
    time_E = np.asarray(store.time_E)
    row_S = np.flatnonzero((label_E >= 0) & (time_E < manifest.split.validation_from))
    if not len(row_S):
        raise ConfigError(
            f"responses: no source-domain event of the training days has {responses.field!r} among "
            f"{[*responses.clicked, *responses.shown]}; set train.source_steps to 0"
        )
    row_S = row_S[np.argsort(time_E[row_S], kind="stable")]
    lengths_U = np.diff(np.asarray(store.offsets_U))
    user_E = np.repeat(np.arange(len(lengths_U), dtype=np.int32), lengths_U)
    user_S, time_S = user_E[row_S], time_E[row_S]
    return Samples(
        user_S=user_S,
        time_S=time_S,
        item_S=np.asarray(store.item_E)[row_S],
        label_S=label_E[row_S].astype(np.uint8),
        dwell_S=np.full(len(row_S), np.nan, np.float32),
        context_SR=_request_context(dataset, row_S),
        candidate_SA=np.full((len(row_S), len(manifest.candidate_fields)), UNKNOWN, np.int32),
        source_end_S=_rows_before(store, user_S, time_S),
        target_end_S=_rows_before(dataset.events["target"], user_S, time_S),
    )


def response_labels(dataset: Dataset) -> tuple[int, NDArray[np.int8]] | None:
    """Place of the response field among event context fields, and what each of its indices says.

    Returns:
        The place and [V]: 1 clicked, 0 shown, -1 unknown; None where the mapping states nothing.
    """
    responses = stated_responses(dataset.manifest)
    if responses is None:
        return None
    fields = dataset.manifest.event_context
    place = [field.name for field in fields].index(responses.field)
    index = _vocabulary(dataset, "event", responses.field)
    label_V = np.full(fields[place].size, -1, np.int8)
    for values, label in ((responses.clicked, 1), (responses.shown, 0)):
        label_V[[index[value] for value in values if value in index]] = label
    return place, label_V


def _request_context(dataset: Dataset, row_S: NDArray) -> NDArray[np.int32]:
    """Request fields of events: the event field of the same name where there is one."""
    manifest = dataset.manifest
    fields = {field.name: place for place, field in enumerate(manifest.event_context)}
    context_SR = np.full((len(row_S), len(manifest.request_context)), UNKNOWN, np.int32)
    for place, request in enumerate(manifest.request_context):
        if request.name in fields:
            code_S = np.asarray(dataset.events["source"].context_EG[row_S, fields[request.name]])
            event = manifest.event_context[fields[request.name]]
            context_SR[:, place] = _translation(dataset, event, request)[code_S]
    return context_SR


def _translation(dataset: Dataset, event: Field, request: Field) -> NDArray[np.int32]:
    """Request index of each event index: both vocabularies number the same words differently."""
    known = _vocabulary(dataset, "request", request.name)
    index_V = np.full(event.size, UNKNOWN, np.int32)
    for value, index in _vocabulary(dataset, "event", event.name).items():
        index_V[index] = known.get(value, UNKNOWN)
    return index_V


def _vocabulary(dataset: Dataset, group: str, field: str) -> dict[str, int]:
    table = pq.read_table(dataset.folder / "vocabulary" / group / f"{field}.parquet")
    return dict(zip(table["value"].to_pylist(), table["index"].to_pylist(), strict=True))


def _rows_before(store: EventStore, user_S: NDArray, time_S: NDArray) -> NDArray[np.int64]:
    """One past the last row of each user that is of a strictly earlier time.

    Rows lie by the time they were *known*; where one came late, rows stop before the first that is
    not earlier, so nothing of the same moment or later is ever seen.
    """
    offsets_U, time_E = np.asarray(store.offsets_U), np.asarray(store.time_E)
    user_E = np.repeat(np.arange(len(offsets_U) - 1), np.diff(offsets_U))
    # A running maximum per user: adding the user's number times a span keeps users apart.
    low = int(min(time_E.min(initial=0), time_S.min(initial=0)))
    span = int(max(time_E.max(initial=0), time_S.max(initial=0))) - low + 1
    key_E = np.maximum.accumulate(user_E * span + (time_E - low))
    return np.searchsorted(key_E, user_S.astype(np.int64) * span + (time_S - low)).astype(np.int64)
