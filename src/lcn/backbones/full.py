"""Target attention over the whole lifelong history: the ceiling that searches try to reach."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lcn.backbones.base import Backbone, Features, History, Interest, Query, describe_level
from lcn.config import Config as BaseConfig
from lcn.nn.attention import ContextTable, Selection, TargetAttention
from lcn.ops import Scoring


class FullAttention(Backbone[History]):
    """Multi-head target attention over all N rows, no search stage.

    Source: DIN-style attention in the multi-head form that SIM, ETA and TWIN use as their final
    stage; the upper reference of the comparison (the paper does not report it).
    Cost per candidate: H N (D + context) multiply-adds in the forward pass.
    """

    class Config(BaseConfig):
        """Settings."""

        name: Literal["full"] = "full"
        width: int = 64
        """Attention width, all heads together."""
        heads: int = 4

    def __init__(self, config: FullAttention.Config, features: Features) -> None:
        super().__init__()
        context = ContextTable(
            features.event_context, features.context_width, recency=True, std=features.init_std
        )
        self.attention = TargetAttention(
            features.item_width, config.width, config.heads, context, output=True
        )
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
