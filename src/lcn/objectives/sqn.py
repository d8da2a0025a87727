"""SQN: next-event prediction with a Q-learning head beside it."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor

from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.qlearning import QConfig, QLearner


class Sqn(Objective):
    """L = mean(L_s + L_q); see `qlearning.QLearner` for the two.

    Deviations: one encoder and item table with two Q heads instead of two networks; softmax and
    maximum over sampled items; the newest event of a stream ends its episode.
    """

    source = "SQN, SIGIR 2020, arXiv 2006.05779"
    assumes = "users with several events; an event kind field gives graded rewards"
    revision = 1

    class Config(QConfig):
        """Settings; the published code's where it has them."""

        name: Literal["sqn"] = "sqn"
        weight: NonNegativeFloat = 0.1
        """λ."""

    def __init__(self, config: Sqn.Config, setup: Setup) -> None:
        super().__init__()
        self.weight = config.weight
        self.learner = QLearner(config, setup)

    def forward(self, view: View) -> Float[Tensor, ""]:
        """See the class."""
        terms = self.learner(view)
        if terms is None:
            return view.zero()
        return (terms.supervised_N + terms.temporal_N).mean()
