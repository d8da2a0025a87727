"""CRP, cross representation production: contrastive alignment of both domains' item vectors.

Positive pairs, one of each type per user: two target items (PT), two source items (PS), one of
each domain (PC), all from the user's short-term histories. Negative pairs join two users.
Shapes: U users, L places of a short-term history, V users with a positive pair, M negative pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from lcn.config import Config as BaseConfig
from lcn.data.batch import Rows
from lcn.nn.unit import unit
from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.contrast import cosine_rows
from lcn.objectives.draw import below, pick, pick_one
from lcn.objectives.in_batch import in_batch_contrast
from lcn.objectives.kinds import index_of, read_values
from lcn.objectives.stream import newest_rows


@dataclass(frozen=True, slots=True)
class Pairs:
    """Positive pairs, one per user; positions on the batch's item axis, -1 for "no pair"."""

    first_U: Int[Tensor, " U"]
    second_U: Int[Tensor, " U"]

    @property
    def valid_U(self) -> Bool[Tensor, " U"]:
        """Users that have such a pair."""
        return (self.first_U >= 0) & (self.second_U >= 0)


class LikedConfig(BaseConfig):
    """Which events say that the user liked the item, by an event context field."""

    field: str = ""
    """Empty: all events."""
    values: tuple[str, ...] = ()
    """As in the logs."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> LikedConfig:
        if bool(self.field) != bool(self.values):
            raise ValueError("liked needs both field and values, or neither")
        return self


class Crp(Objective):
    """L_CRP = l_PT L_PT + l_PS L_PS + l_PC L_PC.

    Forms (docs/models/crp.md): `paper` is Eq. 3-5 as written, negative pairs shared by the batch
    and no positive in the denominator; `anchored` gives each positive the negatives of its own
    anchor; `infonce` adds the positive to the denominator.
    Deviations: a user counts once per batch; a negative pair of one item is none, and in the last
    two forms another user's item that equals either member of the positive is no negative.
    """

    source = "LCN (Cross Representation Production), KDD 2024, arXiv 2312.06424, Eq. 3-6"
    assumes = "users with short-term events in both domains; several users in a batch"

    class Config(BaseConfig):
        """Settings; the paper states none of the values."""

        name: Literal["crp"] = "crp"
        weight: NonNegativeFloat = 0.1
        """λ_CRP."""
        form: Literal["paper", "anchored", "infonce"] = "infonce"
        temperature: PositiveFloat = 1.0
        """τ. Where a user's items are only a little likelier to meet than any others, a small τ
        makes equal directions of all vectors the best answer (docs/models/crp.md)."""
        weight_pt: NonNegativeFloat = 1.0
        weight_ps: NonNegativeFloat = 1.0
        weight_pc: NonNegativeFloat = 1.0
        negatives: NonNegativeInt = 0
        """M of the `paper` form; 0 takes one per positive."""
        pairs: PositiveInt = 8
        """Positive pairs of each type that a user gives per batch: so many draws of one each,
        contrasted draw by draw."""
        liked: LikedConfig = LikedConfig()
        """Only these events give positive pairs, where histories also hold what was merely shown:
        `{field: is_click, values: ["1"]}`."""
        warmup: NonNegativeInt = 0
        """Steps over which the weight rises linearly from 0."""
        decay: NonNegativeInt = 0
        """Steps after the warm-up over which it falls linearly to 0 again; 0 keeps it."""

    def __init__(self, config: Crp.Config, setup: Setup) -> None:
        super().__init__()
        self.config = config
        self.weight = config.weight
        self.liked_field = -1
        if config.liked.field:
            liked = config.liked
            self.liked_field, index = read_values(setup, liked.field, "liked")
            codes = [index_of(index, liked.field, value, "liked") for value in liked.values]
            self.liked_V: Tensor
            self.register_buffer("liked_V", torch.tensor(codes), persistent=False)

    def forward(self, view: View) -> Float[Tensor, ""]:
        """Sum of the three weighted terms; see the class."""
        config, batch, latest_U = self.config, view.batch, view.latest_candidates()
        target_UL = self._items(batch.target, batch.short_target_C2[latest_U])
        source_UL = self._items(batch.source, batch.short_source_C2[latest_U])
        total = view.zero()
        for weight, first_UL, second_UL in (
            (config.weight_pt, target_UL, target_UL),
            (config.weight_ps, source_UL, source_UL),
            (config.weight_pc, target_UL, source_UL),
        ):
            if weight:
                total = total + weight * self._term(first_UL, second_UL, view)
        return self.share(view.step) * total

    def share(self, step: int) -> float:
        """The share of the weight that is in force at a step."""
        config, after = self.config, max(step + 1 - self.config.warmup, 0)
        rise = min((step + 1) / config.warmup, 1.0) if config.warmup else 1.0
        return rise * (max(1 - after / config.decay, 0.0) if config.decay else 1.0)

    def _items(self, rows: Rows, span_U2: Tensor) -> Tensor:
        """Items of short-term histories, those that were liked; -1 elsewhere and behind them."""
        row_UL = newest_rows(span_U2)
        if not len(rows.item_T):
            return row_UL[:, :0]
        at_UL = row_UL.clamp(min=0)
        real_UL = row_UL >= 0
        if self.liked_field >= 0:
            kind_UL = rows.context_TG[at_UL, self.liked_field]
            real_UL &= torch.isin(kind_UL, self.liked_V.to(kind_UL.dtype))
        return torch.where(real_UL, rows.item_T[at_UL].long(), -1)

    def _term(self, first_UL: Tensor, second_UL: Tensor, view: View) -> Tensor:
        """One of L_PT, L_PS, L_PC; 0 without a positive or without a negative."""
        repeats = (self.config.pairs, 1)
        first_PL = first_UL.repeat(repeats)
        second_PL = first_PL if second_UL is first_UL else second_UL.repeat(repeats)
        pairs = draw_pairs(first_PL, second_PL, view)
        if not pairs.valid_U.any():
            return view.zero()
        if self.config.form != "paper":
            return self._anchored(pairs, view)
        count = self.config.negatives or int(pairs.valid_U.sum())
        a_M, b_M = draw_negatives(first_UL, second_UL, count, view.generator)
        # An item is no negative of itself; without a gradient it would rule the whole sum.
        key_I = view.item_keys()
        other_M = key_I[a_M] != key_I[b_M]
        a_M, b_M = a_M[other_M], b_M[other_M]
        if not len(a_M):
            return view.zero()
        item_ID, tau = view.item_ID, self.config.temperature
        valid_U = pairs.valid_U
        first_V, second_V = pairs.first_U[valid_U], pairs.second_U[valid_U]
        positive_V = cosine_rows(item_ID[first_V], item_ID[second_V]) / tau
        negative_M = cosine_rows(item_ID[a_M], item_ID[b_M]) / tau
        return torch.logsumexp(negative_M, 0) - positive_V.mean()

    def _anchored(self, pairs: Pairs, view: View) -> Tensor:
        """The second members of other users' positives of the same draw are each anchor's
        negatives."""
        shape = (self.config.pairs, len(pairs.first_U) // self.config.pairs)
        first_U, second_U = (item_U.clamp(min=0) for item_U in (pairs.first_U, pairs.second_U))
        # Of keys only their being equal matters: as small numbers they are cheap to compare.
        key_I = view.item_keys().unique(return_inverse=True)[1].int()
        unit_ID = unit(view.item_ID)
        return in_batch_contrast(
            unit_ID.index_select(0, first_U).view(*shape, -1),
            unit_ID.index_select(0, second_U).view(*shape, -1),
            key_I[first_U].view(shape),
            key_I[second_U].view(shape),
            pairs.valid_U.view(shape),
            self.config.temperature,
            with_positive=self.config.form == "infonce",
        )


def draw_pairs(first_UL: Int[Tensor, "U L"], second_UL: Int[Tensor, "U M"], view: View) -> Pairs:
    """One positive pair per user: a uniform place of the first history, then one of the second.

    Within one history (PT, PS) the second place is uniform over those of another item.
    """
    key_I = view.item_keys()
    first_U = _item_at(first_UL, pick_one(first_UL >= 0, view.generator))
    valid_UM = second_UL >= 0
    if first_UL is second_UL and len(key_I):
        first_key_U = key_I[first_U.clamp(min=0)]
        valid_UM = valid_UM & (key_I[second_UL.clamp(min=0)] != first_key_U[:, None])
    second_U = _item_at(second_UL, pick_one(valid_UM, view.generator))
    return Pairs(first_U, second_U)


def draw_negatives(
    first_UL: Int[Tensor, "U L"],
    second_UL: Int[Tensor, "U M"],
    count: int,
    generator: torch.Generator,
) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """Negative pairs shared by the batch: items of two different users each.

    The first user is uniform among those with a first history, the second among the *other* users
    with a second one; then a uniform place of each.

    Returns:
        a_M, b_M: items; fewer than `count` (or none) where a first user has no counterpart.
    """
    first_A = (first_UL >= 0).any(1).nonzero()[:, 0]
    second_B = (second_UL >= 0).any(1).nonzero()[:, 0]
    if not len(first_A) or not len(second_B):
        return first_A[:0], second_B[:0]
    user_M = first_A[pick(count, len(first_A), generator)]
    # Skipping the first user's own place keeps the draw over the others uniform.
    own_M = torch.searchsorted(second_B, user_M)
    is_own_M = second_B[own_M.clamp(max=len(second_B) - 1)] == user_M
    others_M = len(second_B) - is_own_M.long()
    place_M = below(others_M, generator)
    place_M = place_M + (is_own_M & (place_M >= own_M)).long()
    possible_M = others_M > 0
    user_M, other_M = user_M[possible_M], second_B[place_M[possible_M]]
    a_UL, b_UL = first_UL[user_M], second_UL[other_M]
    return (
        _item_at(a_UL, pick_one(a_UL >= 0, generator)),
        _item_at(b_UL, pick_one(b_UL >= 0, generator)),
    )


def _item_at(item_UL: Tensor, place_U: Tensor) -> Tensor:
    if not item_UL.shape[1]:
        return place_U
    found_U = item_UL.gather(1, place_U.clamp(min=0)[:, None])[:, 0]
    return torch.where(place_U >= 0, found_U, -1)
