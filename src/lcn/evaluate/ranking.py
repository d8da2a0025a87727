"""Impressions in score order, equal scores gathered: what AUC, GAUC and calibration share.

Shapes: S impressions, G groups of equal score (ascending), U users, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lcn.evaluate.checks import Float64, Int64


@dataclass(frozen=True, slots=True)
class Ranking:
    """Impressions ordered by score, ascending."""

    order_S: Int64
    """Row of each rank."""
    start_G: Int64
    """First rank of each group of equal scores."""
    group_S: Int64
    """Group of each row (not of each rank)."""


def rank(score_S: Float64) -> Ranking:
    """Order impressions by score; equal scores share a group, so their order cannot matter."""
    order_S = np.argsort(score_S)
    sorted_S = score_S[order_S]
    new_S = np.empty(len(sorted_S), dtype=bool)
    new_S[:1] = True
    np.not_equal(sorted_S[1:], sorted_S[:-1], out=new_S[1:])
    group_S = np.empty(len(sorted_S), dtype=np.int64)
    group_S[order_S] = np.cumsum(new_S) - 1
    return Ranking(order_S, np.flatnonzero(new_S), group_S)


def number_users(user_S: Int64) -> tuple[Int64, int]:
    """Number the users that occur from 0, in order of address.

    Returns:
        The number of each impression's user, and how many users there are.
    """
    low, high = int(user_S.min()), int(user_S.max())
    # Addresses are dense, so a table beats a sort; far-flung ids take the sort.
    if high - low < 8 * len(user_S) + 1024:
        present = np.bincount(user_S - low) > 0
        number = np.cumsum(present) - 1
        return number[user_S - low], int(present.sum())
    unique, number_S = np.unique(user_S, return_inverse=True)
    return number_S.reshape(-1), len(unique)


@dataclass(frozen=True, slots=True)
class UserRanks:
    """How well each user's impressions are ordered."""

    auc_U: Float64
    """NaN for users with one label only."""
    impressions_U: Int64


def rank_within_users(ranking: Ranking, label_S: Int64, number_S: Int64, users: int) -> UserRanks:
    """Compute every user's own AUC by one sort of integers.

    Args:
        ranking: all impressions by score.
        label_S: 0 or 1.
        number_S: user numbers from 0.
        users: how many users.
    """
    groups = len(ranking.start_G)
    # One integer per impression that sorts by user, then score group, then label.
    key_S = np.sort((number_S * groups + ranking.group_S) * 2 + label_S)
    positive_S = key_S & 1
    key_S >>= 1
    first_H = _starts(key_S)
    positive_H = np.add.reduceat(positive_S, first_H)
    negative_H = np.diff(first_H, append=len(key_S)) - positive_H
    user_H = key_S[first_H] // groups
    first_U = np.searchsorted(user_H, np.arange(users))
    below_H = np.cumsum(negative_H) - negative_H
    below_H = below_H - below_H[first_U][user_H]
    # Pairs won count twice, so that a tie counts once and everything stays an integer.
    twice_U = np.add.reduceat(positive_H * (2 * below_H + negative_H), first_U)
    positive_U = np.add.reduceat(positive_H, first_U)
    negative_U = np.add.reduceat(negative_H, first_U)
    pairs_U = positive_U * negative_U
    auc_U = np.full(users, np.nan)
    np.divide(twice_U, 2 * pairs_U, out=auc_U, where=pairs_U > 0)
    return UserRanks(auc_U, positive_U + negative_U)


def bin_edges(ranking: Ranking, bins: int) -> Int64:
    """Cut the ranks into bins of equal mass; impressions of equal score stay together.

    Returns:
        edge_B1: [B + 1] first rank of each bin and one past the last; empty bins are left out,
            so there may be fewer than `bins`.

    Raises:
        ValueError: fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"calibration needs at least 1 bin, got {bins}")
    size = len(ranking.order_S)
    bin_G = ranking.start_G * bins // size
    return np.append(ranking.start_G[_starts(bin_G)], size)


def _starts(sorted_N: Int64) -> Int64:
    """Positions where a sorted array's value differs from the one before."""
    return np.flatnonzero(np.concatenate(([True], sorted_N[1:] != sorted_N[:-1])))
