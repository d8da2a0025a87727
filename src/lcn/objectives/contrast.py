"""Pieces of contrastive losses that several objectives share.

Shapes: U users (or anchors), M negatives, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cosine_rows(a_UD: Float[Tensor, "U D"], b_UD: Float[Tensor, "U D"]) -> Float[Tensor, " U"]:
    """Cosine of row pairs; a zero vector has cosine 0 and no gradient."""
    return (unit(a_UD) * unit(b_UD)).sum(-1)


def unit(x_UD: Float[Tensor, "U D"]) -> Float[Tensor, "U D"]:
    """Rows scaled to length 1; rows shorter than 1e-8 stay (nearly) zero instead of NaN."""
    return x_UD / x_UD.norm(dim=-1, keepdim=True).clamp(min=1e-8)


def info_nce(
    logit_UU: Float[Tensor, "U U2"],
    allowed_UU: Bool[Tensor, "U U2"],
    positive_U: Float[Tensor, " U"],
) -> Float[Tensor, " U"]:
    """-log( e^positive / (e^positive + Σ_allowed e^logit) ) per anchor, through logsumexp."""
    others_UU = logit_UU.masked_fill(~allowed_UU, -torch.inf)
    total_U = torch.logsumexp(torch.cat([positive_U[:, None], others_UU], 1), 1)
    return total_U - positive_U


def draw_rows(span_U2: Int[Tensor, "U 2"], generator: torch.Generator) -> Int[Tensor, " U"]:
    """One uniform row of each span; -1 where the span is empty."""
    length_U = span_U2[:, 1] - span_U2[:, 0]
    uniform_U = torch.rand(len(span_U2), generator=generator, dtype=torch.float64)
    row_U = span_U2[:, 0] + (uniform_U * length_U).long()
    return torch.where(length_U > 0, row_U, -1)


def masked_mean(value_U: Float[Tensor, " U"], valid_U: Bool[Tensor, " U"]) -> Float[Tensor, ""]:
    """Mean over valid entries; 0 with zero gradient when there is none."""
    kept_U = torch.where(valid_U, value_U, 0.0)
    return kept_U.sum() / valid_U.sum().clamp(min=1)
