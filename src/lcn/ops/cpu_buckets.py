"""Compiled form of SDIM's bucket sums; see `lcn.ops.bucket_sum`.

Two ways to add up. *By pairs*: a candidate's code is compared with those of its rows, eight groups
at once, and a vector is touched where they collide; right for a candidate alone. *By table*: the
rows that all candidates of a user see go into a table of all buckets, once for all candidates, and
each candidate reads its buckets; the backward sums the candidates' slopes by bucket and gives each
row the sum of its buckets' slopes. Threads of the backward divide the columns of the vectors, so
that none writes where another does and the result does not depend on their number.

Shapes: B buckets of a group; others as in `lcn.ops.bucket_sum`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcn.ops.cpu_codes import CodeTask, code_task
from lcn.ops.cpu_gradient import Sink, sink_of
from lcn.ops.cpu_plan import Tiles, on_threads, workers
from lcn.ops.lanes import BROAD, add_broad, kernel, leaf, prefetch

if TYPE_CHECKING:
    from lcn.ops.simhash import Codes

_MOST_BUCKETS = 32
"""Of a group, beyond which a table would be larger than the caches."""


class _Task(NamedTuple):
    """What all kernels read."""

    word_IW: np.ndarray
    """Codes as words of eight bytes."""
    code_IG: np.ndarray
    item_T: np.ndarray
    word_CW: np.ndarray
    code_CG: np.ndarray
    """The candidates' codes."""
    span_C2: np.ndarray
    tile_N4: np.ndarray
    """Runs of candidates whose spans overlap: first, one past the last, their rows' ends."""
    buckets: int


def bucket_sum(vector_ID: Tensor, codes: Codes, span_C2: Tensor) -> tuple[Tensor, Tensor]:
    """`lcn.ops.bucket_sum.bucket_sum` over collisions only."""
    return _CollisionSum.apply(vector_ID, codes, span_C2, sink_of(vector_ID))  # type: ignore


class _CollisionSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, vector_ID: Tensor, codes: Codes, span_C2: Tensor, sink: Sink | None
    ) -> tuple[Tensor, Tensor]:
        plain = code_task(codes, span_C2)
        tiles = Tiles(plain.span_C2, 1)
        task = _prepare(plain, tiles.tile_N4)
        vector = vector_ID.detach().contiguous().numpy()
        sum_CGD = torch.zeros(*codes.query_CY.shape, vector_ID.shape[1])
        square_C = torch.zeros(len(span_C2))
        total, square = sum_CGD.numpy(), square_C.numpy()
        shares = tiles.shares(0, len(tiles.tile_N4), workers())
        on_threads(lambda n: _collect_tiles(task, vector, total, square, *shares[n]), len(shares))
        ctx.task, ctx.shape, ctx.sink = task, vector_ID.shape, sink
        ctx.mark_non_differentiable(square_C)
        return sum_CGD, square_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_CGD: Tensor, _grad_C: Tensor) -> Any:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        slope = grad_CGD.to(torch.float32).contiguous().numpy()
        grad_ID = torch.zeros(ctx.shape) if ctx.sink is None else ctx.sink.buffer(ctx.shape)
        task, grad = ctx.task, grad_ID.numpy()
        parts = min(workers(), max(ctx.shape[1] // 16, 1))
        cut = np.linspace(0, ctx.shape[1], parts + 1).astype(np.int64).tolist()
        on_threads(lambda n: _spread_tiles(task, slope, grad, cut[n], cut[n + 1]), parts)
        return grad_ID if ctx.sink is None else None, None, None, None


def _prepare(task: CodeTask, tile_N4: np.ndarray) -> _Task:
    codes = [code for code in (task.code_I, task.query_C) if code.size]
    return _Task(
        _words(task.code_I, 0),
        task.code_I,
        task.item_T,
        _words(task.query_C, 255),
        task.query_C,
        task.span_C2,
        tile_N4,
        max((int(code.max()) + 1 for code in codes), default=1),
    )


def _words(code: np.ndarray, filling: int) -> np.ndarray:
    """Codes as words of eight bytes; unequal fillings never collide."""
    short = -code.shape[1] % 8
    padded = np.pad(code, ((0, 0), (0, short)), constant_values=filling)
    return np.ascontiguousarray(padded).view(np.uint64)


@intrinsic
def _lowest(context, word):
    """Place of the lowest bit that is set."""

    def build(_, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), build


@intrinsic
def _ones(context, word):
    """Count the bits that are set."""

    def build(_, builder, signature, args):
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), build


@leaf
def _equal_bytes(a, b):
    """The top bit of each byte that is the same in both words; nothing else."""
    low = np.uint64(0x7F7F7F7F7F7F7F7F)
    x = a ^ b
    return ~(((x & low) + low) | x | low)


@leaf
def _add(target, source, width):
    """Add as many floats of `width` as fill broad vectors at one address to those at another."""
    whole = width - width % BROAD
    for d in range(0, whole, BROAD):
        add_broad(target + 4 * d, source + 4 * d)


@leaf
def _core(task, tile_4, least):
    """The rows that all candidates of a tile see; none where a table would not pay.

    `least` is the number of candidates that make a bucket's worth of work.
    """
    c0, c1 = tile_4[0], tile_4[1]
    first, last = tile_4[2], tile_4[3]
    for c in range(c0, c1):
        first, last = max(first, task.span_C2[c, 0]), min(last, task.span_C2[c, 1])
    pays = task.buckets <= _MOST_BUCKETS and last - first >= 2 * task.buckets
    return (first, last) if pays and c1 - c0 >= least else (tile_4[3], tile_4[3])


@leaf
def _ask_for(address, item_T, t, stop, width):
    """Prefetch the vector of the row that comes eight rows later."""
    if t + 8 < stop:
        start = address + 4 * width * np.int64(item_T[t + 8])
        for byte in range(0, 4 * width, 64):
            prefetch(start + byte)


@kernel
def _collect_tiles(task, vector_ID, sum_CGD, square_C, n0, n1):
    small = min(task.buckets, _MOST_BUCKETS)
    table_GBD = np.empty((sum_CGD.shape[1], small, vector_ID.shape[1]), np.float32)
    for n in range(n0, n1):
        _collect_tile(task, vector_ID, sum_CGD, square_C, n, table_GBD)


@leaf
def _collect_tile(task, vector_ID, sum_CGD, square_C, n, table_GBD):
    tile_4 = task.tile_N4[n]
    # A row goes to one bucket of every group, where pairs would touch one in so many.
    first, last = _core(task, tile_4, (task.buckets + 2) // 3)
    if first < last:
        _fill_table(task, vector_ID, first, last, table_GBD)
    for c in range(tile_4[0], tile_4[1]):
        start, stop = task.span_C2[c, 0], task.span_C2[c, 1]
        if first >= last:
            _collect(task, vector_ID, sum_CGD, square_C, c, start, stop)
            continue
        _collect(task, vector_ID, sum_CGD, square_C, c, start, first)
        _collect(task, vector_ID, sum_CGD, square_C, c, last, stop)
        for g in range(sum_CGD.shape[1]):
            bucket = task.code_CG[c, g]
            for d in range(sum_CGD.shape[2]):
                sum_CGD[c, g, d] += table_GBD[g, bucket, d]
        square_C[c] += _squares(task, c, first, last)


@leaf
def _fill_table(task, vector_ID, first, last, table_GBD):
    """Sum rows first to last - 1 by bucket."""
    groups, buckets, width = table_GBD.shape
    whole = width - width % BROAD
    vectors, table = vector_ID.ctypes.data, table_GBD.ctypes.data
    table_GBD[:] = 0.0
    for t in range(first, last):
        _ask_for(vectors, task.item_T, t, last, width)
        item = np.int64(task.item_T[t])
        for g in range(groups):
            place = buckets * g + np.int64(task.code_IG[item, g])
            _add(table + 4 * width * place, vectors + 4 * width * item, width)
            for d in range(whole, width):
                table_GBD[g, task.code_IG[item, g], d] += vector_ID[item, d]


@leaf
def _squares(task, c, first, last):
    """Sum over rows of (groups shared with the candidate)²."""
    total = np.int64(0)
    for t in range(first, last):
        item, hits = np.int64(task.item_T[t]), np.int64(0)
        for w in range(task.word_IW.shape[1]):
            same = _equal_bytes(task.word_IW[item, w], task.word_CW[c, w])
            hits += np.int64(_ones(same))
        total += hits * hits
    return np.float32(total)


@leaf
def _collect(task, vector_ID, sum_CGD, square_C, c, t0, t1):
    """Add rows t0 to t1 - 1 to one candidate's sums by pairs."""
    width, groups = vector_ID.shape[1], sum_CGD.shape[1]
    whole = width - width % BROAD
    vectors, total, squares = vector_ID.ctypes.data, sum_CGD.ctypes.data, np.int64(0)
    for t in range(t0, t1):
        _ask_for(vectors, task.item_T, t, t1, width)
        item, hits = np.int64(task.item_T[t]), np.int64(0)
        for w in range(task.word_IW.shape[1]):
            same = _equal_bytes(task.word_IW[item, w], task.word_CW[c, w])
            while same:
                g = 8 * w + np.int64(_lowest(same) >> np.uint64(3))
                same &= same - np.uint64(1)
                hits += 1
                _add(total + 4 * width * (groups * c + g), vectors + 4 * width * item, width)
                for d in range(whole, width):
                    sum_CGD[c, g, d] += vector_ID[item, d]
        squares += hits * hits
    square_C[c] += np.float32(squares)


@kernel
def _spread_tiles(task, slope_CGD, grad_ID, d0, d1):
    """Columns d0 to d1 - 1 of the gradient."""
    small = min(task.buckets, _MOST_BUCKETS)
    table_GBD = np.empty((slope_CGD.shape[1], small, d1 - d0), np.float32)
    for n in range(len(task.tile_N4)):
        _spread_tile(task, slope_CGD, grad_ID, d0, d1, n, table_GBD)


@leaf
def _spread_tile(task, slope_CGD, grad_ID, d0, d1, n, table_GBD):
    tile_4 = task.tile_N4[n]
    first, last = _core(task, tile_4, 1)
    if first < last:
        table_GBD[:] = 0.0
        for c in range(tile_4[0], tile_4[1]):
            for g in range(slope_CGD.shape[1]):
                bucket = task.code_CG[c, g]
                for d in range(d0, d1):
                    table_GBD[g, bucket, d - d0] += slope_CGD[c, g, d]
        _spread_table(task, grad_ID, d0, d1, first, last, table_GBD)
    for c in range(tile_4[0], tile_4[1]):
        start, stop = task.span_C2[c, 0], task.span_C2[c, 1]
        if first >= last:
            _spread(task, slope_CGD, grad_ID, d0, d1, c, start, stop)
            continue
        _spread(task, slope_CGD, grad_ID, d0, d1, c, start, first)
        _spread(task, slope_CGD, grad_ID, d0, d1, c, last, stop)


@leaf
def _spread_table(task, grad_ID, d0, d1, first, last, table_GBD):
    """Give rows first to last - 1 the sums of their buckets' slopes."""
    groups, buckets, part = table_GBD.shape
    width, whole = grad_ID.shape[1], part - part % BROAD
    grads, table = grad_ID.ctypes.data, table_GBD.ctypes.data
    for t in range(first, last):
        _ask_for(grads, task.item_T, t, last, width)
        item = np.int64(task.item_T[t])
        for g in range(groups):
            place = buckets * g + np.int64(task.code_IG[item, g])
            _add(grads + 4 * (width * item + d0), table + 4 * part * place, part)
            for d in range(whole, part):
                grad_ID[item, d0 + d] += table_GBD[g, task.code_IG[item, g], d]


@leaf
def _spread(task, slope_CGD, grad_ID, d0, d1, c, t0, t1):
    """Rows t0 to t1 - 1 take the slopes of the buckets they share with one candidate."""
    width, groups = grad_ID.shape[1], slope_CGD.shape[1]
    whole = d1 - (d1 - d0) % BROAD
    grads, slopes = grad_ID.ctypes.data, slope_CGD.ctypes.data
    for t in range(t0, t1):
        _ask_for(grads, task.item_T, t, t1, width)
        item = np.int64(task.item_T[t])
        for w in range(task.word_IW.shape[1]):
            same = _equal_bytes(task.word_IW[item, w], task.word_CW[c, w])
            while same:
                g = 8 * w + np.int64(_lowest(same) >> np.uint64(3))
                same &= same - np.uint64(1)
                slope = slopes + 4 * (width * (groups * c + g) + d0)
                _add(grads + 4 * (width * item + d0), slope, d1 - d0)
                for d in range(whole, d1):
                    grad_ID[item, d] += slope_CGD[c, g, d]
