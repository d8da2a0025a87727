"""Pieces of contrastive losses that several objectives share.

Shapes: U users (or anchors), M candidates of the contrast, D width, N items, F item fields.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcn.nn.unit import unit


def cosine_rows(a_UD: Float[Tensor, "U D"], b_UD: Float[Tensor, "U D"]) -> Float[Tensor, " U"]:
    """Cosine of row pairs; a zero vector has cosine 0 and no gradient."""
    return (unit(a_UD) * unit(b_UD)).sum(-1)


def info_nce(
    logit_UM: Float[Tensor, "U M"],
    allowed_UM: Bool[Tensor, "U M"],
    positive_U: Float[Tensor, " U"],
) -> Float[Tensor, " U"]:
    """-log( e^positive / (e^positive + Σ_allowed e^logit) ) per anchor, through logsumexp."""
    others_UM = logit_UM.masked_fill(~allowed_UM, -torch.inf)
    total_U = torch.logsumexp(torch.cat([positive_U[:, None], others_UM], 1), 1)
    return total_U - positive_U


def mean_or_zero(loss_N: Float[Tensor, " N"], valid_N: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean over valid entries; 0 with zero gradient when there is none."""
    return loss_N[valid_N].sum() / valid_N.sum().clamp(min=1)


def item_key(field_NF: Int[Tensor, "N F"]) -> Int[Tensor, " N"]:
    """A number for what an item looks like to the model: equal for items of equal fields.

    Two addresses outside the vocabulary may share every field; their vectors are the same, so
    one must not be the other's negative. A 64-bit hash: clashes are as good as impossible.
    """
    key_N = torch.zeros(len(field_NF), dtype=torch.int64, device=field_NF.device)
    for field_N in field_NF.long().unbind(1):
        key_N = (key_N ^ (key_N >> 29)) * 6364136223846793005 + field_N + 1442695040888963407
    return key_N
