"""Target attention over the whole lifelong history: the ceiling that searches try to reach."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from lcn.backbones.base import (
    Backbone,
    Features,
    History,
    Interest,
    Query,
    describe_level,
    final_attention,
    rank_by_weight,
)
from lcn.config import Config as BaseConfig
from lcn.nn.attention import Selection
from lcn.ops import Scoring


class FullAttention(Backbone[History]):
    """Multi-head target attention over all N rows, no search stage.

    The form that SIM, ETA and TWIN use as their final stage; the LCN paper does not report it.
    Cost per candidate: H N (D + context) multiply-adds in the forward pass.
    """

    source = "DIN-style attention (arXiv 1706.06978) over the whole history, multi-head"
    assumes = "source-domain events; uses event context fields where there are some"

    class Config(BaseConfig):
        """Settings."""

        name: Literal["full"] = "full"
        width: PositiveInt = 64
        """Attention width, all heads together."""
        heads: PositiveInt = 4

    def __init__(self, config: FullAttention.Config, features: Features) -> None:
        super().__init__()
        self.attention = final_attention(features, config.width, config.heads, "all")
        self.width = config.width

    def encode(self, history: History) -> History:
        """Rows are attended as they are."""
        return history

    def attend(
        self, state: History, query: Query, span_C2: Tensor, *, levels: bool = False
    ) -> Interest:
        """Attend to every row of the span."""
        selection = Selection(span_C2=span_C2)
        vector_CW = self.attention(state.rows, selection, query.vector_CD, query.time_C)
        found = ()
        if levels:
            scoring = self.final_scoring(query)
            found = (describe_level("full", state.rows, selection, scoring, 50),)
        return Interest(vector_CW, levels=found)

    def final_scoring(self, query: Query) -> Scoring:
        """Scores of the final stage over any rows."""
        return self.attention.scoring(query.vector_CD, query.time_C)

    def preceding(self, state: History, query: Query, span_C2: Tensor, keep: int) -> Tensor:
        """Nothing precedes: the final ranking itself."""
        return rank_by_weight(state.rows, span_C2, self.final_scoring(query), keep)
