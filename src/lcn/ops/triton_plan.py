"""Cut a batch into work items for the Triton kernels, and check its indices, on the host.

The kernels are launched over exactly the work there is: the cut needs the spans on the host, which
is the one time an op waits for the device. Indices are checked in the same read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcn.ops.cpu_plan import Tiles
from lcn.ops.types import RECENCY_BUCKETS, HistoryRows, Scoring

PROGRAMS = 1024
"""Work items to aim for: several for each multiprocessor of a large GPU."""
LEAST = 256
"""Rows of a work item below which a tile is not cut further."""
NARROW = 4
"""Columns up to which a work item does without the matrix unit, whose least size is 16."""
WIDE = 64
"""Vector width beyond which a work item has at most `FEW` columns: more would spill registers."""
FEW = 16
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything lies and who works on what."""

    span_C2: Tensor
    """First and one-past-last place of each candidate, int64."""
    flat_C: Tensor
    """Where each candidate's scores start when candidates stand one after the other, int64."""
    listed_L: Tensor | None
    """Row at each place, int32, -1 in empty slots; None where places are rows."""
    work_W4: Tensor
    """First and one-past-last candidate and place of each work item, int32."""
    part_C3: Tensor
    """First and one-past-last work item of each candidate's tile and the tile's first candidate,
    int32."""
    launches: tuple[tuple[int, int, int], ...]
    """First and one-past-last work item that share a number of columns, and that number."""
    columns: int
    """The greatest of these numbers."""
    total: int
    """Length of all candidates' scores."""
    longest: int
    """Rows of the longest span."""


def plan_spans(rows: HistoryRows, span_C2: Tensor, scoring: Scoring) -> Plan:
    """Plan an op over spans.

    Raises:
        IndexError: an item, a code or a span points outside its table.
    """
    device = span_C2.device
    parts = [_bounds(rows.item_T), _bounds(rows.code_TG), span_C2.flatten().long()]
    host = torch.cat(parts).cpu().numpy()
    _check_rows(rows, scoring, host[:4])
    span = host[4:].reshape(-1, 2)
    full = span[span[:, 1] > span[:, 0]]
    if len(full) and (full.min() < 0 or full.max() > len(rows.item_T)):
        raise IndexError(
            f"span_C2 reaches from {full.min()} to {full.max()}, expected 0 to "
            f"{len(rows.item_T)}: there are {len(rows.item_T)} history rows"
        )
    return _plan(span, None, scoring, device)


def plan_lists(rows: HistoryRows, kept_CK: Tensor, scoring: Scoring) -> Plan:
    """Plan an op over listed rows: each candidate's slots are its span in the flat list.

    Raises:
        IndexError: an item, a code or a listed row points outside its table.
    """
    bounds = [_bounds(rows.item_T), _bounds(rows.code_TG), _bounds(kept_CK)]
    host = torch.cat(bounds).cpu().numpy()
    _check_rows(rows, scoring, host[:4])
    if host[5] >= len(rows.item_T):
        raise IndexError(
            f"kept_CK holds indices from {host[4]} to {host[5]}, expected 0 to "
            f"{len(rows.item_T) - 1}: there are {len(rows.item_T)} history rows (-1 is an empty "
            "slot)"
        )
    count, slots = kept_CK.shape
    start_C = np.arange(count, dtype=np.int64) * slots
    span = np.stack([start_C, start_C + slots], 1)
    listed_L = kept_CK.flatten().to(torch.int32)
    return _plan(span, listed_L, scoring, kept_CK.device)


def plan_scores(span_C2: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Spans and starts for flat scores, their length and the longest span."""
    span, device = _forwards(span_C2.long().cpu().numpy()), span_C2.device
    length_C = span[:, 1] - span[:, 0]
    starts_C = np.cumsum(length_C) - length_C
    longest = int(length_C.max(initial=0))
    return _send(span, device), _send(starts_C, device), int(length_C.sum()), longest


def _bounds(index: Tensor) -> Tensor:
    """[2] least and greatest, 0 and -1 where there is nothing."""
    if not index.numel():
        return torch.tensor([0, -1], device=index.device)
    return torch.stack(index.aminmax()).long()


def _check_rows(rows: HistoryRows, scoring: Scoring, bounds: Int64) -> None:
    codes = scoring.bias_CHV.shape[2]
    if scoring.time_C is not None and codes < RECENCY_BUCKETS:
        raise ValueError(
            f"bias_CHV has {codes} columns, expected at least {RECENCY_BUCKETS}: with time_C its "
            "last columns are the recency buckets"
        )
    tables = (
        ("item_T", bounds[:2], len(rows.vector_ID), "rows of vector_ID"),
        ("code_TG", bounds[2:4], codes, "columns of bias_CHV"),
    )
    for name, (least, greatest), count, what in tables:
        if least < 0 or greatest >= count:
            raise IndexError(
                f"{name} holds indices from {least} to {greatest}, expected 0 to {count - 1}: "
                f"there are {count} {what}"
            )


def _forwards(span: Int64) -> Int64:
    """Spans that end before they start are empty."""
    return np.stack([span[:, 0], np.maximum(span[:, 0], span[:, 1])], 1)


def _plan(span: Int64, listed_L: Tensor | None, scoring: Scoring, device: torch.device) -> Plan:
    """Group candidates into tiles (as the CPU form does), cut long tiles, send the lists over."""
    _, heads, width = scoring.query_CHD.shape
    span = _forwards(span)
    length_C = span[:, 1] - span[:, 0]
    end_C = np.cumsum(length_C)
    tile_N4 = Tiles(span, heads).tile_N4
    if width > WIDE:
        tile_N4 = _divide(tile_N4, max(FEW // heads, 1))
    # Tiles of like width stand together: one launch serves few columns, another many.
    columns_N = (tile_N4[:, 1] - tile_N4[:, 0]) * heads
    tile_N4 = tile_N4[np.argsort(columns_N > NARROW, kind="stable")]
    work_W4, first_N, pieces_N = _cut(tile_N4)
    part_C3 = np.empty((len(span), 3), np.int64)
    candidates_N = tile_N4[:, 1] - tile_N4[:, 0]
    tile_C = np.repeat(np.arange(len(tile_N4)), candidates_N)
    before_N = np.cumsum(candidates_N) - candidates_N
    place_C = np.arange(len(tile_C)) - np.repeat(before_N, candidates_N)
    part_C3[tile_N4[tile_C, 0] + place_C] = np.stack(
        [first_N[tile_C], (first_N + pieces_N)[tile_C], tile_N4[tile_C, 0]], 1
    )
    columns_W = (work_W4[:, 1] - work_W4[:, 0]) * heads
    split = int(np.searchsorted(columns_W > NARROW, True))
    launches = tuple(
        (first, last, int(columns_W[first:last].max()))
        for first, last in ((0, split), (split, len(columns_W)))
        if last > first
    )
    starts_C = end_C - length_C
    return Plan(
        span_C2=_send(span, device),
        flat_C=_send(starts_C, device),
        listed_L=listed_L,
        work_W4=_send(work_W4.astype(np.int32), device),
        part_C3=_send(part_C3.astype(np.int32), device),
        launches=launches,
        columns=max((columns for *_, columns in launches), default=0),
        total=int(end_C[-1]) if len(end_C) else 0,
        longest=int(length_C.max(initial=0)),
    )


def _divide(tile_N4: Int64, most: int) -> Int64:
    """Tiles of at most `most` candidates."""
    pieces_N = -(-(tile_N4[:, 1] - tile_N4[:, 0]) // most)
    whole_W = np.repeat(np.arange(len(tile_N4)), pieces_N)
    piece_W = np.arange(len(whole_W)) - np.repeat(np.cumsum(pieces_N) - pieces_N, pieces_N)
    divided = tile_N4[whole_W]
    divided[:, 0] += piece_W * most
    divided[:, 1] = np.minimum(divided[:, 0] + most, divided[:, 1])
    return divided


def _cut(tile_N4: Int64) -> tuple[Int64, Int64, Int64]:
    """Work items [W, 4], and each tile's first one and their number."""
    rows_N = tile_N4[:, 3] - tile_N4[:, 2]
    chunk = max(LEAST, int(rows_N.sum()) // PROGRAMS)
    pieces_N = -(-rows_N // chunk)
    first_N = np.cumsum(pieces_N) - pieces_N
    tile_W = np.repeat(np.arange(len(tile_N4)), pieces_N)
    start_W = tile_N4[tile_W, 2] + (np.arange(len(tile_W)) - first_N[tile_W]) * chunk
    stop_W = np.minimum(start_W + chunk, tile_N4[tile_W, 3])
    work_W4 = np.stack([tile_N4[tile_W, 0], tile_N4[tile_W, 1], start_W, stop_W], 1)
    return work_W4, first_N, pieces_N


def _send(array: NDArray, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
