"""AT4CTR: match users with what they clicked, and each event with the next.

Shapes: P clicked samples (one per user), M remembered items, N predicted places, K contrasted
events, D item width, W width of the match space.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from lcn.config import Config as BaseConfig
from lcn.nn.mlp import mlp
from lcn.nn.unit import unit
from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.contrast import info_nce, item_key, mean_or_zero
from lcn.objectives.draw import pick
from lcn.objectives.encoder import EncoderConfig, StreamEncoder
from lcn.objectives.stream import Stream, StreamConfig, merge_stream, next_places


class At4Ctr(Objective):
    """L = u L_UIM + n L_NIP: user-item matching and next item prediction, both InfoNCE.

    L_UIM matches [profile ‖ pooled stream] with the candidate, over clicked samples only; L_NIP
    matches each hidden state with the next event's item, on the merged stream and on each domain.
    Deviations: no code was published, widths and weights are ours. A user has one clicked sample
    per batch, and its stream ends before that click; a memory of recent clicked candidates
    (detached) adds negatives, as a batch has few clicks.
    """

    source = "AT4CTR, AAAI 2024, arXiv 2312.06683 (reconstructed; no public code)"
    assumes = "clicks in the batch; profile fields help; users with several events"
    revision = 1

    class Config(BaseConfig):
        """Settings."""

        name: Literal["at4ctr"] = "at4ctr"
        weight: NonNegativeFloat = 0.1
        """λ; the paper's a and b are λ u and λ n."""
        match_weight: NonNegativeFloat = 1.0
        """u, of L_UIM."""
        next_weight: NonNegativeFloat = 1.0
        """n, of L_NIP."""
        temperature: PositiveFloat = 0.1
        width: PositiveInt = 64
        """Width of the match space."""
        hidden: tuple[int, ...] = (128,)
        """Hidden layers of the three towers."""
        memory: PositiveInt = 1024
        """Recent clicked candidates kept as further negatives (about 8 batches' clicks)."""
        predictions: NonNegativeInt = 10
        """Next events predicted per user, stream and step, drawn at random; 0 predicts all."""
        contrasted: PositiveInt = 1024
        """Next events that serve as negatives, per domain, drawn at random."""
        stream: StreamConfig = StreamConfig()
        """`users` bounds L_NIP alone; L_UIM matches every user of the batch."""
        encoder: EncoderConfig = EncoderConfig()

    memory_MW: Float[Tensor, "M W"]
    """Match vectors of recent clicked candidates, oldest first."""
    memory_key_M: Int[Tensor, " M"]
    memory_user_M: Int[Tensor, " M"]
    """User address of each; 0 is an empty place."""

    def __init__(self, config: At4Ctr.Config, setup: Setup) -> None:
        super().__init__()
        self.config, self.weight = config, config.weight
        width, manifest = setup.item_width, setup.manifest
        profile = setup.field_width * len(manifest.profile_fields)
        candidate = setup.field_width * len(manifest.candidate_fields)
        self.encoder = StreamEncoder(width, config.stream.length, config.encoder, causal=True)
        self.user_tower = mlp(profile + width, config.hidden, config.width)
        self.item_tower = mlp(width + candidate, config.hidden, config.width)
        self.next_tower = mlp(width, config.hidden, width)
        self.register_buffer("memory_MW", torch.zeros(config.memory, config.width))
        self.register_buffer("memory_key_M", torch.zeros(config.memory, dtype=torch.int64))
        self.register_buffer("memory_user_M", torch.zeros(config.memory, dtype=torch.int64))

    def forward(self, view: View) -> Float[Tensor, ""]:
        """See the class."""
        config, candidate_U = self.config, matched_candidates(view)
        stream = merge_stream(view.batch, candidate_U, config.stream, view.generator)
        total = view.zero()
        if not len(stream):
            return total
        hidden_ULD = self.encoder(view.item_ID, stream)
        if config.match_weight:
            matched, hidden_PLD = stream, hidden_ULD
            if config.stream.users:
                every = config.stream.model_copy(update={"users": 0})
                matched = merge_stream(view.batch, candidate_U, every, view.generator)
                hidden_PLD = self.encoder(view.item_ID, matched)
            match = self._match(view, matched, hidden_PLD, candidate_U)
            total = total + config.match_weight * match
        if config.next_weight:
            nexts = self._next(view, stream, hidden_ULD)
            for domain in ("target", "source") if config.stream.domains == "both" else ():
                own = config.stream.model_copy(update={"domains": domain})
                part = merge_stream(view.batch, candidate_U, own, view.generator)
                if len(part):
                    nexts = nexts + self._next(view, part, self.encoder(view.item_ID, part))
            total = total + config.next_weight * nexts
        return total

    def _match(self, view: View, stream: Stream, hidden_ULD: Tensor, candidate_U: Tensor) -> Tensor:
        """L_UIM over the users of the stream whose sample was clicked."""
        batch, tau = view.batch, self.config.temperature
        at_P = (batch.label_C[candidate_U[stream.user_U]] > 0).nonzero()[:, 0]
        user_P = stream.user_U[at_P]
        sample_P = candidate_U[user_P]
        real_PL1 = stream.real_UL[at_P, :, None]
        pooled_PD = (hidden_ULD[at_P] * real_PL1).sum(1) / real_PL1.sum(1)
        profile_PZ = view.tables.profile(batch.profile_UP[user_P].long()).to(pooled_PD)
        item_P = batch.candidate_C[sample_P]
        own_PA = view.tables.candidate(batch.candidate_CA[sample_P].long()).to(pooled_PD)
        user_PW = unit(self.user_tower(torch.cat([profile_PZ, pooled_PD], 1)))
        item_PW = unit(self.item_tower(torch.cat([view.item_ID[item_P], own_PA], 1)))
        key_P, address_P = item_key(batch.item_IF[item_P]), batch.address_U[user_P]
        kept_M = self.memory_user_M > 0
        other_PW = torch.cat([item_PW, self.memory_MW[kept_M].to(item_PW)])
        key_Q = torch.cat([key_P, self.memory_key_M[kept_M]])
        user_Q = torch.cat([address_P, self.memory_user_M[kept_M]])
        if self.training:
            self._remember(item_PW, key_P, address_P)
        allowed_PQ = (key_P[:, None] != key_Q) & (address_P[:, None] != user_Q)
        logit_PQ = user_PW @ other_PW.T / tau
        loss_P = info_nce(logit_PQ, allowed_PQ, (user_PW * item_PW).sum(1) / tau)
        return mean_or_zero(loss_P, allowed_PQ.any(1))

    @torch.no_grad()
    def _remember(self, item_PW: Tensor, key_P: Tensor, address_P: Tensor) -> None:
        for buffer, new in (
            (self.memory_MW, item_PW),
            (self.memory_key_M, key_P),
            (self.memory_user_M, address_P),
        ):
            buffer.copy_(torch.cat([buffer, new.to(buffer.dtype)])[-len(buffer) :])

    def _next(self, view: View, stream: Stream, hidden_ULD: Tensor) -> Tensor:
        """L_NIP: next events of other users, of the label's domain, are the negatives."""
        tau = self.config.temperature
        user_N, place_N = next_places(stream, self.config.predictions, view.generator)
        label_N = stream.item_UL[user_N, place_N + 1]
        target_N = stream.target_UL[user_N, place_N + 1]
        p_ND, t_ND = unit(self.next_tower(hidden_ULD[user_N, place_N])), unit(view.item_ID[label_N])
        key_N, losses, masks = item_key(view.batch.item_IF[label_N]), [], []
        for target in (False, True):
            at_M = (target_N == target).nonzero()[:, 0]
            at_K = at_M
            if len(at_M) > self.config.contrasted:
                at_K = at_M[pick(self.config.contrasted, len(at_M), view.generator)]
            allowed_MK = (user_N[at_M, None] != user_N[at_K]) & (key_N[at_M, None] != key_N[at_K])
            positive_M = (p_ND[at_M] * t_ND[at_M]).sum(1) / tau
            losses.append(info_nce(p_ND[at_M] @ t_ND[at_K].T / tau, allowed_MK, positive_M))
            masks.append(allowed_MK.any(1))
        return mean_or_zero(torch.cat(losses), torch.cat(masks))


def matched_candidates(view: View) -> Int[Tensor, " U"]:
    """Each user's latest clicked candidate, or its latest one where none was clicked.

    A user's stream must end before the click it is matched with: a later stream may hold it.
    """
    batch, latest_U = view.batch, view.latest_candidates()
    clicked_C = (batch.label_C > 0).nonzero()[:, 0]
    last_U = torch.full_like(latest_U, -1)
    last_U = last_U.scatter_reduce(0, batch.user_of_C[clicked_C], clicked_C, "amax")
    return torch.where(last_U >= 0, last_U, latest_U)
