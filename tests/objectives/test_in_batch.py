"""The contrast within a draw against the same logits through autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcn.objectives.contrast import info_nce, unit
from lcn.objectives.in_batch import in_batch_contrast

TAU = 0.4


def _twin(x, y, x_key, y_key, valid, with_positive):
    """All draws at once, P x U x U logits."""
    logit = torch.einsum("pud,pvd->puv", x, y) / TAU
    allowed = (x_key[..., None] != y_key[:, None]) & valid[:, None]
    allowed &= y_key[..., None] != y_key[:, None]
    wanted = valid & allowed.any(-1)
    if not wanted.any():
        return (x.sum() + y.sum()) * 0
    positive = logit.diagonal(dim1=1, dim2=2)[wanted]
    if with_positive:
        return info_nce(logit[wanted], allowed[wanted], positive).mean()
    others = logit[wanted].masked_fill(~allowed[wanted], -torch.inf)
    return (torch.logsumexp(others, 1) - positive).mean()


def _draw(seed, draws=3, users=5, kinds=6, chance=0.8):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, draws, users, 4, generator=generator, dtype=torch.float64)
    keys = torch.randint(0, kinds, (2, draws, users), generator=generator)
    valid = torch.rand(draws, users, generator=generator) < chance
    return unit(x).requires_grad_(), unit(y).requires_grad_(), *keys, valid


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    users=st.integers(1, 6),
    kinds=st.integers(1, 8),
    chance=st.sampled_from([0.0, 0.4, 1.0]),
    with_positive=st.booleans(),
)
def test_value_and_gradient_equal_the_twin(seed, users, kinds, chance, with_positive):
    given_ = _draw(seed, users=users, kinds=kinds, chance=chance)
    loss = in_batch_contrast(*given_, TAU, with_positive=with_positive)
    twin = _twin(*given_, with_positive)
    assert loss.item() == pytest.approx(twin.item(), rel=1e-9, abs=1e-12)
    for found, expected in zip(
        torch.autograd.grad(3 * loss, given_[:2]),
        torch.autograd.grad(3 * twin, given_[:2]),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("with_positive", [False, True])
def test_gradient_is_numeric(with_positive):
    x, y, *rest = _draw(7)
    assert torch.autograd.gradcheck(
        lambda x, y: in_batch_contrast(x, y, *rest, TAU, with_positive=with_positive), (x, y)
    )


def test_small_temperatures_neither_overflow_nor_vanish():
    x, y, x_key, y_key, _ = _draw(3, kinds=1000)
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    loss = in_batch_contrast(x.float(), y.float(), x_key, y_key, valid, 0.001, with_positive=True)
    logit = torch.einsum("pud,pvd->puv", x, y) / 0.001
    expected = (torch.logsumexp(logit, 2) - logit.diagonal(dim1=1, dim2=2)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("with_positive", [False, True])
def test_users_without_a_pair_have_no_gradient_at_any_temperature(with_positive):
    x, y, x_key, y_key, valid = _draw(3, kinds=1000)
    valid[:, 1] = False
    loss = in_batch_contrast(x, y, x_key, y_key, valid, 1e-3, with_positive=with_positive)
    slope_x, slope_y = torch.autograd.grad(loss, (x, y))
    assert slope_x.isfinite().all() and slope_y.isfinite().all()
    assert slope_x[:, 1].abs().sum() == 0 and slope_x[:, 0].abs().sum() > 0
