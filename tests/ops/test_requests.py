"""Many candidates of one user without gradients: the products of matrices match the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcn import ops
from lcn.ops import HistoryRows, Scoring, cpu, cpu_dense

DAY = 86_400_000


def request(
    seed: int, items: int, rows: int, heads: int, codes: int
) -> tuple[HistoryRows, Scoring, torch.Tensor]:
    """One user's rows, 70 candidates, and rows kept for each of them (some slots empty)."""
    gen = torch.Generator().manual_seed(seed)

    def eighths(*shape: int) -> torch.Tensor:
        # Sums of their products are exact, so that both sides see the same ties.
        return torch.randint(-9, 10, shape, generator=gen) / 8

    values = codes + ops.RECENCY_BUCKETS * (codes > 0)
    time_T = (torch.rand(rows, generator=gen) * 100 * DAY).long().sort().values
    history = HistoryRows(
        eighths(items, 12),
        torch.randint(0, items, (rows,), generator=gen, dtype=torch.int32),
        torch.randint(0, max(codes, 1), (rows, int(codes > 0)), generator=gen, dtype=torch.int32),
        time_T,
    )
    scoring = Scoring(
        eighths(70, heads, 12),
        eighths(70, heads, values),
        torch.full((70,), 101 * DAY) if codes else None,
    )
    kept_CK = torch.rand(70, rows, generator=gen).argsort(1)[:, : max(rows // 2, 1)]
    return history, scoring, torch.where(kept_CK % 5 == 4, -1, kept_CK)


def agree(found: ops.Pool, wanted: ops.Pool) -> None:
    torch.testing.assert_close(found.vector_CHD, wanted.vector_CHD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.weight_CHV, wanted.weight_CHV, rtol=1e-4, atol=1e-5)
    if wanted.kept_CK is None:
        assert found.kept_CK is None
    else:
        assert found.kept_CK is not None
        assert torch.equal(found.kept_CK, wanted.kept_CK)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.sampled_from([1, 2, 9, 40]),
    rows=st.integers(1, 90),
    heads=st.sampled_from([1, 2]),
    codes=st.sampled_from([0, 3]),
    norm=st.sampled_from(["softmax", "mean", "raw"]),
    keep=st.sampled_from([0, 1, 7, 100]),
)
def test_requests_match_the_reference(seed, items, rows, heads, codes, norm, keep):
    history, scoring, kept_CK = request(seed, items, rows, heads, codes)
    span_C2 = torch.tensor([[rows // 4, rows]]).expand(70, 2)
    with ops.force("reference"), torch.no_grad():
        whole = ops.span_pool(history, span_C2, scoring, norm, keep)
        listed = ops.kept_pool(history, kept_CK, scoring, norm, keep)
    with torch.no_grad():
        agree(ops.span_pool(history, span_C2, scoring, norm, keep), whole)
        agree(ops.kept_pool(history, kept_CK, scoring, norm, keep), listed)


def test_items_that_tie_keep_the_later_rows():
    history, scoring, _ = request(0, 9, 60, 1, 0)
    same_ID = history.vector_ID.clone()
    same_ID[3:7] = same_ID[3]
    history = HistoryRows(same_ID, history.item_T, history.code_TG, history.time_T)
    span_C2 = torch.tensor([[5, 60]]).expand(70, 2)
    for keep in (1, 8, 20, 54, 60):
        with torch.no_grad():
            found = ops.span_pool(history, span_C2, scoring, "softmax", keep)
            with ops.force("reference"):
                wanted = ops.span_pool(history, span_C2, scoring, "softmax", keep)
        agree(found, wanted)


@pytest.mark.parametrize("what", ["few", "times", "spans", "many items"])
def test_other_batches_take_the_blocks(what, monkeypatch):
    monkeypatch.setattr(cpu_dense, "forward", lambda *_: pytest.fail("took the products"))
    history, scoring, kept_CK = request(1, 40, 60, 1, 3 if what == "times" else 0)
    count = 5 if what == "few" else 70
    time_C = scoring.time_C
    if what == "times":
        assert time_C is not None
        time_C = time_C + torch.arange(70) * DAY
    scoring = Scoring(scoring.query_CHD[:count], scoring.bias_CHV[:count], time_C)
    span_C2 = torch.tensor([[0, 60]]).repeat(count, 1)
    if what == "spans":
        span_C2[3, 1] = 59
    with torch.no_grad():
        if what == "many items":
            cpu.kept_pool(history, kept_CK[:, :2], scoring, "softmax")
        else:
            cpu.span_pool(history, span_C2, scoring, "softmax")


def test_one_user_with_gradients_takes_the_blocks(monkeypatch):
    monkeypatch.setattr(cpu_dense, "forward", lambda *_: pytest.fail("took the products"))
    history, scoring, _ = request(2, 9, 60, 1, 0)
    history.vector_ID.requires_grad_()
    span_C2 = torch.tensor([[0, 60]]).repeat(70, 1)
    cpu.span_pool(history, span_C2, scoring, "softmax").vector_CHD.sum().backward()
    assert history.vector_ID.grad is not None


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("codes", [0, 3])
def test_every_heads_best_rows_match_the_reference(heads, codes):
    history, scoring, _ = request(3, 40, 90, heads, codes)
    start_C = torch.arange(70) % 7
    span_C2 = torch.stack([start_C, torch.arange(70) + 20], 1)
    span_C2[5] = 0
    found = ops.rank_heads(history, span_C2, scoring, 9)
    with ops.force("reference"):
        wanted = ops.rank_heads(history, span_C2, scoring, 9)
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1])
    with pytest.raises(ValueError, match="at least 1"):
        ops.rank_heads(history, span_C2, scoring, 0)
