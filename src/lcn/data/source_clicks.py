"""Source-domain events as impressions: what a history says about clicks, to learn from.

A log of behaviour often says how a user responded (clicked or only shown, five stars or one). Each
such event of the source domain is then an impression with a label: its history is what was known
strictly before it, as for any impression.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from lcn.data.dataset import Dataset, EventStore, Samples
from lcn.data.mapping import Responses
from lcn.data.names import read_vocabulary
from lcn.errors import ConfigError, nearest
from lcn.schema import UNKNOWN, Field, Manifest


def stated_responses(manifest: Manifest) -> Responses | None:
    """What the dataset's mapping says about responses; None where it says nothing."""
    stated = manifest.mapping.get("responses")
    return Responses.model_validate(stated) if stated else None


def tells_source_clicks(manifest: Manifest) -> bool:
    """Whether `source_clicks` has something to go by."""
    return stated_responses(manifest) is not None and not knows_late(manifest)


def source_clicks(dataset: Dataset, most: int = 0, *, seed: int = 0) -> Samples:
    """The training days' source-domain events with a known response, as impressions.

    Events of one moment do not see each other. Request context is taken from event context fields
    of the same name and value (never from the response itself); candidate-only fields are unknown.

    Args:
        dataset: an open dataset.
        most: impressions to draw at most; 0 takes all.
        seed: of the draw.

    Raises:
        ConfigError: its mapping states no responses, or values that no event has; or events that
            may have become known later than they happened; when is not kept.
    """
    store, manifest = dataset.events["source"], dataset.manifest
    told = response_labels(dataset)
    if told is None:
        raise ConfigError(
            "train.source_steps trains on source-domain clicks, but the dataset does not say which "
            "events are clicks; add `responses` to its mapping and prepare it again, or set "
            "train.source_steps to 0"
        )
    if knows_late(manifest):
        raise ConfigError(
            "train.source_steps: events of this dataset became known later than they happened (an "
            "`arrival`, or times logged less exactly than others), so what was known when a source "
            "event happened cannot be told; set train.source_steps to 0"
        )
    place, label_V = told
    label_E = label_V[np.asarray(store.context_EG[:, place])]
    time_E = np.asarray(store.time_E)
    known_E = time_E + manifest.known_after
    row_S = np.flatnonzero((label_E >= 0) & (known_E < manifest.split.validation_from))
    if len(np.unique(label_E[row_S])) < 2:
        raise ConfigError(
            f"train.source_steps: source-domain events of the training days are all of one kind "
            f"(clicked: {int(label_E[row_S].sum()):,} of {len(row_S):,}); check `responses` of the "
            "mapping, or set train.source_steps to 0"
        )
    if 0 < most < len(row_S):
        row_S = np.random.default_rng(seed).choice(row_S, most, replace=False)
    row_S = row_S[np.argsort(time_E[row_S], kind="stable")]
    offsets_U = np.asarray(store.offsets_U)
    user_S = (np.searchsorted(offsets_U, row_S, "right") - 1).astype(np.int32)
    time_S = time_E[row_S]
    return Samples(
        user_S=user_S,
        time_S=time_S,
        item_S=np.asarray(store.item_E)[row_S],
        label_S=label_E[row_S].astype(np.uint8),
        dwell_S=np.full(len(row_S), np.nan, np.float32),
        context_SR=_request_context(dataset, row_S, place),
        candidate_SA=np.full((len(row_S), len(manifest.candidate_fields)), UNKNOWN, np.int32),
        source_end_S=_rows_before(store, user_S, time_S),
        target_end_S=_rows_before(dataset.events["target"], user_S, time_S),
    )


def response_labels(dataset: Dataset) -> tuple[int, NDArray[np.int8]] | None:
    """Place of the response field among event context fields, and what each of its indices says.

    Returns:
        The place and [V]: 1 clicked, 0 shown, -1 unknown; None where the mapping states nothing.

    Raises:
        ConfigError: no training event has any of the values of a kind.
    """
    responses = stated_responses(dataset.manifest)
    if responses is None:
        return None
    fields = dataset.manifest.event_context
    place = [field.name for field in fields].index(responses.field)
    index = read_vocabulary(dataset.folder, "event", responses.field)
    label_V = np.full(fields[place].size, -1, np.int8)
    for kind, values, label in (("clicked", responses.clicked, 1), ("shown", responses.shown, 0)):
        known = [index[value] for value in values if value in index]
        if not known:
            raise ConfigError(
                f"responses.{kind}: no event of the training days has {responses.field!r} among "
                f"{list(values)}{nearest(values[0], list(index))}; correct the mapping and prepare "
                "the dataset again"
            )
        label_V[known] = label
    return place, label_V


def knows_late(manifest: Manifest) -> bool:
    """Whether some events became known later after their logged time than others."""
    if manifest.late_events is not None:
        return manifest.late_events
    tables: Any = manifest.mapping.get("events", ())
    return any(table.get("arrival") for table in tables)


def _request_context(dataset: Dataset, row_S: NDArray, response: int) -> NDArray[np.int32]:
    """Request fields of events: the event field of the same name where there is one."""
    manifest = dataset.manifest
    fields = {field.name: place for place, field in enumerate(manifest.event_context)}
    context_SR = np.full((len(row_S), len(manifest.request_context)), UNKNOWN, np.int32)
    for place, request in enumerate(manifest.request_context):
        if fields.get(request.name, response) != response:
            code_S = np.asarray(dataset.events["source"].context_EG[row_S, fields[request.name]])
            event = manifest.event_context[fields[request.name]]
            context_SR[:, place] = _translation(dataset, event, request)[code_S]
    return context_SR


def _translation(dataset: Dataset, event: Field, request: Field) -> NDArray[np.int32]:
    """Request index of each event index: both vocabularies number the same words differently."""
    known = read_vocabulary(dataset.folder, "request", request.name)
    index_V = np.full(event.size, UNKNOWN, np.int32)
    for value, index in read_vocabulary(dataset.folder, "event", event.name).items():
        index_V[index] = known.get(value, UNKNOWN)
    return index_V


def _rows_before(store: EventStore, user_S: NDArray, time_S: NDArray) -> NDArray[np.int64]:
    """One past the last row of each user that is of a strictly earlier time."""
    end_S = np.empty(len(user_S), np.int64)
    _search(np.asarray(store.offsets_U), np.asarray(store.time_E), user_S, time_S, end_S)
    return end_S


@numba.njit(cache=True, nogil=True)
def _search(offsets_U, time_E, user_S, time_S, end_S):
    for sample in range(len(user_S)):
        low, high = offsets_U[user_S[sample]], offsets_U[user_S[sample] + 1]
        while low < high:
            middle = (low + high) // 2
            if time_E[middle] < time_S[sample]:
                low = middle + 1
            else:
                high = middle
        end_S[sample] = low
