"""What an auxiliary objective is: a loss on the vectors of one batch, nothing else.

Shapes: C candidates, U users, I unique items of the batch, D item width, N items, F item fields.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcn.data.batch import Batch
from lcn.data.corpus import ItemCorpus, build_corpus
from lcn.data.dataset import Dataset
from lcn.nn.embedding import Tables
from lcn.objectives.contrast import item_key
from lcn.schema import Manifest


@dataclass(frozen=True)
class Setup:
    """What an objective may ask when it is built."""

    dataset: Dataset
    item_width: int
    """D of the shared item encoder."""
    field_width: int
    """Width of one field's embedding."""
    batch_size: int
    """Candidates in a batch."""

    @property
    def manifest(self) -> Manifest:
        """Fields and sizes of the data."""
        return self.dataset.manifest

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the training impressions."""
        return -(-len(self.dataset.samples["train"]) // self.batch_size)

    @cached_property
    def corpus(self) -> ItemCorpus:
        """Items of training; counted when first asked for, then shared."""
        return build_corpus(self.dataset)


@dataclass(frozen=True, slots=True)
class View:
    """What an objective may look at in a step."""

    batch: Batch
    item_ID: Float[Tensor, "I D"]
    """Vectors of the batch's items: the ones the model searches and attends with."""
    tables: Tables
    """The model's embeddings, to encode what the batch does not hold."""
    generator: torch.Generator
    """The only source of randomness; its state is part of a checkpoint."""
    step: int
    """Optimiser steps taken so far (for warm-ups)."""

    def latest_candidates(self) -> Int[Tensor, " U"]:
        """Each user's latest candidate (candidates are ordered by user, then time).

        Objectives count a user once however many of its impressions share the batch.
        """
        user_U = torch.arange(len(self.batch.address_U), device=self.batch.user_of_C.device)
        return torch.searchsorted(self.batch.user_of_C, user_U, right=True) - 1

    def item_keys(self) -> Int[Tensor, " I"]:
        """What makes the batch's items the same or different; see `contrast.item_key`."""
        return item_key(self.batch.item_IF)

    def encode(self, field_NF: Int[Tensor, "N F"]) -> Float[Tensor, "N D"]:
        """Vectors of items by their fields, through the model's own item encoder."""
        return self.tables.encode_items(field_NF.to(self.item_ID.device))

    def zero(self) -> Float[Tensor, ""]:
        """A loss of nothing, with a zero gradient."""
        return self.item_ID.sum() * 0.0


class Objective(nn.Module, ABC):
    """An auxiliary objective. Subclasses are final and hold a nested frozen `Config`.

    Built with `(config, setup)`. Parameters of an objective are trained beside the model's and
    dropped for inference; what it remembers between steps is in buffers, so checkpoints hold it.
    """

    source: ClassVar[str]
    """The paper."""
    assumes: ClassVar[str]
    """What it needs of the data."""
    revision: ClassVar[int] = 0
    """Raised when a fix changes what the same settings train: experiments do not take runs of
    before for runs of now."""
    weight: float
    """λ in L = L_CTR + Σ λ L."""

    @abstractmethod
    def forward(self, view: View) -> Float[Tensor, ""]:
        """The loss of a batch; 0 (with zero gradient) where the batch offers nothing to learn."""
