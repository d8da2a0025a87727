"""A small world of histories and candidates, and the variants of every backbone to try in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lcn.backbones import BACKBONES, BackboneConfig, build_backbone
from lcn.backbones.base import Backbone, Features, History, Query
from lcn.backbones.eta import Eta
from lcn.backbones.full import FullAttention
from lcn.backbones.lap import Lap
from lcn.backbones.none import NoLifelong
from lcn.backbones.sdim import Sdim
from lcn.backbones.sim_hard import SimHard
from lcn.backbones.sim_soft import SimSoft
from lcn.backbones.twin import Twin
from lcn.ops import HistoryRows
from lcn.schema import Field

WIDTH = 8
KEYS = 3
ITEM_FIELDS = (Field(name="item", size=400), Field(name="category", size=KEYS + 2))
CONTEXT = (Field(name="kind", size=4), Field(name="hour", size=5))
FEATURES = Features(ITEM_FIELDS, CONTEXT, WIDTH, 4, 0.5)
NOW = 10**9

_SMALL = {"width": 8, "heads": 2}
_LAP = {**_SMALL, "k1": 9, "k2": 4}

VARIANTS: dict[str, BackboneConfig] = {
    "none": NoLifelong.Config(),
    "full": FullAttention.Config(**_SMALL),
    "sim_hard": SimHard.Config(keep=4, **_SMALL),
    "sim_hard-recency": SimHard.Config(keep=4, context="recency", **_SMALL),
    "sim_soft": SimSoft.Config(keep=4, search_width=6, **_SMALL),
    "sim_soft-raw": SimSoft.Config(keep=4, search_width=6, norm="raw", **_SMALL),
    "sim_soft-recency": SimSoft.Config(keep=4, search_width=6, context="recency", **_SMALL),
    "eta": Eta.Config(keep=4, bits=32, **_SMALL),
    "eta-256": Eta.Config(keep=4, bits=256, **_SMALL),
    "eta-no-context": Eta.Config(keep=4, bits=64, context="none", **_SMALL),
    "sdim": Sdim.Config(),
    "sdim-weights": Sdim.Config(norm="weights"),
    "sdim-mhta": Sdim.Config(final="mhta", keep=4, **_SMALL),
    "twin": Twin.Config(keep=4, **_SMALL),
    "twin-mean": Twin.Config(keep=4, select="mean_alpha", **_SMALL),
    "twin-per-head": Twin.Config(keep=4, select="per_head", **_SMALL),
    "twin-xavier": Twin.Config(keep=4, identity_init=False, **_SMALL),
    "twin-stale": Twin.Config(keep=4, stale_steps=2, **_SMALL),
    "lap": Lap.Config(**_LAP),
    "lap-all": Lap.Config(**{**_LAP, "k1": 0}),
    "lap-mean": Lap.Config(norm_csa="mean", norm_msa="mean", **_LAP),
    "lap-raw": Lap.Config(norm_csa="raw", norm_msa="raw", **_LAP),
    "lap-raw-ln": Lap.Config(norm_csa="raw_ln", norm_msa="raw_ln", **_LAP),
    "lap-no-msa": Lap.Config(use_msa=False, **_LAP),
    "lap-no-fsa": Lap.Config(use_fsa=False, **_LAP),
    "lap-csa": Lap.Config(use_msa=False, use_fsa=False, **_LAP),
    "lap-apart": Lap.Config(use_csa_output=False, use_msa_output=False, **_LAP),
    "lap-tied": Lap.Config(tie_msa_fsa=True, **_LAP),
    "lap-sequence": Lap.Config(fsa_query="sequence", **_LAP),
    "lap-residual": Lap.Config(fsa_residual=True, **_LAP),
    "lap-one-field": Lap.Config(context_fields=("hour",), **_LAP),
    "lap-item-alone": Lap.Config(context_fields=(), recency=False, **_LAP),
    "lap-time": Lap.Config(time_bias=True, **_LAP),
    "lap-recent": Lap.Config(recent_queries=3, **_LAP),
    "lap-fism": Lap.Config(fism=True, **_LAP),
    "lap-fism-csa": Lap.Config(fism=True, use_msa=False, use_fsa=False, **_LAP),
    "lap-fism-no-recency": Lap.Config(fism=True, recency=False, **_LAP),
    "lap-search-loss": Lap.Config(search_loss=0.5, **_LAP),
    "lap-distill": Lap.Config(distill=0.1, **_LAP),
}
LIFELONG = [name for name in VARIANTS if name != "none"]
assert {config.name for config in VARIANTS.values()} == set(BACKBONES)


@dataclass(frozen=True)
class World:
    """Encoded histories, candidates and their spans."""

    history: History
    query: Query
    span_C2: torch.Tensor

    def with_vectors(self, vector_ID: torch.Tensor) -> World:
        """The same world with other item vectors (candidates keep theirs)."""
        rows = replace(self.history.rows, vector_ID=vector_ID)
        return replace(self, history=replace(self.history, rows=rows))

    def of(self, candidates: torch.Tensor) -> World:
        """The same histories, asked by some candidates only, in the order given."""
        query = Query(
            self.query.vector_CD[candidates],
            self.query.field_CF[candidates],
            self.query.time_C[candidates],
            self.query.user_of_C[candidates],
            recent_CD=self.query.recent_CD[candidates],
        )
        return replace(self, query=query, span_C2=self.span_C2[candidates])


def build(config: BackboneConfig, seed: int = 0) -> Backbone:
    """A backbone with parameters that depend on the seed alone."""
    torch.manual_seed(seed)
    return build_backbone(config, FEATURES)


def make_world(
    lengths: tuple[int, ...] = (0, 3, 17, 40), per_user: int = 3, seed: int = 0, whole: bool = False
) -> World:
    """Users with the given numbers of rows, every row another item; some spans are empty.

    `whole` gives every candidate all rows of its user.
    """
    generator = torch.Generator().manual_seed(seed)
    total, users = sum(lengths), len(lengths)
    count = users * per_user
    items = total + count
    offsets_U1 = torch.tensor([0, *lengths]).cumsum(0)
    order_I = torch.randperm(items, generator=generator)
    item_IF = torch.stack(
        [torch.arange(items) + 2, torch.randint(1, KEYS + 2, (items,), generator=generator)], 1
    ).to(torch.int32)
    context_T = [torch.randint(0, field.size, (total,), generator=generator) for field in CONTEXT]
    code_TG = torch.stack([context_T[0], context_T[1] + CONTEXT[0].size], 1).to(torch.int32)
    vector_ID = torch.randn(items, WIDTH, generator=generator)
    rows = HistoryRows(
        vector_ID,
        order_I[:total].to(torch.int32),
        code_TG,
        torch.randint(0, NOW, (total,), generator=generator).sort().values,
    )
    candidate_C = order_I[total:]
    user_of_C = torch.arange(users).repeat_interleave(per_user)
    first_C, last_C = offsets_U1[user_of_C], offsets_U1[user_of_C + 1]
    length_C = last_C - first_C
    if not whole:
        share_C2 = torch.rand(count, 2, generator=generator).sort(1).values
        share_C2[:, 1] = share_C2[:, 1].clamp(min=0.5)
        first_C, last_C = (
            first_C + (share_C2[:, 0] * 0.4 * length_C).long(),
            first_C + (share_C2[:, 1] * length_C).ceil().long(),
        )
        last_C[-1] = first_C[-1]
    query = Query(
        vector_ID[candidate_C],
        item_IF[candidate_C],
        torch.randint(NOW, 2 * NOW, (count,), generator=generator),
        user_of_C,
        recent_CD=torch.randn(users, WIDTH, generator=generator)[user_of_C],
    )
    return World(History(rows, offsets_U1, item_IF), query, torch.stack([first_C, last_C], 1))


def attend(backbone: Backbone, world: World, **options):
    """Encode and attend."""
    state = backbone.encode(world.history)
    return backbone.attend(state, world.query, world.span_C2, **options)


def kept_by_last_level(backbone: Backbone, world: World) -> torch.Tensor:
    """[C, T] whether the last level of a backbone kept a row."""
    kept_CK = attend(backbone, world, levels=True).levels[-1].kept_CK
    total = len(world.history.rows.item_T)
    mask_CT = torch.zeros(len(kept_CK), total + 1, dtype=torch.bool)
    mask_CT.scatter_(1, torch.where(kept_CK >= 0, kept_CK, total), True)
    return mask_CT[:, :total]


def rows_in_span(world: World) -> torch.Tensor:
    """[C, T] whether a row is in a candidate's span."""
    row_T = torch.arange(len(world.history.rows.item_T))
    return (row_T >= world.span_C2[:, :1]) & (row_T < world.span_C2[:, 1:])


def row_gradient(world: World, vector_ID: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """[T] whether the loss reaches the vector of a row (every row is another item)."""
    (grad_ID,) = torch.autograd.grad(loss, vector_ID, allow_unused=True, retain_graph=True)
    if grad_ID is None:
        return torch.zeros(len(world.history.rows.item_T), dtype=torch.bool)
    return (grad_ID != 0).any(1)[world.history.rows.item_T.long()]
