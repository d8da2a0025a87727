"""Target attention over spans, with every per-row projection absorbed into the query.

A row is x = [e ‖ c_1 .. c_G ‖ r]: its item vector, the embeddings of its context fields and of the
time between event and request. Keys and values are linear in x, so

    score = (W_Q v) · (W_K x) = (W_Kᵀ W_Q v) · x          one d-vector and one number per code
    pooled = W_V Σ w x                                     one projection per candidate

and no row is ever projected. Shapes: C candidates, H heads, D item width, B attention width,
V context codes, E context embedding width, G context fields (recency included).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lcn import ops
from lcn.errors import ConfigError
from lcn.nn.request_attention import Asked, attend_request
from lcn.ops import RECENCY_BUCKETS, HistoryRows, Norm, Pool, Scoring
from lcn.ops.reference import rows_of_span
from lcn.schema import Field

MAX_CODES = 4096
FOLDED = 512
"""Columns up to which projections are multiplied with each other before they meet a candidate:
of H D vector columns, of H V code columns."""


class ContextTable(nn.Module):
    """Embeddings of an event's context fields and of its recency, on one axis of codes."""

    def __init__(self, fields: Sequence[Field], width: int, *, recency: bool, std: float) -> None:
        super().__init__()
        self.sizes = [field.size for field in fields] + [RECENCY_BUCKETS] * recency
        self.recency = recency
        self.width = width * len(self.sizes)
        total = sum(self.sizes)
        if total > MAX_CODES:
            largest = max(fields, key=lambda field: field.size)
            raise ConfigError(
                f"event context fields have {total} values together, at most {MAX_CODES} are "
                f"supported: bucket {largest.name!r} ({largest.size} values), make it an item "
                "field, or raise limits.min_count of the mapping, and prepare again"
            )
        self.embedding_VE = nn.Parameter(torch.randn(total, width) * std)

    @property
    def codes(self) -> int:
        """Length of the V axis."""
        return len(self.embedding_VE)

    def dot(self, query_CHGE: Float[Tensor, "C H G E"]) -> Float[Tensor, "C H V"]:
        """Inner product of every code's embedding with the query part of its field."""
        parts = zip(query_CHGE.unbind(2), self.embedding_VE.split(self.sizes), strict=True)
        products = [query_CHE @ embedding_VE.T for query_CHE, embedding_VE in parts]
        return (
            torch.cat(products, -1) if products else query_CHGE.new_zeros(*query_CHGE.shape[:2], 0)
        )

    def sum(self, weight_CHV: Float[Tensor, "C H V"]) -> Float[Tensor, "C H GE"]:
        """Weighted sum of each field's embeddings, fields concatenated."""
        if not self.sizes:
            return weight_CHV
        parts = zip(
            weight_CHV.split(self.sizes, -1), self.embedding_VE.split(self.sizes), strict=True
        )
        return torch.cat([weight @ embedding for weight, embedding in parts], -1)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows a candidate attends to: its whole span, or a list of kept rows."""

    span_C2: Int[Tensor, "C 2"] | None = None
    kept_CK: Int[Tensor, "C K"] | None = None

    def rows(self) -> tuple[Int[Tensor, "C N"], Bool[Tensor, "C N"]]:
        """The selected rows, padded, and where there is one."""
        if self.kept_CK is not None:
            return self.kept_CK.clamp(min=0), self.kept_CK >= 0
        assert self.span_C2 is not None
        return rows_of_span(self.span_C2)

    def pool(self, rows: HistoryRows, scoring: Scoring, norm: Norm, keep: int = 0) -> Pool:
        """Pool the selected rows; see `lcn.ops.span_pool`."""
        if self.kept_CK is not None:
            return ops.kept_pool(rows, self.kept_CK, scoring, norm, keep)
        assert self.span_C2 is not None
        return ops.span_pool(rows, self.span_C2, scoring, norm, keep)


def project_values(
    pool: Pool,
    context: ContextTable,
    value_BX: Float[Tensor, "B X"],
    output_BB: Float[Tensor, "B B"] | None = None,
) -> Float[Tensor, "C B"]:
    """Project pooled rows [item ‖ context] with W_V per head, concatenate the heads, mix by W_O."""
    (count, heads, width), codes = pool.vector_CHD.shape, context.codes
    if heads * max(width, codes) <= FOLDED:
        item_HDB, code_HVB = _fold_values(context, value_BX, output_BB, heads, width)
        value_CB = pool.vector_CHD.reshape(count, -1) @ item_HDB.flatten(0, 1)
        return torch.addmm(value_CB, pool.weight_CHV.reshape(count, -1), code_HVB.flatten(0, 1))
    pooled_CHX = torch.cat([pool.vector_CHD, context.sum(pool.weight_CHV)], -1)
    value_HBX = value_BX.unflatten(0, (heads, -1))
    value_CB = torch.einsum("chx,hbx->chb", pooled_CHX, value_HBX).flatten(1)
    return value_CB if output_BB is None else value_CB @ output_BB.T


def _fold_values(
    context: ContextTable, value_BX: Tensor, output_BB: Tensor | None, heads: int, width: int
) -> tuple[Tensor, Tensor]:
    """What a head's pooled item vector and each of its code weights are worth in the answer."""
    value_HPX = value_BX.unflatten(0, (heads, -1))
    if output_BB is None:
        mixed_HXB = torch.stack(
            [torch.nn.functional.pad(part.T, (start, len(value_BX) - start - len(part)))
             for part, start in zip(value_HPX, range(0, len(value_BX), value_HPX.shape[1]),
                                    strict=True)]
        )  # fmt: skip
    else:
        mixed_HXB = value_HPX.mT @ output_BB.T.unflatten(0, (heads, -1))
    item_HDB, context_HXB = mixed_HXB.split([width, mixed_HXB.shape[1] - width], 1)
    fields = len(context.sizes)
    parts = context_HXB.chunk(fields, 1) if fields else ()
    tables = context.embedding_VE.split(context.sizes) if fields else ()
    code = [table @ part for table, part in zip(tables, parts, strict=True)]
    code_HVB = torch.cat(code, 1) if code else context_HXB
    return item_HDB, code_HVB


class TargetAttention(nn.Module):
    """Scaled dot-product attention whose only query is the candidate.

    Source: MHTA of SIM, ETA and TWIN; Eq. 9-11 of the LCN paper. No biases, and √(B/H) in every
    head (the paper's √d read as the head's width).

    Args:
        item_width: D.
        width: B, all heads together.
        context: the table of the rows' context codes.
        output: whether heads are mixed by W_O (MHTA) or returned concatenated.
    """

    def __init__(
        self, item_width: int, width: int, heads: int, context: ContextTable, *, output: bool
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"attention width {width} is not a multiple of {heads} heads; see `width` and "
                "`heads` of model.backbone and of model.short"
            )
        self.heads, self.width, self.context = heads, width, context
        row_width = item_width + context.width
        self.query_BD = nn.Parameter(torch.empty(width, item_width))
        self.key_BX = nn.Parameter(torch.empty(width, row_width))
        self.value_BX = nn.Parameter(torch.empty(width, row_width))
        self.output = nn.Linear(width, width, bias=False) if output else None
        for weight in (self.query_BD, self.key_BX, self.value_BX):
            nn.init.xavier_uniform_(weight)

    def scoring(
        self,
        query_CD: Float[Tensor, "C D"],
        time_C: Int[Tensor, " C"],
        heads: int | None = None,
        extra_CB: Float[Tensor, "C B"] | None = None,
    ) -> Scoring:
        """Absorb W_Q and W_K into one query over x per head.

        `heads` re-reads the same projections as another number of heads: with 1, the score is
        √(1/H) times the sum of the heads' (the tied MSA of LAP). `extra_CB` is added to W_Q v.
        """
        heads, width = heads or self.heads, query_CD.shape[1]
        key_HBX = self.key_BX.unflatten(0, (heads, -1))
        # Scaling the small factor rather than the product saves a pass over [C, H, X].
        scaled_HBX = key_HBX / math.sqrt(self.width // heads)
        time_C = time_C if self.context.recency else None  # type: ignore[assignment]
        if extra_CB is None and heads * max(width, self.context.codes) <= FOLDED:
            query_DHD, bias_DHV = self._fold(scaled_HBX, width)
            query_CHD = (query_CD @ query_DHD.flatten(1)).unflatten(1, (heads, -1))
            bias_CHV = (query_CD @ bias_DHV.flatten(1)).view(len(query_CD), *bias_DHV.shape[1:])
            return Scoring(query_CHD, bias_CHV, time_C)
        query_CB = query_CD @ self.query_BD.T
        if extra_CB is not None:
            query_CB = query_CB + extra_CB
        query_CHB = query_CB.unflatten(1, (heads, -1))
        absorbed_CHX = torch.einsum("chb,hbx->chx", query_CHB, scaled_HBX)
        query_CHD, bias_CHV = self._split(absorbed_CHX, width)
        return Scoring(query_CHD.contiguous(), bias_CHV, time_C)

    def _fold(self, scaled_HBX: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """W_Qᵀ W_K of every head, and what it makes of every code: no candidate is needed."""
        heads = len(scaled_HBX)
        query_HBD = self.query_BD.unflatten(0, (heads, -1))
        return self._split((query_HBD.mT @ scaled_HBX).transpose(0, 1), width)

    def _split(self, absorbed_CHX: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The part of the item vector, and one number for each code from the others."""
        rest = absorbed_CHX.shape[-1] - width
        query_CHD, context_CHX = absorbed_CHX.split([width, rest], -1)
        fields = len(self.context.sizes)
        if not fields:
            return query_CHD, query_CHD.new_zeros(*query_CHD.shape[:2], 0)
        return query_CHD, self.context.dot(context_CHX.unflatten(-1, (fields, -1)))

    def values(self, pool: Pool) -> Float[Tensor, "C B"]:
        """Project pooled rows: W_V per head, heads concatenated, W_O if there is one."""
        mixing = None if self.output is None else self.output.weight
        return project_values(pool, self.context, self.value_BX, mixing)

    def forward(
        self,
        rows: HistoryRows,
        selection: Selection,
        query_CD: Float[Tensor, "C D"],
        time_C: Int[Tensor, " C"],
    ) -> Float[Tensor, "C B"]:
        """Attend with softmax; a candidate without rows gets the zero vector."""
        return self.attend(rows, selection, query_CD, time_C)[0]

    def attend(
        self,
        rows: HistoryRows,
        selection: Selection,
        query_CD: Float[Tensor, "C D"],
        time_C: Int[Tensor, " C"],
        *,
        heads: int | None = None,
        norm: Norm = "softmax",
        keep: int = 0,
    ) -> tuple[Float[Tensor, "C B"], Int[Tensor, "C K"] | None]:
        """Attend, and find the `keep` best rows by the first head; `heads` as in `scoring`."""
        if norm == "softmax":
            asked = Asked(query_CD, time_C, heads or self.heads, keep)
            answer = attend_request(self, rows, selection, asked)
            if answer is not None:
                return answer
        pool = selection.pool(rows, self.scoring(query_CD, time_C, heads), norm, keep)
        return self.values(pool), pool.kept_CK
