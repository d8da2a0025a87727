"""CL4SRec: two augmented views of one user's stream agree, beside next-item prediction.

Shapes: U users, W = 2U views, D item width, N predicted places.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from lcn.config import Config as BaseConfig
from lcn.config import Share
from lcn.errors import ConfigError
from lcn.nn.unit import unit
from lcn.objectives.augment import Augmented, augment, split_domains
from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.contrast import info_nce
from lcn.objectives.encoder import EncoderConfig, StreamEncoder, last_place
from lcn.objectives.sampled import SoftmaxConfig, draw_domains, next_item_loss
from lcn.objectives.stream import Stream, StreamConfig, merge_stream, next_places


class Cl4SRec(Objective):
    """L = L_cl + L_next: NT-Xent between two augmentations of each stream, and the next item.

    Deviations: cosine similarity and the newest hidden state; a crop keeps an event of each
    domain; `views: domains` contrasts a user's target events with its source events instead.
    """

    source = "CL4SRec, ICDE 2022, arXiv 2010.14395"
    assumes = "users with several events; `views: domains` needs both domains"
    revision = 1

    class Config(BaseConfig):
        """Settings."""

        name: Literal["cl4srec"] = "cl4srec"
        weight: NonNegativeFloat = 0.1
        """λ."""
        views: Literal["random", "domains"] = "random"
        """random: crop, mask or reorder; domains: target events against source events."""
        crop: Share = 0.6
        """η, share of events a crop keeps."""
        mask: Share = 0.3
        """γ, share of events that are masked."""
        reorder: Share = 0.5
        """β, share of events that are shuffled."""
        temperature: PositiveFloat = 0.1
        next_weight: NonNegativeFloat = 1.0
        """Weight of L_next; 0 leaves only the contrast, which ties item vectors weakly."""
        predictions: NonNegativeInt = 10
        """Next events predicted per user and step, drawn at random; 0 predicts all."""
        stream: StreamConfig = StreamConfig()
        encoder: EncoderConfig = EncoderConfig()
        softmax: SoftmaxConfig = SoftmaxConfig()

    def __init__(self, config: Cl4SRec.Config, setup: Setup) -> None:
        super().__init__()
        if config.views == "domains" and config.stream.domains != "both":
            raise ConfigError(
                "objective cl4srec contrasts a user's two domains (views: domains), but its stream "
                f"holds one (stream.domains: {config.stream.domains}); set stream.domains to both"
            )
        self.config, self.weight, self.corpus = config, config.weight, setup.corpus
        width = setup.item_width
        self.encoder = StreamEncoder(width, config.stream.length, config.encoder, causal=True)
        self.predict = nn.Linear(width, width, bias=False)

    def forward(self, view: View) -> Float[Tensor, ""]:
        """See the class."""
        config, generator = self.config, view.generator
        stream = merge_stream(view.batch, view.latest_candidates(), config.stream, generator)
        if not len(stream):
            return view.zero()
        total = self._contrast(view, stream)
        if config.next_weight:
            total = total + config.next_weight * self._next(view, stream)
        return total

    def _contrast(self, view: View, stream: Stream) -> Tensor:
        config = self.config
        if config.views == "domains":
            both_U = stream.of_domain(target=True).any(1) & stream.of_domain(target=False).any(1)
            views = split_domains(stream.of_users(both_U))
        else:
            shares = (config.crop, config.mask, config.reorder)
            views = tuple(augment(stream, *shares, view.generator) for _ in range(2))
        if len(views[0].stream) < 2:
            return view.zero()
        first_UD, second_UD = (self._encode(view, each) for each in views)
        return nt_xent(first_UD, second_UD, config.temperature)

    def _encode(self, view: View, augmented: Augmented) -> Tensor:
        hidden_ULD = self.encoder(view.item_ID, augmented.stream, augmented.masked_UL)
        return last_place(hidden_ULD, augmented.stream)

    def _next(self, view: View, stream: Stream) -> Tensor:
        user_N, place_N = next_places(stream, self.config.predictions, view.generator)
        if not len(user_N):
            return view.zero()
        drawn = draw_domains(view, self.corpus, stream, self.config.softmax)
        hidden_ND = self.encoder(view.item_ID, stream)[user_N, place_N]
        label_N, target_N = (
            column_UL[user_N, place_N + 1] for column_UL in (stream.item_UL, stream.target_UL)
        )
        return next_item_loss(view, self.predict(hidden_ND), label_N, target_N, drawn).mean()


def nt_xent(
    first_UD: Float[Tensor, "U D"], second_UD: Float[Tensor, "U D"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over the 2U views of -log softmax of the user's other view among all other views.

    Similarity is the cosine. Vectors that know nothing give log(2U - 1).
    """
    users = len(first_UD)
    view_WD = unit(torch.cat([first_UD, second_UD]))
    logit_WW = view_WD @ view_WD.T / temperature
    index_W = torch.arange(2 * users, device=view_WD.device)
    partner_W = (index_W + users) % (2 * users)
    positive_W = logit_WW[index_W, partner_W]
    allowed_WW = (index_W[:, None] != index_W) & (partner_W[:, None] != index_W)
    return info_nce(logit_WW, allowed_WW, positive_W).mean()
