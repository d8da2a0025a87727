"""Row optimisers against PyTorch's and a plain loop; checkpoints; nothing else moves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lcn.errors import ConfigError
from lcn.nn.embedding import look_up
from lcn.nn.row_optimiser import RowAdagrad, RowAdam, chain
from lcn.train.checkpoint import Identity, Trainee, load_checkpoint, save_checkpoint
from lcn.train.config import RunConfig, TrainConfig, deciding_settings
from lcn.train.optimiser import build_optimisers

KINDS = [RowAdam, RowAdagrad]


def table(rows=30, width=12, dtype=torch.float32):
    return nn.Parameter(
        torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    )


def gradient(like, seed, count=20, low=0):
    """Row-sparse, rows in any order and some of them several times."""
    gen = torch.Generator().manual_seed(seed)
    index = torch.randint(low, len(like), (1, count), generator=gen)
    value = torch.randn(count, like.shape[1], generator=gen).to(like.dtype)
    return torch.sparse_coo_tensor(index, value, like.shape, check_invariants=False)


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_adam_is_torchs_sparse_adam(seed, count, width):
    ours, theirs = table(width=width), table(width=width)
    mine = RowAdam([ours], lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    other = torch.optim.SparseAdam([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    for step in range(5):
        for parameter, optimiser in ((ours, mine), (theirs, other)):
            parameter.grad = gradient(parameter, seed + step, count)
            optimiser.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(
            mine.state[ours][name], other.state[theirs][name], rtol=1e-5, atol=1e-6
        )
    assert mine.state[ours]["step"] == other.state[theirs]["step"] == 5


@given(st.integers(0, 10**6), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_rowwise_adagrad_is_the_plain_loop(seed, count):
    ours = table()
    mine = RowAdagrad([ours], lr=0.1, eps=1e-3)
    weight, total = ours.detach().double().numpy().copy(), np.zeros(len(ours))
    for step in range(4):
        ours.grad = gradient(ours, seed + step, count)
        dense = ours.grad.to_dense().double().numpy()
        touched = np.unique(ours.grad._indices().numpy())
        mine.step()
        for row in touched:
            total[row] += (dense[row] ** 2).mean()
            weight[row] -= 0.1 * dense[row] / (np.sqrt(total[row]) + 1e-3)
    np.testing.assert_allclose(ours.detach().numpy(), weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_equals_plain(kind, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast, plain = table(9000), table(9000, dtype=torch.float64)
        optimisers = [kind([fast]), kind([plain])]
        for step in range(3):
            for parameter, optimiser in zip((fast, plain), optimisers, strict=True):
                parameter.grad = gradient(table(9000), step, 12_000).to(parameter.dtype)
                optimiser.step()
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(fast.double(), plain.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_only_touched_rows_and_their_state_move(kind):
    ours = table()
    optimiser, start = kind([ours]), ours.detach().clone()
    ours.grad = gradient(ours, 0, 6)
    touched = torch.zeros(len(ours), dtype=torch.bool)
    touched[ours.grad._indices()[0]] = True
    optimiser.step()
    assert torch.equal((ours != start).any(1), touched)
    for value in optimiser.state[ours].values():
        if isinstance(value, torch.Tensor):
            moved = value.reshape(len(ours), -1).abs().amax(1) > 0
            assert torch.equal(moved, touched)


def test_chain_sees_through_stale_scratch():
    row_N = np.array([7, 3, 7, 7, 0, 3])
    for fill in (-1, 0, 1, 5, 2**31 - 1, -(2**31)):
        rows = chain(row_N, np.zeros((6, 1), np.float32), np.full(8, fill, np.int32))
        assert rows.row_R.tolist() == [7, 3, 0]
        assert rows.first_R.tolist() == [0, 1, 4]
        assert rows.next_N.tolist() == [2, 5, 3, -1, -1, -1]


@pytest.mark.parametrize("name", ["adam", "rowwise_adagrad"])
def test_checkpoints_round_trip(name, tmp_path: Path):
    def trainee():
        module = nn.Embedding(40, 8, sparse=True)
        with torch.no_grad():
            module.weight.copy_(table(40, 8))
        config = TrainConfig(table_optimiser=name, table_learning_rate=0.05)
        return Trainee({"model": module}, build_optimisers([module], config), torch.Generator())

    def learn(one, seed):
        (optimiser,) = one.optimisers
        weight = one.modules["model"].weight
        weight.grad = gradient(weight, seed)
        optimiser.step()

    whole, cut = trainee(), trainee()
    assert whole.optimisers[0].param_groups[0]["lr"] == 0.05
    for seed in range(3):
        learn(whole, seed)
        learn(cut, seed)
    identity = Identity("", deciding_settings(RunConfig(dataset="")))
    save_checkpoint(tmp_path / "c", cut, identity)
    resumed = trainee()
    load_checkpoint(tmp_path / "c", resumed, identity)
    for seed in range(3, 6):
        learn(whole, seed)
        learn(resumed, seed)
    assert torch.equal(whole.modules["model"].weight, resumed.modules["model"].weight)


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_teach(kind):
    ours = table()
    ours.grad = torch.zeros_like(ours)
    with pytest.raises(ConfigError, match=r"dense gradient.*sparse=True"):
        kind([ours]).step()
    with pytest.raises(ConfigError, match="must not be negative, got -1"):
        kind([ours], lr=-1)
    with pytest.raises(ConfigError, match="no closure"):
        kind([ours]).step(lambda: 0.0)


@pytest.mark.parametrize("index", [[3, 0, 3, 5], [1, 2], []], ids=["padding", "plain", "empty"])
def test_look_up_has_the_gradient_of_an_embedding(index):
    index_N = torch.tensor(index, dtype=torch.int32)
    grads = []
    for how in (look_up, lambda module, index: module(index)):
        module = nn.Embedding(8, 4, padding_idx=0, sparse=True)
        with torch.no_grad():
            module.weight.copy_(table(8, 4))
        out = how(module, index_N)
        (out * torch.arange(out.numel()).reshape(out.shape)).sum().backward()
        grads.append(module.weight.grad.to_dense())
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    "settings", [{"table_learning_rate": 0.05}, {"table_optimiser": "rowwise_adagrad"}]
)
def test_settings_of_large_tables_that_no_table_uses_are_said(settings):
    with pytest.warns(UserWarning, match=r"embedding\.sparse_from"):
        build_optimisers([nn.Embedding(40, 8)], TrainConfig(**settings))
