"""ETA: search by the Hamming distance of SimHash codes, attend to the K nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import UInt8
from pydantic import PositiveInt, field_validator
from torch import Tensor

from lcn.backbones.base import (
    Backbone,
    Context,
    Features,
    History,
    Interest,
    Query,
    describe_codes,
    describe_level,
    final_attention,
)
from lcn.config import Config as BaseConfig
from lcn.nn.attention import Selection
from lcn.ops import HistoryRows, Scoring
from lcn.ops.simhash import Codes, code_topk, simhash


@dataclass(frozen=True, slots=True)
class EtaState:
    """A history with its items' codes."""

    rows: HistoryRows
    code_IY: UInt8[Tensor, "I Y"]


class Eta(Backbone[EtaState]):
    """Two stages: the K rows whose codes differ least, then multi-head attention over them.

    code(x) = [x · plane_b > 0] for b = 1..bits; planes are drawn once, never trained, and saved
    with the model. Codes follow the item vectors: they are computed anew in every forward pass and
    have no gradient, so the click loss moves vectors through the attention only.
    Deviations: keys and values may see the event context (`context: all`, as other backbones do).
    Cost per candidate: N bits / 64 word operations for the search, K (D + context) for the
    attention; bits D per unique item for its code.
    """

    source = "Chen et al. 2021 (arXiv 2108.04468)"
    assumes = "source-domain events; uses event context fields where there are some"
    searches = True
    searches_by_angle = True

    plane_DB: Tensor
    """Normals of the planes, fixed."""

    class Config(BaseConfig):
        """Settings."""

        name: Literal["eta"] = "eta"
        keep: PositiveInt = 50
        """K, events that reach the attention."""
        bits: int = 32
        """b, length of a code. Try 32, 64 and 256 before calling ETA weak: of 2000 random rows
        (D = 64), 32 bits find one in seven of the 50 nearest by angle, 256 bits two in five."""
        width: PositiveInt = 64
        heads: PositiveInt = 4
        context: Context = "all"
        """What the attention sees beside the item; `none` is the paper."""

        @field_validator("bits")
        @classmethod
        def _whole_words(cls, value: int) -> int:
            if value < 32 or value % 32:
                raise ValueError("must be a multiple of 32")
            return value

    def __init__(self, config: Eta.Config, features: Features) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("plane_DB", torch.randn(features.item_width, config.bits))
        self.attention = final_attention(features, config.width, config.heads, config.context)
        self.width = config.width

    def encode(self, history: History) -> EtaState:
        """Code every unique item, packed."""
        code_IY = simhash(history.search_vector_ID.float(), self.plane_DB)
        return EtaState(history.seen(self.config.context), code_IY)

    def attend(
        self, state: EtaState, query: Query, span_C2: Tensor, *, levels: bool = False
    ) -> Interest:
        """Find the nearest codes, attend to their rows."""
        codes = self._codes(state, query)
        kept_CK = code_topk(codes, span_C2, self.config.keep, "bits")
        kept = Selection(kept_CK=kept_CK)
        vector_CW = self.attention(state.rows, kept, query.vector_CD, query.time_C)
        described = ()
        if levels:
            final = self.final_scoring(query)
            described = (
                describe_codes("search", codes, span_C2, kept_CK, "bits"),
                describe_level("exact", state.rows, kept, final, self.config.keep),
            )
        return Interest(vector_CW, levels=described)

    def final_scoring(self, query: Query) -> Scoring:
        """Scores of the final stage over any rows."""
        return self.attention.scoring(query.vector_CD, query.time_C)

    def preceding(self, state: EtaState, query: Query, span_C2: Tensor, keep: int) -> Tensor:
        """The rows at the smallest Hamming distances."""
        return code_topk(self._codes(state, query), span_C2, keep, "bits")

    def _codes(self, state: EtaState, query: Query) -> Codes:
        query_CY = simhash(query.search_vector_CD, self.plane_DB)
        return Codes(state.code_IY, state.rows.item_T, query_CY)
