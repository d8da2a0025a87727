"""Responses first on every backbone: is LCN ahead of rivals that are pre-trained alike?

Beyond the paper: each system learns from what its histories say about responses before it learns
from clicks (docs/models/fism.md).
"""

from __future__ import annotations

from lcn.experiments.rows import BACKBONES, FISM_KNOBS, NONE, SIM_SOFT, Claim, Row, Sizes, Table
from lcn.experiments.table2 import OTHERS

LCN = "LCN, responses first"
WHOLE = ("model.backbone.fism=true",)
"""LCN also reads the whole history by responses, which rivals have no place for."""


def table(sizes: Sizes) -> Table:
    """Every backbone with the same first steps, SIM Soft and none without them beside it."""
    del sizes
    names = {**OTHERS, **BACKBONES}
    return Table(
        name="responses",
        title="Responses first, on every backbone",
        rows=(
            Row(NONE, "none", reference=True),
            Row(SIM_SOFT, "sim_soft", reference=True),
            *(
                Row(_responses_first(name), f"{recipe}_fism", (), FISM_KNOBS)
                for name, recipe in names.items()
            ),
            Row(LCN, "lap_fism", WHOLE, FISM_KNOBS),
        ),
        references=(SIM_SOFT, NONE),
        claims=(
            *(
                Claim(f"LCN beats {name}, both with responses first", LCN, _responses_first(name))
                for name in names
            ),
            *(
                Claim(f"responses first raise the AUC of {name}", _responses_first(name), name)
                for name in (NONE, SIM_SOFT)
            ),
        ),
        note="Beyond the paper: every row but the first two learns from responses first.",
    )


def _responses_first(name: str) -> str:
    return f"{name}, responses first"
