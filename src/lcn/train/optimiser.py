"""Optimisers: AdamW for dense parameters, lazy Adam or row-wise Adagrad for embedding tables.

A large table gives a row-sparse gradient; only its rows present in the batch are read, updated and
have their moments moved, so a step's cost does not depend on the table's size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn

from lcn.nn.row_optimiser import RowAdagrad, RowAdam
from lcn.train.config import TrainConfig


def build_optimisers(
    modules: Iterable[nn.Module], config: TrainConfig
) -> list[torch.optim.Optimizer]:
    """One optimiser for dense parameters and one for row-sparse tables, where there are any."""
    dense, sparse = [], []
    for module in modules:
        tables = {
            id(part.weight)
            for part in module.modules()
            if isinstance(part, nn.Embedding) and part.sparse
        }
        for parameter in module.parameters():
            if not parameter.requires_grad:
                continue
            (sparse if id(parameter) in tables else dense).append(parameter)
    optimisers: list[torch.optim.Optimizer] = []
    if dense:
        optimisers.append(
            torch.optim.AdamW(
                dense, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
            )
        )
    if sparse:
        kind = RowAdam if config.table_optimiser == "adam" else RowAdagrad
        rate = config.table_learning_rate or config.learning_rate
        optimisers.append(kind(sparse, lr=rate))
    elif config.table_learning_rate or config.table_optimiser != "adam":
        name = "table_learning_rate" if config.table_learning_rate else "table_optimiser"
        warnings.warn(
            f"train.{name} changes nothing here: it is for tables with row-sparse gradients, and "
            "none has the model.embedding.sparse_from rows that make a table one",
            stacklevel=2,
        )
    return optimisers
