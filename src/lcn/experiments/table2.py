"""Table 2: CRP on every backbone; beyond the paper, CRP beside the clicks.

Every backbone gets the same CRP, nothing lifelong and full attention too: what helps the model
without a lifelong part as much says nothing about the pyramid.
"""

from __future__ import annotations

from lcn.experiments import quoted
from lcn.experiments.rows import (
    BACKBONES,
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

OTHERS = {"no lifelong": "none", "full attention": "full", "LAP": "lap"}
"""Not in the paper's table: does CRP need a lifelong part at all?"""


def table(sizes: Sizes) -> Table:
    """Each backbone without and with CRP."""
    del sizes
    rows, claims = [], []
    for name, recipe in {**OTHERS, **BACKBONES}.items():
        with_crp = f"{name} + CRP"
        numbers = [quoted.TABLE2.get(each) for each in (name, with_crp)]
        plain_quoted, crp_quoted = (() if each is None else (each,) for each in numbers)
        of_paper = name in BACKBONES
        rows.append(Row(name, recipe, quoted=plain_quoted, reference=not of_paper))
        crp_recipe = f"{recipe}_crp"
        rows.append(Row(with_crp, crp_recipe, (), CRP_KNOBS, crp_quoted, reference=not of_paper))
        claims.append(Claim(f"CRP raises the AUC of {name}", with_crp, name))
    rows += [
        Row(
            _beside(name),
            f"{recipe}_crp",
            JOINT,
            JOINT_KNOBS,
            beyond=True,
        )
        for name, recipe in {**OTHERS, **BACKBONES}.items()
    ]
    claims += [
        Claim(f"LAP beats {name}, both with CRP", "LAP + CRP", f"{name} + CRP")
        for name in (*OTHERS, *BACKBONES)
        if name != "LAP"
    ]
    claims += [
        Claim(f"CRP beside the clicks raises the AUC of {name}", _beside(name), name)
        for name in (*OTHERS, *BACKBONES)
    ]
    return Table(
        name="table2",
        title="CRP on every backbone",
        rows=tuple(rows),
        references=(SIM_SOFT, NONE),
        claims=tuple(claims),
    )


def _beside(name: str) -> str:
    return f"{name}, CRP beside the clicks"
