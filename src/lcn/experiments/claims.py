"""When a claim is settled: its interval leaves out 0 and its p-value, corrected by Holm for all
claims made together, is below 5 % (decision 12). Otherwise it is open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lcn.evaluate.bootstrap import Student
from lcn.evaluate.compare import Difference, holm
from lcn.evaluate.tables import p_value_text
from lcn.experiments.figures import OverSeeds
from lcn.experiments.record import Holding, Verdict

LEVEL = 0.95
_MOST_FREEDOM = 1e6


@dataclass(frozen=True, slots=True)
class Gap:
    """By how much a claim is right: above 0, it holds."""

    estimate: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim, the gap that decides it, and how to say that gap."""

    claim: str
    gap: Gap | OverSeeds
    evidence: str


def between_logs(first: Difference, last: Difference) -> Gap:
    """How much larger the second of two differences is, measured on logs that share no user.

    Errors add; Welch's t with Satterthwaite's degrees of freedom.
    """
    gap = last.difference - first.difference
    variances = [first.standard_error**2, last.standard_error**2]
    error = math.sqrt(sum(variances))
    if math.isnan(error + gap) or error == 0:
        return Gap(gap, math.nan, math.nan, math.nan)
    spread = sum(v**2 / d.freedom for v, d in zip(variances, (first, last), strict=True))
    student = Student(min(_MOST_FREEDOM, error**4 / spread) if spread else _MOST_FREEDOM)
    half = student.quantile((1 + LEVEL) / 2) * error
    return Gap(gap, gap - half, gap + half, student.two_sided(abs(gap) / error))


def settle(claims: Sequence[Claimed]) -> tuple[Verdict, ...]:
    """Judge claims that were made together, each corrected for the others."""
    corrected = holm([each.gap.p_value for each in claims])
    return tuple(
        Verdict(
            claim=each.claim,
            holding=holding(each.gap.low, each.gap.high, p_value),
            evidence=f"{each.evidence}, Holm {p_value_text(p_value)}",
        )
        for each, p_value in zip(claims, corrected.tolist(), strict=True)
    )


def holding(low: float, high: float, p_value: float, level: float = LEVEL) -> Holding:
    """Say whether a gap of this interval and corrected p-value settles its claim."""
    if math.isnan(low) or not p_value <= 1 - level:
        return "open"
    return "holds" if low > 0 else "does not hold" if high < 0 else "open"
