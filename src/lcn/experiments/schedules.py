"""Every objective on CRP's schedule: so many steps on the objective alone, then clicks alone.

Table 5 has each objective beside the clicks, as its paper has it, and CRP first, as it is best;
this table separates the objective's effect from the schedule's.
"""

from __future__ import annotations

from lcn.experiments.rows import (
    FIRST,
    JOINT,
    JOINT_KNOBS,
    STEPS,
    Claim,
    Knob,
    Row,
    Sizes,
    Table,
    knob,
)
from lcn.experiments.table5 import OBJECTIVES, contrast_knobs, has_temperature

LAP, CRP = "LAP", "CRP first"
FIRST_STEPS = knob("train.pretrain_steps", *STEPS, name="first steps")
AT_ONE = ("objectives.0.temperature=1",)


def table(sizes: Sizes) -> Table:
    """LAP alone, with CRP first and beside the clicks, and with each rival first.

    Contrastive rivals are there with their recipe's temperature and with CRP's.
    """
    firsts = [
        Row(_first(name), f"lap_{objective}", FIRST, first_knobs(objective))
        for name, objective in OBJECTIVES.items()
    ]
    firsts += [
        Row(f"{_first(name)}, τ = 1", f"lap_{objective}", (*FIRST, *AT_ONE), (FIRST_STEPS,))
        for name, objective in OBJECTIVES.items()
        if has_temperature(objective)
    ]
    return Table(
        name="schedules",
        title="Every objective first, then clicks",
        rows=(
            Row(LAP, "lap", reference=True),
            Row(CRP, "lap_crp", FIRST, first_knobs("crp")),
            Row("CRP beside the clicks", "lap_crp", JOINT, JOINT_KNOBS),
            *firsts,
        ),
        references=(LAP,),
        claims=(
            *(Claim(f"CRP beats {row.name}", CRP, row.name) for row in firsts),
            Claim("CRP is better first than beside the clicks", CRP, "CRP beside the clicks"),
        ),
        note="1000 steps on the objective alone, then clicks alone, on the same pyramid.",
    )


def first_knobs(objective: str) -> tuple[Knob, ...]:
    """Every objective's: how many steps, and its temperature if it has one."""
    return (FIRST_STEPS, *contrast_knobs(objective))


def _first(name: str) -> str:
    return f"{name} first"
