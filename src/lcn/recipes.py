"""Named experiments: functions that return a whole config; a variant replaces a field of another.

Each system of the comparison is one recipe, so `lcn train --recipe lcn` and the demo mean the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lcn.backbones import BackboneConfig
from lcn.backbones.eta import Eta
from lcn.backbones.full import FullAttention
from lcn.backbones.lap import Lap
from lcn.backbones.none import NoLifelong
from lcn.backbones.sdim import Sdim
from lcn.backbones.sim_hard import SimHard
from lcn.backbones.sim_soft import SimSoft
from lcn.backbones.twin import Twin
from lcn.data.source_clicks import tells_source_clicks
from lcn.model import ModelConfig
from lcn.objectives import ObjectiveConfig
from lcn.objectives.at4ctr import At4Ctr
from lcn.objectives.bert4rec import Bert4Rec
from lcn.objectives.cl4ctr import Cl4Ctr
from lcn.objectives.cl4srec import Cl4SRec
from lcn.objectives.clrec import ClRec
from lcn.objectives.crp import Crp
from lcn.objectives.dss import Dss
from lcn.objectives.fism import Fism
from lcn.objectives.qlearning import RewardConfig
from lcn.objectives.sac import Sac
from lcn.objectives.sqn import Sqn
from lcn.objectives.ssl_features import Ssl
from lcn.objectives.stream import StreamConfig
from lcn.schema import read_manifest
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
    """LCN as it is best on real logs: where the log tells responses, the pyramid learns from them
    first and reads the whole history by them too; else CRP aligns item vectors first."""
    if not _tells_responses(dataset):
        return _named(crp_first(lap(dataset)), "lcn")
    return _named(responses_first(_with_backbone(dataset, Lap.Config(fism=True))), "lcn")


def lcn_paper(dataset: str) -> RunConfig:
    """LCN as the paper writes CRP: beside the click loss from the first step (Eq. 14), shared
    negatives, no positive in the denominator."""
    literal = Crp.Config(form="paper", weight=0.001, temperature=0.1, pairs=1)
    return _named(_with_objective(lap(dataset), literal), "lcn_paper")


def csa_crp(dataset: str) -> RunConfig:
    """LCN without LAP: the complete scope alone, with CRP."""
    bare = _with_backbone(dataset, Lap.Config(use_msa=False, use_fsa=False))
    return _named(crp_first(bare), "csa_crp")


def crp_first(config: RunConfig) -> RunConfig:
    """1000 steps of CRP alone, then clicks alone: by validation as good as both together, and
    cheaper (docs/models/crp.md)."""
    return _with_objective(_with_first(config, pretrain_steps=1000), Crp.Config())


def responses_first(config: RunConfig) -> RunConfig:
    """400 steps of FISM, then source-domain clicks, then those of the target domain."""
    first = _with_first(config, pretrain_steps=400, source_steps=1000)
    return _with_objective(first, Fism.Config())


def variant(recipe: Recipe, name: str, change: Callable[[RunConfig], RunConfig]) -> Recipe:
    """A recipe with something changed, under a name of its own."""
    return lambda dataset: _named(change(recipe(dataset)), name)


def _with_first(config: RunConfig, **steps: int) -> RunConfig:
    """Objectives are for the first steps alone."""
    train = {**steps, "joint_objectives": False}
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def _tells_responses(dataset: str) -> bool:
    """Whether there is a prepared dataset whose mapping says which source events are clicks."""
    if not (Path(dataset) / "manifest.json").is_file():
        return False
    return tells_source_clicks(read_manifest(Path(dataset)))


def _with_objective(config: RunConfig, objective: ObjectiveConfig) -> RunConfig:
    return config.model_copy(update={"objectives": (objective,)})


def _named(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"name": name})


def _with_backbone(dataset: str, backbone: BackboneConfig) -> RunConfig:
    return RunConfig(dataset=dataset, model=ModelConfig(backbone=backbone))


_BACKBONES: dict[str, Recipe] = {
    "none": none,
    "full": full,
    "sim_hard": sim_hard,
    "sim_soft": sim_soft,
    "eta": eta,
    "sdim": sdim,
    "twin": twin,
    "lap": lap,
}

_FEW = StreamConfig(users=32)
"""Users of a batch whose streams an objective reads. On MovieLens 1M (128 users a batch, one seed)
all of them were better by .0004 in validation AUC on average (-.0006 to .0012) and took twice the
time; so a row costs about what LCN's does."""
_REWARDS = RewardConfig(by_response=True)
_RIVALS: tuple[ObjectiveConfig, ...] = (
    Dss.Config(stream=_FEW),
    Bert4Rec.Config(stream=_FEW),
    Sqn.Config(stream=_FEW, rewards=_REWARDS),
    Sac.Config(stream=_FEW, rewards=_REWARDS),
    Ssl.Config(),
    ClRec.Config(stream=_FEW),
    At4Ctr.Config(stream=_FEW),
    Cl4Ctr.Config(),
    Cl4SRec.Config(stream=_FEW),
)

RECIPES: dict[str, Recipe] = {
    **_BACKBONES,
    **{f"{name}_crp": variant(recipe, f"{name}_crp", crp_first)
       for name, recipe in _BACKBONES.items()},
    **{f"{name}_fism": variant(recipe, f"{name}_fism", responses_first)
       for name, recipe in _BACKBONES.items()},
    "csa_crp": csa_crp,
    "lcn": lcn,
    "lcn_paper": lcn_paper,
    **{f"lap_{rival.name}": variant(lap, f"lap_{rival.name}",
                                    partial(_with_objective, objective=rival))
       for rival in _RIVALS},
}  # fmt: skip
"""Every named system: a backbone, a backbone with CRP (Table 2) or with responses first, or `lap`
with the objective of another paper in CRP's place (Table 5)."""
