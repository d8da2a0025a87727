"""The dull twins: padded gathers in plain PyTorch, any float type, read like the equations.

They materialise [C, N, D] copies of the histories, which is what open frameworks do; they serve
as the definition that fast ops are tested against and as the baseline they are measured against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcn.ops.types import RECENCY_BUCKETS, HistoryRows, Norm, Pool, Scoring


def recency_bucket(elapsed_ms: Tensor) -> Tensor:
    """floor(log2(1 + minutes)) of a time span in milliseconds, from 0 to RECENCY_BUCKETS - 1."""
    minutes = torch.clamp(elapsed_ms, min=0) // 60_000
    bucket = torch.floor(torch.log2(1.0 + minutes.double())).long()
    return bucket.clamp(max=RECENCY_BUCKETS - 1)


def longest(span_C2: Tensor) -> int:
    """Rows of the longest span, at least 1."""
    return max(int((span_C2[:, 1] - span_C2[:, 0]).max()) if len(span_C2) else 0, 1)


def rows_of_span(span_C2: Tensor) -> tuple[Tensor, Tensor]:
    """Row indices [C, N] of each span and a mask [C, N]; N is the longest span, at least 1."""
    step_N = torch.arange(longest(span_C2), device=span_C2.device)
    mask_CN = step_N < (span_C2[:, 1] - span_C2[:, 0])[:, None]
    row_CN = torch.where(mask_CN, span_C2[:, :1] + step_N, 0)
    return row_CN, mask_CN


def score_rows(rows: HistoryRows, row_CN: Tensor, mask_CN: Tensor, scoring: Scoring) -> Tensor:
    """Scores [C, H, N] of the named rows; -inf where the mask is False."""
    return _score(rows, gather_vectors(rows, row_CN), row_CN, mask_CN, scoring)


def gather_vectors(rows: HistoryRows, row_CN: Tensor) -> Tensor:
    """[C, N, D] a copy of each named row's vector; zeros where there are no rows at all."""
    if not len(rows.item_T):
        return rows.vector_ID.new_zeros(*row_CN.shape, rows.vector_ID.shape[1])
    return rows.vector_ID[rows.item_T[row_CN].long()]


def _score(
    rows: HistoryRows, vector_CND: Tensor, row_CN: Tensor, mask_CN: Tensor, scoring: Scoring
) -> Tensor:
    if not len(rows.item_T):
        shape = (*scoring.query_CHD.shape[:2], row_CN.shape[1])
        return scoring.query_CHD.new_full(shape, -torch.inf)
    score_CHN = torch.einsum("chd,cnd->chn", scoring.query_CHD, vector_CND)
    code_CNG = _codes(rows, row_CN, scoring)
    if code_CNG.shape[-1]:
        heads = scoring.query_CHD.shape[1]
        for code_CN in code_CNG.unbind(-1):
            index_CHN = code_CN[:, None, :].expand(-1, heads, -1)
            score_CHN = score_CHN + scoring.bias_CHV.gather(2, index_CHN)
    return score_CHN.masked_fill(~mask_CN[:, None, :], -torch.inf)


def weigh(score_CHN: Tensor, norm: Norm) -> Tensor:
    """Turn scores into weights; masked rows (-inf) weigh exactly nothing, in gradients too."""
    real_CHN = torch.isfinite(score_CHN)
    safe_CHN = score_CHN.masked_fill(~real_CHN, 0.0)
    if norm == "softmax":
        top = safe_CHN.masked_fill(~real_CHN, -torch.inf).amax(-1, keepdim=True)
        top = torch.where(torch.isfinite(top), top, 0.0).detach()
        unnormalised = torch.where(real_CHN, torch.exp(safe_CHN - top), 0.0)
        return unnormalised / unnormalised.sum(-1, keepdim=True).clamp(min=1e-30)
    if norm == "mean":
        return safe_CHN / real_CHN.sum(-1, keepdim=True).clamp(min=1)
    return safe_CHN


def pool_rows(
    rows: HistoryRows, row_CN: Tensor, mask_CN: Tensor, scoring: Scoring, norm: Norm, keep: int
) -> Pool:
    """Score, weigh and sum the named rows; optionally keep the best. See `Pool`."""
    vector_CND = gather_vectors(rows, row_CN)
    score_CHN = _score(rows, vector_CND, row_CN, mask_CN, scoring)
    weight_CHN = weigh(score_CHN, norm)
    if len(rows.item_T):
        vector_CHD = torch.einsum("chn,cnd->chd", weight_CHN, vector_CND)
    else:
        vector_CHD = torch.zeros_like(scoring.query_CHD) + scoring.query_CHD.sum() * 0
    weight_CHV = torch.zeros_like(scoring.bias_CHV)
    if len(rows.item_T):
        for code_CN in _codes(rows, row_CN, scoring).unbind(-1):
            index_CHN = code_CN[:, None, :].expand_as(weight_CHN)
            weight_CHV = weight_CHV.scatter_add(2, index_CHN, weight_CHN)
    kept_CK = select_topk(score_CHN[:, 0].detach(), row_CN, keep) if keep else None
    return Pool(vector_CHD, weight_CHV, kept_CK)


def select_topk(score_CN: Tensor, row_CN: Tensor, k: int) -> Tensor:
    """Keep, for every candidate, its k best-scoring real rows, ties to the later row.

    Masked rows (score -inf) leave the ranking before it starts, so a real row with a negative
    score still beats an empty slot.

    Args:
        score_CN: score of each row, -inf where there is none.
        row_CN: row numbers, in time order along N.
        k: how many to keep.

    Returns:
        kept_CK: row numbers, best first, -1 in empty slots; K is exactly k.

    Raises:
        ValueError: k is less than 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}; leave the stage out to disable it")
    latest_first_CN = score_CN.flip(-1)
    order_CN = latest_first_CN.argsort(dim=-1, descending=True, stable=True)[:, :k]
    best_CK = latest_first_CN.gather(-1, order_CN)
    kept_CK = row_CN.flip(-1).gather(-1, order_CN)
    kept_CK = torch.where(best_CK > -torch.inf, kept_CK, -1)
    missing = k - kept_CK.shape[1]
    return torch.nn.functional.pad(kept_CK, (0, missing), value=-1) if missing else kept_CK


def span_pool(
    rows: HistoryRows, span_C2: Tensor, scoring: Scoring, norm: Norm, keep: int = 0
) -> Pool:
    """`lcn.ops.span_pool`, padded."""
    row_CN, mask_CN = rows_of_span(span_C2)
    return pool_rows(rows, row_CN, mask_CN, scoring, norm, keep)


def kept_pool(
    rows: HistoryRows, kept_CK: Tensor, scoring: Scoring, norm: Norm, keep: int = 0
) -> Pool:
    """`lcn.ops.kept_pool`, padded."""
    row_CK, mask_CK = kept_CK.clamp(min=0), kept_CK >= 0
    # Ties go to the later row, so rows stand in time order, empty slots last.
    order_CK = torch.where(mask_CK, kept_CK, torch.iinfo(kept_CK.dtype).max).argsort(-1)
    return pool_rows(
        rows, row_CK.gather(1, order_CK), mask_CK.gather(1, order_CK), scoring, norm, keep
    )


def span_score(rows: HistoryRows, span_C2: Tensor, scoring: Scoring) -> Tensor:
    """`lcn.ops.span_score`, padded."""
    with torch.no_grad():
        row_CN, mask_CN = rows_of_span(span_C2)
        score_CHN = score_rows(rows, row_CN, mask_CN, scoring)
        return score_CHN.transpose(1, 2)[mask_CN]


def select_span_topk(score_S: Tensor, span_C2: Tensor, k: int) -> Tensor:
    """`lcn.ops.select_span_topk`, padded."""
    row_CN, mask_CN = rows_of_span(span_C2)
    score_CN = score_S.new_full(mask_CN.shape, -torch.inf)
    score_CN[mask_CN] = score_S
    return select_topk(score_CN, row_CN, k)


def _codes(rows: HistoryRows, row_CN: Tensor, scoring: Scoring) -> Tensor:
    """Code columns [C, N, G or G + 1] of the named rows, the recency bucket last."""
    code_CNG = rows.code_TG[row_CN].long()
    if scoring.time_C is None:
        return code_CNG
    elapsed_CN = scoring.time_C[:, None] - rows.time_T[row_CN]
    first = scoring.bias_CHV.shape[2] - RECENCY_BUCKETS
    return torch.cat([code_CNG, (first + recency_bucket(elapsed_CN))[..., None]], -1)
