"""The auxiliary sequence encoder: a small transformer, trained beside the model, then dropped.

Shapes: U users, L places, D item width, N sequences, S tokens, E token width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lcn.config import Config, Dropout
from lcn.errors import ConfigError
from lcn.objectives.stream import Stream


class EncoderConfig(Config):
    """Size of a transformer."""

    layers: PositiveInt = 2
    heads: PositiveInt = 2
    hidden: PositiveInt = 256
    """Width of the feed-forward part."""
    dropout: Dropout = 0.1


class Transformer(nn.Module):
    """Blocks of self-attention and feed-forward, each behind a LayerNorm (pre-norm)."""

    def __init__(self, width: int, config: EncoderConfig) -> None:
        super().__init__()
        if width % config.heads:
            raise ConfigError(
                f"encoder width {width} is not a multiple of {config.heads} heads; change "
                "encoder.heads"
            )
        self.blocks = nn.ModuleList(_Block(width, config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, token_NSE: Float[Tensor, "N S E"], allowed_NSS: Bool[Tensor, "N S S"] | None = None
    ) -> Float[Tensor, "N S E"]:
        """Encode tokens; `allowed[n, i, j]` says that token i may read token j."""
        for block in self.blocks:
            token_NSE = block(token_NSE, allowed_NSS)
        return self.norm(token_NSE)


class _Block(nn.Module):
    def __init__(self, width: int, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.norm_attention, self.norm_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, width)
        )
        self.drop = nn.Dropout(config.dropout)

    def forward(self, token_NSE: Tensor, allowed_NSS: Tensor | None) -> Tensor:
        mixed = self.mix(self.norm_attention(token_NSE)).unflatten(-1, (3, self.heads, -1))
        query_NHSB, key_NHSB, value_NHSB = mixed.permute(2, 0, 3, 1, 4)
        read_NHSB = scaled_dot_product_attention(
            query_NHSB,
            key_NHSB,
            value_NHSB,
            attn_mask=None if allowed_NSS is None else allowed_NSS[:, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        token_NSE = token_NSE + self.drop(self.out(read_NHSB.transpose(1, 2).flatten(2)))
        return token_NSE + self.drop(self.feed(self.norm_hidden(token_NSE)))


class StreamEncoder(nn.Module):
    """Enc of every sequence objective: x_l = item(i_l) + pos_l + dom_l, then a transformer.

    Source: SASRec and BERT4Rec encoders; one design for all objectives, so that they differ in
    the loss alone. Deviations: pre-norm blocks; a domain embedding.

    Args:
        width: D.
        length: longest stream.
        config: size.
        causal: a place reads itself and older places; otherwise all places.
    """

    def __init__(self, width: int, length: int, config: EncoderConfig, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.position_LD = nn.Parameter(torch.randn(length, width) * 0.02)
        self.domain_2D = nn.Parameter(torch.randn(2, width) * 0.02)
        self.mask_D = nn.Parameter(torch.randn(width) * 0.02)
        self.drop = nn.Dropout(config.dropout)
        self.transformer = Transformer(width, config)

    def forward(
        self,
        item_ID: Float[Tensor, "I D"],
        stream: Stream,
        masked_UL: Bool[Tensor, "U L"] | None = None,
    ) -> Float[Tensor, "U L D"]:
        """Encode streams; what stands at places without an event means nothing.

        Args:
            item_ID: vectors of the batch's items.
            stream: whose events.
            masked_UL: places whose item is replaced by the mask token.
        """
        length = stream.item_UL.shape[1]
        vector_ULD = item_ID[stream.item_UL.clamp(min=0)]
        if masked_UL is not None:
            vector_ULD = torch.where(masked_UL[..., None], self.mask_D, vector_ULD)
        domain_ULD = self.domain_2D[stream.target_UL.long()]
        token_ULD = self.drop(vector_ULD + self.position_LD[:length] + domain_ULD)
        # Every place may read itself: a row without anything to read would be NaN.
        itself_LL = torch.eye(length, dtype=torch.bool, device=item_ID.device)
        allowed_ULL = stream.real_UL[:, None, :].expand(-1, length, -1)
        if self.causal:
            allowed_ULL = allowed_ULL & torch.ones_like(itself_LL).tril()
        return self.transformer(token_ULD, allowed_ULL | itself_LL)


def last_place(hidden_ULD: Float[Tensor, "U L D"], stream: Stream) -> Float[Tensor, "U D"]:
    """The vector at each stream's newest event."""
    place_U = (stream.length_U - 1).clamp(min=0)
    return hidden_ULD[torch.arange(len(stream), device=hidden_ULD.device), place_U]
