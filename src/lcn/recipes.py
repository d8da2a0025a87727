"""Named experiments: functions that return a whole config; a variant replaces a field of another.

Each system of the comparison is one recipe, so `lcn train --recipe lcn` and the demo mean the same.
"""

from __future__ import annotations

from collections.abc import Callable

from lcn.backbones import BackboneConfig
from lcn.backbones.eta import Eta
from lcn.backbones.full import FullAttention
from lcn.backbones.lap import Lap
from lcn.backbones.none import NoLifelong
from lcn.backbones.sdim import Sdim
from lcn.backbones.sim_hard import SimHard
from lcn.backbones.sim_soft import SimSoft
from lcn.backbones.twin import Twin
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


def sim_hard(dataset: str) -> RunConfig:
    """SIM with hard search by the item field `category`; set model.backbone.key for another."""
    return _with_backbone(dataset, SimHard.Config())


def sim_soft(dataset: str) -> RunConfig:
    """SIM with soft search."""
    return _with_backbone(dataset, SimSoft.Config())


def eta(dataset: str) -> RunConfig:
    """ETA with codes of 32 bits."""
    return _with_backbone(dataset, Eta.Config())


def sdim(dataset: str) -> RunConfig:
    """SDIM with 48 hashes in groups of 3."""
    return _with_backbone(dataset, Sdim.Config())


def twin(dataset: str) -> RunConfig:
    """TWIN with four heads."""
    return _with_backbone(dataset, Twin.Config())


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


def csa_crp(dataset: str) -> RunConfig:
    """LCN without LAP: the complete scope alone, with CRP."""
    bare = _with_backbone(dataset, Lap.Config(use_msa=False, use_fsa=False))
    return bare.model_copy(update={"name": "csa_crp", "objectives": (Crp.Config(),)})


def with_crp(name: str, recipe: Recipe) -> Recipe:
    """Return a recipe plus CRP: a row of the paper's Table 2."""

    def recipe_with_crp(dataset: str) -> RunConfig:
        return recipe(dataset).model_copy(update={"name": name, "objectives": (Crp.Config(),)})

    return recipe_with_crp


def _with_backbone(dataset: str, backbone: BackboneConfig) -> RunConfig:
    return RunConfig(dataset=dataset, model=ModelConfig(backbone=backbone))


RECIPES: dict[str, Recipe] = {
    "none": none,
    "full": full,
    "sim_hard": sim_hard,
    "sim_soft": sim_soft,
    "eta": eta,
    "sdim": sdim,
    "twin": twin,
    "lap": lap,
    "none_crp": with_crp("none_crp", none),
    "full_crp": with_crp("full_crp", full),
    "sim_hard_crp": with_crp("sim_hard_crp", sim_hard),
    "sim_soft_crp": with_crp("sim_soft_crp", sim_soft),
    "eta_crp": with_crp("eta_crp", eta),
    "sdim_crp": with_crp("sdim_crp", sdim),
    "twin_crp": with_crp("twin_crp", twin),
    "csa_crp": csa_crp,
    "lcn": lcn,
    "lcn_paper": lcn_paper,
}
