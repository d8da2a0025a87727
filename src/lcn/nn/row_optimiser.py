"""Optimisers of large tables: a step costs what the batch touched, whatever the table's size.

Both take row-sparse gradients (`nn.Embedding(sparse=True)`). Float32 tables on the CPU are updated
in place by one compiled pass over the touched rows; rows that a batch names several times are
chained, not sorted. Everything else takes the plain form, which is also the definition.
Shapes: V rows of a table, D its width, N rows of a gradient (rows may repeat), R distinct ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lcn.errors import ConfigError
from lcn.ops.cpu_plan import on_threads, workers
from lcn.ops.lanes import kernel, leaf, prefetch

State = dict[str, Any]

_ROWS_PER_THREAD = 2048
"""Below that a second thread costs more than it saves."""
_AHEAD = 8
"""Rows between asking for a table row and updating it."""


class Rows(NamedTuple):
    """The rows of a gradient, chained by table row in order of appearance."""

    row_R: NDArray[np.int64]
    """Distinct table rows."""
    first_R: NDArray[np.int32]
    """The first gradient row of each of them."""
    next_N: NDArray[np.int32]
    """The next gradient row of the same table row; -1 ends the chain."""
    grad_ND: NDArray[np.float32]


class _RowOptimiser(torch.optim.Optimizer, ABC):
    """Walks over the parameters; a subclass says what happens to a row."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, defaults: State) -> None:
        if lr < 0:
            raise ConfigError(f"the learning rate of a table must not be negative, got {lr}")
        super().__init__(parameters, {"lr": lr, **defaults})
        self._place: dict[int, NDArray[np.int32]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the rows that have a gradient.

        Raises:
            ConfigError: a gradient is dense; its table needs another optimiser.
        """
        if closure is not None:
            raise ConfigError("row optimisers take no closure; call backward first")
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                if not table.grad.is_sparse:
                    raise ConfigError(
                        f"a table of shape {list(table.shape)} has a dense gradient, but row "
                        "optimisers need row-sparse ones: make it nn.Embedding(sparse=True) or "
                        "give it to a dense optimiser"
                    )
                state = self.state[table]
                if not state:
                    self._start(table, state)
                state["step"] += 1
                self._update(table, state, group)

    def _update(self, table: Tensor, state: State, group: State) -> None:
        grad = table.grad
        assert grad is not None
        plain = table.device.type != "cpu" or table.dtype != torch.float32
        if plain or not table.is_contiguous():
            grad = grad.coalesce()
            self._plain(table, state, group, grad.indices()[0], grad.values())
            return
        # `_indices` of a gradient that is not coalesced: rows may repeat.
        row_N, grad_ND = grad._indices()[0].numpy(), grad._values().contiguous().numpy()
        place_V = self._place.get(id(table))
        if place_V is None:
            place_V = self._place[id(table)] = np.empty(len(table), np.int32)
        rows = chain(row_N, grad_ND, place_V)
        cut = np.linspace(0, len(rows.row_R), _threads(len(rows.row_R)) + 1).astype(np.int64)
        on_threads(
            lambda n: self._compiled(table, state, group, rows, (cut[n], cut[n + 1])), len(cut) - 1
        )

    @abstractmethod
    def _start(self, table: Tensor, state: State) -> None:
        """Make the state of a table, `step` included."""

    @abstractmethod
    def _plain(
        self, table: Tensor, state: State, group: State, row_R: Tensor, grad_RD: Tensor
    ) -> None:
        """Update distinct rows with PyTorch."""

    @abstractmethod
    def _compiled(
        self, table: Tensor, state: State, group: State, rows: Rows, part: tuple[int, int]
    ) -> None:
        """Update some of the distinct rows with compiled code."""


class RowAdam(_RowOptimiser):
    """Lazy Adam: only touched rows have their moments moved.

    m += (1 - β1) (g - m);  s += (1 - β2) (g² - s)
    w -= lr √(1 - β2^t) / (1 - β1^t) · m / (√s + ε),  t counted per table

    Source: `torch.optim.SparseAdam`, whose state and answers these are.
    Deviations: none in exact arithmetic.

    Args:
        parameters: tables with row-sparse gradients.
        lr: learning rate.
        betas: β1 and β2.
        eps: ε.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, lr, {"betas": betas, "eps": eps})

    def _start(self, table: Tensor, state: State) -> None:
        state.update(step=0, exp_avg=torch.zeros_like(table), exp_avg_sq=torch.zeros_like(table))

    def _plain(
        self, table: Tensor, state: State, group: State, row_R: Tensor, grad_RD: Tensor
    ) -> None:
        mean_VD, square_VD = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        mean_RD = torch.lerp(mean_VD[row_R], grad_RD, 1 - beta1)
        square_RD = torch.lerp(square_VD[row_R], grad_RD.square(), 1 - beta2)
        mean_VD[row_R], square_VD[row_R] = mean_RD, square_RD
        table[row_R] -= _adam_rate(state, group) * mean_RD / (square_RD.sqrt() + group["eps"])

    def _compiled(
        self, table: Tensor, state: State, group: State, rows: Rows, part: tuple[int, int]
    ) -> None:
        beta1, beta2 = group["betas"]
        settings = (1 - beta1, 1 - beta2, group["eps"], _adam_rate(state, group))
        moments = (state["exp_avg"].numpy(), state["exp_avg_sq"].numpy())
        _adam(table.detach().numpy(), *moments, rows, part, np.array(settings, np.float32))


class RowAdagrad(_RowOptimiser):
    """Row-wise Adagrad: one number of state per row in the place of 2 D.

    s += mean_d g_d²;  w -= lr g / (√s + ε)

    Source: the exact row-wise Adagrad of public embedding libraries (FBGEMM).
    Deviations: none.

    Args:
        parameters: tables with row-sparse gradients.
        lr: learning rate; ten times Adam's is a usual start.
        eps: ε.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 1e-2, eps: float = 1e-8
    ) -> None:
        super().__init__(parameters, lr, {"eps": eps})

    def _start(self, table: Tensor, state: State) -> None:
        state.update(step=0, square_sum=table.new_zeros(len(table)))

    def _plain(
        self, table: Tensor, state: State, group: State, row_R: Tensor, grad_RD: Tensor
    ) -> None:
        sum_R = state["square_sum"][row_R] + grad_RD.square().mean(1)
        state["square_sum"][row_R] = sum_R
        table[row_R] -= group["lr"] * grad_RD / (sum_R.sqrt() + group["eps"])[:, None]

    def _compiled(
        self, table: Tensor, state: State, group: State, rows: Rows, part: tuple[int, int]
    ) -> None:
        settings = np.array((group["lr"], group["eps"]), np.float32)
        _adagrad(table.detach().numpy(), state["square_sum"].numpy(), rows, part, settings)


def chain(
    row_N: NDArray[np.int64], grad_ND: NDArray[np.float32], place_V: NDArray[np.int32]
) -> Rows:
    """Find the distinct rows of a gradient in O(N), without sorting or clearing anything.

    Args:
        row_N: table row of each gradient row.
        grad_ND: the gradient rows.
        place_V: scratch of one entry per table row, with any content.
    """
    row_R, first_R = np.empty(len(row_N), np.int64), np.empty(len(row_N), np.int32)
    next_N = np.empty(len(row_N), np.int32)
    count = _chain(row_N, place_V, row_R, first_R, next_N)
    return Rows(row_R[:count], first_R[:count], next_N, grad_ND)


def _threads(rows: int) -> int:
    return max(min(workers(), rows // _ROWS_PER_THREAD), 1)


def _adam_rate(state: State, group: State) -> float:
    """The step size with both bias corrections."""
    (beta1, beta2), step = group["betas"], state["step"]
    return group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)


@kernel
def _chain(row_N, place_V, row_R, first_R, next_N):
    # What `place_V` says of a row is believed only if that place holds the row: stale or
    # uninitialised entries never do.
    last_R = np.empty(len(row_N), np.int32)
    count = 0
    for n in range(len(row_N)):
        row = row_N[n]
        place = place_V[row]
        if 0 <= place < count and row_R[place] == row:
            next_N[last_R[place]] = n
        else:
            place = count
            place_V[row], row_R[place], first_R[place] = place, row, n
            count += 1
        last_R[place] = n
        next_N[n] = -1
    return count


@leaf
def _ask_for(rows, r, part, table_VX):
    """Prefetch the row that comes eight rows later: tables are larger than the caches."""
    if r + _AHEAD < part[1]:
        size = table_VX.itemsize * table_VX.shape[1]
        start = table_VX.ctypes.data + size * rows.row_R[r + _AHEAD]
        for byte in range(0, size, 64):
            prefetch(start + byte)  # type: ignore[call-arg]


@leaf
def _gather(rows, r, sum_D):
    """Sum the gradient rows of the r-th distinct row."""
    n = rows.first_R[r]
    for d in range(len(sum_D)):
        sum_D[d] = rows.grad_ND[n, d]
    n = rows.next_N[n]
    while n >= 0:
        for d in range(len(sum_D)):
            sum_D[d] += rows.grad_ND[n, d]
        n = rows.next_N[n]


@kernel
def _adam(table_VD, mean_VD, square_VD, rows, part, settings):
    sum_D = np.empty(table_VD.shape[1], np.float32)
    _adam_rows(table_VD, mean_VD, square_VD, rows, part, settings, sum_D)


@leaf
def _adam_rows(table_VD, mean_VD, square_VD, rows, part, settings, sum_D):
    keep1, keep2, eps, rate = settings[0], settings[1], settings[2], settings[3]
    for r in range(part[0], part[1]):
        _ask_for(rows, r, part, table_VD)
        _ask_for(rows, r, part, mean_VD)
        _ask_for(rows, r, part, square_VD)
        _gather(rows, r, sum_D)
        weight_D, mean_D = table_VD[rows.row_R[r]], mean_VD[rows.row_R[r]]
        square_D = square_VD[rows.row_R[r]]
        for d in range(len(sum_D)):
            mean = mean_D[d] + keep1 * (sum_D[d] - mean_D[d])
            square = square_D[d] + keep2 * (sum_D[d] * sum_D[d] - square_D[d])
            mean_D[d], square_D[d] = mean, square
            weight_D[d] -= rate * mean / (np.sqrt(square) + eps)


@kernel
def _adagrad(table_VD, sum_V, rows, part, settings):
    rate, eps = settings[0], settings[1]
    sum_D = np.empty(table_VD.shape[1], np.float32)
    for r in range(part[0], part[1]):
        _ask_for(rows, r, part, table_VD)
        _gather(rows, r, sum_D)
        row, square = rows.row_R[r], np.float32(0)
        weight_D = table_VD[row]
        for d in range(len(sum_D)):
            square += sum_D[d] * sum_D[d]
        sum_V[row] += square / np.float32(len(sum_D))
        scale = rate / (np.sqrt(sum_V[row]) + eps)
        for d in range(len(sum_D)):
            weight_D[d] -= scale * sum_D[d]
