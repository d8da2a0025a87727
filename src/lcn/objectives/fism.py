"""FISM: each event's response told from the user's other events and their responses.

Shapes: U users, T history rows of both domains, R rows whose response is known, V values of the
response field, I unique items of the batch, D item width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from lcn import ops
from lcn.config import Config as BaseConfig
from lcn.data.batch import Batch, Rows
from lcn.data.source_clicks import response_labels
from lcn.errors import ConfigError
from lcn.objectives.base import Objective, Setup, View
from lcn.schema import DOMAINS


@dataclass(frozen=True, slots=True)
class Responses:
    """The history rows of a batch, target domain first, and what is known of the responses."""

    item_T: Int[Tensor, " T"]
    user_T: Int[Tensor, " T"]
    kind_T: Int[Tensor, " T"]
    """Domain and value of the response field, as one number."""
    sign_T: Float[Tensor, " T"]
    """1 clicked, -1 only shown, 0 unknown."""


class Fism(Objective):
    """BCE of σ(e_j · Σ_{k≠j} g_k e_k / (n - 1)^α + b(e_j) + w m_j): was event j a click?

    The sum runs over all other events of the user in the batch's windows, both domains, g is a
    learned number per domain and value of the response field, m_j the mean response to the others.
    A row is left out of its own sum in closed form, so all rows of all users cost one pass.
    Deviations: BCE in the place of squared error or AUC; one vector per item, shared by both sides
    (the paper has two); the item's bias is linear in its vector, the user's is m_j.
    """

    source = "FISM (factored item similarity models), KDD 2013, doi 10.1145/2487575.2487589"
    assumes = "a mapping with `responses`: histories that tell clicked from only shown"

    class Config(BaseConfig):
        """Settings."""

        name: Literal["fism"] = "fism"
        weight: NonNegativeFloat = 0.1
        """λ."""
        alpha: NonNegativeFloat = 0.5
        """α: 0 sums a history, 1 averages it."""
        prior: NonNegativeFloat = 5.0
        """Events of no response that m_j is averaged with."""

    def __init__(self, config: Fism.Config, setup: Setup) -> None:
        super().__init__()
        self.config, self.weight = config, config.weight
        told = response_labels(setup.dataset)
        if told is None:
            raise ConfigError(
                "the objective fism learns from responses, but the dataset does not say which "
                "events are clicks; add `responses` to its mapping and prepare it again"
            )
        self.place, label_V = told
        sign_V = torch.from_numpy(label_V).float()
        self.sign_V: Tensor
        self.register_buffer("sign_V", torch.where(sign_V > 0, 1.0, -(sign_V == 0).float()), False)
        self.gain_V = nn.Parameter(self.sign_V.repeat(len(DOMAINS)))
        self.bias = nn.Linear(setup.item_width, 1)
        self.mean_weight = nn.Parameter(torch.ones(()))

    def forward(self, view: View) -> Float[Tensor, ""]:
        """See the class; fewer than two known responses give 0."""
        rows = self.rows(view.batch, view.latest_candidates())
        known_R = rows.sign_T.nonzero()[:, 0]
        if len(known_R) < 2:
            return view.zero()
        logit_R = self.logits(view.item_ID, rows, len(view.batch.address_U))[known_R]
        return F.binary_cross_entropy_with_logits(logit_R, (rows.sign_T[known_R] > 0).float())

    def logits(
        self, item_ID: Float[Tensor, "I D"], rows: Responses, users: int
    ) -> Float[Tensor, " T"]:
        """How likely each row is a click, by all other rows of its user.

        Args:
            item_ID: vectors of the batch's items.
            rows: history rows.
            users: U.
        """
        row_TD, user_T, sign_T = ops.take_vectors(item_ID, rows.item_T), rows.user_T, rows.sign_T
        given_TD = self.gain_V[rows.kind_T][:, None] * row_TD
        sum_UD = given_TD.new_zeros(users, row_TD.shape[1]).index_add(0, user_T, given_TD)
        others_T = (torch.bincount(user_T, minlength=users)[user_T] - 1).clamp(min=1)
        match_T = (row_TD * (sum_UD[user_T] - given_TD)).sum(1) / others_T**self.config.alpha
        known_T = sign_T.abs()
        signs_U, known_U = (
            sign_T.new_zeros(users).index_add(0, user_T, each_T) for each_T in (sign_T, known_T)
        )
        mean_T = (signs_U[user_T] - sign_T) / (known_U[user_T] - known_T + self.config.prior)
        return match_T + self.bias(row_TD)[:, 0] + self.mean_weight * mean_T

    def rows(self, batch: Batch, latest_U: Int[Tensor, " U"]) -> Responses:
        """The batch's history rows known to each user's latest candidate, target domain first."""
        source_U2 = torch.maximum(batch.lifelong_C2[latest_U], batch.short_source_C2[latest_U])
        spans = (batch.target, batch.short_target_C2[latest_U]), (batch.source, source_U2)
        parts = [self._rows(*each, domain) for domain, each in enumerate(spans)]
        return Responses(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _rows(self, rows: Rows, span_U2: Tensor, domain: int) -> tuple[Tensor, ...]:
        length_U = rows.offsets_U1.diff()
        user_T = torch.arange(len(length_U), device=length_U.device).repeat_interleave(length_U)
        place_T = torch.arange(len(user_T), device=length_U.device)
        known_T = place_T < span_U2[user_T, 1]
        code_T = rows.context_TG[known_T, self.place].long()
        kind_T = code_T + domain * len(self.sign_V)
        return rows.item_T[known_T].long(), user_T[known_T], kind_T, self.sign_V[code_T]
