"""The CPU ops against their dull twins: outputs, kept rows and every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_problems import as_double, assert_agrees, everything, problem, whole_numbers

from lcn import ops
from lcn.ops import HistoryRows, Scoring, reference

NESTED = [(0, 200), (0, 190), (5, 190), (5, 130), (5, 129), (0, 64), (3, 200), (0, 200), (7, 200)]
"""One user's impressions at different times."""
SCATTERED = [(300, 310), (0, 70), (60, 60), (50, 90), (90, 91), (0, 0), (200, 265), (0, 310)]
"""Any order, empty, touching, overlapping, all rows."""


@pytest.mark.parametrize("norm", ["softmax", "mean", "raw"])
@pytest.mark.parametrize(
    "settings_of",
    [
        dict(width=64),
        dict(width=17, fields=2, codes=9, recent=True),
        dict(width=1, heads=3, recent=True),
        dict(width=72, heads=4, fields=1, codes=3),
        dict(width=130, heads=2, index=torch.int32, fields=3, codes=40, recent=True),
    ],
    ids=["plain", "codes", "one-wide", "four-heads", "int32-indices"],
)
@pytest.mark.parametrize("spans", [NESTED, SCATTERED], ids=["nested", "scattered"])
def test_span_pool_matches(norm, settings_of, spans):
    assert_agrees(problem(spans, **settings_of), norm, keep=20)


@pytest.mark.parametrize("candidates", [1, 2, 3, 4, 5, 31, 33, 70])
def test_any_number_of_candidates_may_share_a_user(candidates):
    spans = [(3, 150 - c % 7) for c in range(candidates)]
    assert_agrees(problem(spans, width=24, fields=1, codes=5, recent=True), keep=9)


@pytest.mark.parametrize("norm", ["softmax", "mean", "raw"])
@pytest.mark.parametrize("heads", [1, 4, 5])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_kept_pool_matches_with_rows_in_any_order(norm, heads, index):
    p = problem(NESTED, width=40, heads=heads, fields=2, codes=9, recent=True)
    gen = torch.Generator().manual_seed(1)
    kept_CK = torch.randint(-1, 200, (len(NESTED), 90), generator=gen, dtype=index)
    kept_CK[2] = -1
    kept_CK[4, :50] = -1
    assert_agrees(p, norm, keep=13, kept_CK=kept_CK)


@st.composite
def random_problems(draw):
    rows = draw(st.integers(0, 150))
    edge = st.integers(0, rows)
    spans = draw(st.lists(st.tuples(edge, edge).map(sorted), max_size=9))
    codes = draw(st.sampled_from([0, 1, 7]))
    return problem(
        spans,
        rows=rows,
        items=draw(st.integers(1, 40)),
        width=draw(st.integers(1, 40)),
        heads=draw(st.integers(1, 5)),
        codes=codes,
        fields=draw(st.integers(0, 3)) if codes else 0,
        recent=draw(st.booleans()),
        index=draw(st.sampled_from([torch.int32, torch.int64])),
        seed=draw(st.integers(0, 2**31)),
    )


@settings(max_examples=60, deadline=None)
@given(
    random_problems(),
    st.sampled_from(["softmax", "mean", "raw"]),
    st.sampled_from([0, 1, 7, 200]),
    st.booleans(),
)
def test_random_problems_match(p, norm, keep, listed):
    kept_CK = None
    if listed:
        top = len(p.rows.item_T)
        gen = torch.Generator().manual_seed(top)
        kept_CK = torch.randint(-1, max(top, 1), (len(p.span_C2), 11), generator=gen)
        kept_CK = kept_CK if top else torch.full_like(kept_CK, -1)
    assert_agrees(p, norm, keep, kept_CK)


@pytest.mark.parametrize("spans", [NESTED, SCATTERED, [(0, 5)], []])
@pytest.mark.parametrize("heads", [1, 3])
def test_span_score_matches(spans, heads):
    p = problem(spans, rows=400, width=33, heads=heads, fields=2, codes=5, recent=True)
    with ops.force("fast"):
        score_SH = ops.span_score(p.rows, p.span_C2, p.scoring)
    double = as_double(p)
    wanted = reference.span_score(double.rows, double.span_C2, double.scoring)
    assert score_SH.shape == wanted.shape
    torch.testing.assert_close(score_SH.double(), wanted, atol=2e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(random_problems(), st.sampled_from([1, 7, 200]), st.booleans())
def test_the_same_rows_are_kept_where_scores_are_exact(p, keep, listed):
    kept_CK = None
    if listed:
        top = len(p.rows.item_T)
        gen = torch.Generator().manual_seed(top)
        kept_CK = torch.randint(-1, max(top, 1), (len(p.span_C2), 11), generator=gen)
        kept_CK = kept_CK if top else torch.full_like(kept_CK, -1)
    # Summed, because a softmax over whole numbers is all in one row.
    assert_agrees(whole_numbers(p), "mean", keep, kept_CK, exact=True)


def select_both(score_S, spans, k):
    span_C2 = torch.tensor(spans).reshape(-1, 2)
    with ops.force("reference"):
        wanted = ops.select_span_topk(score_S, span_C2, k)
    with ops.force("fast"):
        return ops.select_span_topk(score_S, span_C2, k), wanted


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 700), max_size=4),
    st.integers(1, 300),
    st.sampled_from(["smooth", "few values", "all equal", "outlier", "tiny", "signed zeros"]),
    st.integers(0, 2**31),
)
def test_select_span_topk_matches_whatever_the_scores(lengths, k, shape, seed):
    gen = torch.Generator().manual_seed(seed)
    spans, start = [], 1000
    for length in lengths:
        spans.append((start, start + length))
        start += length
    smooth_S = torch.randn(start - 1000, generator=gen)
    score_S = {
        "smooth": smooth_S,
        "few values": (smooth_S * 2).round(),
        "all equal": torch.full_like(smooth_S, -3.0),
        "outlier": torch.where(smooth_S > 2, 3e38, smooth_S),
        "tiny": smooth_S * 1e-39,
        "signed zeros": torch.where(smooth_S > 0, 0.0, -0.0),
    }[shape]
    found, wanted = select_both(score_S, spans, k)
    assert torch.equal(found, wanted)


def test_rows_with_score_minus_infinity_are_not_kept():
    score_S = torch.tensor([1.0, -torch.inf, -5.0, torch.inf])
    found, wanted = select_both(score_S, [(10, 14)], 4)
    assert found.tolist() == wanted.tolist() == [[13, 10, 12, -1]]


def test_ties_go_to_the_later_row():
    p = whole_numbers(problem([(0, 300)] * 8, items=3, width=8))
    assert_agrees(p, keep=150, exact=True)
    pool = ops.span_pool(p.rows, p.span_C2, p.scoring, keep=300)
    for kept_K in pool.kept_CK:
        item_K = p.rows.item_T[kept_K]
        for item in range(3):
            assert kept_K[item_K == item].diff().lt(0).all()


def test_a_bias_of_minus_infinity_takes_rows_out():
    p = problem(NESTED, width=24, fields=1, codes=4)
    with torch.no_grad():
        p.scoring.bias_CHV[:, :, 2] = -torch.inf
        p.scoring.bias_CHV[3] = -torch.inf
    for norm in ("softmax", "mean", "raw"):
        assert_agrees(p, norm, keep=60)
        assert_agrees(p, norm, keep=60, kept_CK=torch.arange(200).repeat(len(NESTED), 1))


def test_large_scores_stay_finite():
    p = problem(NESTED, width=16)
    with torch.no_grad():
        p.scoring.query_CHD.mul_(1e5)
    found = everything(p)
    for name, value in found.items():
        assert torch.isfinite(value).all(), name
    row = (p.rows.vector_ID[p.rows.item_T[:200]] @ p.scoring.query_CHD[0, 0]).argmax()
    torch.testing.assert_close(
        found["vector_CHD"][0, 0], p.rows.vector_ID[p.rows.item_T[row]].detach()
    )


@pytest.mark.parametrize("norm", ["softmax", "mean", "raw"])
def test_the_reference_has_the_right_gradients(norm):
    p = as_double(
        problem([(0, 5), (2, 9), (4, 4)], items=4, width=3, heads=2, fields=1, codes=2, recent=True)
    )

    def outputs(vector_ID, query_CHD, bias_CHV):
        rows = HistoryRows(vector_ID, p.rows.item_T, p.rows.code_TG, p.rows.time_T)
        pool = reference.span_pool(
            rows, p.span_C2, Scoring(query_CHD, bias_CHV, p.scoring.time_C), norm
        )
        return pool.vector_CHD, pool.weight_CHV

    leaves = (p.rows.vector_ID, p.scoring.query_CHD, p.scoring.bias_CHV)
    assert torch.autograd.gradcheck(outputs, leaves)
