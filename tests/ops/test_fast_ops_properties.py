"""What must hold of the CPU ops whatever the numbers: memory, threads, order, mistakes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from ops_problems import Problem, assert_agrees, assert_close, assert_same, everything, problem

from lcn import ops
from lcn.ops import RECENCY_BUCKETS, HistoryRows, reference
from lcn.ops.cpu import warm_up
from lcn.ops.cpu_backward import backward_tiles, scatter_tiles
from lcn.ops.cpu_forward import forward_tiles
from lcn.ops.cpu_plan import Tiles
from lcn.ops.cpu_rank import score_tiles
from lcn.ops.cpu_topk import select_spans
from lcn.ops.lane_steps import recency_bucket

SPANS = [(4, 150), (4, 149), (10, 150), (4, 60), (4, 150), (160, 300), (160, 299), (170, 170)]
RICH = dict(width=24, heads=2, fields=2, codes=6, recent=True)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def with_rows(p: Problem, order) -> Problem:
    rows = p.rows
    return replace(
        p,
        rows=HistoryRows(
            rows.vector_ID, rows.item_T[order], rows.code_TG[order], rows.time_T[order]
        ),
    )


def test_vectors_of_rows_outside_all_spans_do_not_matter():
    p = problem(SPANS, rows=330, items=60, **RICH)
    inside = torch.zeros(330, dtype=torch.bool)
    for first, last in SPANS:
        inside[first:last] = True
    with torch.no_grad():
        item_T = torch.where(inside, p.rows.item_T % 50, 50 + p.rows.item_T % 10)
        p.rows.vector_ID[50:] = torch.nan
    p = replace(p, rows=replace(p.rows, item_T=item_T))
    found = everything(p, keep=30)
    clean = replace(
        p, rows=replace(p.rows, vector_ID=p.rows.vector_ID.detach().nan_to_num().requires_grad_())
    )
    assert_same(found, everything(clean, keep=30))


@pytest.mark.parametrize("heads", [1, 5], ids=["narrow", "wide"])
def test_memory_left_by_earlier_calls_does_not_matter(heads):
    spans = [(0, 70), (100, 103), (200, 300)]
    p = problem(spans, rows=300, **{**RICH, "heads": heads})
    clean = everything(p, keep=200)
    poisoned = problem(spans, rows=300, **{**RICH, "heads": heads})
    with torch.no_grad():
        for leaf in (
            poisoned.rows.vector_ID, poisoned.scoring.query_CHD, poisoned.scoring.bias_CHV
        ):  # fmt: skip
            leaf.fill_(torch.nan)
    for _ in range(3):
        everything(poisoned, keep=200)
        junk = [torch.full((size,), torch.nan) for size in (8, 64, 128, 512, 1024, 4096, 16384)]
        del junk
        assert_same(everything(p, keep=200), clean)


def test_results_do_not_depend_on_the_number_of_threads(threads):
    users = [(u * 90, u * 90 + 90 - c) for u in range(12) for c in range(1 + u % 6)]
    p = problem(users, **RICH)
    kept_CK = torch.randint(-1, 1080, (len(users), 50))
    found = {}
    for count in (1, 2, 3):
        threads(count)
        found[count] = [everything(p, keep=7), everything(p, keep=7, kept_CK=kept_CK)]
        found[count].append({"score": ops.span_score(p.rows, p.span_C2, p.scoring)})
        flat_S = found[count][2]["score"][:, 0].contiguous()
        found[count].append({"kept": ops.select_span_topk(flat_S, p.span_C2, 9)})
    for count in (2, 3):
        for one, other in zip(found[1], found[count], strict=True):
            assert_same(one, other)


def test_small_steps_of_the_backward_give_the_same(monkeypatch):
    p = problem(SPANS, **RICH)
    whole = everything(p)
    monkeypatch.setattr("lcn.ops.cpu_plan._BUFFER", 1)
    assert_same(everything(p), whole)


def test_repeating_gives_the_same_bits():
    p = problem(SPANS, **RICH)
    first = everything(p, keep=20)
    for _ in range(3):
        assert_same(everything(p, keep=20), first)


def test_calls_from_several_threads_do_not_disturb_each_other(threads):
    threads(2)
    problems = [problem(SPANS, seed=seed, **RICH) for seed in range(8)]
    alone = [everything(p, keep=20) for p in problems]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: everything(p, keep=20), problems * 4))
    for n, found in enumerate(together):
        assert_same(found, alone[n % 8])


def test_permuting_a_history_permutes_the_kept_rows_and_leaves_the_pools():
    gen = torch.Generator().manual_seed(3)
    p = problem([(0, 200)] * 5, items=400, **RICH)
    # No two rows of one item: ties would go to the later row, which the order changes.
    p = replace(p, rows=replace(p.rows, item_T=torch.randperm(400, generator=gen)[:200]))
    order = torch.randperm(200, generator=gen)
    place = torch.empty(200, dtype=torch.int64)
    place[order] = torch.arange(200)
    before, after = everything(p, keep=25), everything(with_rows(p, order), keep=25)
    assert torch.equal(place[before.pop("kept_CK")], after.pop("kept_CK"))
    assert_close(after, before)


def test_appending_rows_outside_spans_changes_nothing():
    p = problem(SPANS, rows=300, **RICH)
    longer = problem(SPANS, rows=300, **RICH)
    longer = with_rows(longer, torch.cat([torch.arange(300), torch.randint(0, 300, (77,))]))
    assert_same(everything(p, keep=20), everything(longer, keep=20))


def test_an_empty_span_pools_to_zero_and_passes_no_gradient():
    p = problem([(0, 0), (5, 5), (9, 3)], rows=10, **RICH)
    found = everything(p, keep=4)
    assert (found.pop("kept_CK") == -1).all()
    for name, value in found.items():
        assert (value == 0).all(), name


@pytest.mark.parametrize("items", [0, 3])
@pytest.mark.parametrize("spans", [[], [(0, 0)], [(0, 0)] * 9])
def test_nothing_at_all_is_a_problem_too(items, spans):
    p = problem(spans, items=items, rows=0, **RICH)
    assert_agrees(p, keep=3)
    assert_agrees(p, keep=3, kept_CK=torch.full((len(spans), 4), -1))
    assert ops.span_score(p.rows, p.span_C2, p.scoring).shape == (0, 2)
    assert ops.select_span_topk(torch.empty(0), p.span_C2, 2).shape == (len(spans), 2)


def test_only_the_gradients_asked_for_are_needed():
    p = problem(SPANS, **RICH)
    wanted = everything(p)
    frozen = replace(p, rows=replace(p.rows, vector_ID=p.rows.vector_ID.detach()))
    pool = ops.span_pool(frozen.rows, frozen.span_C2, frozen.scoring)
    (d_query,) = torch.autograd.grad(pool.vector_CHD.sum(), p.scoring.query_CHD)
    assert torch.isfinite(d_query).all()
    with torch.no_grad():
        pool = ops.span_pool(p.rows, p.span_C2, p.scoring)
    assert torch.equal(pool.vector_CHD, wanted["vector_CHD"])


def test_a_changed_vector_is_noticed_in_the_backward():
    p = problem(SPANS, **RICH)
    pool = ops.span_pool(p.rows, p.span_C2, p.scoring)
    with torch.no_grad():
        p.rows.vector_ID.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pool.vector_CHD.sum().backward()


def test_views_and_other_layouts_are_read_rightly():
    p = problem(SPANS, **RICH)
    strided = replace(
        p,
        rows=replace(
            p.rows,
            vector_ID=p.rows.vector_ID.detach().t().contiguous().t().requires_grad_(),
            code_TG=p.rows.code_TG.t().contiguous().t().to(torch.int16),
        ),
    )
    assert_same(everything(p, keep=5), everything(strided, keep=5))


def test_recency_buckets_agree_at_every_edge():
    minute = 60_000
    edges = [(2**b - 1) * minute + d for b in range(30) for d in (-1, 0, 1)] + [-5, 2**50]
    wanted = reference.recency_bucket(torch.tensor(edges)).tolist()
    assert [recency_bucket(edge, RECENCY_BUCKETS - 1) for edge in edges] == wanted


def test_warm_up_compiles_all_that_the_ops_run():
    warm_up()
    kernels = (forward_tiles, backward_tiles, scatter_tiles, score_tiles, select_spans)
    before = [len(kernel.signatures) for kernel in kernels]
    p = problem(SPANS, **RICH)
    everything(p, keep=5)
    everything(p, keep=5, kept_CK=torch.zeros(len(SPANS), 2, dtype=torch.int32))
    flat_S = ops.span_score(p.rows, p.span_C2, p.scoring)[:, 1]
    ops.select_span_topk(flat_S, p.span_C2, 3)
    assert [len(kernel.signatures) for kernel in kernels] == before


def test_candidates_of_a_user_share_a_tile_and_users_do_not():
    spans = [(0, 100), (0, 90), (100, 200), (100, 200), (100, 110), (300, 400)]
    tile_N4 = Tiles(torch.tensor(spans).numpy(), 1).tile_N4
    assert tile_N4.tolist() == [[0, 2, 0, 100], [2, 5, 100, 200], [5, 6, 300, 400]]


def broken(p: Problem, what: str) -> Problem:
    rows, span_C2 = p.rows, p.span_C2.clone()
    item_T, code_TG = rows.item_T.clone(), rows.code_TG.clone()
    if what == "item_T":
        item_T[5] = len(rows.vector_ID)
    if what == "code_TG":
        code_TG[5, 1] = -1
    if what == "span_C2":
        span_C2[0, 1] = len(item_T) + 1
    return Problem(replace(rows, item_T=item_T, code_TG=code_TG), span_C2, p.scoring)


@pytest.mark.parametrize("what", ["item_T", "code_TG", "span_C2"])
def test_indices_outside_their_table_are_refused(what):
    with pytest.raises(IndexError, match=what):
        everything(broken(problem(SPANS, **RICH), what))
    with pytest.raises(IndexError, match=what):
        p = broken(problem(SPANS, **RICH), what)
        ops.span_score(p.rows, p.span_C2, p.scoring)


def test_kept_rows_outside_the_history_are_refused():
    p = problem(SPANS, **RICH)
    with pytest.raises(IndexError, match="kept_CK"):
        everything(p, kept_CK=torch.full((len(SPANS), 3), 300))


def test_wrong_arguments_are_refused():
    p = problem([(0, 9)], width=4)
    with pytest.raises(ValueError, match="at least 1"):
        ops.select_span_topk(torch.zeros(9), p.span_C2, 0)
    with pytest.raises(ValueError, match="hold 9 rows"):
        ops.select_span_topk(torch.zeros(8), p.span_C2, 1)
    with ops.force("fast"), pytest.raises(ValueError, match="float32"):
        ops.select_span_topk(torch.zeros(9).double(), p.span_C2, 1)
    timed = replace(p.scoring, time_C=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="recency"):
        ops.span_pool(p.rows, p.span_C2, timed)
