"""A user's recent events of both domains as one time-ordered stream, each user once per batch.

The stream is the only place where objectives copy history rows, and only the short window.
Shapes: U users, L places of a stream, C candidates, N predicted places, M places of another
arrangement of a stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from lcn.config import Config
from lcn.data.batch import Batch, Rows
from lcn.objectives.draw import pick_some


class StreamConfig(Config):
    """What of a user's history an objective reads."""

    domains: Literal["both", "target", "source"] = "both"
    length: PositiveInt = 50
    """Newest events of the merged stream; no more than the batch's short-term histories hold."""
    users: NonNegativeInt = 0
    """Users of a batch that take part in a step, drawn at random; 0 takes all. A dial for cost."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Events of some users, oldest first; places past the end are -1."""

    item_UL: Int[Tensor, "U L"]
    """Positions on the batch's item axis."""
    target_UL: Bool[Tensor, "U L"]
    """Whether the event is of the target domain."""
    row_UL: Int[Tensor, "U L"]
    """The event's row among its domain's rows."""
    user_U: Int[Tensor, " U"]
    """Position on the batch's user axis."""

    @property
    def real_UL(self) -> Bool[Tensor, "U L"]:
        """Where there is an event."""
        return self.item_UL >= 0

    @property
    def length_U(self) -> Int[Tensor, " U"]:
        """Events of each user."""
        return self.real_UL.sum(1)

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.item_UL)

    def of_domain(self, *, target: bool) -> Bool[Tensor, "U L"]:
        """Where there is an event of one domain."""
        return self.real_UL & (self.target_UL == target)

    def take(self, place_UM: Int[Tensor, "U M"]) -> Stream:
        """The same users with their events rearranged; place -1 is no event."""
        if not self.item_UL.shape[1]:
            return self
        empty_UM, index_UM = place_UM < 0, place_UM.clamp(min=0)
        return Stream(
            self.item_UL.gather(1, index_UM).masked_fill(empty_UM, -1),
            self.target_UL.gather(1, index_UM) & ~empty_UM,
            self.row_UL.gather(1, index_UM).masked_fill(empty_UM, -1),
            self.user_U,
        )

    def of_users(self, which_N: Tensor) -> Stream:
        """Some of the users, by position or by truth."""
        return Stream(
            self.item_UL[which_N],
            self.target_UL[which_N],
            self.row_UL[which_N],
            self.user_U[which_N],
        )


def merge_stream(
    batch: Batch, candidate_U: Int[Tensor, " U"], config: StreamConfig, generator: torch.Generator
) -> Stream:
    """Merge the short-term histories of both domains by time; keep the newest events.

    Args:
        batch: as collated.
        candidate_U: for each user, the candidate at whose moment the stream ends.
        config: domains, length and how many users.
        generator: chooses the users where there are more than `config.users`.

    Returns:
        Streams of the users that have an event, in batch order; no longer than the longest.
    """
    user_U = torch.arange(len(candidate_U), device=candidate_U.device)
    if config.users and len(candidate_U) > config.users:
        drawn = torch.randperm(len(candidate_U), generator=generator)[: config.users]
        user_U = drawn.sort().values.to(candidate_U.device)
    candidate_U = candidate_U[user_U]
    sides = (
        ("source", batch.source, batch.short_source_C2),
        ("target", batch.target, batch.short_target_C2),
    )
    parts = [
        _window(rows, span_C2[candidate_U], config.length, target=domain == "target")
        for domain, rows, span_C2 in sides
        if config.domains in ("both", domain)
    ]
    item_UM, target_UM, row_UM, time_UM = (
        torch.cat(columns, 1) for columns in zip(*parts, strict=True)
    )
    merged = Stream(item_UM, target_UM, row_UM, user_U)
    order_UM = time_UM.argsort(dim=1, stable=True)
    kept_U = merged.length_U.clamp(max=config.length)
    longest = int(kept_U.max()) if len(merged) else 0
    place_L = torch.arange(longest, device=user_U.device)
    at_UL = (merged.length_U - kept_U)[:, None] + place_L
    real_UL = place_L < kept_U[:, None]
    place_UL = order_UM.gather(1, torch.where(real_UL, at_UL, 0)) if longest else order_UM[:, :0]
    return merged.take(place_UL.masked_fill(~real_UL, -1)).of_users(kept_U > 0)


def next_places(stream: Stream, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which next events to predict: up to `most` of each user's, drawn at random; 0 takes all.

    Returns:
        user_N, place_N: rows of the stream and places; the event at place + 1 is predicted from
        those up to place.
    """
    valid_UL = stream.real_UL[:, 1:]
    if most:
        valid_UL = pick_some(valid_UL, most, generator)
    user_N, place_N = valid_UL.nonzero().unbind(1)
    return user_N, place_N


def compact(valid_UL: Bool[Tensor, "U L"]) -> Int[Tensor, "U L"]:
    """Places where `valid` holds, in order, -1 behind them: an argument for `Stream.take`."""
    order_UL = (~valid_UL).to(torch.int8).argsort(dim=1, stable=True)
    return order_UL.masked_fill(~valid_UL.gather(1, order_UL), -1)


def _window(
    rows: Rows, span_U2: Int[Tensor, "U 2"], length: int, *, target: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The newest `length` rows of spans: item, domain, row and time of each; times end last."""
    row_UL = newest_rows(span_U2, length)
    real_UL = row_UL >= 0
    index_UL = row_UL.clamp(min=0)
    if not len(rows.item_T):
        index_UL = index_UL[:, :0]
        row_UL, real_UL = row_UL[:, :0], real_UL[:, :0]
    item_UL = rows.item_T[index_UL].long().masked_fill(~real_UL, -1)
    time_UL = rows.time_T[index_UL].masked_fill(~real_UL, torch.iinfo(torch.int64).max)
    return item_UL, torch.full_like(real_UL, target) & real_UL, row_UL, time_UL


def newest_rows(span_U2: Int[Tensor, "U 2"], length: int = 0) -> Int[Tensor, "U L"]:
    """Rows of spans, -1 behind them; at most the newest `length` of each, 0 takes all."""
    start_U = span_U2[:, 0]
    if length:
        start_U = torch.maximum(start_U, span_U2[:, 1] - length)
    count_U = span_U2[:, 1] - start_U
    longest = int(count_U.max()) if len(count_U) else 0
    place_L = torch.arange(longest, device=span_U2.device)
    row_UL = start_U[:, None] + place_L
    return row_UL.masked_fill(place_L >= count_U[:, None], -1)
