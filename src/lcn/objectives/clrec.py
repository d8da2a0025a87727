"""CLRec: a user's stream against its next item, with recent positives as negatives.

Shapes: U users, L places of a stream, N labels, Q queued items, D item width.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from lcn.config import Config as BaseConfig
from lcn.config import Share
from lcn.nn.unit import unit
from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.contrast import info_nce, item_key
from lcn.objectives.draw import coins, pick_one
from lcn.objectives.encoder import EncoderConfig, StreamEncoder
from lcn.objectives.stream import StreamConfig, merge_stream
from lcn.schema import DOMAINS


class ClRec(Objective):
    """L = -mean log( e^{q·k/τ} / (e^{q·k/τ} + Σ_{j in queue} e^{q·k_j/τ}) ).

    Negatives are the last positives' *items*, encoded anew with current embeddings. They come as
    often as items are shown, which makes the loss inverse-propensity weighted: no log Q
    correction, and repetitions in the queue count.
    Deviations: one queue per domain (negatives of the label's domain); the user encoder is the
    causal transformer of all stream objectives.
    """

    source = "CLRec, KDD 2021, arXiv 2005.12964"
    assumes = "users with more than `min_history` events; large batches fill the queue sooner"

    class Config(BaseConfig):
        """Settings."""

        name: Literal["clrec"] = "clrec"
        weight: NonNegativeFloat = 0.1
        """λ."""
        temperature: PositiveFloat = 0.07
        queue: NonNegativeInt = 0
        """Items each domain's queue holds; 0 takes 8 per candidate of a batch."""
        source_share: Share = 0.5
        """Share of users that also predict a source-domain item in a step."""
        min_history: PositiveInt = 3
        """Events before the cut; users with fewer are skipped."""
        stream: StreamConfig = StreamConfig()
        encoder: EncoderConfig = EncoderConfig()

    queue_2Q: Int[Tensor, "2 Q"]
    """Addresses of each domain's recent positives (source, target), oldest first; -1 is empty."""

    def __init__(self, config: ClRec.Config, setup: Setup) -> None:
        super().__init__()
        self.config, self.weight, self.corpus = config, config.weight, setup.corpus
        self.encoder = StreamEncoder(
            setup.item_width, config.stream.length, config.encoder, causal=True
        )
        length = config.queue or 8 * setup.batch_size
        self.register_buffer("queue_2Q", torch.full((2, length), -1, dtype=torch.int64))

    def forward(self, view: View) -> Float[Tensor, ""]:
        """Contrast with the queue, then push this batch's positives; an empty queue gives 0."""
        config, generator = self.config, view.generator
        stream = merge_stream(view.batch, view.latest_candidates(), config.stream, generator)
        if stream.item_UL.shape[1] <= config.min_history:
            return view.zero()
        hidden_ULD = self.encoder(view.item_ID, stream)
        losses = [view.item_ID.new_zeros(0)]
        for number, domain in enumerate(DOMAINS):
            label_UL = stream.of_domain(target=domain == "target")
            user_N, cut_N, place_N = draw_cuts(label_UL, config.min_history, generator)
            if domain == "source":
                kept_N = coins(len(user_N), config.source_share, generator, user_N)
                user_N, cut_N, place_N = user_N[kept_N], cut_N[kept_N], place_N[kept_N]
            label_N = stream.item_UL[user_N, place_N]
            losses.append(self._contrast(view, hidden_ULD[user_N, cut_N - 1], label_N, number))
            if self.training:
                self._push(view.batch.address_I[label_N], number)
        loss_N = torch.cat(losses)
        return loss_N.mean() if len(loss_N) else view.zero()

    def _contrast(self, view: View, query_ND: Tensor, label_N: Tensor, number: int) -> Tensor:
        """Losses of labels of one domain; none while its queue is empty."""
        address_Q = self.queue_2Q[number]
        address_Q = address_Q[address_Q >= 0]
        if not len(address_Q):
            return query_ND.new_zeros(0)
        # Popular items repeat in the queue: each is encoded once and its vector repeated.
        address_K, item_Q = address_Q.unique(return_inverse=True)
        field_KF = self.corpus.fields(address_K).to(query_ND.device)
        key_Q, vector_QD = item_key(field_KF)[item_Q], unit(view.encode(field_KF))[item_Q]
        query_ND, positive_ND = unit(query_ND), unit(view.item_ID[label_N])
        logit_NQ = query_ND @ vector_QD.T / self.config.temperature
        allowed_NQ = item_key(view.batch.item_IF[label_N])[:, None] != key_Q
        positive_N = (query_ND * positive_ND).sum(1) / self.config.temperature
        return info_nce(logit_NQ, allowed_NQ, positive_N)

    @torch.no_grad()
    def _push(self, address_N: Tensor, number: int) -> None:
        """Append to a queue; the oldest fall out."""
        length = self.queue_2Q.shape[1]
        self.queue_2Q[number] = torch.cat([self.queue_2Q[number], address_N])[-length:]


def draw_cuts(
    label_UL: Bool[Tensor, "U L"], min_history: int, generator: torch.Generator
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Cut each stream at a uniform place that leaves a label behind it.

    Args:
        label_UL: where the events stand that may be predicted.
        min_history: events before a cut, at least.
        generator: of the draw.

    Returns:
        user_N, cut_N, place_N: users that can be cut, events before the cut, and the place of the
        first label at or behind it.
    """
    place_L = torch.arange(label_UL.shape[1], device=label_UL.device)
    # A place is a possible cut when some label stands at it or behind it.
    ahead_UL = label_UL.flip(1).cumsum(1).flip(1) > 0
    cut_U = pick_one(ahead_UL & (place_L >= max(min_history, 1)), generator)
    user_N = (cut_U >= 0).nonzero()[:, 0]
    cut_N = cut_U[user_N]
    first_NL = label_UL[user_N] & (place_L >= cut_N[:, None])
    place_N = first_NL.to(torch.int8).argmax(1) if len(user_N) else cut_N
    return user_N, cut_N, place_N
