"""The prediction head."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(width: int, hidden: Sequence[int], output: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """width → hidden ... → output with ReLU between; LCN's head is 256 → 128 → 1."""
    layers: list[nn.Module] = []
    for narrow, wide in pairwise([width, *hidden]):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear([width, *hidden][-1], output))
