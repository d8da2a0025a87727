"""SAC: next-event prediction whose examples are weighed by a Q-learning critic."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor

from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.qlearning import QConfig, QLearner


class Sac(Objective):
    """L = mean(clamp(sg Q(s, a)) L_s + L_q), sg: without gradient; see `qlearning.QLearner`.

    Deviations: those of SQN; the weight is clamped; the first steps train as SQN, as Q means
    nothing at the start.
    """

    source = "SAC (self-supervised actor-critic), SIGIR 2020, arXiv 2006.05779"
    assumes = "users with several events; an event kind field gives graded rewards"
    revision = 1

    class Config(QConfig):
        """Settings; the published code's where it has them."""

        name: Literal["sac"] = "sac"
        weight: NonNegativeFloat = 0.1
        """λ."""
        warmup_epochs: NonNegativeFloat = 0.1
        """Share of an epoch's steps that train as SQN first."""
        lowest: NonNegativeFloat = 0.1
        """Least weight of an example."""
        highest: NonNegativeFloat = 10.0
        """Greatest weight of an example."""

    def __init__(self, config: Sac.Config, setup: Setup) -> None:
        super().__init__()
        self.config, self.weight = config, config.weight
        self.warmup_steps = config.warmup_epochs * setup.steps_per_epoch
        self.learner = QLearner(config, setup)

    def forward(self, view: View) -> Float[Tensor, ""]:
        """See the class."""
        terms = self.learner(view)
        if terms is None:
            return view.zero()
        if view.step < self.warmup_steps:
            return (terms.supervised_N + terms.temporal_N).mean()
        weight_N = critic_weight(terms.value_N, self.config.lowest, self.config.highest)
        return (weight_N * terms.supervised_N + terms.temporal_N).mean()


def critic_weight(
    value_N: Float[Tensor, " N"], lowest: float, highest: float
) -> Float[Tensor, " N"]:
    """Q(s, a) as a weight: clamped and without gradient."""
    return torch.clamp(value_N.detach(), lowest, highest)
