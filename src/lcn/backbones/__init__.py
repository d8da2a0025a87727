"""Every lifelong backbone, by name: one file per paper."""

from typing import Annotated, Any

from pydantic import Field

from lcn.backbones.base import Backbone, Features
from lcn.backbones.full import FullAttention
from lcn.backbones.lap import Lap
from lcn.backbones.none import NoLifelong
from lcn.backbones.sim_soft import SimSoft

BACKBONES: dict[str, type[Backbone[Any]]] = {
    "none": NoLifelong,
    "full": FullAttention,
    "sim_soft": SimSoft,
    "lap": Lap,
}

BackboneConfig = Annotated[
    NoLifelong.Config | FullAttention.Config | SimSoft.Config | Lap.Config,
    Field(discriminator="name"),
]


def build_backbone(config: BackboneConfig, features: Features) -> Backbone[Any]:
    """Build the backbone a config names."""
    return BACKBONES[config.name](config, features)  # type: ignore[call-arg]
