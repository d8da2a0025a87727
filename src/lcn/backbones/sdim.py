"""SDIM: sum the events that fall into the candidate's hash buckets; no selection, no softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import PositiveInt, model_validator
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
from lcn.ops.bucket_sum import BucketSum, bucket_sum, bucket_table
from lcn.ops.simhash import Codes, bucket_codes, code_topk


@dataclass(frozen=True, slots=True)
class SdimState:
    """A history with its items' buckets; at serving, with the user's bucket table."""

    rows: HistoryRows
    code_IG: UInt8[Tensor, "I G"]
    table_GBD: Float[Tensor, "G B D"] | None
    """Sum of each bucket over all rows; only for a single user without gradients."""


class Sdim(Backbone[SdimState]):
    """Mean over groups of the normalised sum of the rows that share the candidate's bucket.

    bucket_g(x) = Σ_p 2^p [x · plane_gp > 0];  V_g = Σ_{k: bucket_g(k) = bucket_g(v)} e_k
    interest = (1/G) Σ_g V_g / ‖V_g‖,  G = hashes / group

    In expectation it is attention with the kernel (1 − angle/π)^group in the place of softmax.
    Planes are drawn once, never trained, and saved with the model; only colliding rows get a
    gradient.
    Deviations: `norm: weights` divides the summed collision counts by their l2 norm instead;
    `final: mhta` puts multi-head attention over the K rows that collide most in the place of the
    sums, as TWIN's authors did for comparison.
    Cost per candidate: N G / 8 word operations and on average N G / 2^group additions of a
    vector; with the table of a served user, G vectors.
    """

    source = "Cao et al. 2022 (arXiv 2205.10249)"
    assumes = "source-domain events; `final: mhta` uses event context fields where there are some"
    searches = True
    searches_by_angle = True

    plane_DGP: Tensor
    """Normals of the planes, fixed."""

    class Config(BaseConfig):
        """Settings."""

        name: Literal["sdim"] = "sdim"
        hashes: int = 48
        """m, random planes."""
        group: int = 3
        """τ, planes of one group; more make the attention sharper."""
        norm: Literal["bucket", "weights"] = "bucket"
        """Normalise each bucket's sum (what a server can precompute), or the collision counts."""
        final: Literal["sums", "mhta"] = "sums"
        keep: PositiveInt = 50
        """K of `mhta`: rows that collide in the most groups, at least one."""
        width: PositiveInt = 64
        """Of `mhta`; the sums are as wide as item vectors."""
        heads: PositiveInt = 4
        context: Context = "all"
        """What `mhta` sees beside the item."""

        @model_validator(mode="after")
        def _whole_groups(self) -> Sdim.Config:
            if not 1 <= self.group <= 8:
                raise ValueError(f"group must be from 1 to 8, got {self.group}")
            if self.hashes < self.group or self.hashes % self.group:
                raise ValueError(
                    f"hashes must be a multiple of group ({self.group}), got {self.hashes}"
                )
            return self

    def __init__(self, config: Sdim.Config, features: Features) -> None:
        super().__init__()
        self.config = config
        groups = config.hashes // config.group
        self.register_buffer("plane_DGP", torch.randn(features.item_width, groups, config.group))
        self.attention = None
        self.width = features.item_width
        if config.final == "mhta":
            self.attention = final_attention(features, config.width, config.heads, config.context)
            self.width = config.width

    def encode(self, history: History) -> SdimState:
        """Find every unique item's buckets; for one user alone (serving), also their sums."""
        code_IG = bucket_codes(history.search_vector_ID.float(), self.plane_DGP)
        rows = history.seen(self.config.context) if self.attention else history.seen("none")
        table_GBD = None
        serving = len(history.offsets_U1) == 2 and not torch.is_grad_enabled()
        if serving and self.attention is None and self.config.norm == "bucket":
            wide = rows.widened()
            table_GBD = bucket_table(wide.vector_ID, code_IG, rows.item_T, 2**self.config.group)
        return SdimState(rows, code_IG, table_GBD)

    def attend(
        self, state: SdimState, query: Query, span_C2: Tensor, *, levels: bool = False
    ) -> Interest:
        """Sum what collides, or attend to what collides most."""
        codes = self._codes(state, query)
        if self.attention is None:
            vector_CW = self._sums(state, codes, span_C2)
        else:
            kept_CK = self._colliding(codes, span_C2, self.config.keep)
            kept = Selection(kept_CK=kept_CK)
            vector_CW = self.attention(state.rows, kept, query.vector_CD, query.time_C)
        described = ()
        if levels:
            kept_CK = self._colliding(codes, span_C2, self.config.keep)
            described = (describe_codes("collisions", codes, span_C2, kept_CK, "bytes"),)
            if self.attention is not None:
                final, kept = self.final_scoring(query), Selection(kept_CK=kept_CK)
                described += (describe_level("exact", state.rows, kept, final, self.config.keep),)
        return Interest(vector_CW, levels=described)

    def final_scoring(self, query: Query) -> Scoring:
        """Scores of `mhta` over any rows; of the attention that the sums approximate otherwise."""
        if self.attention is not None:
            return self.attention.scoring(query.vector_CD, query.time_C)
        query_CHD = query.vector_CD[:, None] / math.sqrt(query.vector_CD.shape[1])
        return Scoring(query_CHD, query_CHD.new_zeros(len(query_CHD), 1, 0))

    def preceding(self, state: SdimState, query: Query, span_C2: Tensor, keep: int) -> Tensor:
        """The rows that collide in the most groups."""
        return code_topk(self._codes(state, query), span_C2, keep, "bytes")

    def _codes(self, state: SdimState, query: Query) -> Codes:
        query_CG = bucket_codes(query.search_vector_CD, self.plane_DGP)
        return Codes(state.code_IG, state.rows.item_T, query_CG)

    def _colliding(self, codes: Codes, span_C2: Tensor, keep: int) -> Tensor:
        groups = codes.code_IY.shape[1]
        return code_topk(codes, span_C2, keep, "bytes", farthest=groups - 1)

    def _sums(self, state: SdimState, codes: Codes, span_C2: Tensor) -> Tensor:
        found = self._from_table(state, codes, span_C2)
        if found is None:
            found = bucket_sum(state.rows.widened().vector_ID, codes, span_C2)
        if self.config.norm == "weights":
            # Counts c = (groups shared) / G have the l2 norm sqrt(square) / G; G cancels out.
            return found.sum_CGD.sum(1) / found.square_C.sqrt().clamp(min=1)[:, None]
        return _unit(found.sum_CGD).mean(1)

    def _from_table(self, state: SdimState, codes: Codes, span_C2: Tensor) -> BucketSum | None:
        """Bucket sums from the user's table, if every candidate sees exactly the user's rows."""
        if state.table_GBD is None or torch.is_grad_enabled():
            return None
        whole_2 = span_C2.new_tensor([0, len(state.rows.item_T)])
        if not bool((span_C2 == whole_2).all()):
            return None
        group_G = torch.arange(state.table_GBD.shape[0], device=span_C2.device)
        sum_CGD = state.table_GBD[group_G, codes.query_CY.long()]
        return BucketSum(sum_CGD, sum_CGD.new_zeros(len(sum_CGD)))


def _unit(sum_CGD: Tensor) -> Tensor:
    """Scale to length 1; what is (nearly) zero becomes zero, without a gradient."""
    square_CG1 = sum_CGD.square().sum(-1, keepdim=True)
    real_CG1 = square_CG1 > 1e-16
    length_CG1 = torch.where(real_CG1, square_CG1, 1.0).sqrt()
    return torch.where(real_CG1, sum_CGD / length_CG1, 0.0)
