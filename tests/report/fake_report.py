"""A made-up report of the demo's shape, with everything a page may have to survive."""

from datetime import UTC, datetime, timedelta

import numpy as np

from lcn.evaluate.compare import compare
from lcn.evaluate.metrics import calibration, sigmoid
from lcn.evaluate.plots import Curve, NamedCalibration
from lcn.evaluate.predictions import Predictions
from lcn.evaluate.results import result_of
from lcn.report.records import (
    AttentionCase,
    AttentionLevel,
    CurvePlot,
    DataFacts,
    DemoReport,
    KeptEvent,
    Provenance,
    SplitFacts,
)

HOSTILE = "<script>alert('x')</script> & \"Sons\" $5"
RUNS = {"none": 0.9, "full": 0.75, "sim_soft": 0.8, "lap": 0.76, "lap + crp": 0.72}
MOVIES = (
    ("Blade Runner (1982)", "Film-Noir|Sci-Fi"),
    ("Princess Mononoke, The (Mononoke Hime) (1997)", "Action|Adventure|Animation"),
    ("Shawshank Redemption, The (1994)", "Drama"),
    ("Dr. Strangelove or: How I Learned to Stop Worrying and Love the Bomb (1963)", "Comedy|War"),
    (HOSTILE, "Documentary"),
    ("Usual Suspects, The (1995)", "Crime|Thriller"),
    ("Crying Game, The (1992)", "Drama|Romance|War"),
    ("Heat (1995)", "Action|Crime|Thriller"),
)


def fake_predictions(seed: int = 0) -> list[tuple[Predictions, Predictions]]:
    """Validation and test predictions of each run."""
    rng = np.random.default_rng(seed)
    rows, users = 4000, 250
    truth, user = rng.normal(0.2, 1.1, rows), rng.integers(0, users, rows)
    label = (rng.random(rows) < sigmoid(truth)).astype(np.uint8)
    found = []
    for run, noise in RUNS.items():
        logit = (1.1 * truth + rng.normal(0, noise, rows)).astype(np.float32)
        halves = []
        for split, part in (("validation", slice(0, 1500)), ("test", slice(1500, None))):
            halves.append(
                Predictions(
                    logit_S=logit[part],
                    label_S=label[part],
                    user_S=user[part],
                    sample_S=np.arange(rows)[part],
                    dataset="9f3c1a2b4d5e6f70",
                    split=split,
                    run=run,
                    seed=seed,
                )
            )
        found.append((halves[0], halves[1]))
    return found


def fake_report() -> DemoReport:
    """Everything filled in; numbers are invented."""
    pairs = fake_predictions()
    start = datetime(2000, 4, 25, 23, 5, tzinfo=UTC)
    tests = [test for _, test in pairs]
    return DemoReport(
        title="LCN on movielens-1m: five models compared",
        summary="Does a long history from other genres help to predict what a user makes of "
        "science fiction, fantasy, animation and children's films?",
        data=_data(start),
        results=tuple(
            result_of([test], [validation], generator=np.random.default_rng(0), resamples=200)
            for validation, test in pairs
        ),
        differences=tuple(
            compare(tests[0], test, generator=np.random.default_rng(0), resamples=200)
            for test in tests[1:]
        ),
        curves=_curves(),
        reliability=tuple(
            NamedCalibration(test.run, calibration(sigmoid(test.logit_S), test.label_S, 10))
            for test in (tests[0], tests[2], tests[4])
        ),
        attention=tuple(_case(start, i) for i in range(3)),
        provenance=Provenance(
            commit="c001e48f",
            command="lcn demo --out demo-out --seed 0",
            seeds=(0,),
            machine="2 × Xeon, 8 GB, CPU only, torch 2.13.0",
            date=start + timedelta(days=9000),
            version="0.1.0",
            duration_seconds=431.0,
            details=(("Config", "movielens_demo, K1 = 200, K2 = 50, N = 500"),),
        ),
        next_commands=(
            ("lcn train --set model.backbone.k1=100 --out runs/k100", "train another pyramid"),
            ("lcn compare runs/lap/test.npz runs/k100/test.npz", "compare it on the same users"),
        ),
    )


def _data(start: datetime) -> DataFacts:
    splits = (("train", 203_113, 0), ("validation", 14_872, 180), ("test", 24_146, 210))
    return DataFacts(
        name="movielens-1m",
        licence="GroupLens research licence: no redistribution, no commercial use",
        fingerprint="9f3c1a2b4d5e6f70",
        target_domain="Sci-Fi, Fantasy, Animation, Children's",
        source_domain="all other genres",
        label="a rating of 4 or 5",
        users=6040,
        items=3706,
        target_events=243_211,
        source_events=756_998,
        rejected=0,
        history_quartiles=(61, 143, 312),
        splits=tuple(
            SplitFacts(
                name=name,
                impressions=rows,
                clicks=int(0.57 * rows),
                users=min(6040, rows // 21),
                first=start + timedelta(days=days),
                last=start + timedelta(days=days + 30),
            )
            for name, rows, days in splits
        ),
    )


def _curves() -> tuple[CurvePlot, ...]:
    step = np.arange(1, 9) * 25_000
    loss = tuple(
        Curve(run, step, 0.545 + 0.1 * np.exp(-step / 4e4) + 0.01 * noise)
        for run, noise in RUNS.items()
    )
    rank = tuple(
        Curve(run, step, 0.80 - 0.1 * np.exp(-step / 4e4) - 0.02 * noise)
        for run, noise in RUNS.items()
    )
    return (
        CurvePlot("Validation log loss", "training samples", "log loss (nats)", loss),
        CurvePlot("Validation AUC", "training samples", "AUC", rank),
    )


def _case(start: datetime, i: int) -> AttentionCase:
    rng = np.random.default_rng(i)
    total = (843, 96, 0)[i]
    levels = []
    names = (("complete scope", total), ("median scope", 200), ("focused scope", 50))
    for name, keep in names:
        kept = min(keep, total)
        shown = min(5, kept)
        weight = np.sort(rng.dirichlet(np.full(max(kept, 1), 0.2)))[::-1][:shown]
        order = rng.permutation(len(MOVIES))
        events = tuple(
            KeptEvent(
                title=MOVIES[order[j]][0],
                genre=MOVIES[order[j]][1],
                rating=None if j == 3 else float(rng.integers(2, 6)),
                when=start - timedelta(days=int(rng.integers(1, 300))),
                weight=float(weight[j]),
            )
            for j in range(shown)
        )
        levels.append(AttentionLevel(name=name, kept=kept, total=total, events=events))
    return AttentionCase(
        user=("1088", "4169", HOSTILE)[i],
        title=("Matrix, The (1999)", "Toy Story 2 (1999)", HOSTILE)[i],
        genre=("Action|Sci-Fi|Thriller", "Animation|Children's|Comedy", "Sci-Fi")[i],
        when=start + timedelta(hours=i),
        label=(1, 1, 0)[i],
        probability=(0.873, 0.641, 0.352)[i],
        run="lap + crp",
        levels=tuple(levels),
    )
