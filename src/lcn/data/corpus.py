"""The items that training may know, by domain: where objectives draw negatives from.

Shapes: I item addresses, V items of one domain, F item fields, N anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcn.data.dataset import Dataset, Int32
from lcn.schema import DOMAINS, Domain


@dataclass(frozen=True, slots=True)
class DomainItems:
    """Items of one domain that occur in training."""

    address_V: Int[Tensor, " V"]
    """Dataset addresses, ascending."""
    count_I: Int[Tensor, " I"]
    """Training events of every address in this domain."""

    def __len__(self) -> int:
        """Return V."""
        return len(self.address_V)

    def share(self, address_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Share of the domain's training events that are of each item (float64)."""
        return self.count_I[address_N].double() / max(int(self.count_I.sum()), 1)


@dataclass(frozen=True, slots=True)
class ItemCorpus:
    """Every item that a training history or a training impression can show.

    An item's domain is where it occurs; one that occurs in both domains is of both.
    """

    item_IF: Int32
    """Field indices of every address; memory-mapped."""
    domains: dict[Domain, DomainItems]

    def fields(self, address_N: Int[Tensor, " N"]) -> Int[Tensor, "N F"]:
        """Field indices of addresses, on the CPU."""
        rows = np.asarray(self.item_IF[address_N.cpu().numpy()], np.int64)
        return torch.from_numpy(rows)


def build_corpus(dataset: Dataset) -> ItemCorpus:
    """Count training events per item in one pass over the event columns.

    Only events known before some training impression count, so nothing of validation or test
    days reaches an objective. Shown items are target items even without an event.
    """
    samples, items = dataset.samples["train"], len(dataset.item_IF)
    domains = {}
    for domain in DOMAINS:
        store = dataset.events[domain]
        end_U = np.array(store.offsets_U[:-1], np.int64)
        np.maximum.at(end_U, np.asarray(samples.user_S), samples.end_S(domain))
        count_I = np.zeros(items, np.int64)
        _count(np.asarray(store.offsets_U), end_U, np.asarray(store.item_E), count_I)
        known_I = count_I > 0
        if domain == "target":
            known_I[np.asarray(samples.item_S)] = True
        known_I[0] = False
        domains[domain] = DomainItems(
            torch.from_numpy(np.flatnonzero(known_I)), torch.from_numpy(count_I)
        )
    return ItemCorpus(dataset.item_IF, domains)


@numba.njit(cache=True, nogil=True)
def _count(offsets_U, end_U, item_E, count_I):
    for user in range(len(end_U)):
        for row in range(offsets_U[user], end_U[user]):
            count_I[item_E[row]] += 1
