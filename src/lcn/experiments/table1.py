"""Table 1: what the kinds of CRP pairs are worth, on the pyramid."""

from __future__ import annotations

from lcn.experiments import quoted
from lcn.experiments.rows import (
    CRP_KNOBS,
    JOINT,
    JOINT_KNOBS,
    NONE,
    SIM_SOFT,
    Claim,
    Row,
    Sizes,
    Table,
)

_PLAIN, _WITHIN, _WHOLE = "w/o CRP", "PT + PS", "PT + PS + PC"


def table(sizes: Sizes) -> Table:
    """The three rows of the paper; beyond it, other forms and schedules of CRP."""
    del sizes
    return Table(
        name="table1",
        title="CRP ablation: which pairs help the pyramid",
        rows=(
            Row(NONE, "none", reference=True),
            Row(SIM_SOFT, "sim_soft", reference=True),
            Row(_PLAIN, "lap", quoted=(quoted.TABLE1[_PLAIN],)),
            Row(
                _WITHIN,
                "lap_crp",
                ("objectives.0.weight_pc=0",),
                CRP_KNOBS,
                (quoted.TABLE1[_WITHIN],),
            ),
            Row(_WHOLE, "lap_crp", (), CRP_KNOBS, (quoted.TABLE1[_WHOLE],)),
            *_beyond(),
        ),
        references=(SIM_SOFT, NONE),
        claims=(
            Claim("CRP within each domain (PT + PS) raises AUC", _WITHIN, _PLAIN),
            Claim("pairs across domains (PC) raise AUC further", _WHOLE, _WITHIN),
            Claim("the whole CRP raises AUC", _WHOLE, _PLAIN),
        ),
    )


def _beyond() -> tuple[Row, ...]:
    return (
        Row("PC only", "lap_crp", _objective("weight_pt=0", "weight_ps=0"), CRP_KNOBS, beyond=True),
        Row("as printed (no positive below)", "lap_crp", _objective("form=paper"), CRP_KNOBS,
            beyond=True),
        Row("own negatives per anchor", "lap_crp", _objective("form=anchored"), CRP_KNOBS,
            beyond=True),
        Row("one pair per user", "lap_crp", _objective("pairs=1"), CRP_KNOBS, beyond=True),
        Row("CRP beside the clicks", "lap_crp", JOINT, JOINT_KNOBS, beyond=True),
        Row("CRP beside the clicks, fading", "lap_crp", (*JOINT, *_objective("decay=400")),
            JOINT_KNOBS, beyond=True),
        Row("as printed, beside the clicks", "lcn_paper", (), JOINT_KNOBS, beyond=True),
        Row("cosine search", "lap_crp", ("model.search_metric=cosine",), CRP_KNOBS, beyond=True),
        Row("temperature .1", "lap_crp", _objective("temperature=0.1"), CRP_KNOBS[1:], beyond=True),
    )  # fmt: skip


def _objective(*settings: str) -> tuple[str, ...]:
    return tuple(f"objectives.0.{setting}" for setting in settings)
