"""Two views of a stream: crop, mask, reorder, or one domain each (CL4SRec).

Shapes: U users, L places of a stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lcn.objectives.draw import below, pick_one, pick_some, uniform
from lcn.objectives.stream import Stream, compact


@dataclass(frozen=True, slots=True)
class Augmented:
    """A rearranged stream, some of whose events are masked."""

    stream: Stream
    masked_UL: Bool[Tensor, "U L"]


def augment(
    stream: Stream, crop: float, mask: float, reorder: float, generator: torch.Generator
) -> Augmented:
    """One of crop, mask and reorder for each user, each with chance 1/3.

    Args:
        stream: the streams.
        crop: η, the share of events that a crop keeps.
        mask: γ, the share of events that are masked.
        reorder: β, the share of events that are shuffled among themselves.
        generator: of all draws.
    """
    kind_U1 = below(torch.full_like(stream.length_U, 3), generator)[:, None]
    cropped_UL = crop_places(stream, crop, generator)
    shuffled_UL = reorder_places(stream, reorder, generator)
    count_U = (stream.length_U * mask).long()
    hidden_UL = pick_some(stream.real_UL, count_U, generator) & (kind_U1 == 1)
    place_UL = torch.where(kind_U1 == 0, cropped_UL, _places(stream))
    place_UL = torch.where(kind_U1 == 2, shuffled_UL, place_UL)
    return Augmented(stream.take(place_UL), hidden_UL)


def split_domains(stream: Stream) -> tuple[Augmented, Augmented]:
    """The target-domain events and the source-domain events as two views."""
    views = []
    for target in (True, False):
        part = stream.take(compact(stream.of_domain(target=target)))
        views.append(Augmented(part, torch.zeros_like(part.target_UL)))
    return views[0], views[1]


def crop_places(stream: Stream, share: float, generator: torch.Generator) -> Int[Tensor, "U L"]:
    """A random contiguous part of max(1, ⌊η n⌋) events that holds every domain the stream holds.

    Where no part of that length does, the stream stays whole.
    """
    length_U, real_UL = stream.length_U, stream.real_UL
    keep_U1 = (length_U * share).long().clamp(min=1)[:, None]
    start_UL = torch.arange(real_UL.shape[1], device=real_UL.device).expand_as(real_UL)
    possible_UL = start_UL + keep_U1 <= length_U[:, None]
    for target in (False, True):
        own_UL = stream.of_domain(target=target)
        before_UL = torch.nn.functional.pad(own_UL.cumsum(1), (1, 0))
        end_UL = (start_UL + keep_U1).clamp(max=real_UL.shape[1])
        inside_UL = before_UL.gather(1, end_UL) > before_UL[:, :-1]
        possible_UL = possible_UL & (inside_UL | ~own_UL.any(1, keepdim=True))
    start_U1 = pick_one(possible_UL, generator)[:, None]
    whole_U1 = start_U1 < 0
    place_UL = start_UL + torch.where(whole_U1, 0, start_U1)
    kept_UL = start_UL < torch.where(whole_U1, length_U[:, None], keep_U1)
    return place_UL.masked_fill(~kept_UL, -1)


def reorder_places(stream: Stream, share: float, generator: torch.Generator) -> Int[Tensor, "U L"]:
    """All events, a random contiguous part of ⌊β n⌋ of them shuffled."""
    part_U = (stream.length_U * share).long()
    start_U1 = below(stream.length_U - part_U + 1, generator)[:, None]
    end_U1 = start_U1 + part_U[:, None]
    place_UL = torch.arange(stream.real_UL.shape[1], device=start_U1.device).expand_as(
        stream.real_UL
    )
    # Sorting by place, with random keys between start and end inside the part.
    random_UL = uniform(*place_UL.shape, generator=generator, like=place_UL).double()
    key_UL = torch.where(
        (place_UL >= start_U1) & (place_UL < end_U1),
        start_U1 - 0.5 + random_UL * part_U[:, None],
        place_UL.double(),
    )
    return key_UL.argsort(dim=1, stable=True).masked_fill(~stream.real_UL, -1)


def _places(stream: Stream) -> Tensor:
    place_L = torch.arange(stream.real_UL.shape[1], device=stream.item_UL.device)
    return place_L.expand_as(stream.item_UL).masked_fill(~stream.real_UL, -1)
