"""What to expect of a lifelong model on a log, read off the dose-response on planted truth.

An expectation is a weighted mean of the gains measured on generated logs, nearer logs (by three
facts) weighing more. It is a rule of thumb: real logs differ from generated ones in ways that the
facts do not hold; outside the range of the generated logs it says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lcn.errors import DataError

LIFT = "AUC lift of the counting probe"
PACKAGED = "conditions.json"
"""The dose-response that comes with the program."""
_REACH = 0.5
"""Distance, in standard deviations of the generated logs, at which a log's weight is exp(-1/2)."""


@dataclass(frozen=True, slots=True)
class Known:
    """One generated log: its facts and what a lifelong model gained there."""

    name: str
    facts: dict[str, float]
    gain: float
    low: float
    high: float

    @property
    def whole(self) -> bool:
        """Every number is defined."""
        return all(map(math.isfinite, (*self.facts.values(), self.gain, self.low, self.high)))


@dataclass(frozen=True, slots=True)
class Expectation:
    """The gain in AUC to expect of the pyramid over no lifelong part."""

    gain: float
    low: float
    high: float
    """A rough range: the weighted mean of the logs' own intervals, and how their gains differ."""
    nearest: tuple[Known, ...]
    """The generated logs that weigh most, nearest first."""
    outside: tuple[str, ...]
    """Facts that lie outside what was generated: there the expectation extrapolates."""

    @property
    def words(self) -> str:
        """What it comes to, in a sentence."""
        if self.low > 0:
            verdict = "expect a gain"
        elif self.high <= 0.001:
            verdict = "expect no gain"
        else:
            verdict = "a gain is possible but not to be counted on"
        return (
            f"{verdict}: {self.gain:+.4f} AUC over a model without lifelong part "
            f"({self.low:+.4f} to {self.high:+.4f} on generated logs with like facts)"
        )

    def numbers(self) -> dict[str, Any]:
        """As a tree for JSON."""
        return {**asdict(self), "words": self.words}


def load_known(path: Path | None = None, system: str = "LAP") -> tuple[Known, ...]:
    """The dose-response to read from.

    Args:
        path: a record of `lcn experiment conditions`; None takes the one that is packaged.
        system: whose gains. Logs on which a gain or a fact is undefined are left out.

    Returns:
        Empty where none is packaged.

    Raises:
        DataError: the file cannot be read or is no such record.
    """
    if path is None:
        packaged = resources.files("lcn.experiments").joinpath(PACKAGED)
        if not packaged.is_file():
            return ()
        text = packaged.read_bytes()
    else:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {error.strerror}; make a record with "
                "`lcn experiment conditions`"
            ) from error
    try:
        points = json.loads(text)["data"]["points"]
        read = [_known(point, system) for point in points if system in point["gains"]]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path or PACKAGED} holds no dose-response ({error!r}); give the record that "
            "`lcn experiment conditions` wrote"
        ) from error
    # A log that stands in several dials counts once.
    return tuple({tuple(sorted(one.facts.items())): one for one in read if one.whole}.values())


def _known(point: dict[str, Any], system: str) -> Known:
    """A point of the record; null is what was undefined."""

    def number(value: Any) -> float:
        return math.nan if value is None else float(value)

    return Known(
        name=f"{point['dial']} {point['value']:g}",
        facts={name: number(value) for name, value in point["facts"].items()},
        **{key: number(point["gains"][system][key]) for key in ("gain", "low", "high")},
    )


def undefined(facts: Mapping[str, float]) -> tuple[str, ...]:
    """The facts that a log does not have: with any of them nothing can be said."""
    return tuple(name for name, value in facts.items() if not math.isfinite(value))


def expect(facts: Mapping[str, float], known: Sequence[Known]) -> Expectation:
    """The gain to expect on a log with these facts; see the module.

    Args:
        facts: `LogFacts.drivers`.
        known: of `load_known`; at least one.

    Raises:
        DataError: the dose-response was measured with other facts, or is empty; or a fact of the
            log is undefined.
    """
    if missing := undefined(facts):
        raise DataError(
            f"nothing can be said of this log: {', '.join(missing)} is undefined there; its test "
            "days need impressions of both labels"
        )
    if not known or any(set(one.facts) != set(facts) for one in known):
        raise DataError(
            "the dose-response names other facts than this program reads, or none; run "
            "`lcn experiment conditions` again"
        )
    names = list(facts)
    table_KX = np.array([[_scaled(name, one.facts[name]) for name in names] for one in known])
    own_X = np.array([_scaled(name, facts[name]) for name in names])
    spread_X = np.maximum(table_KX.std(0), 1e-6)
    distance_K = np.linalg.norm((table_KX - own_X) / spread_X, axis=1)
    # Relative to the nearest, so that a log far from all still gets an answer (and a warning).
    nearest = distance_K.min()
    weight_K = np.exp(-0.5 * (distance_K**2 - nearest**2) / _REACH**2)
    weight_K = weight_K / weight_K.sum()
    gain_K, low_K, high_K = (
        np.array([getattr(one, name) for one in known]) for name in ("gain", "low", "high")
    )
    gain = float(weight_K @ gain_K)
    apart = float(np.sqrt(weight_K @ (gain_K - gain) ** 2))
    half = math.hypot(float(weight_K @ (high_K - low_K)) / 2, apart)
    slack_X = 0.05 * (table_KX.max(0) - table_KX.min(0))
    outside_X = (own_X < table_KX.min(0) - slack_X) | (own_X > table_KX.max(0) + slack_X)
    order = np.argsort(distance_K, kind="stable")[:3]
    return Expectation(
        gain=gain,
        low=gain - half,
        high=gain + half,
        nearest=tuple(known[place] for place in order.tolist()),
        outside=tuple(name for name, out in zip(names, outside_X, strict=True) if out),
    )


def _scaled(name: str, value: float) -> float:
    """Counts by their logarithm, the lift as it is (never below a little under 0)."""
    return max(value, -0.002) if name == LIFT else math.log1p(max(value, 0.0))
