"""BERT4Rec: predict masked events of the merged stream from both sides.

Shapes: U users, L places of a stream, N masked places, D item width.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn.functional import gelu

from lcn.config import Config as BaseConfig
from lcn.config import Share
from lcn.nn.embedding import SPARSE_FROM
from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.draw import coins, pick_one, pick_some
from lcn.objectives.encoder import EncoderConfig, StreamEncoder
from lcn.objectives.sampled import SoftmaxConfig, draw_domains, next_item_loss
from lcn.objectives.stream import Stream, StreamConfig, merge_stream


class Bert4Rec(Objective):
    """L = -Σ_masked log softmax(logits_l)[i_l] / #masked, logits = LN(GELU(h W_t)) · item + bias.

    Deviations: the softmax is sampled, within the label's domain; one masked place at least per
    domain that is present; the domain of a masked place stays visible.
    """

    source = "BERT4Rec, CIKM 2019, arXiv 1904.06690"
    assumes = "users with several events; benefits from both domains in one stream"
    revision = 1

    class Config(BaseConfig):
        """Settings; the official code's where it has them."""

        name: Literal["bert4rec"] = "bert4rec"
        weight: NonNegativeFloat = 0.1
        """λ."""
        mask_share: Share = 0.2
        """ρ, the share of each user's events that is masked."""
        newest_share: Share = 0.5
        """Share of users that add a copy of their stream with only the newest event masked."""
        stream: StreamConfig = StreamConfig()
        encoder: EncoderConfig = EncoderConfig()
        softmax: SoftmaxConfig = SoftmaxConfig()

    def __init__(self, config: Bert4Rec.Config, setup: Setup) -> None:
        super().__init__()
        self.config, self.weight, self.corpus = config, config.weight, setup.corpus
        width, items = setup.item_width, setup.manifest.item_fields[0].size
        self.encoder = StreamEncoder(width, config.stream.length, config.encoder, causal=False)
        self.transform, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Embedding(items, 1, sparse=items >= SPARSE_FROM)
        nn.init.zeros_(self.bias.weight)

    def forward(self, view: View) -> Float[Tensor, ""]:
        """Mean over masked places; see the class."""
        config, generator = self.config, view.generator
        stream = merge_stream(view.batch, view.latest_candidates(), config.stream, generator)
        if not len(stream):
            return view.zero()
        masked_UL = draw_mask(stream, config.mask_share, generator)
        again_U = coins(len(stream), config.newest_share, generator, masked_UL)
        user_U = torch.cat(
            [torch.arange(len(stream), device=again_U.device), again_U.nonzero()[:, 0]]
        )
        place_L = torch.arange(masked_UL.shape[1], device=again_U.device)
        newest_UL = place_L == (stream.length_U - 1)[:, None]
        masked_UL = torch.cat([masked_UL, newest_UL[again_U]])
        drawn = draw_domains(view, self.corpus, stream, config.softmax)
        stream = stream.of_users(user_U)
        hidden_ND = self.encoder(view.item_ID, stream, masked_UL)[masked_UL]
        query_ND = self.norm(gelu(self.transform(hidden_ND)))
        loss_N = next_item_loss(
            view, query_ND, stream.item_UL[masked_UL], stream.target_UL[masked_UL], drawn, self.bias
        )
        return loss_N.mean()


def draw_mask(stream: Stream, share: float, generator: torch.Generator) -> Bool[Tensor, "U L"]:
    """Mask a share of each user's events, and at least one of each domain present."""
    count_U = (share * stream.length_U + 0.5).long()
    masked_UL = pick_some(stream.real_UL, count_U, generator)
    place_L = torch.arange(masked_UL.shape[1], device=masked_UL.device)
    for target in (False, True):
        own_UL = stream.of_domain(target=target)
        one_U = pick_one(own_UL, generator)
        missing_U = ~(masked_UL & own_UL).any(1)
        masked_UL = masked_UL | (missing_U[:, None] & (place_L == one_U[:, None]))
    return masked_UL
