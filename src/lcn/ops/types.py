"""What every lifelong op reads and returns.

Shapes: I unique items, T history rows, C candidates, H heads, D vector width, G context fields
per row, V context codes (all fields' values on one axis), K kept rows, S = total span length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Norm = Literal["softmax", "mean", "raw"]
"""How scores become weights: softmax over the rows; score / number of rows; the score itself."""

RECENCY_BUCKETS = 26
"""floor(log2(1 + minutes)) of the time between event and request: 25 is about 64 years."""


@dataclass(frozen=True, slots=True)
class HistoryRows:
    """History rows as pointers: each row names its item vector and its context codes.

    Rows are never expanded to vectors of their own: the same item at ten places is one vector.
    """

    vector_ID: Float[Tensor, "I D"]
    """Vectors of the unique items; gradients arrive here. bfloat16 halves what a stored history
    takes."""
    item_T: Int[Tensor, " T"]
    """Row of `vector_ID` of each history row."""
    code_TG: Int[Tensor, "T G"]
    """Columns on the V axis that each row switches on, one per context field."""
    time_T: Int[Tensor, " T"]
    """Event time, UTC milliseconds."""

    def widened(self) -> HistoryRows:
        """The same rows with vectors of float32, if they are stored in half the width."""
        if self.vector_ID.dtype != torch.bfloat16:
            return self
        return replace(self, vector_ID=self.vector_ID.float())

    def without_context(self) -> HistoryRows:
        """Return the same rows with no codes."""
        return HistoryRows(self.vector_ID, self.item_T, self.code_TG[:, :0], self.time_T)


@dataclass(frozen=True, slots=True)
class Scoring:
    """How candidates score rows.

    score[c, h, t] = <vector[item[t]], query[c, h]> + sum_g bias[c, h, code[t, g]]
                     + bias[c, h, V - RECENCY_BUCKETS + bucket(time[c] - time[t])]   (if time_C)

    Keys that are linear in [item vector, context embeddings] need no projection per row: the
    projection is absorbed into the query, and a context field contributes one number per value.
    """

    query_CHD: Float[Tensor, "C H D"]
    bias_CHV: Float[Tensor, "C H V"]
    """V may be 0. With `time_C` its last RECENCY_BUCKETS columns are the recency buckets."""
    time_C: Int[Tensor, " C"] | None = None
    """Request time, UTC milliseconds; None leaves recency out."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Weighted sums over each candidate's rows."""

    vector_CHD: Float[Tensor, "C H D"]
    """sum_t weight[c, h, t] vector[item[t]]; zero for an empty history."""
    weight_CHV: Float[Tensor, "C H V"]
    """sum_t weight[c, h, t] [row t has code v]: times a table of context embeddings, it is the
    pooled context."""
    kept_CK: Int[Tensor, "C K"] | None
    """The `keep` best rows by score (first head), best first, ties to the later row; -1 in
    empty slots. None when `keep` was 0."""
