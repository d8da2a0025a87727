"""SIM with hard search: the most recent events that share a field value with the candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import PositiveInt
from torch import Tensor

from lcn.backbones.base import (
    Backbone,
    Context,
    Features,
    History,
    Interest,
    Query,
    describe_codes,
    describe_level,
    final_attention,
)
from lcn.config import Config as BaseConfig
from lcn.data.dataset import Dataset
from lcn.errors import ConfigError
from lcn.nn.attention import Selection
from lcn.ops import HistoryRows, Scoring
from lcn.ops.simhash import Codes, code_topk, value_codes
from lcn.schema import FIRST_VALUE

_NEVER = -1
"""A value that no item has: candidates of unknown value match nothing."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class SimHardState:
    """A history with its items' values of the key field."""

    rows: HistoryRows
    code_IY: UInt8[Tensor, "I Y"]


class SimHard(Backbone[SimHardState]):
    """Two stages: the K most recent rows of equal key, then multi-head attention over them.

    The search has no parameters and no loss. Padding and unknown values match nothing.
    Deviations: the key is any item field, since source and target categories may be disjoint (then
    no event can match and training refuses to start); K caps the paper's whole sub-list; keys and
    values may see the event context (`context: all`).
    Cost per candidate: N comparisons for the search, K (D + context) for the attention.
    """

    source = "Pi et al. 2020 (arXiv 2006.05639), section 3.2, hard search"
    assumes = "an item field (`key`) whose values occur in both domains; uses event context fields"

    class Config(BaseConfig):
        """Settings."""

        name: Literal["sim_hard"] = "sim_hard"
        key: str = "category"
        """Item field that must be equal: the paper's is the category; any shared field will do."""
        keep: PositiveInt = 50
        """K, most recent matches that reach the attention."""
        width: PositiveInt = 64
        heads: PositiveInt = 4
        context: Context = "all"
        """What the attention sees beside the item; `recency` is the paper."""

    def __init__(self, config: SimHard.Config, features: Features) -> None:
        super().__init__()
        self.config = config
        self.field = features.item_field(config.key)
        self.attention = final_attention(features, config.width, config.heads, config.context)
        self.width = config.width

    def encode(self, history: History) -> SimHardState:
        """Note every item's key."""
        code_IY = value_codes(history.item_IF[:, self.field])
        return SimHardState(history.seen(self.config.context), code_IY)

    def attend(
        self, state: SimHardState, query: Query, span_C2: Tensor, *, levels: bool = False
    ) -> Interest:
        """Find the matches, attend to them."""
        codes = self._codes(state, query)
        kept_CK = code_topk(codes, span_C2, self.config.keep, "whole", farthest=0)
        kept = Selection(kept_CK=kept_CK)
        vector_CW = self.attention(state.rows, kept, query.vector_CD, query.time_C)
        described = ()
        if levels:
            final = self.final_scoring(query)
            described = (
                describe_codes("search", codes, span_C2, kept_CK, "whole"),
                describe_level("exact", state.rows, kept, final, self.config.keep),
            )
        return Interest(vector_CW, levels=described)

    def final_scoring(self, query: Query) -> Scoring:
        """Scores of the final stage over any rows."""
        return self.attention.scoring(query.vector_CD, query.time_C)

    def preceding(self, state: SimHardState, query: Query, span_C2: Tensor, keep: int) -> Tensor:
        """The most recent matches, then the most recent of the others."""
        return code_topk(self._codes(state, query), span_C2, keep, "whole")

    def check(self, dataset: Dataset) -> None:
        """Refuse data in which no source event can ever match a candidate."""
        names = [field.name for field in dataset.manifest.item_fields]
        key = self.config.key
        if _share_values(dataset, self.field):
            return
        others = [name for at, name in enumerate(names) if _share_values(dataset, at)]
        hint = (
            f"set model.backbone.key to {' or '.join(map(repr, others))}"
            if others
            else ("no item field occurs in both domains, so hard search cannot work on this data")
        )
        raise ConfigError(
            f"sim_hard: no source-domain event can match a candidate by {key!r}, its values in "
            f"the two domains are disjoint; {hint}"
        )

    def _codes(self, state: SimHardState, query: Query) -> Codes:
        value_C = query.field_CF[:, self.field]
        known_C = torch.where(value_C >= FIRST_VALUE, value_C, _NEVER)
        return Codes(state.code_IY, state.rows.item_T, value_codes(known_C))


def _share_values(dataset: Dataset, field: int) -> bool:
    """Whether a known value of an item field occurs among source events and candidates."""
    value_I = np.asarray(dataset.item_IF[:, field])
    shown_V = np.zeros(int(value_I.max(initial=0)) + 1, np.bool_)
    shown_V[value_I[dataset.samples["train"].item_S]] = True
    shown_V[:FIRST_VALUE] = False
    item_E = dataset.events["source"].item_E
    return any(
        shown_V[value_I[item_E[at : at + _CHUNK]]].any() for at in range(0, len(item_E), _CHUNK)
    )
