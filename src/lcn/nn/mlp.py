"""The prediction head."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


def mlp(width: int, hidden: Sequence[int], output: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """width → hidden ... → output with ReLU between; LCN's head is 256 → 128 → 1."""
    layers: list[nn.Module] = []
    for narrow, wide in pairwise([width, *hidden]):
        layers += [nn.Linear(narrow, wide), nn.ReLU(inplace=True)]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear([width, *hidden][-1], output))


def apply_to_parts(
    head: nn.Sequential, parts: Sequence[Float[Tensor, "C W"]]
) -> Float[Tensor, "C O"]:
    """`head` of an `mlp` applied to parts side by side, without gradients and without the copy.

    A part of one row is the same for all candidates, so that it is multiplied once.
    """
    first, *rest = head
    assert isinstance(first, nn.Linear)
    weights = first.weight.split([part.shape[1] for part in parts], 1)
    count = max(len(part) for part in parts)
    shared_W, own = first.bias, []
    for part, weight in zip(parts, weights, strict=True):
        if len(part) < count:
            shared_W = torch.addmm(shared_W, part, weight.T)
        elif part.shape[1]:
            own.append((part, weight.T))
    total_CW = torch.addmm(shared_W, *own[0])
    for part, weight in own[1:]:
        total_CW.addmm_(part, weight)
    for layer in rest:
        total_CW = layer(total_CW)
    return total_CW
