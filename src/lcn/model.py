"""The model: embed, short-term interest, lifelong interest, head, click logit.

z = [profile ‖ candidate-only fields ‖ request context ‖ item(v) ‖ short-term ‖ lifelong]
p = sigmoid(MLP(z))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from lcn import ops
from lcn.backbones import BACKBONES, BackboneConfig, build_backbone
from lcn.backbones.base import Features, History, Interest, Query
from lcn.backbones.lap import Lap
from lcn.config import Config, Dropout
from lcn.data.batch import Batch, Rows
from lcn.data.dataset import Dataset
from lcn.errors import ConfigError
from lcn.nn.attention import ContextTable, Selection, TargetAttention
from lcn.nn.embedding import FieldEmbedding, ItemEncoder, Tables
from lcn.nn.mlp import apply_to_parts, mlp
from lcn.nn.unit import unit
from lcn.ops import HistoryRows
from lcn.ops.reference import rows_of_span
from lcn.schema import Manifest


class ShortConfig(Config):
    """Short-term interest: one target attention per domain, shared design of all systems."""

    width: PositiveInt = 64
    heads: PositiveInt = 4
    recency: bool = True
    """Whether short-term attention sees the time between event and request."""


class ModelConfig(Config):
    """A whole model."""

    backbone: BackboneConfig = Lap.Config()
    width: PositiveInt = 64
    """D, the width of item vectors."""
    field_width: PositiveInt = 64
    """Width of each item, profile, candidate-only and request field's table."""
    context_width: PositiveInt = 8
    """Width of each event context field's table."""
    embedding: FieldEmbedding.Config = FieldEmbedding.Config()
    short: ShortConfig = ShortConfig()
    products: bool = False
    """Also give the head W v ⊙ each interest vector, short-term and lifelong (DARE's target-aware
    product, for every backbone alike): a match of candidate and interest is then linear."""
    hidden: tuple[PositiveInt, ...] = (256, 128)
    dropout: Dropout = 0.0
    search_table: Literal["shared", "own", "frozen"] = "shared"
    """own: the backbone searches with item vectors from tables of their own, which are also the
    ones that objectives move; values, short-term interest and head read the others. frozen: those
    tables come from another run (`item_vectors_from`) and nothing moves them, as in a production
    SIM that searches with vectors made offline; objectives move the others."""
    history_vectors: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: histories read item vectors rounded to half the width, and an encoded state stores
    them so; candidates keep theirs. `lcn half-width RUN` is its quality gate."""
    search_metric: Literal["dot", "cosine"] = "dot"
    """cosine: search ranks by the cosine of item vectors over a learned temperature, the geometry
    that contrastive objectives shape, so that their alignment decides at once what is found."""
    search_temperature: PositiveFloat = 0.1
    """Where the temperature of `cosine` starts."""
    stop_gradient: Literal["none", "main", "objective"] = "none"
    """main: the click loss does not move the vectors that objectives see; objective: objectives do
    not move them."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward pass gives."""

    logit_C: Float[Tensor, " C"]
    item_ID: Float[Tensor, "I D"]
    """Vectors of the batch's items for the objectives: of the search table."""
    interest: Interest


@dataclass(frozen=True, slots=True)
class Embedded:
    """A batch with item vectors."""

    history: History
    """Of the source domain."""
    target: HistoryRows
    query: Query
    contrasted_ID: Float[Tensor, "I D"]
    """The items' vectors for the objectives."""


class Model(nn.Module):
    """Click model with one lifelong backbone on the shared substrate.

    Source: LCN (arXiv 2312.06424), section 3 and Eq. 1-2; what the paper leaves open (short-term
    part, fusion) is fixed alike for every backbone, see docs/paper.md.
    """

    context_offsets_G: Tensor
    """First code of each event context field."""

    def __init__(self, config: ModelConfig, manifest: Manifest) -> None:
        super().__init__()
        self.config = config
        wide, std = config.field_width, config.embedding.std
        self.item = ItemEncoder(config.embedding, manifest.item_fields, wide, config.width)
        self._check_search(config)
        self.search_item = None
        if config.search_table != "shared":
            self.search_item = ItemEncoder(
                config.embedding, manifest.item_fields, wide, config.width
            )
            self.search_item.requires_grad_(config.search_table == "own")
        self.sharpness = None
        if config.search_metric == "cosine":
            self.sharpness = nn.Parameter(torch.tensor(-math.log(config.search_temperature)))
        self.profile = FieldEmbedding(config.embedding, manifest.profile_fields, wide)
        self.candidate = FieldEmbedding(config.embedding, manifest.candidate_fields, wide)
        self.request = FieldEmbedding(config.embedding, manifest.request_context, wide)
        short = config.short
        self.short_target, self.short_source = (
            TargetAttention(
                config.width,
                short.width,
                short.heads,
                ContextTable(
                    manifest.event_context, config.context_width, recency=short.recency, std=std
                ),
                output=True,
            )
            for _ in range(2)
        )
        self.backbone = build_backbone(
            config.backbone,
            Features(
                manifest.item_fields,
                manifest.event_context,
                config.width,
                config.context_width,
                std,
            ),
        )
        sizes = [field.size for field in manifest.event_context]
        offsets_G = torch.tensor([sum(sizes[:i]) for i in range(len(sizes))], dtype=torch.int32)
        self.register_buffer("context_offsets_G", offsets_G, persistent=False)
        interest_width = 2 * short.width + self.backbone.width
        fields_width = self.profile.width + self.candidate.width + self.request.width
        head_width = fields_width + config.width + interest_width
        self.product = None
        if config.products:
            self.product = nn.Linear(config.width, interest_width, bias=False)
            nn.init.xavier_uniform_(self.product.weight)
            head_width += interest_width
        self.head = mlp(head_width, config.hidden, dropout=config.dropout)

    @staticmethod
    def _check_search(config: ModelConfig) -> None:
        """Refuse search switches where nothing searches."""
        given = {"search_table": "shared", "search_metric": "dot"}
        for name, plain in given.items():
            value = getattr(config, name)
            if value != plain and not BACKBONES[config.backbone.name].searches:
                able = ", ".join(name for name, kind in BACKBONES.items() if kind.searches)
                raise ConfigError(
                    f"the backbone {config.backbone.name!r} ranks no rows by item vectors, so "
                    f"model.{name}: {value} would change nothing; it is for {able}"
                )
        if config.search_metric == "cosine" and BACKBONES[config.backbone.name].searches_by_angle:
            raise ConfigError(
                f"the backbone {config.backbone.name!r} searches by the angle of item vectors "
                "already, so model.search_metric: cosine would change nothing; leave it at dot"
            )

    def forward(self, batch: Batch, *, levels: bool = False) -> Output:
        """Score a batch.

        Args:
            batch: as collated.
            levels: also return what each stage of the backbone kept.
        """
        parts = self.embed(batch)
        return self.score(batch, parts, self.backbone.encode(parts.history), levels=levels)

    def score(
        self, batch: Batch, parts: Embedded, state: object, *, levels: bool = False
    ) -> Output:
        """Score candidates against encoded histories: what a server does per request.

        Args:
            batch: its spans, profiles and request fields are read.
            parts: embedded rows and candidates.
            state: of the backbone's `encode` for these rows.
            levels: also return what each stage of the backbone kept.
        """
        history, query = parts.history, parts.query
        interest = self.backbone.attend(state, query, batch.lifelong_C2, levels=levels)
        short = [
            self.short_target(
                parts.target,
                Selection(span_C2=batch.short_target_C2),
                query.vector_CD,
                query.time_C,
            ),
            self.short_source(
                history.rows,
                Selection(span_C2=batch.short_source_C2),
                query.vector_CD,
                query.time_C,
            ),
        ]
        interest_CW = torch.cat([*short, interest.vector_CW], 1)
        z = [
            *self._circumstances(batch),
            query.vector_CD,
            interest_CW,
        ]
        if self.product is not None:
            z.append(self.product(query.vector_CD) * interest_CW)
        if torch.is_grad_enabled():
            logit_C1 = self.head(torch.cat(z, 1))
        else:
            logit_C1 = apply_to_parts(self.head, z)
        return Output(logit_C1[:, 0], parts.contrasted_ID, interest)

    def _circumstances(self, batch: Batch) -> list[Tensor]:
        """Embedded profiles, candidate-only and request fields; without gradients what all
        candidates share is one row."""
        user_of_C, context_CR = batch.user_of_C, batch.context_CR
        if not torch.is_grad_enabled():
            user_of_C, context_CR = _once(user_of_C), _once(context_CR)
        return [
            self.profile(batch.profile_UP.long())[user_of_C],
            self.candidate(batch.candidate_CA.long()),
            self.request(context_CR.long()),
        ]

    def embed(self, batch: Batch) -> Embedded:
        """Join a batch's rows and candidates with their item vectors."""
        item_ID, search_ID, contrasted_ID = self.item_vectors(batch.item_IF)
        stored_ID = self.stored(item_ID)
        history = History(
            self.history(batch.source, stored_ID),
            batch.source.offsets_U1,
            batch.item_IF,
            None if search_ID is None else self.stored(search_ID),
        )
        target = self.history(batch.target, stored_ID)
        return Embedded(history, target, self.query(batch, item_ID, search_ID), contrasted_ID)

    def stored(self, vector_ID: Float[Tensor, "I D"]) -> Float[Tensor, "I D"]:
        """Vectors as histories keep them; on the CPU training computes with the rounded values in
        full width, so that all ops share one gradient."""
        if self.config.history_vectors == "float32":
            return vector_ID
        half_ID = vector_ID.to(torch.bfloat16)
        if torch.is_grad_enabled() and vector_ID.device.type == "cpu":
            return ops.share_gradient(half_ID.float())
        return half_ID

    @property
    def tables(self) -> Tables:
        """The embeddings, for the objectives."""
        moves = self.config.stop_gradient != "objective"
        return Tables(self.contrasted_item, self.profile, self.candidate, moves)

    def history(self, rows: Rows, item_ID: Float[Tensor, "I D"]) -> HistoryRows:
        """Join rows with the vectors of their items; context fields take their place on V."""
        code_TG = rows.context_TG + self.context_offsets_G
        return HistoryRows(item_ID, rows.item_T, code_TG, rows.time_T)

    def query(
        self,
        batch: Batch,
        item_ID: Float[Tensor, "I D"],
        search_ID: Float[Tensor, "I D"] | None = None,
    ) -> Query:
        """The candidates as queries."""
        return Query(
            ops.take_vectors(item_ID, batch.candidate_C),
            batch.item_IF[batch.candidate_C],
            batch.time_C,
            batch.user_of_C,
            None if search_ID is None else ops.take_vectors(search_ID, batch.candidate_C),
            self._recent(batch, item_ID if search_ID is None else search_ID),
        )

    def _recent(self, batch: Batch, vector_ID: Float[Tensor, "I D"]) -> Tensor | None:
        """recent_CD: mean of the user's newest target-domain items; see `Query.recent_CD`."""
        rows = self.backbone.recent_rows
        if not rows:
            return None
        span_C2 = batch.short_target_C2.clone()
        span_C2[:, 0] = torch.maximum(span_C2[:, 0], span_C2[:, 1] - rows)
        row_CN, mask_CN = rows_of_span(span_C2)
        if not len(batch.target.item_T):
            return vector_ID.new_zeros(len(span_C2), vector_ID.shape[1])
        vector_CND = vector_ID.detach()[batch.target.item_T[row_CN].long()]
        total_CD = torch.einsum("cnd,cn->cd", vector_CND, mask_CN.to(vector_CND.dtype))
        return total_CD / mask_CN.sum(1, keepdim=True).clamp(min=1)

    def item_vectors(
        self, item_IF: Int[Tensor, "I F"]
    ) -> tuple[Float[Tensor, "I D"], Float[Tensor, "I D"] | None, Float[Tensor, "I D"]]:
        """The items' vectors for the model, for its search (None: the same) and for objectives."""
        item_ID = ops.share_gradient(self.item(item_IF))
        search_ID = None
        if self.search_item is not None:
            search_ID = ops.share_gradient(self.search_item(item_IF))
        if search_ID is None or not self._search_moves:
            contrasted_ID = item_ID
            if self.config.stop_gradient == "main":
                item_ID = item_ID.detach()
        else:
            contrasted_ID = search_ID
            if self.config.stop_gradient == "main":
                search_ID = search_ID.detach()
        if self.config.stop_gradient == "objective":
            contrasted_ID = contrasted_ID.detach()
        if self.sharpness is not None:
            # Queries are scaled by 1 / √D under a softmax; two such vectors give cosine / τ.
            root = (self.sharpness.exp() * math.sqrt(item_ID.shape[1])).sqrt()
            found_ID = unit(item_ID if search_ID is None else search_ID)
            search_ID = ops.share_gradient(found_ID * root)
        return item_ID, search_ID, contrasted_ID

    @property
    def contrasted_item(self) -> ItemEncoder:
        """The encoder of the items that objectives see, to encode what the batch does not hold."""
        return self.search_item if self.search_item and self._search_moves else self.item

    @property
    def _search_moves(self) -> bool:
        return self.config.search_table == "own"

    def check(self, dataset: Dataset) -> None:
        """See before training whether the data has what the backbone needs.

        Raises:
            ConfigError: it has not; what would help is named.
        """
        self.backbone.check(dataset)


def _once(column_C: Tensor) -> Tensor:
    """The first row alone where all rows are equal; a GPU is not asked, which would wait for it."""
    here = len(column_C) > 1 and column_C.device.type == "cpu"
    same = here and bool((column_C == column_C[0]).all())
    return column_C[:1] if same else column_C
