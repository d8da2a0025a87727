"""Impressions by history length: a lifelong model should earn its keep where histories are long.

Shapes: S impressions, B strata.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST_USERS = 10
"""Of a stratum with an interval: with fewer, percentiles are too close together to be believed."""


@dataclass(frozen=True, slots=True, eq=False)
class Stratum:
    """Impressions whose history length lies in one range."""

    shortest: int
    longest: int
    """Shortest and longest history that occurs in it."""
    row_N: NDArray[np.int64]


def stratify(length_S: ArrayLike, bins: int = 4) -> tuple[Stratum, ...]:
    """Cut impressions by history length, at quantiles.

    Args:
        length_S: events in each impression's history.
        bins: how many ranges of about equally many impressions; equal lengths stay together, so
            there may be fewer.

    Returns:
        The ranges that hold impressions, shortest histories first.

    Raises:
        ValueError: no impressions, lengths that are no counts, or no bin.
    """
    length_S = np.asarray(length_S)
    if length_S.ndim != 1 or not length_S.size or length_S.dtype.kind not in "iu":
        raise ValueError(
            "history lengths must be one integer per impression, got "
            f"{length_S.dtype} of shape {length_S.shape}"
        )
    if length_S.min() < 0:
        raise ValueError(f"history lengths must not be negative, got {int(length_S.min())}")
    if bins < 1:
        raise ValueError(f"stratifying needs at least 1 bin, got {bins}")
    at = np.linspace(0, 1, bins + 1)[1:-1]
    first_B = np.unique(np.quantile(length_S, at, method="higher"))
    bin_S = np.searchsorted(first_B, length_S, side="right")
    rows = [np.flatnonzero(bin_S == b) for b in range(len(first_B) + 1)]
    return tuple(
        Stratum(int(length_S[row_N].min()), int(length_S[row_N].max()), row_N)
        for row_N in rows
        if row_N.size
    )
