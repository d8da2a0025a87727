"""What the pyramid can do beyond the paper: levels that teach one another, a second query, and the
whole history as one vector.

Shapes: C candidates, N rows, K kept rows, Q rows that a second query adds, D item width, V context
codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcn import ops
from lcn.backbones.base import Query
from lcn.ops import HistoryRows, Scoring
from lcn.ops.reference import weigh


def whole_history(
    gain_V: Float[Tensor, " V"],
    rows: HistoryRows,
    span_C2: Int[Tensor, "C 2"],
    query: Query,
    recency: bool,
) -> Float[Tensor, "C 2D"]:
    """FISM's vector of the whole history, u = Σ g_j e_j / √n, and its product with the candidate.

    Args:
        gain_V: what an event's codes add to its weight.
        rows: the history.
        span_C2: each candidate's rows.
        query: the candidates.
        recency: whether the time between event and request is one of the codes.
    """
    nothing_CHD = torch.zeros_like(query.vector_CD)[:, None]
    gain_CHV = gain_V.expand(len(nothing_CHD), 1, -1).contiguous()
    scoring = Scoring(nothing_CHD, gain_CHV, query.time_C if recency else None)
    pool = ops.span_pool(rows, span_C2, scoring, "raw")
    n_C = (span_C2[:, 1] - span_C2[:, 0]).clamp(min=1)
    vector_CD = pool.vector_CHD[:, 0] / n_C.sqrt()[:, None]
    return torch.cat([vector_CD, query.vector_CD * vector_CD], 1)


def teach_down(score_CHN: Sequence[Float[Tensor, "C H N"]]) -> Float[Tensor, ""]:
    """Σ divergence of each level from the one above it.

    Args:
        score_CHN: each level's scores of the same rows, the lowest level first.
    """
    pairs = zip(score_CHN[1:], score_CHN[:-1], strict=True)
    return torch.stack([divergence(teacher, student[:, 0]) for teacher, student in pairs]).sum()


def divergence(
    teacher_CHN: Float[Tensor, "C H N"], student_CN: Float[Tensor, "C N"]
) -> Float[Tensor, ""]:
    """KL(mean of the teacher's heads ‖ student) over the same rows, averaged over candidates.

    The teacher does not move. Candidates without rows count nothing.

    Args:
        teacher_CHN: scores; -inf where there is no row.
        student_CN: scores of the same rows.
    """
    real_CN = torch.isfinite(teacher_CHN[:, 0])
    with torch.no_grad():
        weight_CN = weigh(teacher_CHN, "softmax").mean(1)
        entropy = torch.special.entr(weight_CN).sum()
    safe_CN = student_CN.masked_fill(~real_CN, torch.finfo(student_CN.dtype).min)
    surprise_CN = -torch.log_softmax(safe_CN, 1).masked_fill(~real_CN, 0.0)
    count = real_CN.any(1).sum().clamp(min=1)
    return ((weight_CN * surprise_CN).sum() - entropy) / count


def unite(
    first_CK: Int[Tensor, "C K"], second_CK: Int[Tensor, "C N"], extra: int
) -> Int[Tensor, "C K"]:
    """The first query's rows, then up to `extra` rows that only the second one ranks highest.

    Args:
        first_CK: rows, best first, -1 in empty slots at the end.
        second_CK: the second query's ranking, likewise; long enough that `extra` rows are new.
        extra: rows to add.
    """
    new_CN = is_new(first_CK, second_CK)
    place_CN = (~new_CN).to(torch.int8).argsort(dim=1, stable=True)[:, :extra]
    added_CQ = torch.where(new_CN.gather(1, place_CN), second_CK.gather(1, place_CN), -1)
    return torch.cat([first_CK, added_CQ], 1)


def is_new(first_CK: Int[Tensor, "C K"], second_CN: Int[Tensor, "C N"]) -> Bool[Tensor, "C N"]:
    """Whether each of the second rows is a row and none of the first ones."""
    known_CN = (second_CN[:, :, None] == first_CK[:, None, :]).any(-1)
    return ~known_CN & (second_CN >= 0)
