"""Table 4: one domain alone; the lifelong history is the target domain's own."""

from __future__ import annotations

from lcn.experiments import quoted
from lcn.experiments.rows import BACKBONES, NONE, SIM_SOFT, Claim, Row, Sizes, Table

LCN = "LCN w/o CRP"
SYSTEMS = {**BACKBONES, LCN: "lap"}


def table(sizes: Sizes) -> Table:
    """Backbones on a single domain; CRP needs two and stays away."""
    del sizes
    alone = ("lifelong_domain=target",)
    rows = [
        Row(name, recipe, alone, quoted=(quoted.TABLE4[name],)) for name, recipe in SYSTEMS.items()
    ]
    return Table(
        name="table4",
        title="Single domain",
        rows=(
            Row(NONE, "none", alone, reference=True),
            Row("full attention", "full", alone, reference=True),
            *rows,
        ),
        references=(SIM_SOFT, NONE),
        claims=tuple(
            Claim(f"the pyramid beats {name} on one domain", LCN, name) for name in BACKBONES
        ),
        note="Histories and candidates of the target domain alone.",
    )
