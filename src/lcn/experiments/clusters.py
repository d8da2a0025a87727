"""How well categories cluster in a space of vectors: silhouette and neighbour purity, by cosine.

Shapes: V vectors, D width, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Clusters:
    """Cluster quality of labelled vectors."""

    silhouette: float
    """Mean of (b - a) / max(a, b): a is the mean cosine distance to the own category, b to the
    nearest other one; in [-1, 1], 0 where categories overlap. NaN with a single category."""
    purity: float
    """Share of the nearest neighbours that have the own category."""
    chance: float
    """Purity of random neighbours."""


def measure_clusters(
    vector_VD: NDArray[np.floating], label_V: NDArray[np.int64], neighbours: int = 10
) -> Clusters:
    """Silhouette and purity of labelled vectors; a category of one vector has silhouette 0.

    Source: Rousseeuw 1987 (silhouette).

    Args:
        vector_VD: compared by cosine.
        label_V: category of each vector.
        neighbours: K of the purity.

    Raises:
        ValueError: fewer than two vectors.
    """
    if len(vector_VD) < 2:
        raise ValueError(f"cluster quality needs at least 2 vectors, got {len(vector_VD)}")
    unit_VD = unit_rows(vector_VD)
    distance_VV = 1 - unit_VD @ unit_VD.T
    return Clusters(
        _silhouette(distance_VV, label_V),
        purity(unit_VD, label_V, unit_VD, label_V, neighbours, same=True),
        _chance(label_V),
    )


def purity(
    asking_AD: NDArray[np.floating],
    label_A: NDArray[np.int64],
    found_VD: NDArray[np.floating],
    label_V: NDArray[np.int64],
    neighbours: int = 10,
    *,
    same: bool = False,
) -> float:
    """Share of each asking vector's nearest found vectors that have its category.

    Args:
        asking_AD: unit vectors that ask.
        label_A: their categories.
        found_VD: unit vectors to be found.
        label_V: their categories.
        neighbours: how many are found.
        same: the two are the same vectors, and none finds itself.
    """
    similarity_AV = asking_AD @ found_VD.T
    if same:
        np.fill_diagonal(similarity_AV, -np.inf)
    neighbours = min(neighbours, len(found_VD) - same)
    near_AK = np.argpartition(-similarity_AV, neighbours - 1, axis=1)[:, :neighbours]
    return float((label_V[near_AK] == label_A[:, None]).mean())


def unit_rows(vector_VD: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of length 1; a zero row stays zero."""
    vector_VD = np.asarray(vector_VD, np.float64)
    return vector_VD / np.maximum(np.linalg.norm(vector_VD, axis=1, keepdims=True), 1e-12)


def _silhouette(distance_VV: NDArray[np.float64], label_V: NDArray[np.int64]) -> float:
    _, own_V, size_L = np.unique(label_V, return_inverse=True, return_counts=True)
    if len(size_L) < 2:
        return float("nan")
    member_VL = np.eye(len(size_L))[own_V]
    sum_VL = distance_VV @ member_VL
    every = np.arange(len(own_V))
    others_V = size_L[own_V] - 1
    within_V = sum_VL[every, own_V] / np.maximum(others_V, 1)
    mean_VL = sum_VL / size_L
    mean_VL[every, own_V] = np.inf
    nearest_V = mean_VL.min(axis=1)
    larger_V = np.maximum(np.maximum(within_V, nearest_V), 1e-12)
    return float(np.where(others_V > 0, (nearest_V - within_V) / larger_V, 0.0).mean())


def _chance(label_V: NDArray[np.int64]) -> float:
    size_L = np.unique(label_V, return_counts=True)[1].astype(np.float64)
    total = size_L.sum()
    return float((size_L * (size_L - 1)).sum() / (total * (total - 1)))
