"""When claims are settled."""

import math

import pytest

from lcn.evaluate.compare import Difference
from lcn.experiments.claims import Claimed, Gap, between_logs, holding, settle
from lcn.experiments.figures import over_seeds


def difference(value: float, error: float, freedom: float) -> Difference:
    return Difference(0.7, 0.7 + value, value, math.nan, math.nan, error, math.nan, freedom)


def test_a_claim_needs_its_interval_and_its_corrected_p_value():
    assert holding(0.1, 0.3, 0.01) == "holds"
    assert holding(-0.3, -0.1, 0.01) == "does not hold"
    assert holding(0.1, 0.3, 0.06) == "open"
    assert holding(-0.1, 0.3, 0.01) == "open"
    assert holding(math.nan, math.nan, math.nan) == "open"


def test_claims_made_together_are_corrected_for_one_another():
    clear, near = Gap(0.2, 0.1, 0.3, 0.001), Gap(0.2, 0.01, 0.4, 0.03)
    assert [one.holding for one in settle([Claimed("a", near, "e")])] == ["holds"]
    both = settle([Claimed("a", near, "e"), Claimed("b", near, "e"), Claimed("c", clear, "e")])
    assert [one.holding for one in both] == ["open", "open", "holds"]
    assert both[0].evidence == "e, Holm 0.06"
    undefined = Gap(*[math.nan] * 4)
    assert [one.holding for one in settle([Claimed("a", undefined, "")])] == ["open"]


def test_differences_on_different_logs_by_welch():
    gap = between_logs(difference(0.01, 0.003, 2.0), difference(0.03, 0.004, 2.0))
    assert gap.estimate == pytest.approx(0.02)
    # Error .005, degrees of freedom 625 / (81 / 2 + 256 / 2) = 3.709; t(.975) = 2.866.
    assert gap.high - gap.estimate == pytest.approx(2.866 * 0.005, rel=2e-3)
    assert gap.p_value == pytest.approx(0.0186, abs=2e-3)
    wide = between_logs(difference(0.01, 0.003, math.inf), difference(0.03, 0.004, math.inf))
    assert wide.high - wide.estimate == pytest.approx(1.96 * 0.005, rel=1e-3)
    assert math.isnan(between_logs(difference(0.1, 0.0, 2.0), difference(0.2, 0.0, 2.0)).low)


def test_a_mean_over_seeds_by_student():
    gap = over_seeds([0.1, 0.2, 0.3])
    # t = .2 / (.1 / sqrt 3) = 3.464 with two degrees of freedom.
    assert gap.p_value == pytest.approx(0.0742, abs=1e-3)
    assert gap.low < 0 < gap.high
