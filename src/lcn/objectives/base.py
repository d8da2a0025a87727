"""What an auxiliary objective is: a loss on the item vectors of one batch, nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcn.data.batch import Batch


@dataclass(frozen=True, slots=True)
class View:
    """What an objective may look at."""

    batch: Batch
    item_ID: Float[Tensor, "I D"]
    """Vectors of the batch's items: the ones the model searches and attends with."""
    generator: torch.Generator
    """The only source of randomness; its state is part of a checkpoint."""
    step: int
    """Optimiser steps taken so far (for warm-ups)."""

    def user_spans(self) -> tuple[Int[Tensor, "U 2"], Int[Tensor, "U 2"]]:
        """Each user's short-term target and source spans, of its latest candidate.

        Objectives count a user once however many of its impressions share the batch.
        """
        batch = self.batch
        last_U = (
            torch.searchsorted(batch.user_of_C, torch.arange(len(batch.address_U)), right=True) - 1
        )
        return batch.short_target_C2[last_U], batch.short_source_C2[last_U]


class Objective(nn.Module, ABC):
    """An auxiliary objective. Subclasses are final and hold a nested frozen `Config`.

    Parameters of an objective are trained beside the model's and dropped for inference.
    """

    weight: float
    """λ in L = L_CTR + Σ λ L."""

    @abstractmethod
    def forward(self, view: View) -> Float[Tensor, ""]:
        """The loss of a batch; 0 (with zero gradient) where the batch offers nothing to learn."""
