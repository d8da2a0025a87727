"""Operations on span histories: one definition, a reference twin and a fast form.

The fast forms make no padded or gathered copy of a history: one is compiled for the CPU and used
for float32 tensors there, one is written in Triton and used for float32 (and bfloat16) vectors on a
GPU. Everything else takes the reference. `force` overrides the choice, for tests and benchmarks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcn.ops import reference
from lcn.ops.types import RECENCY_BUCKETS, HistoryRows, Norm, Pool, Scoring

__all__ = [
    "RECENCY_BUCKETS",
    "HistoryRows",
    "Norm",
    "Pool",
    "Scoring",
    "force",
    "implementation",
    "kept_pool",
    "rank_heads",
    "select_span_topk",
    "share_gradient",
    "span_pool",
    "span_score",
    "take_vectors",
]

Implementation = Literal["auto", "reference", "fast"]
_choice: ContextVar[Implementation] = ContextVar("lcn_ops_implementation", default="auto")


@contextmanager
def force(implementation: Implementation) -> Iterator[None]:
    """Use one implementation inside a `with` block."""
    token = _choice.set(implementation)
    try:
        yield
    finally:
        _choice.reset(token)


def implementation() -> Implementation:
    """Return what `force` asks for at the moment."""
    return _choice.get()


def span_pool(
    rows: HistoryRows,
    span_C2: Int[Tensor, "C 2"],
    scoring: Scoring,
    norm: Norm = "softmax",
    keep: int = 0,
) -> Pool:
    """Score every row of each candidate's span, weigh, sum, and keep the best.

    Differentiable in `rows.vector_ID`, `scoring.query_CHD` and `scoring.bias_CHV`.

    Args:
        rows: the batch's history rows.
        span_C2: first and one-past-last row of each candidate.
        scoring: how candidates score rows.
        norm: how scores become weights.
        keep: how many best rows (by the first head's score) to return; 0 for none.
    """
    rows = _readable(rows)
    return _ops(rows.vector_ID).span_pool(rows, span_C2, scoring, norm, keep)


def kept_pool(
    rows: HistoryRows,
    kept_CK: Int[Tensor, "C K"],
    scoring: Scoring,
    norm: Norm = "softmax",
    keep: int = 0,
) -> Pool:
    """`span_pool` over listed rows instead of a span; -1 marks an empty slot."""
    rows = _readable(rows)
    return _ops(rows.vector_ID).kept_pool(rows, kept_CK, scoring, norm, keep)


@torch.no_grad()
def span_score(
    rows: HistoryRows, span_C2: Int[Tensor, "C 2"], scoring: Scoring
) -> Float[Tensor, "S H"]:
    """Scores of every row of every span, candidates one after the other. Not differentiable."""
    rows = _readable(rows)
    return _ops(rows.vector_ID).span_score(rows, span_C2, scoring)


@torch.no_grad()
def rank_heads(
    rows: HistoryRows, span_C2: Int[Tensor, "C 2"], scoring: Scoring, k: int
) -> tuple[Int[Tensor, "C H K"], Float[Tensor, "C H K"]]:
    """The k best rows of each span by each head's score, and the heads' mean score of each.

    Order, ties and empty slots are those of `select_span_topk`; empty slots have the mean 0. Not
    differentiable.

    Raises:
        ValueError: k is less than 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rows = _readable(rows)
    rank = getattr(_ops(rows.vector_ID), "rank_heads", None)
    if rank is not None:
        return rank(rows, span_C2, scoring, k)
    score_SH = span_score(rows, span_C2, scoring)
    heads = [select_span_topk(score_S.contiguous(), span_C2, k) for score_S in score_SH.T]
    kept_CHK = torch.stack(heads, 1)
    if not len(score_SH):
        return kept_CHK, score_SH.new_zeros(kept_CHK.shape)
    length_C = (span_C2[:, 1] - span_C2[:, 0]).clamp(min=0)
    start_C = length_C.cumsum(0) - length_C - span_C2[:, 0]
    place_CHK = torch.where(kept_CHK >= 0, start_C[:, None, None] + kept_CHK, 0)
    return kept_CHK, score_SH.mean(1)[place_CHK] * (kept_CHK >= 0)


@torch.no_grad()
def select_span_topk(
    score_S: Float[Tensor, " S"], span_C2: Int[Tensor, "C 2"], k: int
) -> Int[Tensor, "C K"]:
    """The k best rows of each span by a flat score (as from `span_score`), best first.

    Ties go to the later row; -1 fills empty slots; a real row beats an empty slot whatever its
    score.

    Raises:
        ValueError: k is less than 1.
    """
    return _ops(score_S).select_span_topk(score_S, span_C2, k)


def share_gradient(vector_ID: Float[Tensor, "I D"]) -> Float[Tensor, "I D"]:
    """The same vectors, for which all ops that read them add into one gradient.

    Without it every op makes a gradient of all I vectors of its own, and they are summed. Values
    and gradients are the same either way, up to the order of sums. Ask for the gradient of what
    the vectors were computed from: ops do not tell the returned tensor what they add. A form of
    the ops without a shared gradient returns the vectors as they are.
    """
    shares = getattr(_ops(vector_ID), "share_gradient", None)
    return vector_ID if shares is None else shares(vector_ID)


def take_vectors(
    vector_ID: Float[Tensor, "I D"], index_C: Int[Tensor, " C"]
) -> Float[Tensor, "C D"]:
    """`vector_ID[index_C]`, whose gradient goes where those of other ops go."""
    take = getattr(_ops(vector_ID), "take_vectors", None)
    return vector_ID[index_C] if take is None else take(vector_ID, index_C)


def _readable(rows: HistoryRows) -> HistoryRows:
    """Rows as this device's ops read them: on the CPU, half-width vectors are widened, which costs
    a pass over the unique items, not over the rows."""
    return rows.widened() if rows.vector_ID.device.type == "cpu" else rows


def _ops(floats: Tensor) -> ModuleType:
    """Choose by the type and place of the op's floats."""
    choice = _choice.get()
    if choice == "reference":
        return reference
    place, kind = floats.device.type, floats.dtype
    if place == "cpu" and kind == torch.float32:
        from lcn.ops import cpu

        return cpu
    if place == "cuda" and kind in (torch.float32, torch.bfloat16) and _has_triton():
        from lcn.ops import cuda

        return cuda
    if choice == "fast":
        raise ValueError(
            "the fast ops need float32 tensors on the CPU, or on a GPU with Triton installed, got "
            f"{kind} on {floats.device}; use ops.force('reference')"
        )
    return reference


@cache
def _has_triton() -> bool:
    if find_spec("triton") is not None:
        return True
    warnings.warn(
        "tensors are on a GPU but Triton is not installed, so every candidate gets a padded copy "
        "of its history; install it with `pip install 'lcn[cuda]'`",
        stacklevel=4,
    )
    return False
