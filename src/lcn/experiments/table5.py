"""Table 5: every backbone, every objective, and LCN."""

from __future__ import annotations

from lcn.experiments import quoted
from lcn.experiments.rows import (
    BACKBONES,
    CRP_KNOBS,
    FISM_KNOBS,
    NONE,
    RIVAL_WEIGHTS,
    SCHEDULES,
    SIM_SOFT,
    TEMPERATURES,
    Claim,
    Knob,
    Row,
    Sizes,
    Table,
    knob,
)
from lcn.recipes import RECIPES

OBJECTIVES = {
    "DSS": "dss",
    "BERT4Rec": "bert4rec",
    "SQN": "sqn",
    "SAC": "sac",
    "SSL": "ssl",
    "CLRec": "clrec",
    "AT4CTR": "at4ctr",
    "CL4CTR": "cl4ctr",
    "CL4SRec": "cl4srec",
}
"""In CRP's place on the same pyramid: the paper does not say which backbone they ran on, and their
numbers fit no other reading."""
IN_PLACE = (
    "DSS to CL4SRec stand in CRP's place on the same pyramid, beside the clicks unless tuning puts "
    "them first, where CRP's recipe has it (see schedules)."
)
LCN, PLAIN = "LCN-200-50", "LCN-200-50 w/o CRP"
RESPONSES_FIRST = "LCN-200-50, responses first"


def table(sizes: Sizes) -> Table:
    """The 17 rows of the paper, with nothing lifelong and full attention beside them."""
    wide_k1, wide_k2 = sizes.scaled(500, 100)
    wide = (f"model.backbone.k1={wide_k1}", f"model.backbone.k2={wide_k2}")
    backbones = tuple(
        Row(name, recipe, quoted=quoted.TABLE5[name]) for name, recipe in BACKBONES.items()
    )
    rivals = tuple(
        Row(name, f"lap_{objective}", (), rival_knobs(objective), quoted.TABLE5[name])
        for name, objective in OBJECTIVES.items()
    )
    return Table(
        name="table5",
        title="Every backbone and objective",
        rows=(
            Row(NONE, "none", reference=True),
            Row("full attention", "full", reference=True),
            *backbones,
            *rivals,
            Row(PLAIN, "lap", quoted=quoted.TABLE5[PLAIN]),
            Row(
                "LCN w/o LAP",
                "csa_crp",
                (),
                CRP_KNOBS,
                quoted.TABLE5["LCN w/o LAP"],
                note="the complete scope alone, with CRP",
            ),
            Row(LCN, "lap_crp", (), CRP_KNOBS, quoted.TABLE5[LCN]),
            Row("LCN-500-100", "lap_crp", wide, CRP_KNOBS, quoted.TABLE5["LCN-500-100"]),
            Row(
                RESPONSES_FIRST,
                "lap_fism",
                ("model.backbone.fism=true",),
                FISM_KNOBS,
                beyond=True,
                note="the recipe `lcn` on logs that tell responses",
            ),
        ),
        references=(SIM_SOFT, NONE),
        claims=(
            *(
                Claim(f"LCN, responses first, beats {name}", RESPONSES_FIRST, name)
                for name in (*BACKBONES, "full attention", PLAIN, LCN)
            ),
            *(Claim(f"LCN beats {name}", LCN, name) for name in (*BACKBONES, *OBJECTIVES)),
            Claim("LCN beats full attention", LCN, "full attention"),
            Claim("CRP raises the AUC of LCN", LCN, PLAIN),
            Claim("LAP raises the AUC of LCN", LCN, "LCN w/o LAP"),
            Claim("LCN-500-100 beats LCN-200-50", "LCN-500-100", LCN),
        ),
        note=(
            IN_PLACE
            if (sizes.k1, sizes.k2) == (200, 50)
            else f"{IN_PLACE} 200-50 is {sizes.k1}-{sizes.k2} here and 500-100 is "
            f"{wide_k1}-{wide_k2}: histories are shorter."
        ),
    )


def rival_knobs(objective: str) -> tuple[Knob, ...]:
    """As CRP's: weight, temperature if it has one, and whether it comes first."""
    return (
        knob("objectives.0.weight", *RIVAL_WEIGHTS, name=f"{objective} weight"),
        *contrast_knobs(objective),
        Knob("objective first", SCHEDULES),
    )


def contrast_knobs(objective: str) -> tuple[Knob, ...]:
    """The temperature, where an objective has one."""
    if not has_temperature(objective):
        return ()
    return (knob("objectives.0.temperature", *TEMPERATURES, name=f"{objective} temperature"),)


def has_temperature(objective: str) -> bool:
    """Whether an objective is a contrast with a temperature."""
    config = RECIPES[f"lap_{objective}"]("").objectives[0]
    return "temperature" in type(config).model_fields
