"""DSS: predict the intents of a stream's future from its past, in a disentangled latent space.

Shapes: U users, L places of a stream, B users that were split, K intents, D item width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from lcn.config import Config as BaseConfig
from lcn.config import Share
from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.contrast import item_key, mean_or_zero
from lcn.objectives.draw import below, coins
from lcn.objectives.encoder import EncoderConfig, StreamEncoder
from lcn.objectives.stream import Stream, StreamConfig, compact, merge_stream


@dataclass(frozen=True, slots=True)
class Halves:
    """Streams split in two."""

    given: Stream
    """The input side, oldest first."""
    rest: Stream
    """The label side, newest first."""
    label_B: Int[Tensor, " B"]
    """The item right after the split, of the batch's item axis; -1 for splits by domain."""
    target_B: Bool[Tensor, " B"]
    """Whether that item is of the target domain."""


class IntentEncoder(nn.Module):
    """φ: a stream as K vectors, one per intent."""

    def __init__(self, width: int, length: int, intents: int, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder = StreamEncoder(width, length, config, causal=True)
        self.intent_KD = nn.Parameter(torch.randn(intents, width))
        self.side_2KD = nn.Parameter(torch.randn(2, intents, width) * 0.02)
        self.query_D = nn.Parameter(torch.randn(width) * 0.02)
        self.key = nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))

    def forward(
        self, item_ID: Float[Tensor, "I D"], stream: Stream, *, label_side: bool
    ) -> Float[Tensor, "B K D"]:
        """φ_k = LN5(β_k + Σ_l p(k|l) p(l) z_l); β differs for the input and the label side."""
        z_BLD = self.encoder(item_ID, stream)
        weight_BLK = self.intents(z_BLD) * self.places(z_BLD, stream)[..., None]
        pooled_BKD = torch.einsum("blk,bld->bkd", weight_BLK, z_BLD)
        return self.norms[4](self.side_2KD[int(label_side)] + pooled_BKD)

    def intents(self, z_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L K"]:
        """p(k|l) = softmax_k( LN1(z_l) · LN2(c_k) / √D )."""
        score_BLK = self.norms[0](z_BLD) @ self.norms[1](self.intent_KD).T
        return torch.softmax(score_BLK / math.sqrt(z_BLD.shape[-1]), -1)

    def places(self, z_BLD: Float[Tensor, "B L D"], stream: Stream) -> Float[Tensor, "B L"]:
        """p(l): attention of the newest place over all real places."""
        position_LD = self.encoder.position_LD[: z_BLD.shape[1]]
        placed_BLD = z_BLD + position_LD
        mixed_BLD = self.norms[2](placed_BLD)
        key_BLD = mixed_BLD + torch.relu(self.key(mixed_BLD))
        newest_B = (stream.length_U - 1).clamp(min=0)
        at_B = torch.arange(len(stream), device=z_BLD.device)
        query_BD = self.norms[3](placed_BLD[at_B, newest_B] + self.query_D)
        score_BL = torch.einsum("bld,bd->bl", key_BLD, query_BD) / math.sqrt(z_BLD.shape[-1])
        return torch.softmax(score_BL.masked_fill(~stream.real_UL, -1e9), -1)


class Dss(Objective):
    """L = L_s2i + L_s2s: the next item, and the rest of the stream, intent by intent.

    Deviations: natural logarithms, means and masks (the public port has base 2, sums and no
    masks); the next item contrasts with next items of its own domain; some users are split by
    domain instead of by time, so that each domain's history must tell the other's.
    """

    source = "DSS (disentangled self-supervision), KDD 2020, doi 10.1145/3394486.3403091"
    assumes = "users with several events; splits by domain need both; large batches"

    class Config(BaseConfig):
        """Settings; the public port's where it has them."""

        name: Literal["dss"] = "dss"
        weight: NonNegativeFloat = 0.1
        """λ."""
        intents: PositiveInt = 4
        """K."""
        confident: Share = 0.5
        """Share of sequence-to-sequence terms, the smallest, that count."""
        domain_splits: Share = 0.5
        """Share of users split by domain, either domain being the input."""
        stream: StreamConfig = StreamConfig()
        encoder: EncoderConfig = EncoderConfig(heads=1, dropout=0.5)

    def __init__(self, config: Dss.Config, setup: Setup) -> None:
        super().__init__()
        self.config, self.weight = config, config.weight
        self.encoder = IntentEncoder(
            setup.item_width, config.stream.length, config.intents, config.encoder
        )

    def forward(self, view: View) -> Float[Tensor, ""]:
        """See the class; fewer than two splittable users give 0."""
        stream = merge_stream(
            view.batch, view.latest_candidates(), self.config.stream, view.generator
        )
        halves = split_streams(stream, self.config.domain_splits, view.generator)
        if len(halves.given) < 2:
            return view.zero()
        given_BKD = self.encoder(view.item_ID, halves.given, label_side=False)
        rest_BKD = self.encoder(view.item_ID, halves.rest, label_side=True)
        by_time_B = halves.label_B >= 0
        label_B = halves.label_B[by_time_B]
        next_item = sequence_to_item(
            given_BKD[by_time_B],
            view.item_ID[label_B],
            item_key(view.batch.item_IF[label_B]),
            halves.target_B[by_time_B],
        )
        return next_item + sequence_to_sequence(given_BKD, rest_BKD, self.config.confident)


def split_streams(stream: Stream, domain_share: float, generator: torch.Generator) -> Halves:
    """Split streams of two events or more at a random time, a share of them by domain."""
    stream = stream.of_users(stream.length_U >= 2)
    real_BL, length_B = stream.real_UL, stream.length_U
    place_L = torch.arange(real_BL.shape[1], device=real_BL.device)
    cut_B1 = (1 + below(length_B - 1, generator))[:, None]
    target_BL, source_BL = stream.of_domain(target=True), stream.of_domain(target=False)
    crossed_B = coins(len(stream), domain_share, generator, real_BL)
    crossed_B1 = (crossed_B & target_BL.any(1) & source_BL.any(1))[:, None]
    forth_B1 = coins(len(stream), 0.5, generator, real_BL)[:, None]
    one_BL = torch.where(forth_B1, source_BL, target_BL)
    given_BL = torch.where(crossed_B1, one_BL, real_BL & (place_L < cut_B1))
    rest_BL = real_BL & ~given_BL
    backwards_BL = compact(rest_BL.flip(1))
    reversed_BL = torch.where(backwards_BL >= 0, len(place_L) - 1 - backwards_BL, -1)
    at_B = torch.arange(len(stream), device=real_BL.device)
    cut_B = cut_B1[:, 0]
    if not len(stream):
        return Halves(stream, stream, cut_B, cut_B > 0)
    label_B = stream.item_UL[at_B, cut_B].masked_fill(crossed_B1[:, 0], -1)
    return Halves(
        stream.take(compact(given_BL)),
        stream.take(reversed_BL),
        label_B,
        stream.target_UL[at_B, cut_B],
    )


def sequence_to_item(
    given_BKD: Float[Tensor, "B K D"],
    item_BD: Float[Tensor, "B D"],
    key_B: Int[Tensor, " B"],
    target_B: Bool[Tensor, " B"],
) -> Float[Tensor, ""]:
    """L_s2i = -mean log( max_k e^{φ_k·e/√D} / Σ_{b'} Σ_{k'} e^{φ_k'·e_b'/√D} ).

    b' runs over the label itself and the other users' labels of its domain that are other items;
    users without any such label do not count.
    """
    score_BKB = torch.einsum("bkd,cd->bkc", given_BKD, item_BD) / math.sqrt(item_BD.shape[1])
    allowed_BB = (key_B[:, None] != key_B) & (target_B[:, None] == target_B)
    counts_B = allowed_BB.any(1)
    itself_BB = torch.eye(len(key_B), dtype=torch.bool, device=key_B.device)
    open_B1B = (allowed_BB | itself_BB)[:, None, :]
    total_B = score_BKB.masked_fill(~open_B1B, -torch.inf).flatten(1).logsumexp(1)
    own_B = score_BKB.diagonal(dim1=0, dim2=2).amax(0)
    return mean_or_zero(total_B - own_B, counts_B)


def sequence_to_sequence(
    given_BKD: Float[Tensor, "B K D"], rest_BKD: Float[Tensor, "B K D"], confident: float
) -> Float[Tensor, ""]:
    """L_s2s: -log( e^{φ_k·ψ_k/√D} / Σ_{b'} Σ_{k'} e^{φ_k·ψ'_k'/√D} ), the smallest terms' mean."""
    scale = math.sqrt(given_BKD.shape[-1])
    own_BK = (given_BKD * rest_BKD).sum(-1) / scale
    score_ZZ = given_BKD.flatten(0, 1) @ rest_BKD.flatten(0, 1).T / scale
    loss_Z = score_ZZ.logsumexp(1) - own_BK.flatten()
    kept = max(int(confident * len(loss_Z)), 1)
    return loss_Z.topk(kept, largest=False).values.mean()
