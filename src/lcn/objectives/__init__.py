"""Every auxiliary objective, by name: one file per paper, nothing but the loss."""

from typing import Annotated

from pydantic import Field

from lcn.objectives.at4ctr import At4Ctr
from lcn.objectives.base import Objective, Setup, View
from lcn.objectives.bert4rec import Bert4Rec
from lcn.objectives.cl4ctr import Cl4Ctr
from lcn.objectives.cl4srec import Cl4SRec
from lcn.objectives.clrec import ClRec
from lcn.objectives.crp import Crp
from lcn.objectives.dss import Dss
from lcn.objectives.fism import Fism
from lcn.objectives.sac import Sac
from lcn.objectives.sqn import Sqn
from lcn.objectives.ssl_features import Ssl

OBJECTIVES: dict[str, type[Objective]] = {
    "crp": Crp,
    "dss": Dss,
    "bert4rec": Bert4Rec,
    "sqn": Sqn,
    "sac": Sac,
    "ssl": Ssl,
    "clrec": ClRec,
    "at4ctr": At4Ctr,
    "cl4ctr": Cl4Ctr,
    "cl4srec": Cl4SRec,
    "fism": Fism,
}

ObjectiveConfig = Annotated[
    Crp.Config
    | Dss.Config
    | Bert4Rec.Config
    | Sqn.Config
    | Sac.Config
    | Ssl.Config
    | ClRec.Config
    | At4Ctr.Config
    | Cl4Ctr.Config
    | Cl4SRec.Config
    | Fism.Config,
    Field(discriminator="name"),
]


def build_objective(config: ObjectiveConfig, setup: Setup) -> Objective:
    """Build the objective a config names.

    Raises:
        ConfigError: the data or the model lacks what it needs.
    """
    return OBJECTIVES[config.name](config, setup)  # type: ignore[call-arg]


__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig", "Setup", "View", "build_objective"]
