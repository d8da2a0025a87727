"""Every auxiliary objective, by name: one file per paper, nothing but the loss."""

from lcn.objectives.base import Objective, View
from lcn.objectives.crp import Crp

OBJECTIVES: dict[str, type[Objective]] = {
    "crp": Crp,
}

ObjectiveConfig = Crp.Config


def build_objective(config: ObjectiveConfig) -> Objective:
    """Build the objective a config names."""
    return OBJECTIVES[config.name](config)  # type: ignore[call-arg]


__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig", "View", "build_objective"]
