"""Target attention of a request: hundreds of candidates, one user, one moment, no gradient.

Elsewhere projections are absorbed into the candidates, because a row is seen by few of them. Here
it is cheaper the other way round. Where all candidates see the same few rows (short-term interest),
keys and values are computed with every weight multiplied in, and two products with them are left.
Where each has rows of its own, keys and values of all rows are computed once, and a row costs a
candidate B multiply-adds in place of H D.
Shapes: N rows, Y = 2 B, C candidates, H heads, V codes, X = D + context width of a row, B attention
width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcn import ops
from lcn.ops import RECENCY_BUCKETS, HistoryRows
from lcn.ops.projected import ProjectedRows, attend_listed
from lcn.ops.reference import recency_bucket

if TYPE_CHECKING:
    from lcn.nn.attention import ContextTable, Selection, TargetAttention

_FEWEST = 64
"""Candidates below which projecting rows does not pay."""
_MOST = 1 << 19
"""Scores: two megabytes, which stay in the second-level cache."""
_READ = 4
"""Times a row must be read so that projecting it costs less than it saves."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What candidates ask an attention."""

    query_CD: Float[Tensor, "C D"]
    time_C: Int[Tensor, " C"]
    heads: int
    keep: int = 0
    """How many best rows by the first head are wanted."""


Answer = tuple[Float[Tensor, "C B"], Int[Tensor, "C K"]]
"""Projected values, and the best rows as in `lcn.ops.Pool.kept_CK`."""


def attend_request(
    attention: TargetAttention, rows: HistoryRows, selection: Selection, asked: Asked
) -> Answer | None:
    """`TargetAttention.attend` for a request; None where it does not apply: with gradients,
    for candidates of several histories or moments, or for few of them.

    On the CPU only: a GPU would have to be asked whether spans and times are equal. In single
    precision only, which is what the kernels for listed rows know.
    """
    count, time_C = len(asked.query_CD), asked.time_C
    if torch.is_grad_enabled() or count < _FEWEST or ops.implementation() == "reference":
        return None
    if asked.query_CD.device.type != "cpu" or asked.query_CD.dtype != torch.float32:
        return None
    if not bool((time_C == time_C[0]).all()):
        return None
    if selection.kept_CK is not None:
        reads = _READ * len(rows.item_T) <= selection.kept_CK.numel()
        return _attend_kept(attention, rows, selection.kept_CK, asked) if reads else None
    span_C2 = selection.span_C2
    assert span_C2 is not None
    lo, hi = span_C2[0].tolist()
    few = 0 < hi - lo <= min(count, _MOST // (count * asked.heads)) and not asked.keep
    if not few or not bool((span_C2 == span_C2[0]).all()):
        return None
    return _attend_span(attention, rows, slice(lo, hi), asked), span_C2[:, :0]


def _attend_span(
    attention: TargetAttention, rows: HistoryRows, span: slice, asked: Asked
) -> Tensor:
    """All candidates see the same rows."""
    context, heads, query_CD = attention.context, asked.heads, asked.query_CD
    vector_ND = rows.vector_ID[rows.item_T[span].long()].float()
    code_NE = _codes(context, rows, asked.time_C[0], span)
    row_NX = torch.cat([vector_ND, context.embedding_VE[code_NE].flatten(1)], 1)
    key_HNB = (row_NX @ attention.key_BX.T * _scale(attention, heads)).unflatten(1, (heads, -1))
    query_HBD = attention.query_BD.unflatten(0, (heads, -1))
    key_QD = (key_HNB.transpose(0, 1) @ query_HBD).flatten(0, 1)
    weight_CHN = (query_CD @ key_QD.T).unflatten(1, (heads, -1)).softmax(-1)
    value_HNB = (row_NX @ attention.value_BX.T).unflatten(1, (heads, -1)).transpose(0, 1)
    if attention.output is None:
        return torch.einsum("chn,hnb->chb", weight_CHN, value_HNB).flatten(1)
    mixing_HBB = attention.output.weight.T.unflatten(0, (heads, -1))
    return weight_CHN.flatten(1) @ (value_HNB @ mixing_HBB).flatten(0, 1)


def _attend_kept(
    attention: TargetAttention, rows: HistoryRows, kept_CK: Tensor, asked: Asked
) -> Answer:
    """Each candidate sees rows of its own."""
    context, width = attention.context, asked.query_CD.shape[1]
    scale = _scale(attention, asked.heads)
    weight_YX = torch.cat([attention.key_BX * scale, attention.value_BX])
    projected = ProjectedRows(
        rows.vector_ID.float() @ weight_YX[:, :width].T,
        _project_codes(context, weight_YX[:, width:]),
        rows.item_T,
        _codes(context, rows, asked.time_C[0], slice(None)),
    )
    query_CB = asked.query_CD @ attention.query_BD.T
    answer_CB, best_CK = attend_listed(projected, kept_CK, query_CB, asked.heads, asked.keep)
    if attention.output is not None:
        answer_CB = attention.output(answer_CB)
    return answer_CB, best_CK.to(kept_CK.dtype)


def _scale(attention: TargetAttention, heads: int) -> float:
    return 1 / math.sqrt(attention.width // heads)


def _codes(context: ContextTable, rows: HistoryRows, now: Tensor, span: slice) -> Tensor:
    """Codes of the rows, their recency's last."""
    code_NG = rows.code_TG[span]
    if not context.recency:
        return code_NG
    bucket_N = context.codes - RECENCY_BUCKETS + recency_bucket(now - rows.time_T[span])
    return torch.cat([code_NG, bucket_N[:, None].to(code_NG.dtype)], 1)


def _project_codes(context: ContextTable, weight_YX: Tensor) -> Float[Tensor, "V Y"]:
    """What each code adds to a projected row."""
    if not context.sizes:
        return weight_YX.new_zeros(0, len(weight_YX))
    parts = weight_YX.chunk(len(context.sizes), 1)
    tables = context.embedding_VE.split(context.sizes)
    return torch.cat([table @ part.T for table, part in zip(tables, parts, strict=True)])
