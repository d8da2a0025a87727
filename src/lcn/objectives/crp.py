"""CRP, cross representation production: contrastive alignment of both domains' item vectors.

Positive pairs, one of each type per user: two target items (PT), two source items (PS), one of
each domain (PC), all from the user's short-term histories. Negative pairs join two users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcn.config import Config as BaseConfig
from lcn.objectives.base import Objective, View
from lcn.objectives.contrast import cosine_rows, draw_rows, info_nce, unit


@dataclass(frozen=True, slots=True)
class Pairs:
    """Positive pairs, one per user; positions on the batch's item axis, -1 for "no pair"."""

    first_U: Int[Tensor, " U"]
    second_U: Int[Tensor, " U"]

    @property
    def valid_U(self) -> Tensor:
        """Users that have such a pair."""
        return (self.first_U >= 0) & (self.second_U >= 0)


class Crp(Objective):
    """L_CRP = l_PT L_PT + l_PS L_PS + l_PC L_PC.

    Source: LCN (arXiv 2312.06424), section 4.1, Eq. 3-6.
    Forms (docs/paper.md): `paper` is Eq. 3-5 as written, negative pairs shared by the batch and no
    positive in the denominator; `anchored` gives each positive the negatives of its own anchor;
    `infonce` adds the positive to the denominator.
    Deviations: a user counts once per batch; negatives that are the anchor's own item are masked.
    """

    class Config(BaseConfig):
        """Settings; the paper states none of the values."""

        name: Literal["crp"] = "crp"
        weight: float = 0.001
        """λ_CRP. Larger weights overrule the click loss on small-norm vectors."""
        form: Literal["paper", "anchored", "infonce"] = "infonce"
        temperature: float = 0.1
        weight_pt: float = 1.0
        weight_ps: float = 1.0
        weight_pc: float = 1.0
        negatives: int = 0
        """M of the `paper` form; 0 takes one per positive."""
        warmup: int = 0
        """Steps over which the weight rises linearly from 0."""

    def __init__(self, config: Crp.Config) -> None:
        super().__init__()
        self.config = config
        self.weight = config.weight

    def forward(self, view: View) -> Float[Tensor, ""]:
        """Sum of the three weighted terms; see the class."""
        config = self.config
        target_U2, source_U2 = view.user_spans()
        target = _draw_pair(view.batch.target.item_T, target_U2, view.generator)
        source = _draw_pair(view.batch.source.item_T, source_U2, view.generator)
        cross = Pairs(
            _draw_item(view.batch.target.item_T, target_U2, view.generator),
            _draw_item(view.batch.source.item_T, source_U2, view.generator),
        )
        total = view.item_ID.sum() * 0.0
        terms = ((config.weight_pt, target), (config.weight_ps, source), (config.weight_pc, cross))
        for weight, pairs in terms:
            if weight:
                total = total + weight * self.contrast(pairs, view.item_ID, view.generator)
        rise = min((view.step + 1) / config.warmup, 1.0) if config.warmup else 1.0
        return rise * total

    def contrast(
        self, pairs: Pairs, item_ID: Float[Tensor, "I D"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """One of L_PT, L_PS, L_PC; 0 when fewer than two users have a pair."""
        user_V = pairs.valid_U.nonzero()[:, 0]
        if len(user_V) < 2:
            return item_ID.sum() * 0.0
        first_V, second_V = pairs.first_U[user_V], pairs.second_U[user_V]
        x_VD, y_VD = item_ID[first_V], item_ID[second_V]
        positive_V = cosine_rows(x_VD, y_VD) / self.config.temperature
        if self.config.form == "paper":
            return self._shared_negatives(positive_V, x_VD, y_VD, generator)
        logit_VV = unit(x_VD) @ unit(y_VD).T / self.config.temperature
        same_user_VV = torch.eye(len(user_V), dtype=torch.bool, device=item_ID.device)
        same_item_VV = first_V[:, None] == second_V[None, :]
        allowed_VV = ~(same_user_VV | same_item_VV)
        if self.config.form == "infonce":
            return info_nce(logit_VV, allowed_VV, positive_V).mean()
        has_negative_V = allowed_VV.any(1)
        # Anchors without any negative would have log 0; they are left out of the mean.
        safe_VV = logit_VV.masked_fill(~allowed_VV, -torch.inf)[has_negative_V]
        loss_V = torch.logsumexp(safe_VV, 1) - positive_V[has_negative_V]
        return loss_V.sum() / max(len(loss_V), 1)

    def _shared_negatives(
        self, positive_V: Tensor, x_VD: Tensor, y_VD: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Eq. 3-5 to the letter: M cross-user pairs that every positive of the batch shares."""
        users = len(x_VD)
        count = self.config.negatives or users
        i_M = torch.arange(count, device=x_VD.device) % users
        shift_M = torch.randint(1, users, (count,), generator=generator)
        negative_M = cosine_rows(x_VD[i_M], y_VD[(i_M + shift_M) % users])
        log_sum = torch.logsumexp(negative_M / self.config.temperature, 0)
        return log_sum - positive_V.mean()


def chance_level(negatives: int, form: Literal["paper", "anchored", "infonce"]) -> float:
    """The loss of vectors that know nothing (all cosines 0): log M, or log(1 + M)."""
    return math.log(negatives + (form == "infonce"))


def _draw_item(item_T: Tensor, span_U2: Tensor, generator: torch.Generator) -> Tensor:
    row_U = draw_rows(span_U2, generator)
    if not len(item_T):
        return row_U
    return torch.where(row_U >= 0, item_T[row_U.clamp(min=0)].long(), -1)


def _draw_pair(item_T: Tensor, span_U2: Tensor, generator: torch.Generator) -> Pairs:
    """Two rows of different items: a few redraws, then the user is left out of the term."""
    first_U = _draw_item(item_T, span_U2, generator)
    second_U = _draw_item(item_T, span_U2, generator)
    for _ in range(8):
        again_U = _draw_item(item_T, span_U2, generator)
        second_U = torch.where(second_U == first_U, again_U, second_U)
    different_U = second_U != first_U
    return Pairs(torch.where(different_U, first_U, -1), torch.where(different_U, second_U, -1))
