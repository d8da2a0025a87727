"""Ops on codes against their dull twins, and the probabilities that hashing promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcn import ops
from lcn.ops.bucket_sum import bucket_sum, bucket_table
from lcn.ops.merge_heads import merge_heads
from lcn.ops.simhash import Codes, bucket_codes, code_distance, code_topk, simhash, value_codes

DRAW = settings(max_examples=60, deadline=None)


def draw_codes(seed, width, values=256):
    generator = torch.Generator().manual_seed(seed)
    items, rows, candidates = 7, 23, 6
    code_IY = torch.randint(0, values, (items, width), generator=generator, dtype=torch.uint8)
    query_CY = torch.randint(0, values, (candidates, width), generator=generator, dtype=torch.uint8)
    item_T = torch.randint(0, items, (rows,), generator=generator, dtype=torch.int32)
    start_C = torch.randint(0, rows + 1, (candidates,), generator=generator)
    stop_C = start_C + torch.randint(0, rows, (candidates,), generator=generator)
    span_C2 = torch.stack([start_C, stop_C.clamp(max=rows)], 1)
    span_C2[3] = 0
    return Codes(code_IY, item_T, query_CY), span_C2


@DRAW
@given(
    seed=st.integers(0, 10**6),
    width=st.sampled_from([1, 4, 16, 33]),
    keep=st.integers(1, 30),
    measure=st.sampled_from(["bits", "bytes", "whole"]),
    few=st.booleans(),
    near=st.sampled_from([None, 0, 3]),
)
def test_code_search_equals_twin(seed, width, keep, measure, few, near):
    codes, span_C2 = draw_codes(seed, width, values=2 if few else 256)
    fast = code_topk(codes, span_C2, keep, measure, near)
    distance = code_distance(codes, span_C2, measure)
    with ops.force("reference"):
        assert torch.equal(fast, code_topk(codes, span_C2, keep, measure, near))
        assert torch.equal(distance, code_distance(codes, span_C2, measure))


@DRAW
@given(seed=st.integers(0, 10**6), shared=st.booleans(), groups=st.sampled_from([1, 5, 16]))
def test_bucket_sum_and_gradient_equal_twin(seed, shared, groups):
    codes, span_C2 = draw_codes(seed, groups, values=8)
    if shared:
        codes = Codes(codes.code_IY, codes.item_T, codes.query_CY.repeat(3, 1))
        span_C2 = span_C2[:1].expand(18, 2)
    generator = torch.Generator().manual_seed(seed)
    vector_ID = torch.randn(7, 20, generator=generator)
    slope = torch.randn(len(span_C2), groups, 20, generator=generator)
    answers = []
    for how in ("fast", "reference"):
        leaf = vector_ID.clone().requires_grad_()
        with ops.force(how):
            found = bucket_sum(leaf, codes, span_C2)
            (found.sum_CGD * slope).sum().backward()
        answers.append((found.sum_CGD, found.square_C, leaf.grad))
    for fast, slow in zip(*answers, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-5)


@DRAW
@given(seed=st.integers(0, 10**6), step=st.integers(0, 3), width=st.sampled_from([5, 16, 40]))
def test_bucket_sums_of_spans_a_few_rows_apart_equal_twin(seed, step, width):
    """Their common rows go through the table, the others by pairs."""
    generator = torch.Generator().manual_seed(seed)
    codes = Codes(
        torch.randint(0, 8, (9, 16), generator=generator, dtype=torch.uint8),
        torch.randint(0, 9, (60,), generator=generator, dtype=torch.int32),
        torch.randint(0, 8, (8, 16), generator=generator, dtype=torch.uint8),
    )
    start_C = torch.arange(8) * step
    span_C2 = torch.stack([start_C, start_C + 38], 1)
    vector_ID = torch.randn(9, width, generator=generator)
    slope = torch.randn(8, 16, width, generator=generator)
    answers = []
    for how in ("fast", "reference"):
        leaf = vector_ID.clone().requires_grad_()
        with ops.force(how):
            found = bucket_sum(leaf, codes, span_C2)
            (found.sum_CGD * slope).sum().backward()
        answers.append((found.sum_CGD, found.square_C, leaf.grad))
    for fast, slow in zip(*answers, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-5)


def test_bucket_table_holds_every_bucket_sum():
    codes, _ = draw_codes(5, 16, values=8)
    vector_ID = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    table_GBD = bucket_table(vector_ID, codes.code_IY, codes.item_T, 8)
    whole_C2 = torch.tensor([[0, len(codes.item_T)]]).expand(6, 2)
    expected = bucket_sum(vector_ID, codes, whole_C2).sum_CGD
    found = table_GBD[torch.arange(16), codes.query_CY.long()]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@DRAW
@given(
    seed=st.integers(0, 10**6),
    heads=st.integers(1, 4),
    keep=st.integers(1, 12),
    coarse=st.booleans(),
)
def test_merged_heads_equal_twin_and_are_unique(seed, heads, keep, coarse):
    generator = torch.Generator().manual_seed(seed)
    rows, count = 15, 5
    mean_CN = torch.randn(count, rows, generator=generator)
    if coarse:
        mean_CN = mean_CN.round()
    order_CHN = torch.rand(count, heads, rows, generator=generator).argsort(-1)
    kept_CHK = order_CHN[:, :, :8].clone()
    kept_CHK[2, :, 3:] = -1
    mean_CHK = mean_CN[:, None].expand(-1, heads, -1).gather(2, kept_CHK.clamp(min=0))
    fast = merge_heads(kept_CHK, mean_CHK, keep)
    with ops.force("reference"):
        assert torch.equal(fast, merge_heads(kept_CHK, mean_CHK, keep))
    for row_K in fast:
        real = row_K[row_K >= 0].tolist()
        assert len(real) == len(set(real))


def test_indices_outside_their_tables_are_refused():
    codes, span_C2 = draw_codes(0, 4)
    with pytest.raises(IndexError, match="span_C2"):
        code_topk(codes, span_C2 + 100, 3, "bits")
    wrong = Codes(codes.code_IY[:2], codes.item_T, codes.query_CY)
    with pytest.raises(IndexError, match="item_T"):
        code_topk(wrong, span_C2, 3, "bits")
    with pytest.raises(ValueError, match="at least 1"):
        code_topk(codes, span_C2, 0, "bits")


def test_value_codes_are_equal_exactly_where_values_are():
    value_I = torch.tensor([0, 1, 256, 1 << 20, 257, 1])
    code_IY = value_codes(value_I)
    same = (code_IY[:, None] == code_IY[None]).all(-1)
    assert torch.equal(same, value_I[:, None] == value_I[None])


def test_simhash_bits_disagree_in_a_share_of_the_angle():
    generator = torch.Generator().manual_seed(1)
    pair_2D = torch.randn(2, 64, generator=generator)
    plane_DB = torch.randn(64, 100_000, generator=generator)
    code = simhash(pair_2D, plane_DB)
    codes = Codes(code[:1], torch.zeros(1, dtype=torch.int32), code[1:])
    apart = code_distance(codes, torch.tensor([[0, 1]]), "bits").item() / 100_000
    cosine = torch.cosine_similarity(pair_2D[:1], pair_2D[1:]).item()
    assert abs(apart - math.acos(cosine) / math.pi) < 0.01


def test_sdim_buckets_collide_with_the_kernel_of_the_angle():
    generator = torch.Generator().manual_seed(2)
    x_D = torch.randn(64, generator=generator)
    near_D = x_D + 0.7 * torch.randn(64, generator=generator)
    pair_2D = torch.stack([x_D, near_D])
    bucket = bucket_codes(pair_2D, torch.randn(64, 20_000, 3, generator=generator))
    share = (bucket[0] == bucket[1]).double().mean().item()
    angle = math.acos(torch.cosine_similarity(x_D, near_D, 0).item())
    assert abs(share - (1 - angle / math.pi) ** 3) < 0.02
