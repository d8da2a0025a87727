"""Fast CPU forms of the ops: float32, no padded or gathered copy of a history.

Layout: vectors stay in `vector_ID` and are read through `item_T`, 64 rows at a time, into a
scratch block that serves all candidates of a user whose spans overlap (see `cpu_blocks`). Scores
live in that block only; the backward computes them again from the query, which costs less than
writing them down. Memory beside the answers is one block per thread, plus 4 MB per thread in the
backward. Results do not depend on the number of threads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcn.ops import cpu_dense
from lcn.ops.cpu_backward import Slope, Step, backward_tiles, scatter_tiles
from lcn.ops.cpu_blocks import MEAN, RAW, SOFTMAX, Task
from lcn.ops.cpu_forward import Pooled, forward_tiles
from lcn.ops.cpu_gradient import Sink, share_gradient, sink_of, take_vectors
from lcn.ops.cpu_plan import Tiles, check, list_rows, on_threads, workers
from lcn.ops.cpu_rank import rank_tiles, score_tiles
from lcn.ops.cpu_topk import select_spans
from lcn.ops.types import RECENCY_BUCKETS, HistoryRows, Norm, Pool, Scoring

__all__ = [
    "kept_pool",
    "select_span_topk",
    "share_gradient",
    "span_pool",
    "span_score",
    "take_vectors",
    "warm_up",
]

_NORM = {"softmax": SOFTMAX, "mean": MEAN, "raw": RAW}


def span_pool(
    rows: HistoryRows, span_C2: Tensor, scoring: Scoring, norm: Norm, keep: int = 0
) -> Pool:
    """`lcn.ops.span_pool`, in blocks."""
    task = _task(rows, span_C2, None, scoring, norm)
    return _pool(rows, scoring, task, keep, torch.int64)


def kept_pool(
    rows: HistoryRows, kept_CK: Tensor, scoring: Scoring, norm: Norm, keep: int = 0
) -> Pool:
    """`lcn.ops.kept_pool`, in blocks."""
    row_L = np.empty(kept_CK.numel(), np.int32)
    span_C2 = np.empty((len(kept_CK), 2), np.int64)
    count = list_rows(_numpy(kept_CK, torch.int64), row_L, span_C2)
    listed = torch.from_numpy(row_L[:count])
    task = _task(rows, torch.from_numpy(span_C2), listed, scoring, norm)
    return _pool(rows, scoring, task, keep, kept_CK.dtype)


def span_score(rows: HistoryRows, span_C2: Tensor, scoring: Scoring) -> Tensor:
    """`lcn.ops.span_score`, in blocks."""
    task = _task(rows, span_C2, None, scoring, "raw")
    check(task)
    offset_C = _flat_offsets(task.span_C2)
    flat_SH = torch.empty(int(offset_C[-1]), task.heads)
    tiles = Tiles(task.span_C2, task.heads)
    shares = tiles.shares(0, len(tiles.tile_N4), workers())
    flat = flat_SH.numpy()
    on_threads(lambda n: score_tiles(task, tiles.tile_N4, flat, offset_C, *shares[n]), len(shares))
    return flat_SH


def rank_heads(
    rows: HistoryRows, span_C2: Tensor, scoring: Scoring, k: int
) -> tuple[Tensor, Tensor]:
    """`lcn.ops.rank_heads`: scores never leave the block of a few candidates."""
    task = _task(rows, span_C2, None, scoring, "raw")
    check(task)
    kept_CHK = torch.empty((len(task.span_C2), task.heads, k), dtype=torch.int64)
    mean_CHK = torch.zeros(kept_CHK.shape)
    kept, mean = kept_CHK.numpy(), mean_CHK.numpy()
    tiles = Tiles(task.span_C2, task.heads)
    shares = tiles.shares(0, len(tiles.tile_N4), workers())
    on_threads(lambda n: rank_tiles(task, tiles.tile_N4, kept, mean, *shares[n]), len(shares))
    return kept_CHK, mean_CHK


def select_span_topk(score_S: Tensor, span_C2: Tensor, k: int) -> Tensor:
    """`lcn.ops.select_span_topk` without padding."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}; leave the stage out to disable it")
    span = _numpy(span_C2, torch.int64)
    score, offset_C = _numpy(score_S, torch.float32), _flat_offsets(span)
    if offset_C[-1] != len(score):
        raise ValueError(
            f"the spans hold {offset_C[-1]} rows but score_S has {len(score)} scores; "
            "pass the spans the scores were computed for"
        )
    kept_CK = torch.empty((len(span), k), dtype=torch.int64)
    kept = kept_CK.numpy()
    tiles = Tiles(span, 1)
    shares = tiles.shares(0, len(tiles.tile_N4), workers())

    def select(n: int) -> None:
        first, last = tiles.tile_N4[shares[n][0], 0], tiles.tile_N4[shares[n][1] - 1, 1]
        select_spans(score, span, offset_C, first, last, kept)

    on_threads(select, len(shares))
    return kept_CK


def warm_up() -> None:
    """Compile the kernels, or load them from the user's cache.

    Compiling takes about half a minute of one core, once per machine and version of these files;
    loading takes about half a second. Without this call the first op does it.
    """
    rows = HistoryRows(
        torch.zeros(1, 1, requires_grad=True),
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(1, 0, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int64),
    )
    span_C2 = torch.tensor([[0, 1]])
    scoring = Scoring(torch.zeros(1, 1, 1), torch.zeros(1, 1, 0))
    with torch.enable_grad():
        pool = span_pool(rows, span_C2, scoring, "softmax", keep=1)
        torch.autograd.grad(pool.vector_CHD.sum(), rows.vector_ID)
    select_span_topk(span_score(rows, span_C2, scoring)[:, 0].contiguous(), span_C2, 1)


def _flat_offsets(span_C2: np.ndarray) -> np.ndarray:
    """[C + 1] where each candidate's rows start when candidates stand one after the other."""
    length_C = np.maximum(span_C2[:, 1] - span_C2[:, 0], 0)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(length_C)])


def _numpy(tensor: Tensor, kind: torch.dtype) -> np.ndarray:
    """View a tensor as a contiguous array, converted only where it has another type."""
    return tensor.detach().to(kind).contiguous().numpy()


def _task(
    rows: HistoryRows, span_C2: Tensor, row_L: Tensor | None, scoring: Scoring, norm: Norm
) -> Task:
    candidates, heads, width = scoring.query_CHD.shape
    codes = scoring.bias_CHV.shape[2]
    if scoring.time_C is not None and codes < RECENCY_BUCKETS:
        raise ValueError(
            f"bias_CHV has {codes} columns, expected at least {RECENCY_BUCKETS}: with time_C its "
            "last columns are the recency buckets"
        )
    time_C = torch.empty(0) if scoring.time_C is None else scoring.time_C
    listed = torch.empty(0) if row_L is None else row_L
    return Task(
        vector_ID=_numpy(rows.vector_ID, torch.float32),
        item_T=_numpy(rows.item_T, torch.int32),
        code_TG=_numpy(rows.code_TG, torch.int32),
        time_T=_numpy(rows.time_T, torch.int64),
        row_L=_numpy(listed, torch.int32),
        span_C2=_numpy(span_C2, torch.int64),
        query_QD=_numpy(scoring.query_CHD, torch.float32).reshape(candidates * heads, width),
        bias_QV=_numpy(scoring.bias_CHV, torch.float32).reshape(candidates * heads, codes),
        time_C=_numpy(time_C, torch.int64),
        heads=heads,
        norm=_NORM[norm],
        listed=row_L is not None,
    )


def _pool(rows: HistoryRows, scoring: Scoring, task: Task, keep: int, kind: torch.dtype) -> Pool:
    vector_CHD, weight_CHV, kept_CK = _BlockPool.apply(
        rows.vector_ID, scoring.query_CHD, scoring.bias_CHV, task, keep, sink_of(rows.vector_ID)
    )
    return Pool(vector_CHD, weight_CHV, kept_CK.to(kind) if keep else None)


class _BlockPool(torch.autograd.Function):
    """Differentiable in vectors, queries and biases; `task` holds views of the same memory."""

    @staticmethod
    def forward(
        ctx: Any,
        vector_ID: Tensor,
        query_CHD: Tensor,
        bias_CHV: Tensor,
        task: Task,
        keep: int,
        sink: Sink | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        check(task)
        vector_CHD = torch.empty(query_CHD.shape)
        weight_CHV = torch.empty(bias_CHV.shape)
        stat_Q2 = np.empty((len(task.query_QD), 2), np.float32)
        kept_CK = torch.empty((len(query_CHD), keep), dtype=torch.int64)
        out = Pooled(
            vector_CHD.numpy().reshape(task.query_QD.shape),
            weight_CHV.numpy().reshape(task.bias_QV.shape),
            stat_Q2,
            kept_CK.numpy(),
        )
        # Only the backward reads the statistics, which a request has no use for.
        if not any(ctx.needs_input_grad) and cpu_dense.fits(task):
            cpu_dense.forward(task, out)
            ctx.mark_non_differentiable(kept_CK)
            return vector_CHD, weight_CHV, kept_CK
        tiles = Tiles(task.span_C2, task.heads)
        shares = tiles.shares(0, len(tiles.tile_N4), workers())
        on_threads(lambda n: forward_tiles(task, out, tiles.tile_N4, *shares[n]), len(shares))
        ctx.save_for_backward(vector_ID, query_CHD, bias_CHV, vector_CHD, weight_CHV)
        ctx.task, ctx.tiles, ctx.stat_Q2, ctx.sink = task, tiles, stat_Q2, sink
        ctx.mark_non_differentiable(kept_CK)
        return vector_CHD, weight_CHV, kept_CK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_CHD: Tensor, grad_CHV: Tensor, _grad_CK: Tensor) -> Any:
        # Touching the saved tensors makes PyTorch complain if they changed meanwhile.
        vector_ID, query_CHD, bias_CHV, vector_CHD, weight_CHV = ctx.saved_tensors
        task, tiles = ctx.task, ctx.tiles
        query_shape, bias_shape = task.query_QD.shape, task.bias_QV.shape
        out = Pooled(
            vector_CHD.numpy().reshape(query_shape),
            weight_CHV.numpy().reshape(bias_shape),
            ctx.stat_Q2,
            np.empty((0, 0), np.int64),
        )
        grad_query = torch.empty(query_CHD.shape)
        grad_bias = torch.zeros(bias_CHV.shape)
        slope = Slope(
            _numpy(grad_CHD, torch.float32).reshape(query_shape),
            _numpy(grad_CHV, torch.float32).reshape(bias_shape),
            grad_query.numpy().reshape(query_shape),
            grad_bias.numpy().reshape(bias_shape),
        )
        grad_ID = None
        if ctx.needs_input_grad[0]:
            shape = vector_ID.shape
            grad_ID = torch.zeros(shape) if ctx.sink is None else ctx.sink.buffer(shape)
        _walk_back(task, tiles, out, slope, None if grad_ID is None else grad_ID.numpy())
        return grad_ID if ctx.sink is None else None, grad_query, grad_bias, None, None, None


def _walk_back(
    task: Task, tiles: Tiles, out: Pooled, slope: Slope, grad_ID: np.ndarray | None
) -> None:
    """Alternate between the two steps of the backward over runs of tiles."""
    count = workers()
    buffer = np.empty(0, np.float32)
    for first, last in tiles.steps(count):
        start_N, size = tiles.starts(first, last)
        if len(buffer) < size:
            buffer = np.empty(size, np.float32)
        shares = tiles.shares(first, last, count)
        step = Step(tiles.tile_N4, start_N, buffer, first, last)
        on_threads(partial(_walk, task, out, slope, step, shares), len(shares))
        if grad_ID is not None:
            on_threads(partial(_scatter, task, slope, step, grad_ID, count), count)


def _walk(
    task: Task, out: Pooled, slope: Slope, step: Step, shares: list[tuple[int, int]], n: int
) -> None:
    backward_tiles(task, out, slope, step, *shares[n])


def _scatter(task: Task, slope: Slope, step: Step, grad_ID: np.ndarray, count: int, n: int) -> None:
    scatter_tiles(task, slope, step, grad_ID, (n, count))
