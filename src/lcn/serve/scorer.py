"""One model version, ready: users' records to states, a state and candidates to logits.

The forward is the model's own (`backbone.encode`, `Model.score`), the one that training and
evaluation run; only where the rows come from differs. Shapes: C candidates, A candidate-only
fields, R request fields, P profile fields.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcn.backbones.base import Level
from lcn.data.batch import Batch, Rows
from lcn.model import Embedded, Model
from lcn.serve.bundle import Bundle
from lcn.serve.store.base import Change, Limits, Stored
from lcn.serve.store.records import CONTEXT, KNOWN, TIME, Records, record_bytes
from lcn.serve.user_state import (
    DomainRows,
    DomainView,
    ItemTable,
    UserState,
    View,
    encoded_bytes,
    split,
)

Int32 = NDArray[np.int32]

_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Request:
    """One user's candidates, in the model's indices."""

    address_C: Int32
    """Item addresses; the catalogue's `items` is the unknown one."""
    candidate_CA: Int32
    context_R: Int32
    profile_P: Int32
    moment: int
    """UTC milliseconds; only events known strictly before are seen."""

    def first(self, count: int) -> Request:
        """The same request for its first candidates."""
        return self._slice(0, count)

    def parts(self, most: int) -> list[Request]:
        """The request cut into parts of nearly one size, `most` candidates at most each."""
        count = len(self.address_C)
        edges = np.linspace(0, count, max(-(-count // most), 1) + 1).astype(int)
        if len(edges) == 2:
            return [self]
        return [self._slice(a, b) for a, b in pairwise(edges)]

    def _slice(self, start: int, end: int) -> Request:
        return replace(
            self,
            address_C=self.address_C[start:end],
            candidate_CA=self.candidate_CA[start:end],
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """Click logits, and on request what each level kept."""

    logit_C: NDArray[np.float32]
    levels: tuple[Level, ...]
    """Rows are positions in the view of the source domain."""


class Scorer:
    """A bundle's model with the vectors of all its items computed once.

    Args:
        bundle: loaded.
        fields: event context fields of the store's records.
        limits: of the store.
    """

    def __init__(self, bundle: Bundle, fields: tuple[str, ...], limits: Limits) -> None:
        self.bundle, self._fields, self._limits = bundle, fields, limits
        self._model = bundle.model
        manifest = bundle.manifest
        self._lifelong, self._short = manifest.lifelong, manifest.short
        self._offsets_G = self._model.context_offsets_G.numpy()
        unknown_1F = torch.ones(1, bundle.item_IF.shape[1], dtype=torch.int32)
        item_IF = torch.cat([bundle.item_IF, unknown_1F])
        self._table = _item_table(self._model, item_IF)
        # A user's records are cut by the store; here only its count limit matters.
        self._limit = max(limits.count(record_bytes(len(fields))), 1)

    def build(self, stored: Stored) -> UserState:
        """A user's state from the store."""
        source, target = (self._rows(records) for records in (stored.source, stored.target))
        return UserState(source, target, stored.version)

    def extend(self, state: UserState, change: Change) -> bool:
        """Add what a batch added; False when the state must be built again."""
        with state.lock:
            if state.version != change.before:
                return state.version >= change.after
            # No view until all is in, so that a version names one history.
            state.view, state.version = None, -1
            for rows, records in ((state.source, change.source), (state.target, change.target)):
                if len(records) and not self._extend(rows, records):
                    return False
            state.version = change.after
            return True

    def view(self, state: UserState, now: int) -> View:
        """The rows within the age limit, encoded."""
        oldest = max(self._limits.oldest(now), 0)
        with state.lock:
            known = state.view
            if known is not None and not oldest:
                return known
            source, target = state.source.view(oldest), state.target.view(oldest)
            lengths = (len(source), len(target))
            if known is not None and (len(known.source), len(known.target)) == lengths:
                return known
            with torch.inference_mode():
                encoded = self._model.backbone.encode(source.history())
            state.encoded_bytes = encoded_bytes(encoded, state.source.storages())
            state.view = View(source, target, encoded, state.version)
            return state.view

    def score(self, view: View, request: Request, *, levels: bool = False) -> Scores:
        """Score candidates against a view."""
        with torch.inference_mode():
            batch, table = self._batch(view, request), self._table
            query = self._model.query(batch, table.vector_ID, table.search_ID)
            parts = Embedded(view.source.history(), view.target.rows, query, table.vector_ID[:0])
            output = self._model.score(batch, parts, view.encoded, levels=levels)
            return Scores(output.logit_C.numpy(), output.interest.levels)

    def empty(self) -> View:
        """The view of a user without events."""
        nothing = np.empty((0, CONTEXT + len(self._fields)), ">u8")
        return self.view(self.build(Stored(0, nothing, nothing)), 0)

    def warm_up(self) -> None:
        """Compile or load what the first requests would otherwise wait for: short and long
        histories, few and many candidates, take different kernels."""
        fields = self.bundle.manifest.dataset
        for rows, candidates in ((0, 1), (1, 1), (min(self._lifelong, 512), 128)):
            records = np.zeros((rows, CONTEXT + len(self._fields)), ">u8")
            records[:, TIME] = records[:, KNOWN] = np.arange(rows)
            view = self.view(self.build(Stored(0, records, records)), 0)
            request = Request(
                np.arange(candidates, dtype=np.int32) % len(self._table.item_IF),
                np.ones((candidates, len(fields.candidate_fields)), np.int32),
                np.ones(len(fields.request_context), np.int32),
                np.ones(len(fields.profile_fields), np.int32),
                rows + 1,
            )
            self.score(view, request)

    def _batch(self, view: View, request: Request) -> Batch:
        """The request as the collator lays a batch out; the rows are in the view already."""
        count = len(request.address_C)
        source_end, target_end = (
            part.before(request.moment) for part in (view.source, view.target)
        )
        overlap = self.bundle.manifest.overlap
        lifelong_end = source_end if overlap else max(source_end - self._short, 0)
        zero_C = torch.zeros(count, dtype=torch.int64)
        return Batch(
            item_IF=self._table.item_IF,
            address_I=zero_C[:0],
            source=_plain(view.source),
            target=_plain(view.target),
            lifelong_C2=_newest(lifelong_end, self._lifelong, count),
            short_source_C2=_newest(source_end, self._short, count),
            short_target_C2=_newest(target_end, self._short, count),
            candidate_C=torch.from_numpy(request.address_C.astype(np.int64)),
            candidate_CA=torch.from_numpy(request.candidate_CA),
            context_CR=torch.from_numpy(np.tile(request.context_R, (count, 1))),
            time_C=torch.full((count,), request.moment),
            user_of_C=zero_C,
            profile_UP=torch.from_numpy(request.profile_P[None]),
            address_U=zero_C[:1],
            label_C=torch.zeros(count),
            sample_C=zero_C,
        )

    def _rows(self, records: Records) -> DomainRows:
        address_T, code_TG = self._indices(records)
        return DomainRows(records, address_T, code_TG, self._table, self._limit)

    def _extend(self, rows: DomainRows, records: Records) -> bool:
        address_T, code_TG = self._indices(records)
        return all(
            rows.add(record, int(address), code_G)
            for record, address, code_G in zip(records, address_T, code_TG, strict=True)
        )

    def _indices(self, records: Records) -> tuple[Int32, Int32]:
        item_T, context_TG = split(records)
        catalogue = self.bundle.catalogue
        index_TG = catalogue.event_context(context_TG, self._fields)
        return catalogue.addresses(item_T), index_TG + self._offsets_G


def same_rows(one: View, other: View) -> bool:
    """Whether two views hold the same events with the same vectors: what an auditor asks."""
    return all(_same(getattr(one, name), getattr(other, name)) for name in ("source", "target"))


def _same(one: DomainView, other: DomainView) -> bool:
    return (
        np.array_equal(one.known_T, other.known_T)
        and np.array_equal(one.address_T, other.address_T)
        and torch.equal(one.rows.time_T, other.rows.time_T)
        and torch.equal(one.rows.code_TG, other.rows.code_TG)
        and torch.equal(_expand(one.rows.vector_ID, one), _expand(other.rows.vector_ID, other))
    )


def _expand(vector_ID: Tensor, view: DomainView) -> Tensor:
    return vector_ID[view.rows.item_T.long()]


def _newest(end: int, longest: int, count: int) -> Tensor:
    """The newest rows before `end`, the same span for every candidate."""
    return torch.tensor([[max(end - longest, 0), end]]).repeat(count, 1)


def _plain(view: DomainView) -> Rows:
    """Rows that name their items by address: the axis of the catalogue's vectors."""
    address_T = torch.from_numpy(view.address_T)
    return Rows(address_T, view.rows.code_TG, view.rows.time_T, torch.tensor([0, len(view)]))


@torch.no_grad()
def _item_table(model: Model, item_IF: Tensor) -> ItemTable:
    """Vectors of every item, as candidates and as histories read them."""
    vectors, searches = [], []
    for part_IF in item_IF.split(_CHUNK):
        vector_ID, search_ID, _ = model.item_vectors(part_IF)
        vectors.append(vector_ID)
        searches.append(search_ID)
    vector_ID, search_ID = torch.cat(vectors), None
    if searches[0] is not None:
        search_ID = torch.cat(searches)
    return ItemTable(
        vector_ID,
        search_ID,
        model.stored(vector_ID),
        None if search_ID is None else model.stored(search_ID),
        item_IF,
    )
