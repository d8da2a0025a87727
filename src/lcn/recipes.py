"""Named experiments: functions that return a whole config; a variant replaces a field of another.

Each system of the comparison is one recipe, so `lcn train --recipe lcn` and the demo mean the same.
"""

from __future__ import annotations

from collections.abc import Callable

from lcn.backbones import BackboneConfig
from lcn.backbones.full import FullAttention
from lcn.backbones.lap import Lap
from lcn.backbones.none import NoLifelong
from lcn.backbones.sim_soft import SimSoft
from lcn.model import ModelConfig
from lcn.objectives.crp import Crp
from lcn.train.config import RunConfig

Recipe = Callable[[str], RunConfig]


def none(dataset: str) -> RunConfig:
    """Short-term interest only."""
    return _with_backbone(dataset, NoLifelong.Config())


def full(dataset: str) -> RunConfig:
    """Target attention over the whole history."""
    return _with_backbone(dataset, FullAttention.Config())


def sim_soft(dataset: str) -> RunConfig:
    """SIM with soft search."""
    return _with_backbone(dataset, SimSoft.Config())


def lap(dataset: str) -> RunConfig:
    """The pyramid without CRP."""
    return _with_backbone(dataset, Lap.Config())


def lcn(dataset: str) -> RunConfig:
    """LCN: the pyramid and CRP."""
    return lap(dataset).model_copy(update={"name": "lcn", "objectives": (Crp.Config(),)})


def lcn_paper(dataset: str) -> RunConfig:
    """LCN as the paper writes CRP: shared negatives, no positive in the denominator."""
    crp = Crp.Config(form="paper", weight=0.01)
    return lap(dataset).model_copy(update={"name": "lcn_paper", "objectives": (crp,)})


RECIPES: dict[str, Recipe] = {
    "none": none,
    "full": full,
    "sim_soft": sim_soft,
    "lap": lap,
    "lcn": lcn,
    "lcn_paper": lcn_paper,
}


def _with_backbone(dataset: str, backbone: BackboneConfig) -> RunConfig:
    return RunConfig(dataset=dataset, model=ModelConfig(backbone=backbone))
