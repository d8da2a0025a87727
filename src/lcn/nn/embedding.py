"""Tables of categorical fields, and the one item encoder that every part of a model shares.

Shapes: N anything, F fields, W width per field, D item width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lcn.config import Config
from lcn.schema import FIRST_VALUE, PADDING, Field

SPARSE_FROM = 2048
"""Tables with at least this many rows are updated row by row, unless configured otherwise."""


class FieldEmbedding(nn.Module):
    """One table per field, concatenated.

    Padding (0) and unknown (1) start as zero vectors; padding stays one. Tables of
    `sparse_from` rows or more give row-sparse gradients, so that a step costs what it touches.
    """

    class Config(Config):
        """How tables start and when they are row-sparse."""

        init: Literal["normal", "xavier"] = "normal"
        """normal: N(0, std²); xavier: uniform, the paper's, nearly zero for large tables."""
        std: NonNegativeFloat = 0.05
        """Standard deviation of `normal`."""
        sparse_from: int = SPARSE_FROM
        """Tables with at least this many rows are updated row by row."""

    def __init__(self, config: FieldEmbedding.Config, fields: Sequence[Field], width: int) -> None:
        super().__init__()
        self.width = width * len(fields)
        self.tables = nn.ModuleList()
        for field in fields:
            table = nn.Embedding(
                field.size, width, padding_idx=0, sparse=field.size >= config.sparse_from
            )
            if config.init == "xavier":
                nn.init.xavier_uniform_(table.weight)
            else:
                nn.init.normal_(table.weight, std=config.std)
            with torch.no_grad():
                table.weight[:FIRST_VALUE] = 0.0
            self.tables.append(table)

    def forward(self, index_NF: Int[Tensor, "N F"]) -> Float[Tensor, "N FW"]:
        """Look the fields up and concatenate them; no fields give width 0."""
        if not len(self.tables):
            return torch.zeros(len(index_NF), 0, device=index_NF.device)
        columns = zip(self.tables, index_NF.unbind(1), strict=True)
        parts = [look_up(table, column) for table, column in columns]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def look_up(table: nn.Module, index_N: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
    """`table(index_N)`; row-sparse gradients are taken as they come, without a copy."""
    sparse = isinstance(table, nn.Embedding) and table.sparse
    if not sparse or not torch.is_grad_enabled():
        return table(index_N)
    return _Lookup.apply(table.weight, index_N)  # type: ignore[return-value]


class _Lookup(torch.autograd.Function):
    """A look-up whose backward copies no gradient rows: PyTorch's own copies all of them to leave
    padding out. Here rows of padding, which the model's batches never hold, are set to zero."""

    @staticmethod
    def forward(ctx: Any, weight_VW: Tensor, index_N: Tensor) -> Tensor:
        ctx.index_N, ctx.shape = index_N, weight_VW.shape
        return weight_VW.index_select(0, index_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NW: Tensor) -> Any:  # type: ignore[override]
        real_N = ctx.index_N != PADDING
        if not bool(real_N.all()):
            grad_NW = grad_NW * real_N[:, None]
        index_1N = ctx.index_N.long()[None]
        grad_VW = torch.sparse_coo_tensor(index_1N, grad_NW, ctx.shape, check_invariants=False)
        return grad_VW, None


class ItemEncoder(nn.Module):
    """item(i) = W_item · concat_f Emb_f[i.f]: candidates and histories land in one space.

    Source: shared-embedding setting of the LCN paper (section 4); the projection is ours, for
    items of several fields. With one field of width D it is the identity.
    """

    def __init__(
        self, config: FieldEmbedding.Config, fields: Sequence[Field], field_width: int, width: int
    ) -> None:
        super().__init__()
        self.embed = FieldEmbedding(config, fields, field_width)
        same = self.embed.width == width
        self.project = nn.Identity() if same else nn.Linear(self.embed.width, width, bias=False)
        if isinstance(self.project, nn.Linear):
            nn.init.xavier_uniform_(self.project.weight)

    def forward(self, item_IF: Int[Tensor, "I F"]) -> Float[Tensor, "I D"]:
        """Encode unique items."""
        return self.project(self.embed(item_IF))


@dataclass(frozen=True, slots=True)
class Tables:
    """The embeddings of a model, for losses on them."""

    item: ItemEncoder
    """Of the items that losses see."""
    profile: FieldEmbedding
    candidate: FieldEmbedding
    item_moves: bool = True
    """False: losses do not move item vectors or item fields."""

    def encode_items(self, item_NF: Int[Tensor, "N F"]) -> Float[Tensor, "N D"]:
        """Vectors of items by their fields."""
        vector_ND = self.item(item_NF.long())
        return vector_ND if self.item_moves else vector_ND.detach()

    def embed_items(self, item_NF: Int[Tensor, "N F"]) -> Float[Tensor, "N FW"]:
        """Embeddings of items' fields, concatenated."""
        embedded_NZ = self.item.embed(item_NF.long())
        return embedded_NZ if self.item_moves else embedded_NZ.detach()
