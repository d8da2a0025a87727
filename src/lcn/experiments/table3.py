"""Table 3: the pyramid's levels and sizes; beyond the paper, one switch at a time.

A dash in the paper is ambiguous: no such level, or no restriction. Both readings of "-/50" are
trained.
"""

from __future__ import annotations

from lcn.experiments import quoted
from lcn.experiments.rows import CRP_KNOBS, NONE, SIM_SOFT, Claim, Knob, Row, Sizes, Table, knob

_PAIRS = ((100, 30), (100, 50), (200, 30), (200, 50), (200, 100), (500, 30), (500, 50), (500, 100))


def table(sizes: Sizes) -> Table:
    """All with CRP; K1 and K2 scaled with `sizes`."""
    default = _name(sizes, 200, 50)
    median_only = f"{sizes.scaled(50, 50)[0]}/- (no focused scope)"
    no_median = f"-/{sizes.k2} (no median scope)"
    no_limit = f"N/{sizes.k2} (all rows pass)"
    crp_sim = "-/- (SIM Soft + CRP)"
    rows = [
        Row(NONE, "none", reference=True),
        Row(SIM_SOFT, "sim_soft", reference=True),
        Row(crp_sim, "sim_soft_crp", (), CRP_KNOBS, (quoted.TABLE3["-", "-"],)),
        Row(
            median_only,
            "lap_crp",
            ("model.backbone.use_fsa=false", f"model.backbone.k1={sizes.scaled(50, 50)[0]}"),
            CRP_KNOBS,
            (quoted.TABLE3[50, "-"],),
        ),
        Row(
            no_median,
            "lap_crp",
            ("model.backbone.use_msa=false",),
            CRP_KNOBS,
            (quoted.TABLE3["-", 50],),
        ),
        Row(no_limit, "lap_crp", ("model.backbone.k1=0",), CRP_KNOBS, (quoted.TABLE3["-", 50],)),
    ]
    for k1, k2 in _PAIRS:
        ours_k1, ours_k2 = sizes.scaled(k1, k2)
        overrides = (f"model.backbone.k1={ours_k1}", f"model.backbone.k2={ours_k2}")
        name = _name(sizes, k1, k2)
        rows.append(Row(name, "lap_crp", overrides, CRP_KNOBS, (quoted.TABLE3[k1, k2],)))
    switches = [_switched(*switch) for switch in _SWITCHES]
    return Table(
        name="table3",
        title="The pyramid's levels and sizes (K1/K2)",
        # Scaled to short histories, two sizes can be one.
        rows=tuple({row.name: row for row in (*rows, *switches)}.values()),
        references=(SIM_SOFT, NONE),
        claims=tuple(claim for claim in (
            Claim("the pyramid beats SIM Soft when both have CRP", default, crp_sim),
            Claim("the focused scope raises AUC", default, median_only),
            Claim("more rows through the complete scope raise AUC", default,
                  _name(sizes, 100, 50)),
            Claim("more rows in the focused scope raise AUC", default, _name(sizes, 200, 30)),
            Claim("the median scope raises AUC", default, no_median),
            *(Claim(f"{row.name} raises AUC", row.name, default) for row in switches),
        ) if claim.other != claim.reference),
        note=(
            "K1 and K2 are the paper's"
            if (sizes.k1, sizes.k2) == (200, 50)
            else f"K1 and K2 are the paper's, scaled to {sizes.k1}/{sizes.k2} for shorter "
            "histories; the quoted numbers are of the unscaled sizes"
        ),
    )  # fmt: skip


_Switch = tuple[str, tuple[str, ...], tuple[Knob, ...]]

_SWITCHES: tuple[_Switch, ...] = (
    ("own search table", ("model.search_table=own",), ()),
    ("cosine search", ("model.search_metric=cosine",), ()),
    ("own table, cosine search", ("model.search_table=own", "model.search_metric=cosine"), ()),
    (
        "search loss",
        ("model.backbone.search_loss=1.0",),
        (knob("model.backbone.search_loss", 0.3, 1.0, 3.0, name="search loss"),),
    ),
    (
        "consistency distillation",
        ("model.backbone.distill=0.03",),
        (knob("model.backbone.distill", 0.01, 0.03, 0.1, name="distillation"),),
    ),
    ("time bias before search", ("model.backbone.time_bias=true",), ()),
    ("recent-target queries", ("model.backbone.recent_queries=8",), ()),
    ("raw sums", ("model.backbone.norm_csa=raw", "model.backbone.norm_msa=raw"), ()),
    ("mean", ("model.backbone.norm_csa=mean", "model.backbone.norm_msa=mean"), ()),
    (
        "raw sums, LayerNorm",
        ("model.backbone.norm_csa=raw_ln", "model.backbone.norm_msa=raw_ln"),
        (),
    ),
    ("without integration",
     ("model.backbone.use_csa_output=false", "model.backbone.use_msa_output=false"), ()),
    ("tied median and focused scope", ("model.backbone.tie_msa_fsa=true",), ()),
    ("each kept row asks", ("model.backbone.fsa_query=sequence",), ()),
    ("residual and LayerNorm", ("model.backbone.fsa_residual=true",), ()),
    ("no short/long overlap", ("batch.overlap=false",), ()),
    ("products with the candidate", ("model.products=true",), ()),
)  # fmt: skip


def _switched(name: str, overrides: tuple[str, ...], knobs: tuple[Knob, ...]) -> Row:
    return Row(name, "lap_crp", overrides, (*CRP_KNOBS, *knobs), beyond=True)


def _name(sizes: Sizes, k1: int, k2: int) -> str:
    return "{}/{}".format(*sizes.scaled(k1, k2))
