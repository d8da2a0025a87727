"""Measure a table's rows: metrics with intervals, paired differences, corrected p-values, strata.

Shapes: S impressions, K seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcn.data.dataset import open_dataset
from lcn.evaluate.compare import Difference, PairedDifference, compare, holm
from lcn.evaluate.predictions import Predictions
from lcn.evaluate.results import RunResult, result_of
from lcn.evaluate.strata import FEWEST_USERS, Stratum, stratify
from lcn.experiments.rows import Claim, Metric, Table
from lcn.experiments.runner import Fitted, Workspace, fitted_ok
from lcn.train.config import RunConfig

METRICS: tuple[Metric, ...] = ("auc", "gauc", "log_loss")


@dataclass(frozen=True, slots=True)
class Compared:
    """A paired difference of two rows with its corrected p-values."""

    difference: PairedDifference
    holm: dict[str, float]
    """Metric -> p-value corrected for all comparisons of the table in that metric."""
    claim: str = ""
    """The statement it decides, if any."""

    def of(self, metric: Metric) -> Difference:
        """One metric's difference."""
        return getattr(self.difference, metric)


@dataclass(frozen=True, slots=True)
class InStratum:
    """A paired difference among impressions of one range of history lengths.

    Without an interval (NaN) where fewer than `FEWEST_USERS` users are in it.
    """

    shortest: int
    longest: int
    share: float
    difference: PairedDifference


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything measured about a table."""

    results: tuple[RunResult, ...]
    compared: tuple[Compared, ...]
    strata: tuple[InStratum, ...]

    def pair(self, other: str, reference: str) -> Compared | None:
        """The comparison of two rows, if it was made."""
        return next(
            (
                each
                for each in self.compared
                if (each.difference.other, each.difference.reference) == (other, reference)
            ),
            None,
        )

    def numbers(self) -> dict[str, Any]:
        """As a tree of plain numbers."""
        return {
            "results": [asdict(each) for each in self.results],
            "differences": [
                {**asdict(each.difference), "p_value_holm": each.holm, "claim": each.claim}
                for each in self.compared
            ],
            "strata": [asdict(each) for each in self.strata],
        }


def measure(
    workspace: Workspace, table: Table, fitted: Sequence[Fitted], *, seed: int = 0
) -> Measured:
    """Measure the rows that were trained; see the module.

    Every row is compared with each of the table's references, and each claim's two rows with one
    another. Holm's correction counts all of these comparisons, separately for each metric.

    Args:
        workspace: dataset, store, options.
        table: what was wanted; references and claims about untrained rows are left out.
        fitted: of `fit_rows`.
        seed: of the resampling; every comparison sees the same resamples.
    """
    trained = fitted_ok(fitted)
    if not trained:
        return Measured((), (), ())
    test = {each.row.name: _predictions(workspace, each, "test") for each in trained}
    validation = {each.row.name: _predictions(workspace, each, "validation") for each in trained}
    options = workspace.options

    def generator() -> np.random.Generator:
        return np.random.default_rng(seed)

    results = tuple(
        result_of(
            runs,
            validation[name],
            generator=generator(),
            resamples=options.resamples,
            level=options.level,
        )
        for name, runs in test.items()
    )
    pairs = comparisons(table, list(test))
    differences = [
        compare(
            test[claim.reference],
            test[claim.other],
            resamples=options.resamples,
            generator=generator(),
            level=options.level,
        )
        for claim in pairs
    ]
    corrected = {
        metric: holm([getattr(each, metric).p_value for each in differences]) for metric in METRICS
    }
    compared = tuple(
        Compared(
            difference,
            {metric: float(corrected[metric][place]) for metric in METRICS},
            claim.text,
        )
        for place, (claim, difference) in enumerate(zip(pairs, differences, strict=True))
    )
    configs = [config for each in trained for config in each.runs]
    longest = max(configs, key=lambda config: config.batch.lifelong)
    strata = _strata(workspace, table, test, longest)
    return Measured(results, compared, strata)


def comparisons(table: Table, names: Sequence[str]) -> tuple[Claim, ...]:
    """Every pair of rows to compare, once: claims, then each row with each reference."""
    found: dict[tuple[str, str], Claim] = {}
    for claim in table.claims:
        if claim.other in names and claim.reference in names:
            found.setdefault((claim.other, claim.reference), claim)
    for reference in table.references:
        for name in names:
            known = {(name, reference), (reference, name)} & found.keys()
            if name != reference and reference in names and not known:
                found[name, reference] = Claim("", name, reference)
    return tuple(found.values())


def history_lengths(config: RunConfig) -> NDArray[np.int64]:
    """length_S: source-domain rows that each test impression's lifelong history holds."""
    dataset = open_dataset(config.dataset, lifelong=config.lifelong_domain)
    length_S = dataset.lengths(dataset.samples["test"])
    return np.minimum(length_S, config.batch.lifelong).astype(np.int64)


def _predictions(workspace: Workspace, fitted: Fitted, split: Any) -> list[Predictions]:
    return [workspace.store.predictions(config, split, fitted.row.name) for config in fitted.runs]


def _strata(
    workspace: Workspace, table: Table, test: Mapping[str, Sequence[Predictions]], config: RunConfig
) -> tuple[InStratum, ...]:
    """Differences to the first reference that was trained, by history length.

    Lengths are those that `config` sees: of the rows' configs, the one with the longest histories.
    """
    reference = next((name for name in table.references if name in test), None)
    length_S = history_lengths(config)
    if reference is None or not len(length_S):
        return ()
    found = []
    for stratum in stratify(length_S, bins=4):
        known = _take(test[reference], stratum)
        if known is None:
            continue
        for name, runs in test.items():
            other = _take(runs, stratum)
            if name == reference or other is None:
                continue
            difference = compare(
                known,
                other,
                resamples=max(2, workspace.options.resamples // 2),
                generator=np.random.default_rng(0),
                level=workspace.options.level,
                fewest_users=FEWEST_USERS,
            )
            share = len(stratum.row_N) / len(length_S)
            found.append(InStratum(stratum.shortest, stratum.longest, share, difference))
    return tuple(found)


def _take(runs: Sequence[Predictions], stratum: Stratum) -> list[Predictions] | None:
    """The runs' predictions in a stratum; None where it holds one label alone."""
    taken = []
    for run in runs:
        mask_S = np.isin(run.sample_S, stratum.row_N)
        if not 0 < int(run.label_S[mask_S].sum()) < int(mask_S.sum()):
            return None
        taken.append(run.take(mask_S))
    return taken
