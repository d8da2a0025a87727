"""One gradient buffer for all readers: same sums, nothing left over from other passes."""

import pytest
import torch
from ops_problems import problem

from lcn import ops
from lcn.ops.bucket_sum import bucket_sum
from lcn.ops.simhash import Codes, bucket_codes


def gradients(how, leaf, shared=True):
    """Of a loss that reads the same vectors in every way there is."""
    spans = [(0, 40), (0, 40), (30, 90), (90, 90)]
    p = problem(spans, rows=100)
    with ops.force(how):
        vector_ID = leaf * 1.0
        vector_ID = ops.share_gradient(vector_ID) if shared else vector_ID
        rows = ops.HistoryRows(vector_ID, p.rows.item_T, p.rows.code_TG, p.rows.time_T)
        pool = ops.span_pool(rows, p.span_C2, p.scoring, keep=5)
        kept = ops.kept_pool(rows, pool.kept_CK, p.scoring)
        taken_CD = ops.take_vectors(vector_ID, torch.tensor([0, 2, 2]))
        plane = torch.randn(vector_ID.shape[1], 4, 2, generator=torch.Generator().manual_seed(0))
        code_IG = bucket_codes(vector_ID, plane)
        codes = Codes(code_IG, p.rows.item_T, code_IG[: len(spans)])
        sums = bucket_sum(vector_ID, codes, p.span_C2).sum_CGD
        parts = (pool.vector_CHD, kept.vector_CHD, taken_CD, sums, vector_ID)
        return [(part * part.detach().cos()).sum() for part in parts]


@pytest.fixture
def leaf():
    p = problem([(0, 40)], rows=100)
    return p.rows.vector_ID.detach().clone().requires_grad_()


@pytest.mark.parametrize("chosen", [[0], [1], [2], [3], [4], [0, 1, 2, 3, 4], [2, 4]])
def test_sum_of_readers_equals_the_reference(leaf, chosen):
    found = []
    for how, shared in (("fast", True), ("fast", False), ("reference", True)):
        losses = gradients(how, leaf, shared)
        (grad,) = torch.autograd.grad(sum(losses[n] for n in chosen), leaf)
        found.append(grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], found[2], rtol=1e-3, atol=1e-4)


def test_each_backward_pass_starts_from_zero(leaf):
    losses = gradients("fast", leaf)
    first = torch.autograd.grad(losses[0], leaf, retain_graph=True)[0]
    again = torch.autograd.grad(losses[0], leaf, retain_graph=True)[0]
    assert torch.equal(first, again)


def test_an_interrupted_pass_leaves_nothing_behind(leaf):
    losses = gradients("fast", leaf)
    clean = torch.autograd.grad(losses[0], leaf, retain_graph=True)[0]

    def fail(grad):
        raise RuntimeError("stop")

    broken = leaf * 1.0
    vector_ID = ops.share_gradient(broken)
    taken_CD = ops.take_vectors(vector_ID, torch.tensor([0, 1]))
    handle = broken.register_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        taken_CD.sum().backward(retain_graph=True)
    handle.remove()
    (grad,) = torch.autograd.grad(taken_CD.sum(), leaf)
    assert torch.equal(grad[:2], torch.ones_like(grad[:2]))
    assert not grad[2:].any()
    assert torch.equal(torch.autograd.grad(losses[0], leaf)[0], clean)


def test_without_gradients_nothing_is_wrapped(leaf):
    with torch.no_grad():
        assert ops.share_gradient(leaf) is leaf
