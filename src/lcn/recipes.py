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
from lcn.objectives import ObjectiveConfig
from lcn.objectives.at4ctr import At4Ctr
from lcn.objectives.bert4rec import Bert4Rec
from lcn.objectives.cl4ctr import Cl4Ctr
from lcn.objectives.cl4srec import Cl4SRec
from lcn.objectives.clrec import ClRec
from lcn.objectives.crp import Crp
from lcn.objectives.dss import Dss
from lcn.objectives.sac import Sac
from lcn.objectives.sqn import Sqn
from lcn.objectives.ssl_features import Ssl
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
    return _lap_with(dataset, Crp.Config())


def lcn_paper(dataset: str) -> RunConfig:
    """LCN as the paper writes CRP: shared negatives, no positive in the denominator."""
    return _lap_with(dataset, Crp.Config(form="paper", weight=0.01))


RECIPES: dict[str, Recipe] = {
    "none": none,
    "full": full,
    "sim_soft": sim_soft,
    "lap": lap,
    "lcn": lcn,
    "lcn_paper": lcn_paper,
    "lap_dss": lambda dataset: _lap_with(dataset, Dss.Config()),
    "lap_bert4rec": lambda dataset: _lap_with(dataset, Bert4Rec.Config()),
    "lap_sqn": lambda dataset: _lap_with(dataset, Sqn.Config()),
    "lap_sac": lambda dataset: _lap_with(dataset, Sac.Config()),
    "lap_ssl": lambda dataset: _lap_with(dataset, Ssl.Config()),
    "lap_clrec": lambda dataset: _lap_with(dataset, ClRec.Config()),
    "lap_at4ctr": lambda dataset: _lap_with(dataset, At4Ctr.Config()),
    "lap_cl4ctr": lambda dataset: _lap_with(dataset, Cl4Ctr.Config()),
    "lap_cl4srec": lambda dataset: _lap_with(dataset, Cl4SRec.Config()),
}
"""`lap_<objective>` is the pyramid with one of the comparison's objectives in place of CRP."""


def _with_backbone(dataset: str, backbone: BackboneConfig) -> RunConfig:
    return RunConfig(dataset=dataset, model=ModelConfig(backbone=backbone))


def _lap_with(dataset: str, objective: ObjectiveConfig) -> RunConfig:
    return lap(dataset).model_copy(update={"objectives": (objective,)})
