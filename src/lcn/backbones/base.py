"""What a lifelong backbone is: `encode` what depends on the user alone, `attend` per request.

Training calls both in every step; serving keeps the state of `encode` and calls `attend` for each
request. What relates an event to the request (recency) enters in `attend` only.
Shapes: C candidates, D item width, K kept rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcn.errors import ConfigError, nearest
from lcn.nn.attention import Selection
from lcn.ops import HistoryRows, Scoring, reference
from lcn.schema import Field


@dataclass(frozen=True, slots=True)
class Features:
    """What a backbone may ask of the data, fixed when a model is built."""

    item_fields: tuple[Field, ...]
    event_context: tuple[Field, ...]
    item_width: int
    """D of the shared item encoder."""
    context_width: int
    """Width of one event context field's embedding."""
    init_std: float

    def item_field(self, name: str) -> int:
        """Position of an item field.

        Raises:
            ConfigError: the data has no such field; the nearest is named.
        """
        names = [field.name for field in self.item_fields]
        if name not in names:
            raise ConfigError(f"the dataset has no item field {name!r}{nearest(name, names)}")
        return names.index(name)


@dataclass(frozen=True, slots=True)
class History:
    """Source-domain rows of the batch's users, as a backbone sees them."""

    rows: HistoryRows
    offsets_U1: Int[Tensor, " U1"]
    """First row of each user's window."""
    item_IF: Int[Tensor, "I F"]
    """Field indices of the unique items behind `rows.vector_ID`."""

    def without_context(self) -> History:
        """The same rows with their event context left out."""
        return History(self.rows.without_context(), self.offsets_U1, self.item_IF)


@dataclass(frozen=True, slots=True)
class Query:
    """The candidates of the request."""

    vector_CD: Float[Tensor, "C D"]
    field_CF: Int[Tensor, "C F"]
    """The candidates' item fields."""
    time_C: Int[Tensor, " C"]
    """UTC milliseconds."""
    user_of_C: Int[Tensor, " C"]


@dataclass(frozen=True, slots=True)
class Level:
    """What one stage of a backbone kept and how it weighed it, for people and for consistency."""

    name: str
    kept_CK: Int[Tensor, "C K"]
    """Rows, best first; -1 in empty slots."""
    weight_CK: Float[Tensor, "C K"]
    """Softmax weight of each kept row among the rows the stage saw; heads averaged."""


@dataclass(frozen=True, slots=True)
class Interest:
    """What a backbone says of each candidate."""

    vector_CW: Float[Tensor, "C W"]
    """Lifelong interest, W = `Backbone.width`."""
    auxiliary_logit_C: Float[Tensor, " C"] | None = None
    """A click logit of the search stage alone (SIM Soft), trained beside the main one."""
    levels: tuple[Level, ...] = ()


StateT = TypeVar("StateT")


class Backbone(nn.Module, ABC, Generic[StateT]):
    """A lifelong backbone. Subclasses are final and hold a nested frozen `Config`."""

    width: int
    """W, the width of the interest vector; may be 0."""
    auxiliary_weight: float = 0.0
    """Weight of the loss on `Interest.auxiliary_logit_C`."""

    @abstractmethod
    def encode(self, history: History) -> StateT:
        """Compute everything that depends on the users alone."""

    @abstractmethod
    def attend(
        self, state: StateT, query: Query, span_C2: Int[Tensor, "C 2"], *, levels: bool = False
    ) -> Interest:
        """Compute each candidate's interest from the rows of its span.

        Args:
            state: of `encode`.
            query: the candidates.
            span_C2: their rows in the encoded history.
            levels: also return what each stage kept (costs a second scoring pass).
        """


def describe_level(
    name: str,
    rows: HistoryRows,
    selection: Selection,
    scoring: Scoring,
    keep: int,
) -> Level:
    """Say what a stage kept of the rows it saw: the reference op, for people and diagnostics.

    One head ranks by its score; several by the mean of their softmax weights (the common rule of
    the consistency metric).
    """
    with torch.no_grad():
        if selection.kept_CK is not None:
            row_CN, mask_CN = selection.kept_CK.clamp(min=0), selection.kept_CK >= 0
        else:
            row_CN, mask_CN = reference.rows_of_span(selection.span_C2)
        score_CHN = reference.score_rows(rows, row_CN, mask_CN, scoring)
        weight_CN = reference.weigh(score_CHN, "softmax").mean(1)
        rank_CN = score_CHN[:, 0] if score_CHN.shape[1] == 1 else weight_CN
        place_CN = torch.arange(row_CN.shape[1], device=row_CN.device).expand_as(row_CN)
        place_CK = reference.select_topk(
            rank_CN.masked_fill(~mask_CN, -torch.inf), place_CN, min(keep, row_CN.shape[1])
        )
        real_CK = place_CK >= 0
        kept_CK = torch.where(real_CK, row_CN.gather(1, place_CK.clamp(min=0)), -1)
        weight_CK = torch.where(real_CK, weight_CN.gather(1, place_CK.clamp(min=0)), 0.0)
        return Level(name, kept_CK, weight_CK)
