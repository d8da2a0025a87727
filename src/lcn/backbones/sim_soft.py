"""SIM with soft search: rank the history by a learned inner product, attend to the K best."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lcn import ops
from lcn.backbones.base import Backbone, Features, History, Interest, Query, describe_level
from lcn.config import Config as BaseConfig
from lcn.nn.attention import ContextTable, Selection, TargetAttention
from lcn.nn.mlp import mlp
from lcn.ops import Scoring


class SimSoft(Backbone[History]):
    """Two stages: search by (W_b e)·(W_a v), then multi-head attention over K rows.

    Source: Pi et al. 2020 (arXiv 2006.05639), section 3.2, Eq. 2-7. The search is trained by a
    click loss of its own on U_r = Σ w e over the whole history.
    Deviations: U_r is softmax-weighted (the paper's raw sum is `norm: raw`), the search loss's
    network is D·2 → 128 → 1, keys and values may see the event context (`context: all`).
    Cost per candidate: N D for the search, K (D + context) for the attention.
    """

    class Config(BaseConfig):
        """Settings."""

        name: Literal["sim_soft"] = "sim_soft"
        keep: int = 50
        """K, events that reach the attention."""
        search_width: int = 64
        """Width of W_a and W_b."""
        norm: Literal["softmax", "raw"] = "softmax"
        """Weights of U_r in the search loss."""
        alpha: float = 1.0
        """Weight of the search loss."""
        width: int = 64
        heads: int = 4
        context: Literal["recency", "all"] = "all"
        """What the attention sees beside the item: the time gap alone (the paper), or every
        event context field too (as the other backbones do)."""

    def __init__(self, config: SimSoft.Config, features: Features) -> None:
        super().__init__()
        self.config = config
        width = features.item_width
        self.candidate_GD = nn.Parameter(torch.empty(config.search_width, width))
        self.row_GD = nn.Parameter(torch.empty(config.search_width, width))
        for weight in (self.candidate_GD, self.row_GD):
            nn.init.xavier_uniform_(weight)
        self.auxiliary = mlp(2 * width, (128,))
        fields = features.event_context if config.context == "all" else ()
        context = ContextTable(fields, features.context_width, recency=True, std=features.init_std)
        self.attention = TargetAttention(width, config.width, config.heads, context, output=True)
        self.width = config.width
        self.auxiliary_weight = config.alpha

    def encode(self, history: History) -> History:
        """Rows are searched as they are: W_b is absorbed into the query."""
        if self.config.context == "recency":
            return history.without_context()
        return history

    def attend(
        self, state: History, query: Query, span_C2: Tensor, *, levels: bool = False
    ) -> Interest:
        """Search the span, attend to the best K."""
        search = self._search(query)
        whole = Selection(span_C2=span_C2)
        found = ops.span_pool(
            state.rows.without_context(), span_C2, search, self.config.norm, self.config.keep
        )
        auxiliary_CX = torch.cat([found.vector_CHD[:, 0], query.vector_CD], 1)
        kept = Selection(kept_CK=found.kept_CK)
        vector_CW = self.attention(state.rows, kept, query.vector_CD, query.time_C)
        described = ()
        if levels:
            bare = state.rows.without_context()
            described = (
                describe_level("search", bare, whole, search, self.config.keep),
                describe_level("exact", state.rows, kept, self.final_scoring(query), 50),
            )
        return Interest(vector_CW, self.auxiliary(auxiliary_CX)[:, 0], described)

    def final_scoring(self, query: Query) -> Scoring:
        """Scores of the final stage over any rows."""
        return self.attention.scoring(query.vector_CD, query.time_C)

    def _search(self, query: Query) -> Scoring:
        scale = 1 / math.sqrt(len(self.row_GD)) if self.config.norm == "softmax" else 1.0
        query_CD = (query.vector_CD @ self.candidate_GD.T) @ self.row_GD * scale
        return Scoring(query_CD[:, None, :], query_CD.new_zeros(len(query_CD), 1, 0))
