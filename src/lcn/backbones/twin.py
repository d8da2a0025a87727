"""TWIN: search and attention with the same target attention, cheap enough for the whole history.

score of head a = (W_h e)·(W_q v) / √d_h + Σ_j β_j (w_j · c_j)

Item features take the projected inner product; every cross field (event context, recency) adds
one learned number per value, which no candidate changes.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from lcn import ops
from lcn.backbones.base import (
    Backbone,
    Features,
    History,
    Interest,
    Level,
    Query,
    describe_level,
)
from lcn.config import Config as BaseConfig
from lcn.errors import ConfigError
from lcn.nn.attention import ContextTable, Selection, project_values
from lcn.ops import HistoryRows, Pool, Scoring
from lcn.ops.merge_heads import merge_heads
from lcn.ops.reference import longest

Select = Literal["round_robin", "mean_alpha", "per_head"]


class TwinAttention(nn.Module):
    """Target attention whose keys see items only and whose cross fields are scalar biases.

    Absorbing W_h and W_q into the query leaves one vector and one number per code, as in
    `TargetAttention`; values see the whole row [item ‖ cross fields].
    """

    def __init__(
        self,
        item_width: int,
        width: int,
        heads: int,
        context: ContextTable,
        *,
        identity: bool,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"model.backbone.width {width} is not a multiple of model.backbone.heads {heads}"
            )
        self.heads, self.context = heads, context
        self.query_BD = nn.Parameter(torch.empty(width, item_width))
        self.key_BD = nn.Parameter(torch.empty(width, item_width))
        for weight in (self.query_BD, self.key_BD):
            nn.init.xavier_uniform_(weight)
            if identity:
                with torch.no_grad():
                    weight[:item_width] = torch.eye(min(width, item_width), item_width)
        fields = len(context.sizes)
        field_width = context.embedding_VE.shape[1]
        self.cross_HJE = nn.Parameter(torch.randn(heads, fields, field_width) * field_width**-0.5)
        self.beta_HJ = nn.Parameter(torch.ones(heads, fields))
        self.value_BX = nn.Parameter(torch.empty(width, item_width + context.width))
        nn.init.xavier_uniform_(self.value_BX)
        self.output = nn.Linear(width, width, bias=False)

    def scoring(self, query_CD: Tensor, time_C: Tensor) -> Scoring:
        """Absorb both projections into the query; the biases are the same for every candidate."""
        query_CHB = (query_CD @ self.query_BD.T).unflatten(1, (self.heads, -1))
        key_HBD = self.key_BD.unflatten(0, (self.heads, -1))
        query_CHD = torch.einsum("chb,hbd->chd", query_CHB, key_HBD) / math.sqrt(key_HBD.shape[1])
        cross_1HJE = (self.cross_HJE * self.beta_HJ[..., None])[None]
        bias_CHV = self.context.dot(cross_1HJE).expand(len(query_CD), -1, -1)
        return Scoring(
            query_CHD.contiguous(),
            bias_CHV.contiguous(),
            time_C if self.context.recency else None,
        )

    def values(self, pool: Pool) -> Tensor:
        """Project pooled rows: W_v per head, then W_o."""
        return project_values(pool, self.context, self.value_BX, self.output.weight)


@dataclass(frozen=True, slots=True)
class TwinState:
    """A history, scored as it is."""

    rows: HistoryRows


class Twin(Backbone[TwinState]):
    """Two stages with one attention: its heads pick K of all N rows, then it attends to them.

    The search has no loss and no gradient: it uses the attention's parameters.
    Deviations: attention starts with identity projections, so that it starts as the inner product
    of the item space (`identity_init: false` is Xavier); `select` also offers a ranking by the
    heads' mean score, and separate selections per head as in public code. `stale_steps` searches
    with a copy of the attention's parameters that is refreshed every so many training steps, as
    production does; item vectors are always current.
    Cost per candidate: H N D for the search, H K (D + context) for the attention.
    """

    source = "Chang et al. 2023 (arXiv 2302.02352)"
    assumes = "source-domain events; event context fields and recency become scalar biases"
    searches = True

    steps: Tensor
    """Training steps taken, where there is a snapshot to renew."""

    class Config(BaseConfig):
        """Settings."""

        name: Literal["twin"] = "twin"
        keep: PositiveInt = 50
        """K, events that reach the attention (the paper: 100 of 10,000)."""
        width: PositiveInt = 64
        heads: PositiveInt = 4
        select: Select = "round_robin"
        """round_robin: traverse the heads' rankings until K unique rows are collected;
        mean_alpha: rank by the heads' mean score; per_head: each head attends to its own K."""
        identity_init: bool = True
        stale_steps: NonNegativeInt = 0
        """Training steps between refreshes of the searching parameters; 0 is synchronous."""

    def __init__(self, config: Twin.Config, features: Features) -> None:
        super().__init__()
        self.config = config
        context = ContextTable(
            features.event_context, features.context_width, recency=True, std=features.init_std
        )
        self.attention = TwinAttention(
            features.item_width,
            config.width,
            config.heads,
            context,
            identity=config.identity_init,
        )
        self.width = config.width
        self.snapshot = None
        if config.stale_steps:
            self.snapshot = copy.deepcopy(self.attention).requires_grad_(False)
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def encode(self, history: History) -> TwinState:
        """Nothing to prepare: projections are absorbed into the queries."""
        return TwinState(history.for_both(history.rows))

    def attend(
        self, state: TwinState, query: Query, span_C2: Tensor, *, levels: bool = False
    ) -> Interest:
        """Let the heads select, attend to the selection."""
        self._refresh()
        kept_CHK = self._select(state, self._search(query), span_C2)
        scoring = self.final_scoring(query)
        if kept_CHK.shape[1] == 1:
            pool = Selection(kept_CK=kept_CHK[:, 0]).pool(state.rows, scoring, "softmax")
        else:
            pool = _pool_per_head(state.rows, scoring, kept_CHK)
        item_width = query.vector_CD.shape[1]
        # With a search table of its own a row is [search ‖ item]: only the item is a value.
        pool = Pool(pool.vector_CHD[..., -item_width:], pool.weight_CHV, None)
        described = self._describe(state, query, span_C2) if levels else ()
        return Interest(self.attention.values(pool), levels=described)

    def final_scoring(self, query: Query) -> Scoring:
        """Scores of the attention over any rows."""
        return query.for_both(self.attention.scoring(query.search_vector_CD, query.time_C))

    def preceding(self, state: TwinState, query: Query, span_C2: Tensor, keep: int) -> Tensor:
        """What the heads select together."""
        return _aggregate(state.rows, self._search(query), span_C2, keep, self.config.select)

    def own_final(self, state: TwinState, query: Query, span_C2: Tensor, keep: int) -> Tensor:
        """What the attention's current parameters would select: the authors' "real" set."""
        return _aggregate(state.rows, self.final_scoring(query), span_C2, keep, self.config.select)

    def _search(self, query: Query) -> Scoring:
        with torch.no_grad():
            attention = self.attention if self.snapshot is None else self.snapshot
            return query.for_both(attention.scoring(query.search_vector_CD, query.time_C))

    def _refresh(self) -> None:
        """Count training steps and renew the snapshot when its time has come."""
        if self.snapshot is None or not (self.training and torch.is_grad_enabled()):
            return
        if int(self.steps) % self.config.stale_steps == 0:
            self.snapshot.load_state_dict(self.attention.state_dict())
        self.steps += 1

    def _select(self, state: TwinState, search: Scoring, span_C2: Tensor) -> Tensor:
        config = self.config
        if config.select != "per_head":
            return _aggregate(state.rows, search, span_C2, config.keep, config.select)[:, None]
        return ops.rank_heads(state.rows, span_C2, search, config.keep)[0]

    def _describe(self, state: TwinState, query: Query, span_C2: Tensor) -> tuple[Level, ...]:
        whole, search = Selection(span_C2=span_C2), self._search(query)
        kept_CK = _aggregate(state.rows, search, span_C2, self.config.keep, self.config.select)
        kept = Selection(kept_CK=kept_CK)
        seen = describe_level("search", state.rows, whole, search, longest(span_C2))
        # The stage's own order, with the weights of the whole span.
        same_CKN = kept_CK[:, :, None] == seen.kept_CK[:, None, :]
        weight_CK = (same_CKN * seen.weight_CK[:, None, :]).sum(-1) * (kept_CK >= 0)
        final = self.final_scoring(query)
        exact = describe_level("exact", state.rows, kept, final, self.config.keep)
        return (Level("search", kept_CK, weight_CK), exact)


@torch.no_grad()
def _aggregate(
    rows: HistoryRows, scoring: Scoring, span_C2: Tensor, keep: int, select: Select
) -> Tensor:
    """One selection of `keep` rows from all heads' scores."""
    if select == "mean_alpha":
        mean_S = ops.span_score(rows, span_C2, scoring).mean(1)
        return ops.select_span_topk(mean_S, span_C2, keep)
    kept_CHK, mean_CHK = ops.rank_heads(rows, span_C2, scoring, keep)
    return merge_heads(kept_CHK, mean_CHK, keep)


def _pool_per_head(rows: HistoryRows, scoring: Scoring, kept_CHK: Tensor) -> Pool:
    """Each head attends to its own rows."""
    pools = [
        ops.kept_pool(
            rows,
            kept_CK.contiguous(),
            Scoring(
                scoring.query_CHD[:, head : head + 1].contiguous(),
                scoring.bias_CHV[:, head : head + 1].contiguous(),
                scoring.time_C,
            ),
        )
        for head, kept_CK in enumerate(kept_CHK.unbind(1))
    ]
    return Pool(
        torch.cat([pool.vector_CHD for pool in pools], 1),
        torch.cat([pool.weight_CHV for pool in pools], 1),
        None,
    )
