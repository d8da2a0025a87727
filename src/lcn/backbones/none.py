"""No lifelong history: what the rest of the model knows by itself."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lcn.backbones.base import Backbone, Features, History, Interest, Query
from lcn.config import Config as BaseConfig
from lcn.errors import ConfigError
from lcn.ops import Scoring


class NoLifelong(Backbone[None]):
    """The floor of every comparison: an interest vector of width 0."""

    source = "the floor of the comparison"
    assumes = "nothing"

    class Config(BaseConfig):
        """Nothing to set."""

        name: Literal["none"] = "none"

    def __init__(self, config: NoLifelong.Config, features: Features) -> None:
        super().__init__()
        self.width = 0

    def encode(self, history: History) -> None:
        """Nothing depends on the history."""

    def attend(
        self, state: None, query: Query, span_C2: Tensor, *, levels: bool = False
    ) -> Interest:
        """Return the empty vector."""
        return Interest(query.vector_CD[:, :0])

    def final_scoring(self, query: Query) -> Scoring:
        """There is none."""
        raise ConfigError("the backbone 'none' attends to no history and has no scores")

    def preceding(self, state: None, query: Query, span_C2: Tensor, keep: int) -> Tensor:
        """There is none."""
        raise ConfigError("the backbone 'none' attends to no history and selects nothing")
