"""LAP, the lifelong attention pyramid: complete, median and focused scope.

complete scope (CSA)   all N rows, item vectors only          keeps K1
median scope (MSA)     K1 rows with context, one head         keeps K2
focused scope (FSA)    K2 rows with context, H heads + FFN
interest = [CSA ‖ MSA ‖ FSA]
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from lcn.backbones.base import Backbone, Features, History, Interest, Level, Query, describe_level
from lcn.backbones.pyramid import teach_down, unite, whole_history
from lcn.backbones.seen import SeenContext
from lcn.config import Config as BaseConfig
from lcn.errors import ConfigError
from lcn.nn.attention import ContextTable, Selection, TargetAttention
from lcn.nn.mlp import mlp
from lcn.ops import RECENCY_BUCKETS, HistoryRows, Scoring
from lcn.ops.reference import longest, score_rows

PyramidNorm = Literal["softmax", "mean", "raw", "raw_ln"]


@dataclass(frozen=True, slots=True)
class LapState:
    """Rows as the highest level reads them and as the complete scope does."""

    rows: HistoryRows
    complete: HistoryRows


class Lap(Backbone[LapState]):
    """The three-level pyramid.

    A candidate without history has the zero vector as interest. With `model.search_table: own` the
    complete scope scores rows by their search vectors and pools their item vectors.
    Deviations: Eq. 7 is read as an inner product; Eq. 8 and 10 are softmax-weighted by default
    (`norm: raw` is the literal sum); √d of Eq. 11 is the head's width; Eq. 13's mean over one
    query is the identity (`fsa_query: sequence` reads it as self-attention, each kept row asking
    together with the candidate).
    Cost per candidate: N D + K1 (D + context) + K2 H (D + context) multiply-adds.
    """

    source = "LCN (arXiv 2312.06424), section 4.2, Eq. 7-13"
    assumes = "source-domain events; uses event context fields where there are some"
    searches = True

    class Config(BaseConfig):
        """Settings; K1 / K2 = 200 / 50 is the paper's LCN-200-50."""

        name: Literal["lap"] = "lap"
        k1: NonNegativeInt = 200
        """Rows that pass the complete scope; 0 passes all N."""
        k2: NonNegativeInt = 50
        """Rows that pass the median scope."""
        width: PositiveInt = 64
        """Attention width of the median and the focused scope."""
        heads: PositiveInt = 4
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
        context_fields: tuple[str, ...] | None = None
        """Event context fields that MSA and FSA see; None: all of them."""
        recency: bool = True
        """Whether MSA and FSA see the time between event and request."""
        time_bias: bool = False
        """Beyond the paper: a learned number per recency bucket joins Eq. 7, so that the complete
        scope knows how old an event is (HSTU and TWIN score so)."""
        recent_queries: NonNegativeInt = 0
        """Beyond the paper: a second query, the mean of the user's so many newest target-domain
        items, picks a quarter of the K1 rows (MIRRN); 0 leaves all to the candidate."""
        fism: bool = False
        """Beyond the paper: the whole history as one vector, u = Σ g_j e_j / √n, with g_j a learned
        number of the event's context (liked or not, how old), and v ⊙ u: what FISM scores with."""
        search_loss: NonNegativeFloat = 0.0
        """Beyond the paper: weight of a click loss of the complete scope's own, on
        MLP([CSA ‖ v]), as SIM Soft trains its search. It trains item vectors; with
        `model.search_table: own` the search's too, through the weights that pool them."""
        distill: NonNegativeFloat = 0.0
        """Beyond the paper: weight of KL(FSA ‖ MSA) + KL(MSA ‖ CSA) over the rows that pass the
        complete scope; the higher level teaches what the lower one should find."""

    @classmethod
    def trains_search(cls, config: Lap.Config) -> bool:
        """Through the weights that pool the complete scope, or what it is taught."""
        return bool(config.use_csa_output or config.search_loss or config.distill)

    def __init__(self, config: Lap.Config, features: Features) -> None:
        super().__init__()
        self.config = config
        self._check_switches()
        width, item_width = config.width, features.item_width
        self.recent_rows, self.distill_weight = config.recent_queries, config.distill
        self.time_bias_V = nn.Parameter(torch.zeros(RECENCY_BUCKETS)) if config.time_bias else None
        self._seen = SeenContext(features.event_context, config.context_fields)
        context = ContextTable(
            self._seen.fields, features.context_width, recency=config.recency, std=features.init_std
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
        if config.fism and not context.codes:
            raise ConfigError(
                "model.backbone.fism weighs events by context, but context_fields and recency "
                "leave none; set one of them to its default"
            )
        self.gain_V = nn.Parameter(torch.randn(context.codes) * 0.1) if config.fism else None
        self.search_head = mlp(2 * item_width, (128,)) if config.search_loss else None
        self.auxiliary_weight = config.search_loss
        if self.fsa is not None:
            self.ffn = nn.Sequential(
                nn.Linear(width, 4 * width), nn.ReLU(inplace=True), nn.Linear(4 * width, width)
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
            + 2 * item_width * config.fism
        )

    def encode(self, history: History) -> LapState:
        """Rows are read as they are; projections are absorbed into the queries."""
        complete = history.for_both(history.rows.without_context())
        only_csa = self.msa is None and self.fsa is None and self.gain_V is None
        return LapState(complete if only_csa else self._seen.of(history.rows), complete)

    def attend(
        self, state: LapState, query: Query, span_C2: Tensor, *, levels: bool = False
    ) -> Interest:
        """Climb the pyramid."""
        config, whole = self.config, Selection(span_C2=span_C2)
        csa = self._csa_scoring(query)
        after_csa = self._passing()
        first = after_csa - self._extra(after_csa)
        complete = whole.pool(state.complete, csa, _op_norm(config.norm_csa), keep=first)
        # With a search table of its own a row is [search ‖ item]: the item is pooled.
        csa_CD = self.csa_norm(complete.vector_CHD[:, 0, -query.vector_CD.shape[1] :])
        parts = [csa_CD] if config.use_csa_output else []
        search_logit_C = None
        if self.search_head is not None and self.training:
            search_logit_C = self.search_head(torch.cat([csa_CD, query.vector_CD], 1))[:, 0]
        selection = whole
        if after_csa:
            passed_CK = self._joined(complete.kept_CK, state, query, span_C2, after_csa)
            selection = Selection(kept_CK=passed_CK)
        distillation = None
        if config.distill and self.training:
            distillation = self._distillation(state, query, selection)
        seen = {"complete": whole, "median": selection}
        if self.msa is not None:
            keep = config.k2 if config.use_fsa else 0
            asked = state.rows, selection, query.vector_CD, query.time_C
            norm = _op_norm(config.norm_msa)
            median_CB, kept_CK = self.msa.attend(*asked, heads=1, norm=norm, keep=keep)
            if config.use_msa_output:
                parts.append(self.msa_norm(median_CB))
            selection = Selection(kept_CK=kept_CK) if keep else selection
        if self.fsa is not None:
            parts.append(self._focused(state.rows, selection, query))
            seen["focused"] = selection
        if self.gain_V is not None:
            parts.append(whole_history(self.gain_V, state.rows, span_C2, query, config.recency))
        vector_CW = torch.cat(parts, 1) if parts else query.vector_CD[:, :0]
        has_rows_C1 = (span_C2[:, 1] > span_C2[:, 0])[:, None]
        described = self._describe(state, query, seen) if levels else ()
        return Interest(vector_CW * has_rows_C1, search_logit_C, described, distillation)

    def final_scoring(self, query: Query) -> Scoring:
        """Scores of the highest level in use over any rows (of the candidate's own query)."""
        if self.fsa is not None:
            return self.fsa.scoring(query.vector_CD, query.time_C)
        if self.msa is not None:
            return self.msa.scoring(query.vector_CD, query.time_C, heads=1)
        return self._csa_scoring(query)

    @torch.no_grad()
    def preceding(self, state: LapState, query: Query, span_C2: Tensor, keep: int) -> Tensor:
        """The real cascade: the median scope's ranking of what the complete scope passes."""
        csa, whole = self._csa_scoring(query), Selection(span_C2=span_C2)
        if self.msa is None or self.fsa is None:
            kept_CK = _best(whole, state.complete, csa, keep - self._extra(keep))
            return self._joined(kept_CK, state, query, span_C2, keep)
        selection = whole
        if self.config.k1:
            first = self.config.k1 - self._extra(self.config.k1)
            kept_CK = _best(whole, state.complete, csa, first)
            kept_CK = self._joined(kept_CK, state, query, span_C2, self.config.k1)
            selection = Selection(kept_CK=kept_CK)
        msa = self.msa.scoring(query.vector_CD, query.time_C, heads=1)
        return _best(selection, state.rows, msa, keep)

    def stage_scorings(
        self, state: LapState, query: Query
    ) -> tuple[tuple[str, HistoryRows, Scoring], ...]:
        """How each scope in use scores rows, any rows: its name, the rows it reads, the scoring."""
        found = [("complete", state.complete, self._csa_scoring(query))]
        if self.msa is not None:
            msa = self.msa.scoring(query.vector_CD, query.time_C, heads=1)
            found.append(("median", state.rows, msa))
        if self.fsa is not None:
            found.append(("focused", state.rows, self.final_scoring(query)))
        return tuple(found)

    def passing(self, k1: int) -> Lap:
        """The same trained pyramid with another K1, sharing all parameters (Figure 5b).

        Raises:
            ConfigError: a pyramid without a median scope, which K1 is the length of.
        """
        if self.msa is None:
            raise ConfigError("K1 is the median scope's, and this model has none (use_msa: false)")
        other = copy.copy(self)
        other.config = self.config.model_copy(update={"k1": k1})
        return other

    def _describe(
        self, state: LapState, query: Query, seen: dict[str, Selection]
    ) -> tuple[Level, ...]:
        span_C2 = seen["complete"].span_C2
        assert span_C2 is not None
        k1 = self.config.k1 or longest(span_C2)
        keep = {"complete": k1, "median": self.config.k2 or k1, "focused": self.config.k2 or k1}
        return tuple(
            describe_level(name, rows, seen[name], scoring, keep[name])
            for name, rows, scoring in self.stage_scorings(state, query)
        )

    def _passing(self) -> int:
        """Rows that the complete scope passes to a next level; 0: all, or there is none."""
        config = self.config
        if config.use_msa:
            return config.k1
        return config.k2 if config.use_fsa else 0

    def _csa_scoring(self, query: Query, asked_CD: Tensor | None = None) -> Scoring:
        """How the complete scope scores rows: with the candidate, or with `asked_CD`."""
        query_CD = query.search_vector_CD if asked_CD is None else asked_CD
        scaled = self.config.norm_csa == "softmax"
        scale = 1 / math.sqrt(query_CD.shape[1]) if scaled else 1.0
        query_CHD = (query_CD * scale)[:, None, :]
        if self.time_bias_V is None:
            bias_CHV = query_CHD.new_zeros(len(query_CHD), 1, 0)
            return query.for_both(Scoring(query_CHD, bias_CHV))
        bias_CHV = self.time_bias_V.expand(len(query_CHD), 1, -1).contiguous()
        return query.for_both(Scoring(query_CHD, bias_CHV, query.time_C))

    def _extra(self, passing: int) -> int:
        """How many of the passing rows the second query picks."""
        return passing // 4 if self.config.recent_queries else 0

    @torch.no_grad()
    def _joined(
        self,
        kept_CK: Tensor | None,
        state: LapState,
        query: Query,
        span_C2: Tensor,
        passing: int,
    ) -> Tensor:
        """The candidate's rows with those of the second query, where there is one."""
        assert kept_CK is not None
        extra = self._extra(passing)
        if not extra:
            return kept_CK
        assert query.recent_CD is not None
        recent = self._csa_scoring(query, query.recent_CD)
        second_CK = _best(Selection(span_C2=span_C2), state.complete, recent, passing)
        return unite(kept_CK, second_CK, extra)

    def _distillation(self, state: LapState, query: Query, selection: Selection) -> Tensor:
        """KL of each level from the one above it, over the rows that pass the complete scope."""
        row_CN, mask_CN = selection.rows()
        return teach_down(
            [
                score_rows(rows.widened(), row_CN, mask_CN, scoring)
                for _, rows, scoring in self.stage_scorings(state, query)
            ]
        )

    def _check_switches(self) -> None:
        config = self.config
        if config.distill and not (config.use_msa or config.use_fsa):
            raise ConfigError(
                "model.backbone.distill needs a level that teaches another: set use_msa or use_fsa"
            )
        if config.time_bias and not self.trains_search(config):
            raise ConfigError(
                "model.backbone.time_bias is learned through the complete scope's output, which "
                "use_csa_output: false takes away; set one of them to its default"
            )
        passing = self._passing()
        if config.recent_queries and not self._extra(passing):
            passed = f"{passing} rows pass it" if passing else "all rows pass it"
            raise ConfigError(
                "model.backbone.recent_queries picks a quarter of the rows that pass the complete "
                f"scope, but here {passed}: set k{1 if config.use_msa else 2} to 4 or more, or "
                "recent_queries to 0"
            )
        kept = passing or (config.k2 if config.use_msa else 0)
        if config.fsa_query == "sequence" and config.use_fsa and not kept:
            raise ConfigError(
                "model.backbone.fsa_query: sequence asks with each kept row, but here all rows "
                "reach the focused scope: set k2 to more than 0"
            )

    def _focused(self, rows: HistoryRows, selection: Selection, query: Query) -> Tensor:
        assert self.fsa is not None
        if self.config.fsa_query == "sequence":
            return self._self_attention(rows, selection, query)
        heads_CB = self.fsa(rows, selection, query.vector_CD, query.time_C)
        return self._feed_forward(heads_CB, query.vector_CD)

    def _feed_forward(self, heads_CB: Tensor, query_CD: Tensor) -> Tensor:
        """Eq. 12, with a residual if configured."""
        out_CB = self.ffn(heads_CB)
        if self.config.fsa_residual:
            return self.residual_norm(out_CB + self.residual(query_CD))
        return out_CB

    def _self_attention(self, rows: HistoryRows, selection: Selection, query: Query) -> Tensor:
        """The literal Eq. 13: every kept row asks (with the candidate), answers are averaged.

        Absorbing makes each row's question one more query of its own over the kept rows.
        """
        assert self.fsa is not None and selection.kept_CK is not None
        kept_CK = selection.kept_CK
        count, k2 = kept_CK.shape
        if not len(rows.item_T):
            return query.vector_CD.new_zeros(count, self.fsa.width)
        row_CKD = rows.widened().vector_ID[rows.item_T[kept_CK.clamp(min=0)].long()]
        asked_B = self.sequence_query(row_CKD).flatten(0, 1)
        repeated_D = query.vector_CD.repeat_interleave(k2, 0)
        scoring = self.fsa.scoring(
            repeated_D, query.time_C.repeat_interleave(k2, 0), extra_CB=asked_B
        )
        repeated = Selection(kept_CK=kept_CK.repeat_interleave(k2, 0))
        heads_B = self.fsa.values(repeated.pool(rows, scoring, "softmax"))
        answer_CKB = self._feed_forward(heads_B, repeated_D).unflatten(0, (count, k2))
        real_CK1 = (kept_CK >= 0)[..., None]
        return (answer_CKB * real_CK1).sum(1) / real_CK1.sum(1).clamp(min=1)


def _best(selection: Selection, rows: HistoryRows, scoring: Scoring, keep: int) -> Tensor:
    kept_CK = selection.pool(rows, scoring, "softmax", keep=keep).kept_CK
    assert kept_CK is not None
    return kept_CK


def _op_norm(norm: PyramidNorm) -> Literal["softmax", "mean", "raw"]:
    return "raw" if norm == "raw_ln" else norm
