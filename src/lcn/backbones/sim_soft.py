"""SIM with soft search: rank the history by a learned inner product, attend to the K best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from lcn import ops
from lcn.backbones.base import (
    Backbone,
    Context,
    Features,
    History,
    Interest,
    Query,
    describe_level,
    final_attention,
)
from lcn.config import Config as BaseConfig
from lcn.nn.attention import Selection
from lcn.nn.mlp import mlp
from lcn.ops import HistoryRows, Pool, Scoring
from lcn.ops.reference import rows_of_span


@dataclass(frozen=True, slots=True)
class SimSoftState:
    """Rows as the attention reads them and as the search does."""

    rows: HistoryRows
    search: HistoryRows


class SimSoft(Backbone[SimSoftState]):
    """Two stages: search by (W_b e)·(W_a v), then multi-head attention over K rows.

    The search is trained by a click loss of its own, on U_r = Σ w e over the whole history (or a
    random part of it, `auxiliary_rows`), jointly with the rest. It reads the shared item table
    (`model.search_table: own` gives it one of its own).
    Deviations: U_r is softmax-weighted, as in the authors' code (the paper's raw sum is
    `norm: raw`); the search loss's network is 2 D → 128 → 1 with ReLU; heads project values and
    scale by √d_h, as every system's final attention here; keys and values may see the event
    context (`context: all`).
    Cost per candidate: 2 N D for search and U_r, H K (D + context) for the attention.
    """

    source = "Pi et al. 2020 (arXiv 2006.05639), section 3.2, soft search"
    assumes = "source-domain events; uses event context fields where there are some"
    searches = True

    class Config(BaseConfig):
        """Settings."""

        name: Literal["sim_soft"] = "sim_soft"
        keep: PositiveInt = 50
        """K, events that reach the attention."""
        search_width: PositiveInt = 64
        """Width of W_a and W_b."""
        norm: Literal["softmax", "raw"] = "softmax"
        """Weights of U_r in the search loss."""
        alpha: NonNegativeFloat = 1.0
        """Weight of the search loss; with 0 nothing trains W_a and W_b."""
        auxiliary_rows: NonNegativeInt = 0
        """Rows of each history, drawn at random in training, that U_r is summed over; 0 takes
        them all."""
        width: PositiveInt = 64
        heads: PositiveInt = 4
        context: Context = "all"
        """What the attention sees beside the item; `recency` (the time gap) is the paper."""

    @classmethod
    def trains_search(cls, config: SimSoft.Config) -> bool:
        """Through the search loss alone."""
        return config.alpha > 0

    def __init__(self, config: SimSoft.Config, features: Features) -> None:
        super().__init__()
        self.config = config
        width = features.item_width
        self.candidate_GD = nn.Parameter(torch.empty(config.search_width, width))
        self.row_GD = nn.Parameter(torch.empty(config.search_width, width))
        for weight in (self.candidate_GD, self.row_GD):
            nn.init.xavier_uniform_(weight)
        self.auxiliary = mlp(2 * width, (128,))
        self.attention = final_attention(features, config.width, config.heads, config.context)
        self.width = config.width
        self.auxiliary_weight = config.alpha

    def encode(self, history: History) -> SimSoftState:
        """Rows are searched as they are: W_b is absorbed into the query."""
        return SimSoftState(history.seen(self.config.context), history.for_search())

    def attend(
        self, state: SimSoftState, query: Query, span_C2: Tensor, *, levels: bool = False
    ) -> Interest:
        """Search the span, attend to the best K."""
        search, config = self._search(query), self.config
        if self.training and config.auxiliary_rows:
            kept_CK = self.preceding(state, query, span_C2, config.keep)
            sampled_CK = draw_rows(span_C2, config.auxiliary_rows)
            found = ops.kept_pool(state.search, sampled_CK, search, config.norm)
        else:
            found = ops.span_pool(state.search, span_C2, search, config.norm, config.keep)
            kept_CK = found.kept_CK
        kept = Selection(kept_CK=kept_CK)
        vector_CW = self.attention(state.rows, kept, query.vector_CD, query.time_C)
        described = ()
        if levels:
            whole, final = Selection(span_C2=span_C2), self.final_scoring(query)
            described = (
                describe_level("search", state.search, whole, search, config.keep),
                describe_level("exact", state.rows, kept, final, config.keep),
            )
        return Interest(vector_CW, self._auxiliary_logit(found, query), described)

    def final_scoring(self, query: Query) -> Scoring:
        """Scores of the final stage over any rows."""
        return self.attention.scoring(query.vector_CD, query.time_C)

    def preceding(self, state: SimSoftState, query: Query, span_C2: Tensor, keep: int) -> Tensor:
        """The rows that the search ranks highest."""
        score_S1 = ops.span_score(state.search, span_C2, self._search(query))
        return ops.select_span_topk(score_S1[:, 0].contiguous(), span_C2, keep)

    def _auxiliary_logit(self, found: Pool, query: Query) -> Tensor:
        auxiliary_CX = torch.cat([found.vector_CHD[:, 0], query.search_vector_CD], 1)
        return self.auxiliary(auxiliary_CX)[:, 0]

    def _search(self, query: Query) -> Scoring:
        scale = 1 / math.sqrt(len(self.row_GD)) if self.config.norm == "softmax" else 1.0
        query_CD = (query.search_vector_CD @ self.candidate_GD.T) @ self.row_GD * scale
        return Scoring(query_CD[:, None, :], query_CD.new_zeros(len(query_CD), 1, 0))


def draw_rows(span_C2: Tensor, count: int) -> Tensor:
    """`count` different rows of each span, drawn at random (torch's generator); -1 fills up."""
    row_CN, mask_CN = rows_of_span(span_C2)
    chance_CN = torch.rand(mask_CN.shape, device=mask_CN.device).masked_fill(~mask_CN, -1.0)
    place_CK = chance_CN.topk(min(count, mask_CN.shape[1]), dim=1).indices
    return torch.where(mask_CN.gather(1, place_CK), row_CN.gather(1, place_CK), -1)
