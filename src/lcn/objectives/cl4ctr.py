"""CL4CTR: contrast, alignment and uniformity of the click model's own field embeddings.

Shapes: C candidates, U users, F fields, E width of a field, L places of a short-term history.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from lcn.config import Config as BaseConfig
from lcn.config import Share
from lcn.data.batch import Rows
from lcn.errors import ConfigError
from lcn.nn.unit import unit
from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.draw import pick_one, uniform
from lcn.objectives.encoder import EncoderConfig, Transformer
from lcn.objectives.stream import newest_rows


class Cl4Ctr(Objective):
    """L = L_cl + β (L_ali + L_uni), over the fields of each sample.

    L_cl = mean ‖P1(FI(x¹)) - P2(FI(x²))‖², x¹ and x² two random maskings of x; L_ali draws the
    values of one field together, L_uni turns the values of different fields apart.
    Fields: the candidate's item and candidate-only fields, the profile, and per domain the mean of
    the user's short-term items and one of them.
    Deviations: L_ali and L_uni are over the batch, in closed form, not over whole tables; the
    layout error of the published code (samples mixed before the projector) is not repeated.
    """

    source = "CL4CTR, WSDM 2023, arXiv 2212.00522"
    assumes = "categorical fields; model.field_width equal to model.width"

    class Config(BaseConfig):
        """Settings; the published code's."""

        name: Literal["cl4ctr"] = "cl4ctr"
        weight: NonNegativeFloat = 1.0
        """α, of L_cl and of what follows."""
        regularise: NonNegativeFloat = 0.01
        """β, of L_ali + L_uni, relative to `weight`."""
        masking: Literal["random", "field", "dimension"] = "random"
        """What is dropped: single elements, whole fields, or the same dimensions of all fields."""
        drop: Share = 0.5
        """Chance of an element (field, dimension) to be dropped."""
        encoder: EncoderConfig = EncoderConfig(layers=3, heads=1, hidden=128, dropout=0.2)
        """FI, the feature interaction encoder."""

    def __init__(self, config: Cl4Ctr.Config, setup: Setup) -> None:
        super().__init__()
        if setup.item_width != setup.field_width:
            raise ConfigError(
                "objective cl4ctr compares item vectors with field embeddings, but model.width is "
                f"{setup.item_width} and model.field_width {setup.field_width}: make them equal"
            )
        self.config, self.weight = config, config.weight
        manifest, width = setup.manifest, setup.field_width
        named = (manifest.item_fields, manifest.candidate_fields, manifest.profile_fields)
        fields = sum(len(group) for group in named) + 4
        self.interact = Transformer(width, config.encoder)
        self.project = nn.ModuleList(nn.Linear(fields * width, width) for _ in range(2))

    def forward(self, view: View) -> Float[Tensor, ""]:
        """See the class; fewer than two samples have nothing to align."""
        field_CFE, present_CF = sample_fields(view)
        if len(field_CFE) < 2:
            return view.zero()
        regular = alignment(field_CFE, present_CF) + uniformity(field_CFE)
        return self._contrast(field_CFE, view.generator) + self.config.regularise * regular

    def _contrast(self, field_CFE: Tensor, generator: torch.Generator) -> Tensor:
        views = []
        for project in self.project:
            kept = draw_kept(field_CFE, self.config.masking, self.config.drop, generator)
            views.append(project(self.interact(field_CFE * kept).flatten(1)))
        return (views[0] - views[1]).square().sum(1).mean()


def sample_fields(view: View) -> tuple[Float[Tensor, "C F E"], Bool[Tensor, "C F"]]:
    """The field embeddings of every sample, and which of them exist.

    A user's short-term fields are those of its latest candidate, computed once per user.
    """
    batch, tables, latest_U = view.batch, view.tables, view.latest_candidates()
    item_CF = batch.item_IF[batch.candidate_C]
    named_CZ = torch.cat(
        [
            tables.embed_items(item_CF),
            tables.candidate(batch.candidate_CA.long()),
            tables.profile(batch.profile_UP.long())[batch.user_of_C],
        ],
        1,
    )
    named_CFE = named_CZ.unflatten(1, (-1, view.item_ID.shape[1]))
    parts, present = [named_CFE], [named_CFE.new_ones(named_CFE.shape[:2], dtype=torch.bool)]
    sides = ((batch.target, batch.short_target_C2), (batch.source, batch.short_source_C2))
    for rows, span_C2 in sides:
        pooled_U2E, real_U = _short_fields(view, rows, span_C2[latest_U])
        parts.append(pooled_U2E[batch.user_of_C])
        present.append(real_U[batch.user_of_C, None].expand(-1, 2))
    return torch.cat(parts, 1), torch.cat(present, 1)


def _short_fields(view: View, rows: Rows, span_U2: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of a short-term history's item vectors, and one of them at random."""
    row_UL = newest_rows(span_U2)
    real_UL = row_UL >= 0
    if not real_UL.shape[1]:
        empty_U2E = view.item_ID.new_zeros(len(span_U2), 2, view.item_ID.shape[1])
        return empty_U2E, real_UL.any(1)
    vector_ULE = view.item_ID[rows.item_T[row_UL.clamp(min=0)].long()] * real_UL[..., None]
    mean_UE = vector_ULE.sum(1) / real_UL.sum(1, keepdim=True).clamp(min=1)
    one_U = pick_one(real_UL, view.generator).clamp(min=0)
    one_UE = vector_ULE[torch.arange(len(one_U), device=one_U.device), one_U]
    return torch.stack([mean_UE, one_UE], 1), real_UL.any(1)


def draw_kept(
    field_CFE: Float[Tensor, "C F E"],
    masking: Literal["random", "field", "dimension"],
    drop: float,
    generator: torch.Generator,
) -> Tensor:
    """Which elements survive a masking; broadcasts over the axes that are dropped together."""
    samples, fields, width = field_CFE.shape
    shape = {
        "random": (samples, fields, width),
        "field": (samples, fields, 1),
        "dimension": (samples, 1, width),
    }[masking]
    return uniform(*shape, generator=generator, like=field_CFE) >= drop


def alignment(
    field_CFE: Float[Tensor, "C F E"], present_CF: Bool[Tensor, "C F"]
) -> Float[Tensor, ""]:
    """Mean squared distance of two samples' values of one field, averaged over fields.

    Σ_{a<b} ‖x_a - x_b‖² = n Σ ‖x_a‖² - ‖Σ x_a‖², so it costs C F E and not C² F E. Values that
    are absent do not count; a field with fewer than two values counts as 0.
    """
    value_CFE = field_CFE * present_CF[..., None]
    count_F = present_CF.sum(0)
    square_F = value_CFE.square().sum((0, 2))
    total_FE = value_CFE.sum(0)
    pairs_F = (count_F * (count_F - 1) / 2).clamp(min=1)
    return ((count_F * square_F - total_FE.square().sum(1)) / pairs_F).mean()


def uniformity(field_CFE: Float[Tensor, "C F E"]) -> Float[Tensor, ""]:
    """Mean cosine of a value of one field and a value of another, over all samples' pairs.

    Closed form: with the fields' sums S_f of unit vectors, Σ_{f≠g} S_f·S_g = ‖Σ S_f‖² - Σ ‖S_f‖².
    An absent (zero) value has cosine 0.
    """
    samples, fields, _ = field_CFE.shape
    sum_FE = unit(field_CFE).sum(0)
    cross = sum_FE.sum(0).square().sum() - sum_FE.square().sum()
    return cross / max(samples * samples * fields * (fields - 1), 1)
