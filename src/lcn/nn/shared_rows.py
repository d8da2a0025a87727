"""Target attention where many candidates ask the same few rows: a request's short-term interest.

Elsewhere projections are absorbed into the candidates, because a row is seen by few of them. Here
keys and values of some fifty rows are computed once, with every weight multiplied in, and what is
left per candidate are two products with them: no query per head, no bias per code, no pooled row.
Shapes: N rows, C candidates, H heads, X = D + context width of a row, B attention width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcn import ops
from lcn.ops import RECENCY_BUCKETS, HistoryRows
from lcn.ops.reference import recency_bucket

if TYPE_CHECKING:
    from lcn.nn.attention import ContextTable, TargetAttention

_FEWEST = 64
"""Candidates below which projecting rows does not pay."""
_MOST = 1 << 19
"""Scores: two megabytes, which stay in the second-level cache."""


def shared_span(
    attention: TargetAttention,
    rows: HistoryRows,
    span_C2: Int[Tensor, "C 2"],
    time_C: Int[Tensor, " C"],
) -> tuple[int, int] | None:
    """The span that all candidates share, where answering them together pays; None elsewhere.

    Without gradients on the CPU only: training has few candidates of a user, and a GPU would have
    to be asked whether spans are equal.
    """
    count = len(span_C2)
    if torch.is_grad_enabled() or count < _FEWEST or ops.implementation() == "reference":
        return None
    if rows.vector_ID.device.type != "cpu":
        return None
    lo, hi = span_C2[0].tolist()
    if not 0 < hi - lo <= min(count, _MOST // (count * attention.heads)):
        return None
    same = bool((span_C2 == span_C2[0]).all())
    if attention.context.recency:
        same = same and bool((time_C == time_C[0]).all())
    return (lo, hi) if same else None


def attend_shared(
    attention: TargetAttention,
    rows: HistoryRows,
    span: tuple[int, int],
    query_CD: Float[Tensor, "C D"],
    time_C: Int[Tensor, " C"],
) -> Float[Tensor, "C B"]:
    """`TargetAttention.forward` of candidates that share a span, which is not empty, and a time."""
    heads = attention.heads
    row_NX = _rows(attention.context, rows, span, time_C)
    scale = 1 / math.sqrt(attention.width // heads)
    key_HNB = (row_NX @ attention.key_BX.T * scale).unflatten(1, (heads, -1)).transpose(0, 1)
    query_HBD = attention.query_BD.unflatten(0, (heads, -1))
    key_QD = (key_HNB @ query_HBD).flatten(0, 1)
    score_CHN = (query_CD @ key_QD.T).unflatten(1, (heads, -1))
    weight_CHN = score_CHN.softmax(-1)
    value_HNB = (row_NX @ attention.value_BX.T).unflatten(1, (heads, -1)).transpose(0, 1)
    if attention.output is None:
        return torch.einsum("chn,hnb->chb", weight_CHN, value_HNB).flatten(1)
    mixing_HBB = attention.output.weight.T.unflatten(0, (heads, -1))
    return weight_CHN.flatten(1) @ (value_HNB @ mixing_HBB).flatten(0, 1)


def _rows(
    context: ContextTable, rows: HistoryRows, span: tuple[int, int], time_C: Tensor
) -> Float[Tensor, "N X"]:
    """Rows as vectors [item ‖ context fields ‖ recency]."""
    part = slice(*span)
    vector_ND = rows.vector_ID[rows.item_T[part].long()].float()
    code_NG = rows.code_TG[part].long()
    if context.recency:
        first = context.codes - RECENCY_BUCKETS
        bucket_N = first + recency_bucket(time_C[0] - rows.time_T[part])
        code_NG = torch.cat([code_NG, bucket_N[:, None]], 1)
    return torch.cat([vector_ND, context.embedding_VE[code_NG].flatten(1)], 1)
