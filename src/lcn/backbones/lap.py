"""LAP, the lifelong attention pyramid: complete, median and focused scope.

complete scope (CSA)   all N rows, item vectors only          keeps K1
median scope (MSA)     K1 rows with context, one head         keeps K2
focused scope (FSA)    K2 rows with context, H heads + FFN
interest = [CSA ‖ MSA ‖ FSA]
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lcn.backbones.base import Backbone, Features, History, Interest, Query, describe_level
from lcn.config import Config as BaseConfig
from lcn.nn.attention import ContextTable, Selection, TargetAttention
from lcn.ops import Scoring

PyramidNorm = Literal["softmax", "mean", "raw", "raw_ln"]


class Lap(Backbone[History]):
    """The three-level pyramid.

    Source: LCN (arXiv 2312.06424), section 4.2, Eq. 7-13.
    Deviations: Eq. 7 is read as an inner product; Eq. 8 and 10 are softmax-weighted by default
    (`norm: raw` is the literal sum); Eq. 13's mean over one query is the identity
    (`fsa_query: sequence` reads it as self-attention). See docs/paper.md.
    Cost per candidate: N D + K1 (D + context) + K2 H (D + context) multiply-adds.
    """

    class Config(BaseConfig):
        """Settings; K1 / K2 = 200 / 50 is the paper's LCN-200-50."""

        name: Literal["lap"] = "lap"
        k1: int = 200
        """Rows that pass the complete scope; 0 passes all N."""
        k2: int = 50
        """Rows that pass the median scope."""
        width: int = 64
        """Attention width of the median and the focused scope."""
        heads: int = 4
        norm_csa: PyramidNorm = "softmax"
        """softmax; mean: score / rows; raw: the literal Eq. 8; raw_ln: raw, then LayerNorm."""
        norm_msa: PyramidNorm = "softmax"
        use_msa: bool = True
        use_fsa: bool = True
        use_csa_output: bool = True
        """False with `use_msa_output: false` is the paper's "without integration"."""
        use_msa_output: bool = True
        fsa_query: Literal["candidate", "sequence"] = "candidate"
        fsa_residual: bool = False
        """Add W_res v and LayerNorm, as transformer decoders do."""
        tie_msa_fsa: bool = False
        """MSA ranks with FSA's projections: the mean of its heads' scores."""

    def __init__(self, config: Lap.Config, features: Features) -> None:
        super().__init__()
        self.config = config
        width, item_width = config.width, features.item_width
        context = ContextTable(
            features.event_context, features.context_width, recency=True, std=features.init_std
        )
        self.fsa = (
            TargetAttention(item_width, width, config.heads, context, output=False)
            if config.use_fsa
            else None
        )
        self.msa = None
        if config.use_msa:
            tied = config.tie_msa_fsa and self.fsa is not None
            self.msa = (
                self.fsa if tied else TargetAttention(item_width, width, 1, context, output=False)
            )
        if self.fsa is not None:
            self.ffn = nn.Sequential(
                nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
            )
            if config.fsa_residual:
                self.residual = nn.Linear(item_width, width, bias=False)
                self.residual_norm = nn.LayerNorm(width)
            if config.fsa_query == "sequence":
                # W^Q of [e_k ‖ v]: the part of e_k; the part of v is the candidate's own W^Q.
                self.sequence_query = nn.Linear(item_width, width, bias=False)
        self.csa_norm = nn.LayerNorm(item_width) if config.norm_csa == "raw_ln" else nn.Identity()
        self.msa_norm = nn.LayerNorm(width) if config.norm_msa == "raw_ln" else nn.Identity()
        self.width = (
            item_width * config.use_csa_output
            + width * (config.use_msa and config.use_msa_output)
            + width * config.use_fsa
        )

    def encode(self, history: History) -> History:
        """Rows are read as they are; projections are absorbed into the queries."""
        return history

    def attend(
        self, state: History, query: Query, span_C2: Tensor, *, levels: bool = False
    ) -> Interest:
        """Climb the pyramid."""
        config, rows = self.config, state.rows
        bare = rows.without_context()
        whole = Selection(span_C2=span_C2)
        csa = self._csa_scoring(query)
        after_csa = (config.k1 if config.use_msa else config.k2) if self._narrows() else 0
        complete = whole.pool(bare, csa, _op_norm(config.norm_csa), keep=after_csa)
        parts = []
        if config.use_csa_output:
            parts.append(self.csa_norm(complete.vector_CHD[:, 0]))
        selection = Selection(kept_CK=complete.kept_CK) if after_csa else whole
        seen_by_msa = selection
        if self.msa is not None:
            msa = self.msa.scoring(query.vector_CD, query.time_C, heads=1)
            keep = config.k2 if config.use_fsa else 0
            median = selection.pool(rows, msa, _op_norm(config.norm_msa), keep=keep)
            if config.use_msa_output:
                parts.append(self.msa_norm(self.msa.values(median)))
            selection = Selection(kept_CK=median.kept_CK) if keep else selection
        if self.fsa is not None:
            parts.append(self._focused(state, selection, query))
        found = ()
        if levels:
            found = (describe_level("complete", bare, whole, csa, config.k1 or _longest(span_C2)),)
            if self.msa is not None:
                msa = self.msa.scoring(query.vector_CD, query.time_C, heads=1)
                found += (describe_level("median", rows, seen_by_msa, msa, config.k2),)
            if self.fsa is not None:
                scoring = self.final_scoring(query)
                found += (describe_level("focused", rows, selection, scoring, config.k2),)
        vector_CW = torch.cat(parts, 1) if parts else query.vector_CD[:, :0]
        return Interest(vector_CW, levels=found)

    def final_scoring(self, query: Query) -> Scoring:
        """Scores of the highest level in use over any rows."""
        if self.fsa is not None:
            return self.fsa.scoring(query.vector_CD, query.time_C)
        if self.msa is not None:
            return self.msa.scoring(query.vector_CD, query.time_C, heads=1)
        return self._csa_scoring(query)

    def _narrows(self) -> bool:
        """Whether the complete scope passes fewer than all rows to a next level."""
        config = self.config
        return config.k1 > 0 if config.use_msa else config.use_fsa

    def _csa_scoring(self, query: Query) -> Scoring:
        scaled = self.config.norm_csa == "softmax"
        scale = 1 / math.sqrt(query.vector_CD.shape[1]) if scaled else 1.0
        query_CHD = (query.vector_CD * scale)[:, None, :]
        return Scoring(query_CHD, query_CHD.new_zeros(len(query_CHD), 1, 0))

    def _focused(self, state: History, selection: Selection, query: Query) -> Tensor:
        assert self.fsa is not None
        if self.config.fsa_query == "sequence":
            heads_CB = self._self_attention(state, selection, query)
        else:
            heads_CB = self.fsa(state.rows, selection, query.vector_CD, query.time_C)
        out_CB = self.ffn(heads_CB)
        if self.config.fsa_residual:
            return self.residual_norm(out_CB + self.residual(query.vector_CD))
        return out_CB

    def _self_attention(self, state: History, selection: Selection, query: Query) -> Tensor:
        """The literal Eq. 13: every kept row asks (with the candidate), answers are averaged.

        Absorbing makes each row's question one more query of its own over the kept rows.
        """
        assert self.fsa is not None and selection.kept_CK is not None
        kept_CK = selection.kept_CK
        count, k2 = kept_CK.shape
        if not len(state.rows.item_T):
            return query.vector_CD.new_zeros(count, self.fsa.width)
        row_CKD = state.rows.vector_ID[state.rows.item_T[kept_CK.clamp(min=0)].long()]
        asked_B = self.sequence_query(row_CKD).flatten(0, 1)
        scoring = self.fsa.scoring(
            query.vector_CD.repeat_interleave(k2, 0),
            query.time_C.repeat_interleave(k2, 0),
            extra_CB=asked_B,
        )
        repeated = Selection(kept_CK=kept_CK.repeat_interleave(k2, 0))
        pool = repeated.pool(state.rows, scoring, "softmax")
        answer_CKB = self.fsa.values(pool).unflatten(0, (count, k2))
        real_CK1 = (kept_CK >= 0)[..., None]
        return (answer_CKB * real_CK1).sum(1) / real_CK1.sum(1).clamp(min=1)


def _op_norm(norm: PyramidNorm) -> Literal["softmax", "mean", "raw"]:
    return "raw" if norm == "raw_ln" else norm


def _longest(span_C2: Tensor) -> int:
    return max(int((span_C2[:, 1] - span_C2[:, 0]).max()), 1)
