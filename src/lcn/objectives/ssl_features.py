"""SSL: two views of an item with disjoint fields agree (random and correlated feature masking).

Shapes: N drawn items, F item fields, W field width, D item width, V items of a domain.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from lcn.config import Config as BaseConfig
from lcn.data.corpus import ItemCorpus
from lcn.errors import ConfigError
from lcn.nn.mlp import mlp
from lcn.nn.unit import unit
from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.contrast import info_nce, item_key
from lcn.objectives.draw import pick
from lcn.schema import DOMAINS


class Ssl(Objective):
    """L = -mean log( e^{s(A_i, B_i)/τ} / Σ_j e^{s(A_i, B_j)/τ} ) over items drawn from the corpus.

    View A keeps the fields outside the mask, view B those inside; both pass one tower G.
    Deviations: half of the items are of each domain and contrast with their own domain; no
    multi-valued fields, hence no dropping of values.
    """

    source = "SSL (RFM and CFM), CIKM 2021, arXiv 2007.12865"
    assumes = "at least two item fields, better three or more; sees items only, never users"

    class Config(BaseConfig):
        """Settings."""

        name: Literal["ssl"] = "ssl"
        weight: NonNegativeFloat = 0.1
        """α."""
        masking: Literal["rfm", "cfm"] = "cfm"
        """rfm: a random half of the fields; cfm: a field and those that tell most about it."""
        items: PositiveInt = 1024
        """Items drawn per step, uniformly from the corpus: not as they occur in the logs."""
        temperature: PositiveFloat = 0.1
        hidden: tuple[int, ...] = (128,)
        """Hidden layers of G."""

    def __init__(self, config: Ssl.Config, setup: Setup) -> None:
        super().__init__()
        self.fields = fields = len(setup.manifest.item_fields)
        if fields < 2:
            raise ConfigError(
                f"objective ssl masks some item fields and keeps others; this dataset has {fields}:"
                " map more item fields, or take another objective"
            )
        self.config, self.weight, self.corpus = config, config.weight, setup.corpus
        self.tower = mlp(fields * setup.field_width, config.hidden, setup.item_width)
        self.partners_FF = (
            rank_partners(field_information(setup.corpus)) if config.masking == "cfm" else None
        )

    def forward(self, view: View) -> Float[Tensor, ""]:
        """Mean over drawn items; a domain of fewer than two distinct items counts for nothing."""
        masked_F = self.draw_mask(view.generator).to(view.item_ID.device)
        losses = [view.item_ID.new_zeros(0)]
        for domain in DOMAINS:
            address_V = self.corpus.domains[domain].address_V
            if len(address_V) < 2:
                continue
            drawn_N = pick(self.config.items // 2, len(address_V), view.generator)
            field_NF = self.corpus.fields(address_V[drawn_N].unique())
            losses.append(self._contrast(view, field_NF.to(view.item_ID.device), masked_F))
        loss_N = torch.cat(losses)
        return loss_N.mean() if len(loss_N) else view.zero()

    def draw_mask(self, generator: torch.Generator) -> Bool[Tensor, " F"]:
        """The fields of view B, drawn anew for each step: at least one, never all."""
        if self.partners_FF is None:
            return random_mask(self.fields, generator)
        return correlated_mask(self.partners_FF, generator)

    def _contrast(self, view: View, field_NF: Tensor, masked_F: Tensor) -> Tensor:
        embedded_NFW = view.tables.embed_items(field_NF).unflatten(1, (len(masked_F), -1))
        kept_NZ = (embedded_NFW * ~masked_F[:, None]).flatten(1)
        hidden_NZ = (embedded_NFW * masked_F[:, None]).flatten(1)
        a_ND, b_ND = unit(self.tower(kept_NZ)), unit(self.tower(hidden_NZ))
        logit_NN = a_ND @ b_ND.T / self.config.temperature
        key_N = item_key(field_NF)
        allowed_NN = key_N[:, None] != key_N
        has_negative_N = allowed_NN.any(1)
        return info_nce(logit_NN, allowed_NN, logit_NN.diagonal())[has_negative_N]


def random_mask(fields: int, generator: torch.Generator) -> Bool[Tensor, " F"]:
    """RFM: a random half of the fields."""
    masked_F = torch.zeros(fields, dtype=torch.bool)
    masked_F[torch.randperm(fields, generator=generator)[: max(fields // 2, 1)]] = True
    return masked_F


def correlated_mask(
    partners_FF: Int[Tensor, "F G"], generator: torch.Generator
) -> Bool[Tensor, " F"]:
    """CFM: a uniform seed field and its ⌊F/2⌋ best partners, as far as a field is left over."""
    fields = len(partners_FF)
    masked_F = torch.zeros(fields, dtype=torch.bool)
    seed = int(torch.randint(fields, (), generator=generator))
    masked_F[seed] = True
    masked_F[partners_FF[seed, : min(fields // 2, fields - 2)]] = True
    return masked_F


def rank_partners(information_FF: NDArray[np.float64]) -> Int[Tensor, "F G"]:
    """The other fields of each field, most informative first (G = F - 1); ties by position."""
    order_FF = np.argsort(-information_FF, axis=1, kind="stable")
    others = [row_F[row_F != field] for field, row_F in enumerate(order_FF)]
    return torch.from_numpy(np.stack(others))


def field_information(corpus: ItemCorpus) -> NDArray[np.float64]:
    """Mutual information (nats) of every two item fields, from counts over the corpus."""
    address_N = torch.cat([corpus.domains[domain].address_V for domain in DOMAINS]).unique()
    columns = [np.unique(column, return_inverse=True)[1] for column in corpus.fields(address_N).T]
    fields = len(columns)
    information_FF = np.zeros((fields, fields))
    entropy_F = [_entropy(column) for column in columns]
    for f in range(fields):
        for g in range(f):
            joint = _entropy(columns[f] * (columns[g].max(initial=0) + 1) + columns[g])
            information_FF[f, g] = information_FF[g, f] = entropy_F[f] + entropy_F[g] - joint
    return information_FF


def _entropy(code_N: NDArray[np.int64]) -> float:
    count = np.unique(code_N, return_counts=True)[1]
    share = count / max(count.sum(), 1)
    return float(-(share * np.log(share)).sum())
