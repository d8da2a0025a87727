"""A batch: users' windows once, as flat rows; each candidate names its spans in them.

Shapes: C candidates (impressions), U users, I unique items, T history rows of one domain,
F item fields, G event context fields, R request context fields, A candidate-only fields,
P profile fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """History rows of one domain: each user's window once, users one after the other."""

    item_T: Int[Tensor, " T"]
    """Position of the row's item on the batch's I axis."""
    context_TG: Int[Tensor, "T G"]
    """Event context field indices."""
    time_T: Int[Tensor, " T"]
    """UTC milliseconds."""
    offsets_U1: Int[Tensor, " U1"]
    """[U + 1] first row of each user's window."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything a model may see of C impressions; candidates are ordered by user."""

    item_IF: Int[Tensor, "I F"]
    """Field indices of every item of the batch, once."""
    address_I: Int[Tensor, " I"]
    """Dataset address of each of them (to name items; never a feature)."""
    source: Rows
    target: Rows
    lifelong_C2: Int[Tensor, "C 2"]
    """First and one-past-last source row of each candidate's lifelong history."""
    short_source_C2: Int[Tensor, "C 2"]
    short_target_C2: Int[Tensor, "C 2"]
    candidate_C: Int[Tensor, " C"]
    """Position of the candidate on the I axis."""
    candidate_CA: Int[Tensor, "C A"]
    context_CR: Int[Tensor, "C R"]
    time_C: Int[Tensor, " C"]
    """UTC milliseconds of the request."""
    user_of_C: Int[Tensor, " C"]
    """Position on the U axis, never decreasing."""
    profile_UP: Int[Tensor, "U P"]
    address_U: Int[Tensor, " U"]
    label_C: Float[Tensor, " C"]
    sample_C: Int[Tensor, " C"]
    """Row of the split this candidate came from (to put predictions back in order)."""

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.candidate_C)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        if torch.device(device).type == "cpu":
            return self
        moved = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Rows):
                value = Rows(*(getattr(value, part).to(device) for part in Rows.__slots__))
            else:
                value = value.to(device)
            moved[name] = value
        return Batch(**moved)
