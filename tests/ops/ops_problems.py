"""Small problems for the ops and one comparison of the fast form with its twin."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lcn import ops
from lcn.ops import RECENCY_BUCKETS, HistoryRows, Pool, Scoring, reference

MINUTE = 60_000


@dataclass(frozen=True)
class Problem:
    rows: HistoryRows
    span_C2: torch.Tensor
    scoring: Scoring


def problem(
    spans,
    *,
    items=50,
    rows=None,
    width=16,
    heads=1,
    fields=0,
    codes=0,
    recent=False,
    seed=0,
    index=torch.int64,
) -> Problem:
    """Random rows and queries for the given spans."""
    gen = torch.Generator().manual_seed(seed)
    span_C2 = torch.tensor(spans, dtype=index).reshape(-1, 2)
    rows = int(span_C2.max()) if rows is None and len(span_C2) else (rows or 0)
    columns = codes + (RECENCY_BUCKETS if recent else 0)
    scale = width**-0.25
    vector_ID = torch.randn(items, width, generator=gen) * scale
    query_CHD = torch.randn(len(span_C2), heads, width, generator=gen) * scale
    bias_CHV = torch.randn(len(span_C2), heads, columns, generator=gen)
    # Ages from milliseconds to beyond the last bucket, some of them negative.
    age_T = (2 ** (torch.rand(rows, generator=gen) * 45)).long() - MINUTE
    now = 2**41
    return Problem(
        HistoryRows(
            vector_ID.requires_grad_(),
            torch.randint(0, max(items, 1), (rows,), generator=gen).to(index),
            torch.randint(0, max(codes, 1), (rows, fields), generator=gen).to(index),
            now - age_T,
        ),
        span_C2,
        Scoring(
            query_CHD.requires_grad_(),
            bias_CHV.requires_grad_(),
            torch.full((len(span_C2),), now) + torch.arange(len(span_C2)) if recent else None,
        ),
    )


def as_double(p: Problem) -> Problem:
    rows, scoring = p.rows, p.scoring
    return Problem(
        HistoryRows(
            rows.vector_ID.detach().double().requires_grad_(),
            rows.item_T,
            rows.code_TG,
            rows.time_T,
        ),
        p.span_C2,
        Scoring(
            scoring.query_CHD.detach().double().requires_grad_(),
            scoring.bias_CHV.detach().double().requires_grad_(),
            scoring.time_C,
        ),
    )


def gradients(pool: Pool, p: Problem, seed=7) -> list[torch.Tensor]:
    """Gradients of a random linear function of both outputs: vectors, queries, biases."""
    gen = torch.Generator().manual_seed(seed)
    loss = sum(
        (x * torch.randn(x.shape, generator=gen).to(x)).sum()
        for x in (pool.vector_CHD, pool.weight_CHV)
    )
    leaves = (p.rows.vector_ID, p.scoring.query_CHD, p.scoring.bias_CHV)
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def everything(
    p: Problem, norm="softmax", keep=0, kept_CK=None, form=ops
) -> dict[str, torch.Tensor]:
    """Outputs and gradients of `span_pool`, or of `kept_pool` where rows are listed.

    `form` is a module with these ops; the default chooses by device and `ops.force`.
    """
    if kept_CK is None:
        pool = form.span_pool(p.rows, p.span_C2, p.scoring, norm, keep)
    else:
        pool = form.kept_pool(p.rows, kept_CK, p.scoring, norm, keep)
    d_vector, d_query, d_bias = gradients(pool, p)
    found = {
        "vector_CHD": pool.vector_CHD.detach(),
        "weight_CHV": pool.weight_CHV.detach(),
        "d vector_ID": d_vector,
        "d query_CHD": d_query,
        "d bias_CHV": d_bias,
    }
    return found if pool.kept_CK is None else {**found, "kept_CK": pool.kept_CK}


def assert_close(fast: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> None:
    """Equal to float32 rounding.

    A score is a sum of about 100 products of size about 1: its error is some 100 half-ulps
    (6e-8), which a softmax turns into a relative error of the same size; sums over a few hundred
    rows add less than as much again. 2e-5 of the largest value is three times that, and seldom
    is more than a twentieth of it used.
    """
    assert fast.keys() == exact.keys()
    for name, value in fast.items():
        wanted = exact[name]
        assert value.shape == wanted.shape, name
        if name == "kept_CK":
            assert value.dtype == wanted.dtype
        elif value.numel():
            assert torch.isfinite(value).all(), name
            error = (value.double() - wanted.double()).abs().max()
            assert error <= 2e-5 * max(1.0, float(wanted.abs().max())), (name, float(error))


def whole_numbers(p: Problem) -> Problem:
    """The same with small whole numbers: scores are exact in any precision, and often tie."""
    with torch.no_grad():
        for leaf in (p.rows.vector_ID, p.scoring.query_CHD, p.scoring.bias_CHV):
            leaf.mul_(2.0).round_()
    return p


def assert_kept_agree(p: Problem, fast_CK: torch.Tensor, exact_CK: torch.Tensor) -> None:
    """Place by place the same score: rows closer than rounding may have changed places."""
    score = [
        reference.score_rows(p.rows, kept_CK.clamp(min=0), kept_CK >= 0, p.scoring)[:, 0]
        for kept_CK in (fast_CK, exact_CK)
    ]
    torch.testing.assert_close(*score, atol=2e-5, rtol=1e-6)


def assert_kept_once(kept_CK: torch.Tensor) -> None:
    """No row stands in two slots."""
    for kept_K in kept_CK:
        real_K = kept_K[kept_K >= 0]
        assert len(real_K.unique()) == len(real_K)


def assert_agrees(p: Problem, norm="softmax", keep=0, kept_CK=None, exact=False) -> None:
    """Compare the fast form with its float64 twin: outputs, kept rows and each gradient."""
    double = as_double(p)
    with ops.force("fast"):
        fast = everything(p, norm, keep, kept_CK)
    with ops.force("reference"):
        wanted = everything(double, norm, keep, kept_CK)
    assert_close(fast, wanted)
    if keep and exact:
        assert torch.equal(fast["kept_CK"], wanted["kept_CK"])
    elif keep:
        assert_kept_agree(double, fast["kept_CK"], wanted["kept_CK"])
    if keep and kept_CK is None:
        assert_kept_once(fast["kept_CK"])


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


__all__ = [
    "MINUTE",
    "Problem",
    "as_double",
    "assert_agrees",
    "assert_close",
    "assert_kept_agree",
    "assert_kept_once",
    "assert_same",
    "everything",
    "gradients",
    "problem",
    "reference",
    "whole_numbers",
]
