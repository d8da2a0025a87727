"""The dull twins of the ops on codes: padded, in plain PyTorch.

Shapes: as `lcn.ops.simhash`; N rows of the longest span.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lcn.ops.reference import rows_of_span, select_topk

if TYPE_CHECKING:
    from lcn.ops.simhash import Codes, Measure


def distance_CN(codes: Codes, row_CN: Tensor, measure: Measure) -> Tensor:
    """Distance of the named rows, by comparing one byte at a time."""
    if not len(codes.item_T):
        return torch.zeros_like(row_CN)
    code_CNY = codes.code_IY[codes.item_T[row_CN].long()]
    query_C1Y = codes.query_CY[:, None]
    if measure == "bits":
        ones_256 = torch.tensor([byte.bit_count() for byte in range(256)], device=row_CN.device)
        return ones_256[(code_CNY ^ query_C1Y).long()].sum(-1)
    differing_CN = (code_CNY != query_C1Y).sum(-1)
    return differing_CN if measure == "bytes" else differing_CN.clamp(max=1)


def code_topk(codes: Codes, span_C2: Tensor, keep: int, measure: Measure, farthest: int) -> Tensor:
    """`lcn.ops.simhash.code_topk`, padded."""
    row_CN, mask_CN = rows_of_span(span_C2)
    distance = distance_CN(codes, row_CN, measure)
    score_CN = (-distance.double()).masked_fill(~mask_CN | (distance > farthest), -torch.inf)
    return select_topk(score_CN, row_CN, keep)


def code_distance(codes: Codes, span_C2: Tensor, measure: Measure) -> Tensor:
    """`lcn.ops.simhash.code_distance`, padded."""
    row_CN, mask_CN = rows_of_span(span_C2)
    return distance_CN(codes, row_CN, measure)[mask_CN]


def bucket_sum(vector_ID: Tensor, codes: Codes, span_C2: Tensor) -> tuple[Tensor, Tensor]:
    """`lcn.ops.bucket_sum.bucket_sum` from the boolean collisions [C, N, G]."""
    row_CN, mask_CN = rows_of_span(span_C2)
    candidates, groups = codes.query_CY.shape
    if not len(codes.item_T):
        nothing = vector_ID.sum() * 0
        empty = vector_ID.new_zeros(candidates, groups, vector_ID.shape[1]) + nothing
        return empty, vector_ID.new_zeros(candidates)
    item_CN = codes.item_T[row_CN].long()
    hit_CNG = (codes.code_IY[item_CN] == codes.query_CY[:, None]) & mask_CN[..., None]
    sum_CGD = torch.einsum("cng,cnd->cgd", hit_CNG.to(vector_ID.dtype), vector_ID[item_CN])
    return sum_CGD, hit_CNG.sum(-1).square().sum(-1).to(vector_ID.dtype)


def merge_heads(kept_CHK: Tensor, mean_CHK: Tensor, keep: int) -> Tensor:
    """`lcn.ops.merge_heads.merge_heads`, by sorting (rank, -mean, -row) and dropping repeats."""
    candidates, heads, per_head = kept_CHK.shape
    row_CL = kept_CHK.transpose(1, 2).flatten(1)
    mean_CL = mean_CHK.transpose(1, 2).flatten(1)
    rank_CL = torch.arange(per_head, device=row_CL.device).repeat_interleave(heads)
    rank_CL = rank_CL.expand(candidates, -1)
    columns = [row_CL, mean_CL, rank_CL]
    for key, descending in enumerate((True, True, False)):
        order_CL = columns[key].argsort(dim=1, descending=descending, stable=True)
        columns = [column_CL.gather(1, order_CL) for column_CL in columns]
    row_CL = columns[0]
    earlier_CLL = (row_CL[:, :, None] == row_CL[:, None, :]).tril(-1)
    fresh_CL = ~earlier_CLL.any(-1) & (row_CL >= 0)
    order_CL = (~fresh_CL).to(torch.int8).argsort(dim=1, stable=True)
    kept_CL = torch.where(fresh_CL, row_CL, -1).gather(1, order_CL)[:, :keep]
    missing = keep - kept_CL.shape[1]
    return torch.nn.functional.pad(kept_CL, (0, missing), value=-1) if missing > 0 else kept_CL
