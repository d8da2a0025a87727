"""What a lifelong backbone is: `encode` what depends on the user alone, `attend` per request.

Training calls both in every step; serving keeps the state of `encode` and calls `attend` for each
request. What relates an event to the request (recency) enters in `attend` only.
Shapes: C candidates, D item width, K kept rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcn import ops
from lcn.data.dataset import Dataset
from lcn.errors import ConfigError, nearest
from lcn.nn.attention import ContextTable, Selection, TargetAttention
from lcn.ops import HistoryRows, Scoring, reference
from lcn.ops.simhash import Codes, Measure, code_distance, widest
from lcn.schema import Field

Context = Literal["none", "recency", "all"]
"""What attention sees beside the item: nothing, the time between event and request, or that and
every event context field."""


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
    search_ID: Float[Tensor, "I D"] | None = None
    """The items' vectors of the search table, where it is a table of its own."""

    def seen(self, context: Context) -> HistoryRows:
        """The rows with the event context fields that attention may see."""
        return self.rows if context == "all" else self.rows.without_context()

    @property
    def search_vector_ID(self) -> Float[Tensor, "I D"]:
        """What search ranks the items by."""
        return self.rows.vector_ID if self.search_ID is None else self.search_ID

    def for_search(self) -> HistoryRows:
        """Rows with the vectors that search ranks by, without context."""
        return replace(self.rows.without_context(), vector_ID=self.search_vector_ID)

    def for_both(self, rows: HistoryRows) -> HistoryRows:
        """`rows` with vectors [search ‖ item], so that one may be scored and the other pooled;
        as they are where there is one table."""
        if self.search_ID is None:
            return rows
        return replace(rows, vector_ID=torch.cat([self.search_ID, rows.vector_ID], 1))


@dataclass(frozen=True, slots=True)
class Query:
    """The candidates of the request."""

    vector_CD: Float[Tensor, "C D"]
    field_CF: Int[Tensor, "C F"]
    """The candidates' item fields."""
    time_C: Int[Tensor, " C"]
    """UTC milliseconds."""
    user_of_C: Int[Tensor, " C"]
    search_CD: Float[Tensor, "C D"] | None = None
    """The candidates' vectors of the search table, where it is a table of its own."""
    recent_CD: Float[Tensor, "C D"] | None = None
    """Mean search vector of the user's newest target-domain items; zero without any, None where
    the backbone does not ask (`Backbone.recent_rows`)."""

    @property
    def search_vector_CD(self) -> Float[Tensor, "C D"]:
        """What search ranks with."""
        return self.vector_CD if self.search_CD is None else self.search_CD

    def for_both(self, scoring: Scoring) -> Scoring:
        """A scoring by search vectors, over rows of `History.for_both`."""
        if self.search_CD is None:
            return scoring
        query_CHD = torch.nn.functional.pad(scoring.query_CHD, (0, self.vector_CD.shape[1]))
        return replace(scoring, query_CHD=query_CHD)


@dataclass(frozen=True, slots=True)
class Level:
    """What one stage of a backbone kept and how it weighed it, for people and for consistency."""

    name: str
    kept_CK: Int[Tensor, "C K"]
    """Rows, best first; -1 in empty slots."""
    weight_CK: Float[Tensor, "C K"]
    """Softmax weight of each kept row among the rows the stage saw, heads averaged; where the
    stage compares codes, the share of bits, groups or values that are equal."""


@dataclass(frozen=True, slots=True)
class Interest:
    """What a backbone says of each candidate."""

    vector_CW: Float[Tensor, "C W"]
    """Lifelong interest, W = `Backbone.width`."""
    auxiliary_logit_C: Float[Tensor, " C"] | None = None
    """A click logit of the search stage alone (SIM Soft; LAP's `search_loss`, in training),
    trained beside the main one."""
    levels: tuple[Level, ...] = ()
    distillation: Float[Tensor, ""] | None = None
    """A loss between stages (LAP's `distill`), in training."""


StateT = TypeVar("StateT")


class Backbone(nn.Module, ABC, Generic[StateT]):
    """A lifelong backbone. Subclasses are final and hold a nested frozen `Config`.

    Every state but that of `none` has `rows`: what `final_scoring` scores.
    """

    source: ClassVar[str]
    """Where the system is defined."""
    assumes: ClassVar[str]
    """What it asks of the data."""
    searches: ClassVar[bool] = False
    """Whether it ranks rows by item vectors, so that a search table of its own has a use."""
    searches_by_angle: ClassVar[bool] = False
    """Whether the search looks at the direction of item vectors alone."""
    revision: ClassVar[int] = 0
    """Raised when a fix changes what the same settings train, as that of an objective."""

    width: int
    """W, the width of the interest vector; may be 0."""
    auxiliary_weight: float = 0.0
    """Weight of the loss on `Interest.auxiliary_logit_C`."""
    distill_weight: float = 0.0
    """Weight of `Interest.distillation`."""
    recent_rows: int = 0
    """Newest target-domain items whose mean `Query.recent_CD` must hold; 0: it is not needed."""

    @classmethod
    def trains_search(cls, config: Any) -> bool:
        """Whether the click losses move the vectors that it searches with, were they its own.

        Codes of hashes have no gradient.
        """
        del config
        return cls.searches and not cls.searches_by_angle

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

    @abstractmethod
    def final_scoring(self, query: Query) -> Scoring:
        """How the final stage scores rows, any rows.

        Raises:
            ConfigError: there is no such stage.
        """

    @abstractmethod
    def preceding(
        self, state: StateT, query: Query, span_C2: Int[Tensor, "C 2"], keep: int
    ) -> Int[Tensor, "C K"]:
        """The `keep` rows that the stages before the final one rank highest, best first.

        A backbone without such stages delivers the final stage's own ranking.

        Raises:
            ConfigError: the backbone attends to nothing.
        """

    def check(self, dataset: Dataset) -> None:
        """See before training whether the data has what the backbone needs.

        Raises:
            ConfigError: it has not; what would help is named.
        """


def final_attention(
    features: Features, width: int, heads: int, context: Context
) -> TargetAttention:
    """The multi-head target attention that SIM, ETA and others end with."""
    fields = features.event_context if context == "all" else ()
    table = ContextTable(
        fields, features.context_width, recency=context != "none", std=features.init_std
    )
    return TargetAttention(features.item_width, width, heads, table, output=True)


@torch.no_grad()
def rank_by_weight(
    rows: HistoryRows, span_C2: Int[Tensor, "C 2"], scoring: Scoring, keep: int
) -> Int[Tensor, "C K"]:
    """The `keep` rows of each span with the largest softmax weight, heads averaged, best first."""
    score_SH = ops.span_score(rows, span_C2, scoring)
    if score_SH.shape[1] == 1:
        return ops.select_span_topk(score_SH[:, 0].contiguous(), span_C2, keep)
    # Doubles: float32 weights of far rows would all be 0 and tie.
    score_SH = score_SH.double()
    length_C = (span_C2[:, 1] - span_C2[:, 0]).clamp(min=0)
    owner_S = torch.repeat_interleave(length_C)
    shape = (len(span_C2), score_SH.shape[1])
    owner_SH = owner_S[:, None].expand_as(score_SH)
    top_CH = score_SH.new_full(shape, -torch.inf).scatter_reduce(0, owner_SH, score_SH, "amax")
    weight_SH = torch.exp(score_SH - top_CH[owner_S])
    total_CH = score_SH.new_zeros(shape).index_add(0, owner_S, weight_SH)
    return ops.select_span_topk((weight_SH / total_CH[owner_S]).mean(1), span_C2, keep)


@torch.no_grad()
def describe_codes(
    name: str, codes: Codes, span_C2: Tensor, kept_CK: Tensor, measure: Measure
) -> Level:
    """Say what a stage that compares codes kept."""
    kept_CK = kept_CK[:, : max(int((kept_CK >= 0).sum(1).max()), 1)] if len(kept_CK) else kept_CK
    distance_S = code_distance(codes, span_C2, measure)
    length_C = (span_C2[:, 1] - span_C2[:, 0]).clamp(min=0)
    place_CK = (length_C.cumsum(0) - length_C - span_C2[:, 0])[:, None] + kept_CK
    real_CK = kept_CK >= 0
    if not len(distance_S):
        return Level(name, kept_CK, torch.zeros(kept_CK.shape, device=kept_CK.device))
    distance_CK = distance_S[torch.where(real_CK, place_CK, 0)]
    return Level(name, kept_CK, (1 - distance_CK / widest(codes, measure)) * real_CK)


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
            # Ties go to the later row, so rows stand in time order.
            selection = Selection(kept_CK=selection.kept_CK.sort(1).values)
        row_CN, mask_CN = selection.rows()
        score_CHN = reference.score_rows(rows.widened(), row_CN, mask_CN, scoring)
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
