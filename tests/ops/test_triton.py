"""The Triton ops against their dull twins: on a GPU where there is one, else interpreted.

The interpreter runs kernels one numpy operation at a time, so problems here are small.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from ops_problems import Problem, as_double, assert_close, assert_same, everything, problem

from lcn import ops
from lcn.backbones.lap import Lap
from lcn.data.loader import BatchConfig, load_batches
from lcn.model import Model, ModelConfig, ShortConfig
from lcn.ops import RECENCY_BUCKETS, HistoryRows, Scoring, reference

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
if not GPU:
    # Read when triton defines its own functions.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="triton is not installed; `make test-gpu` installs it")
pytestmark = pytest.mark.triton

from lcn.ops import cuda, triton_plan  # noqa: E402

NESTED = [(0, 60), (0, 55), (5, 40), (0, 13)]
"""One user's impressions at different times."""
SCATTERED = [(45, 50), (0, 40), (9, 3), (25, 44), (44, 45), (0, 0), (0, 50)]
"""Any order, empty, backwards, touching, overlapping, all rows."""
RICH = dict(width=12, heads=2, fields=2, codes=6, recent=True)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Cut tiles into several work items of several blocks, as large problems are."""
    monkeypatch.setattr(triton_plan, "LEAST", 40)


def to(p: Problem, device: str) -> Problem:
    def leaf(x):
        return x.detach().to(device).requires_grad_()

    rows, scoring = p.rows, p.scoring
    return Problem(
        HistoryRows(
            leaf(rows.vector_ID),
            rows.item_T.to(device),
            rows.code_TG.to(device),
            rows.time_T.to(device),
        ),
        p.span_C2.to(device),
        Scoring(
            leaf(scoring.query_CHD),
            leaf(scoring.bias_CHV),
            None if scoring.time_C is None else scoring.time_C.to(device),
        ),
    )


def found_by_triton(p, norm="softmax", keep=0, kept_CK=None):
    kept_CK = kept_CK if kept_CK is None else kept_CK.to(DEVICE)
    found = everything(to(p, DEVICE), norm, keep, kept_CK, form=cuda)
    return {name: value.cpu() for name, value in found.items()}


def agrees(p, norm="softmax", keep=0, kept_CK=None):
    """Outputs, kept rows and each gradient are those of the float64 twin."""
    found = found_by_triton(p, norm, keep, kept_CK)
    assert_close(found, everything(as_double(p), norm, keep, kept_CK, form=reference))


@pytest.mark.parametrize("norm", ["softmax", "mean", "raw"])
@pytest.mark.parametrize(
    ("spans", "settings_of"),
    [
        (NESTED, dict(width=20)),
        (SCATTERED, dict(width=17, fields=2, codes=9, recent=True)),
        (SCATTERED, dict(width=1, heads=3, recent=True, index=torch.int32)),
        (NESTED, dict(width=33, heads=5, fields=1, codes=70)),
    ],
    ids=["plain", "codes", "one-wide", "five-heads"],
)
def test_span_pool_matches(norm, settings_of, spans):
    agrees(problem(spans, **settings_of), norm, keep=7 if norm == "softmax" else 0)


@pytest.mark.parametrize("norm", ["softmax", "mean", "raw"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_kept_pool_matches_with_rows_in_any_order(norm, index):
    p = problem(NESTED, **RICH)
    gen = torch.Generator().manual_seed(1)
    kept_CK = torch.randint(-1, 60, (len(NESTED), 30), generator=gen, dtype=index)
    kept_CK[2] = -1
    kept_CK[3, :20] = -1
    agrees(p, norm, keep=13 if norm == "softmax" else 0, kept_CK=kept_CK)


def test_few_and_many_candidates_of_users_stand_in_one_batch():
    users = [(u * 30, u * 30 + 30 - c) for u in range(4) for c in range((1, 9, 1, 2)[u])]
    agrees(problem(users, width=9, fields=1, codes=3, recent=True), keep=5)


def test_wide_vectors_are_scored_for_fewer_candidates_at_a_time(monkeypatch):
    monkeypatch.setattr(triton_plan, "WIDE", 4)
    monkeypatch.setattr(triton_plan, "FEW", 4)
    spans = [(0, 20 - c) for c in range(7)] + [(20, 45)]
    agrees(problem(spans, width=5, heads=2, recent=True))


@pytest.mark.parametrize("heads", [1, 3])
def test_span_score_matches(heads):
    p = problem(SCATTERED, width=13, heads=heads, fields=2, codes=5, recent=True)
    moved = to(p, DEVICE)
    score_SH = cuda.span_score(moved.rows, moved.span_C2, moved.scoring).cpu()
    double = as_double(p)
    wanted = reference.span_score(double.rows, double.span_C2, double.scoring)
    torch.testing.assert_close(score_SH.double(), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("rows", [300, 5000] if GPU else [300])
@pytest.mark.parametrize(
    "shape", ["smooth", "few values", "all equal", "outlier", "tiny", "signed zeros", "infinite"]
)
def test_select_span_topk_matches_whatever_the_scores(shape, rows):
    gen = torch.Generator().manual_seed(3)
    smooth_S = torch.randn(rows + 40, generator=gen)
    score_S = {
        "smooth": smooth_S,
        "few values": (smooth_S * 2).round(),
        "all equal": torch.full_like(smooth_S, -3.0),
        "outlier": torch.where(smooth_S > 2, 3e38, smooth_S),
        "tiny": smooth_S * 1e-39,
        "signed zeros": torch.where(smooth_S > 0, 0.0, -0.0),
        "infinite": torch.where(smooth_S.abs() > 1, smooth_S * torch.inf, smooth_S),
    }[shape]
    span_C2 = torch.tensor([[50, 50 + rows], [7, 7], [9, 49]])
    for k in (33, 64):
        found = cuda.select_span_topk(score_S.to(DEVICE), span_C2.to(DEVICE), k).cpu()
        assert torch.equal(found, reference.select_span_topk(score_S, span_C2, k))


def test_longer_spans_than_a_block_of_scores(monkeypatch):
    monkeypatch.setattr("lcn.ops.triton_topk.BLOCK", 32)
    score_S = torch.randn(200, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    span_C2 = torch.tensor([[0, 130], [130, 200]])
    found = cuda.select_span_topk(score_S.to(DEVICE), span_C2.to(DEVICE), 77).cpu()
    assert torch.equal(found, reference.select_span_topk(score_S, span_C2, 77))


def test_a_bias_of_minus_infinity_takes_rows_out():
    p = problem(NESTED, width=8, fields=1, codes=4)
    with torch.no_grad():
        p.scoring.bias_CHV[:, :, 2] = -torch.inf
        p.scoring.bias_CHV[3] = -torch.inf
    for norm in ("softmax", "mean", "raw"):
        agrees(p, norm, keep=60 if norm == "raw" else 0)


def test_large_scores_stay_finite():
    p = problem(NESTED, width=8)
    with torch.no_grad():
        p.scoring.query_CHD.mul_(1e5)
    for name, value in found_by_triton(p).items():
        assert torch.isfinite(value).all(), name


def test_vectors_of_rows_outside_all_spans_do_not_matter():
    spans = [(4, 60), (4, 59), (70, 90), (95, 95)]
    p = problem(spans, rows=100, items=60, **RICH)
    inside_T = torch.zeros(100, dtype=torch.bool)
    for first, last in spans:
        inside_T[first:last] = True
    item_T = torch.where(inside_T, p.rows.item_T % 50, 50 + p.rows.item_T % 10)
    clean = replace(p, rows=replace(p.rows, item_T=item_T))
    vector_ID = p.rows.vector_ID.detach().clone()
    vector_ID[50:] = torch.nan
    poisoned = replace(clean, rows=replace(clean.rows, vector_ID=vector_ID.requires_grad_()))
    found = found_by_triton(poisoned, keep=9)
    agrees(clean, keep=9)
    assert_close(found, found_by_triton(clean, keep=9))


def test_every_number_of_an_answer_is_written(monkeypatch):
    p = problem(SCATTERED, **RICH)
    wanted = found_by_triton(p, keep=9)
    empty = torch.empty

    def poisoned(*shape, **how):
        found = empty(*shape, **how)
        return found.fill_(torch.nan) if found.is_floating_point() else found

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, torch.nan))
    assert_close(found_by_triton(p, keep=9), wanted)


def test_answers_come_out_the_same_each_time_but_for_gradients_of_vectors():
    p = problem(SCATTERED, **RICH)
    first, again = found_by_triton(p, keep=9), found_by_triton(p, keep=9)
    assert_close({"d": first.pop("d vector_ID")}, {"d": again.pop("d vector_ID")})
    assert_same(first, again)


def test_vectors_may_be_half_width():
    p = problem(NESTED, width=12, heads=2, recent=True)
    half = p.rows.vector_ID.detach().bfloat16()
    moved = to(replace(p, rows=replace(p.rows, vector_ID=half)), DEVICE)
    found = {k: v.cpu() for k, v in everything(moved, form=cuda).items()}
    assert found["d vector_ID"].dtype == torch.bfloat16
    exact = replace(p, rows=replace(p.rows, vector_ID=half.float().requires_grad_()))
    wanted = found_by_triton(exact)
    wanted["d vector_ID"] = wanted["d vector_ID"].bfloat16()
    torch.testing.assert_close(
        found.pop("d vector_ID"), wanted.pop("d vector_ID"), atol=1e-2, rtol=1e-2
    )
    assert_close(found, wanted)


@pytest.mark.parametrize("items", [0, 3])
@pytest.mark.parametrize("spans", [[], [(0, 0)], [(0, 0)] * 3])
def test_nothing_at_all_is_a_problem_too(items, spans):
    p = problem(spans, items=items, rows=0, **RICH)
    agrees(p, keep=3)
    agrees(p, keep=3, kept_CK=torch.full((len(spans), 4), -1))
    moved = to(p, DEVICE)
    nowhere_CK = torch.full((len(spans), 0), -1, device=DEVICE)
    found = everything(moved, keep=3, kept_CK=nowhere_CK, form=cuda)
    assert (found.pop("kept_CK") == -1).all()
    assert not any(value.any() for value in found.values())
    assert cuda.span_score(moved.rows, moved.span_C2, moved.scoring).shape == (0, 2)
    empty_S = torch.empty(0, device=DEVICE)
    assert cuda.select_span_topk(empty_S, moved.span_C2, 2).shape == (len(spans), 2)


def test_only_the_gradients_asked_for_are_needed():
    p = to(problem(NESTED, **RICH), DEVICE)
    frozen = replace(p, rows=replace(p.rows, vector_ID=p.rows.vector_ID.detach()))
    pool = cuda.span_pool(frozen.rows, frozen.span_C2, frozen.scoring, "softmax")
    (d_query,) = torch.autograd.grad(pool.vector_CHD.sum(), p.scoring.query_CHD)
    assert torch.isfinite(d_query).all()


def test_a_changed_vector_is_noticed_in_the_backward():
    p = to(problem(NESTED, **RICH), DEVICE)
    pool = cuda.span_pool(p.rows, p.span_C2, p.scoring, "softmax")
    with torch.no_grad():
        p.rows.vector_ID.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pool.vector_CHD.sum().backward()


def test_atomics_are_refused_where_determinism_is_asked_for():
    p = to(problem(NESTED, **RICH), DEVICE)
    pool = cuda.span_pool(p.rows, p.span_C2, p.scoring, "softmax")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match=r"ops\.force"):
            pool.vector_CHD.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_recency_buckets_agree_at_every_edge():
    minute = 60_000
    edges = [(2**b - 1) * minute + d for b in range(30) for d in (-1, 0, 1)] + [-5, 2**50]
    rows = HistoryRows(
        torch.zeros(1, 1), torch.zeros(len(edges), dtype=torch.int32),
        torch.zeros(len(edges), 0, dtype=torch.int32), 2**51 - torch.tensor(edges),
    )  # fmt: skip
    bias_CHV = torch.arange(RECENCY_BUCKETS).float()[None, None]
    p = Problem(
        rows,
        torch.tensor([[0, len(edges)]]),
        Scoring(torch.zeros(1, 1, 1), bias_CHV, torch.tensor([2**51])),
    )
    moved = to(p, DEVICE)
    found = cuda.span_score(moved.rows, moved.span_C2, moved.scoring)[:, 0].cpu()
    assert found.long().tolist() == reference.recency_bucket(torch.tensor(edges)).tolist()


@pytest.mark.parametrize("what", ["item_T", "code_TG", "span_C2", "kept_CK"])
def test_indices_outside_their_table_are_refused(what):
    p, kept_CK = to(problem(NESTED, **RICH), DEVICE), None
    item_T, code_TG, span_C2 = p.rows.item_T.clone(), p.rows.code_TG.clone(), p.span_C2.clone()
    if what == "item_T":
        item_T[5] = len(p.rows.vector_ID)
    elif what == "code_TG":
        code_TG[5, 1] = -1
    elif what == "span_C2":
        span_C2[0, 1] = len(item_T) + 1
    else:
        kept_CK = torch.full((len(NESTED), 3), len(item_T), device=DEVICE)
    wrong = Problem(replace(p.rows, item_T=item_T, code_TG=code_TG), span_C2, p.scoring)
    with pytest.raises(IndexError, match=what):
        everything(wrong, kept_CK=kept_CK, form=cuda)


def test_wrong_arguments_are_refused():
    p = to(problem([(0, 9)], width=4), DEVICE)
    with pytest.raises(ValueError, match="at least 1"):
        cuda.select_span_topk(torch.zeros(9, device=DEVICE), p.span_C2, 0)
    with pytest.raises(ValueError, match="hold 9 rows"):
        cuda.select_span_topk(torch.zeros(8, device=DEVICE), p.span_C2, 1)
    timed = replace(p.scoring, time_C=torch.zeros(1, dtype=torch.int64, device=DEVICE))
    with pytest.raises(ValueError, match="recency"):
        cuda.span_pool(p.rows, p.span_C2, timed, "softmax")


def test_a_model_learns_the_same_through_these_ops(toy, monkeypatch):
    """Logits and gradients of LAP: spans, kept rows, ranking, recency, short-term interest."""
    batch = next(
        load_batches(toy, "train", BatchConfig(lifelong=30, short=5), np.arange(6), workers=0)
    ).to(DEVICE)
    lap = Lap.Config(k1=9, k2=4, heads=2)
    config = ModelConfig(backbone=lap, width=8, field_width=8, short=ShortConfig(heads=1))
    answers = []
    for form in (cuda, reference):
        torch.manual_seed(0)
        model = Model(config, toy.manifest).to(DEVICE)
        monkeypatch.setattr(ops, "_ops", lambda floats, form=form: form)
        output = model(batch)
        output.logit_C.square().sum().backward()
        gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
        answers.append([output.logit_C.detach(), *gradients])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-4)


@pytest.mark.skipif(not GPU, reason="chooses by device: needs a GPU")
def test_tensors_on_a_gpu_choose_these_ops():
    p = to(problem(NESTED, **RICH), DEVICE)
    assert_close(everything(p, keep=5), everything(p, keep=5, form=cuda))
    with ops.force("fast"):
        everything(p)
