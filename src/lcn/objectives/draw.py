"""Random choices of objectives: drawn on the CPU from the run's own generator.

A draw is the same on every device, and the generator's state is part of a checkpoint.
Shapes: U users (rows), L places.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def uniform(*shape: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Numbers in [0, 1) of the given shape, on the device of `like`."""
    return torch.rand(*shape, generator=generator).to(like.device)


def coins(count: int, chance: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """`count` independent truths, each with the given chance."""
    return uniform(count, generator=generator, like=like) < chance


def below(bound_N: Int[Tensor, " N"], generator: torch.Generator) -> Int[Tensor, " N"]:
    """One uniform integer of [0, bound) for each bound; 0 where the bound is 0."""
    uniform_N = torch.rand(len(bound_N), generator=generator, dtype=torch.float64)
    drawn_N = (uniform_N.to(bound_N.device) * bound_N).long()
    return torch.minimum(drawn_N, (bound_N - 1).clamp(min=0))


def pick(count: int, size: int, generator: torch.Generator) -> Int[Tensor, " N"]:
    """`count` independent uniform integers of [0, size)."""
    return below(torch.full((count,), size), generator)


def pick_some(
    valid_UL: Bool[Tensor, "U L"], count: int | Int[Tensor, " U"], generator: torch.Generator
) -> Bool[Tensor, "U L"]:
    """Up to `count` valid places of each row, every subset equally likely."""
    score_UL = uniform(*valid_UL.shape, generator=generator, like=valid_UL)
    order_UL = score_UL.masked_fill(~valid_UL, 2.0).argsort(1)
    rank_UL = order_UL.argsort(1)
    bound_U1 = count[:, None] if isinstance(count, Tensor) else count
    return valid_UL & (rank_UL < bound_U1)


def pick_one(valid_UL: Bool[Tensor, "U L"], generator: torch.Generator) -> Int[Tensor, " U"]:
    """One uniform valid place of each row; -1 where there is none."""
    score_UL = uniform(*valid_UL.shape, generator=generator, like=valid_UL)
    if not valid_UL.shape[1]:
        return torch.full((len(valid_UL),), -1, device=valid_UL.device)
    place_U = score_UL.masked_fill(~valid_UL, -1.0).argmax(1)
    return torch.where(valid_UL.any(1), place_U, -1)
