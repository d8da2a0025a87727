"""Every lifelong backbone, by name: one file per paper."""

from typing import Annotated, Any

from pydantic import Field

from lcn.backbones.base import Backbone, Features
from lcn.backbones.eta import Eta
from lcn.backbones.full import FullAttention
from lcn.backbones.lap import Lap
from lcn.backbones.none import NoLifelong
from lcn.backbones.sdim import Sdim
from lcn.backbones.sim_hard import SimHard
from lcn.backbones.sim_soft import SimSoft
from lcn.backbones.twin import Twin

BACKBONES: dict[str, type[Backbone[Any]]] = {
    "none": NoLifelong,
    "full": FullAttention,
    "sim_hard": SimHard,
    "sim_soft": SimSoft,
    "eta": Eta,
    "sdim": Sdim,
    "twin": Twin,
    "lap": Lap,
}

BackboneConfig = Annotated[
    NoLifelong.Config
    | FullAttention.Config
    | SimHard.Config
    | SimSoft.Config
    | Eta.Config
    | Sdim.Config
    | Twin.Config
    | Lap.Config,
    Field(discriminator="name"),
]


def build_backbone(config: BackboneConfig, features: Features) -> Backbone[Any]:
    """Build the backbone a config names."""
    return BACKBONES[config.name](config, features)  # type: ignore[call-arg]
