"""Triton forms of the ops: no padded or gathered copy of a history.

One program walks a piece of the rows that a run of candidates of one user shares: it loads a block
of vectors once, scores it for every candidate and head, and pools it with a running softmax. Scores
are written down once, [H, S]: the backward and the sums by code read them instead of the vectors,
and top-k selects from them. Beside the answers and those scores, memory is one partial answer per
program.

Gradients of item vectors are added by atomics, so their last bits differ from run to run; all else
comes out the same each time. Vectors may be bfloat16, everything else is float32; sums are float32.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcn.ops import triton_plan
from lcn.ops.triton_backward import slopes
from lcn.ops.triton_blocks import AskArgs, RowArgs
from lcn.ops.triton_forward import join_parts, score_and_pool, sum_by_code
from lcn.ops.triton_plan import Plan, plan_lists, plan_scores, plan_spans
from lcn.ops.triton_topk import best_places
from lcn.ops.types import HistoryRows, Norm, Pool, Scoring

_NORM = {"softmax": 0, "mean": 1, "raw": 2}
_BLOCK = 2048
"""Numbers of a block of vectors: 16 registers of each of 128 threads."""
_CODES = 64
"""Codes that one program sums, at most."""


def span_pool(
    rows: HistoryRows, span_C2: Tensor, scoring: Scoring, norm: Norm, keep: int = 0
) -> Pool:
    """`lcn.ops.span_pool`, a program per piece of a tile."""
    plan = plan_spans(rows, span_C2, scoring)
    vector_CHD, weight_CHV, score_HS = _pool(rows, scoring, plan, norm)
    kept_CK = None
    if keep:
        place_CK = _best(score_HS[0], plan, keep)
        kept_CK = torch.where(place_CK < 0, -1, plan.span_C2[:, :1] + place_CK)
    return Pool(vector_CHD, weight_CHV, kept_CK)


def kept_pool(
    rows: HistoryRows, kept_CK: Tensor, scoring: Scoring, norm: Norm, keep: int = 0
) -> Pool:
    """`lcn.ops.kept_pool`, a program per candidate."""
    if keep:
        # Ties go to the later row, so rows stand in time order, empty slots last.
        last = torch.iinfo(kept_CK.dtype).max
        kept_CK = torch.where(kept_CK < 0, last, kept_CK).sort(1).values
        kept_CK = torch.where(kept_CK == last, -1, kept_CK)
    plan = plan_lists(rows, kept_CK, scoring)
    vector_CHD, weight_CHV, score_HS = _pool(rows, scoring, plan, norm)
    if not keep:
        return Pool(vector_CHD, weight_CHV, None)
    if not kept_CK.shape[1]:
        return Pool(vector_CHD, weight_CHV, kept_CK.new_full((len(kept_CK), keep), -1))
    place_CK = _best(score_HS[0], plan, keep)
    best_CK = kept_CK.gather(1, place_CK.clamp(min=0))
    return Pool(vector_CHD, weight_CHV, torch.where(place_CK < 0, -1, best_CK))


def span_score(rows: HistoryRows, span_C2: Tensor, scoring: Scoring) -> Tensor:
    """`lcn.ops.span_score`; the answer is the transpose of [H, S] memory."""
    plan = plan_spans(rows, span_C2, scoring)
    launch = _Launch(rows, scoring, plan, "raw")
    return launch.scores(None, None).T


def select_span_topk(score_S: Tensor, span_C2: Tensor, k: int) -> Tensor:
    """`lcn.ops.select_span_topk` by threshold."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}; leave the stage out to disable it")
    span_C2, flat_C, total, longest = plan_scores(span_C2)
    if total != len(score_S):
        raise ValueError(
            f"the spans hold {total} rows but score_S has {len(score_S)} scores; "
            "pass the spans the scores were computed for"
        )
    score_S = score_S.detach().float().contiguous()
    place_CK = best_places(score_S, span_C2, flat_C, k, longest)
    return torch.where(place_CK < 0, -1, span_C2[:, :1] + place_CK)


def _best(score_S: Tensor, plan: Plan, keep: int) -> Tensor:
    return best_places(score_S, plan.span_C2, plan.flat_C, keep, plan.longest)


def _pool(
    rows: HistoryRows, scoring: Scoring, plan: Plan, norm: Norm
) -> tuple[Tensor, Tensor, Tensor]:
    return _BlockPool.apply(
        rows.vector_ID, scoring.query_CHD, scoring.bias_CHV, _Launch(rows, scoring, plan, norm)
    )


class _Launch:
    """One op's kernels with their arguments, on detached and contiguous tensors."""

    def __init__(self, rows: HistoryRows, scoring: Scoring, plan: Plan, norm: Norm) -> None:
        self.candidates, self.heads, self.width = scoring.query_CHD.shape
        self.codes, self.norm, self.plan = scoring.bias_CHV.shape[2], norm, plan
        self.device = scoring.query_CHD.device
        query_CHD = scoring.query_CHD.detach().float().contiguous()
        self.query_shape, self.bias_shape = query_CHD.shape, scoring.bias_CHV.shape
        listed_L = plan.work_W4 if plan.listed_L is None else plan.listed_L
        now_C = plan.work_W4 if scoring.time_C is None else scoring.time_C.contiguous()
        self.rows = RowArgs(
            rows.vector_ID.detach().contiguous(),
            rows.item_T.contiguous(),
            rows.code_TG.contiguous(),
            rows.time_T.contiguous(),
            listed_L,
        )
        bias_CHV = scoring.bias_CHV.detach().float().contiguous()
        self.ask = AskArgs(query_CHD, bias_CHV, now_C, plan.span_C2, plan.flat_C)
        self.coded = {
            "FIELDS": rows.code_TG.shape[1],
            "RECENT": scoring.time_C is not None,
            "LISTED": plan.listed_L is not None,
        }
        self.context = bool(self.coded["FIELDS"]) or scoring.time_C is not None

    def scores(self, part_pool: Tensor | None, part_stat: Tensor | None) -> Tensor:
        """[H, S] scores; with room for them, also parts of the pooled vectors."""
        score_HS = self.empty(self.heads, self.plan.total)
        for first, last, columns in self.plan.launches:
            score_and_pool[(last - first,)](
                self.rows,
                self.ask,
                self.plan.work_W4,
                score_HS,
                score_HS if part_pool is None else part_pool,
                score_HS if part_stat is None else part_stat,
                first,
                self.plan.total,
                self.codes,
                self.plan.columns,
                NORM=_NORM[self.norm],
                POOL=part_pool is not None,
                **self._sizes(columns),
                **self.coded,
            )
        return score_HS

    def parts(self, last: int) -> Tensor:
        """Room for one partial answer per column of every work item."""
        return self.empty(len(self.plan.work_W4) * self.plan.columns, last)

    def join(self, part_pool: Tensor, part_stat: Tensor | None) -> tuple[Tensor, Tensor]:
        """Join parts into [C, H, D], and the columns' top score and factor [CH, 2]."""
        whole_CHD = self.empty(*self.query_shape)
        stat_Q2 = self.empty(self.candidates * self.heads, 2)
        if whole_CHD.numel():
            join_parts[(self.candidates * self.heads,)](
                part_pool,
                part_pool if part_stat is None else part_stat,
                self.plan.part_C3,
                whole_CHD,
                stat_Q2,
                self.plan.columns,
                heads=self.heads,
                width=self.width,
                NORM=_NORM[self.norm],
                STAT=part_stat is not None,
                D=_power(self.width, 16),
            )
        return whole_CHD, stat_Q2

    def by_code(self, value_HS: Tensor, stat_Q2: Tensor, *, weigh: bool) -> Tensor:
        """[C, H, V] sums of values, or of the weights of scores, over the rows with each code."""
        sum_CHV = self.empty(*self.bias_shape)
        if not self.context or not sum_CHV.numel():
            return sum_CHV.zero_()
        codes = min(_power(self.codes, 16), _CODES)
        sum_by_code[(self.candidates * self.heads, triton.cdiv(self.codes, codes))](
            self.rows,
            self.ask,
            value_HS,
            stat_Q2,
            sum_CHV,
            self.plan.total,
            self.codes,
            heads=self.heads,
            NORM=_NORM[self.norm],
            WEIGH=weigh,
            V=codes,
            R=64,
            **self.coded,
        )
        return sum_CHV

    def slopes(
        self, score_HS: Tensor, stat_Q2: Tensor, given: tuple[Tensor, Tensor, Tensor], grad_ID: Any
    ) -> tuple[Tensor, Tensor]:
        """Parts of the queries' gradient and the scores' slopes; adds to `grad_ID`, if any."""
        part_query, slope_HS = self.parts(self.width), score_HS
        if self.context:
            slope_HS = torch.empty_like(score_HS)
        for first, last, columns in self.plan.launches:
            slopes[(last - first,)](
                self.rows,
                self.ask,
                self.plan.work_W4,
                score_HS,
                stat_Q2,
                *given,
                part_query,
                slope_HS,
                part_query if grad_ID is None else grad_ID,
                first,
                self.plan.total,
                self.codes,
                self.plan.columns,
                NORM=_NORM[self.norm],
                TO_ROWS=grad_ID is not None,
                **self._sizes(columns),
                **self.coded,
            )
        return part_query, slope_HS

    def empty(self, *shape: int) -> Tensor:
        """Uninitialised float32 memory: kernels write every number of it."""
        return torch.empty(shape, device=self.device)

    def _sizes(self, columns: int) -> dict[str, Any]:
        """Block sizes for a number of columns, such that few registers spill (see --compile of
        benchmarks/gpu.py)."""
        matrix = columns > triton_plan.NARROW
        q, d = _power(columns, 16 if matrix else 1), _power(self.width, 16)
        rows = _BLOCK // d if matrix else 4 * _BLOCK // (q * d)
        return {
            "heads": self.heads,
            "width": self.width,
            "Q": q,
            "R": min(max(rows, 16), 32),
            "D": d,
            "MATRIX": matrix,
            "PRECISION": _precision(self.device),
            "num_warps": 8 if q > 16 or d > 64 else 4,
            "num_stages": 3 if d <= 64 else 2,
        }


class _BlockPool(torch.autograd.Function):
    """Differentiable in vectors, queries and biases; also returns the scores."""

    @staticmethod
    def forward(
        ctx: Any, vector_ID: Tensor, query_CHD: Tensor, bias_CHV: Tensor, launch: _Launch
    ) -> tuple[Tensor, Tensor, Tensor]:
        part_pool, part_stat = launch.parts(launch.width), launch.parts(2)
        score_HS = launch.scores(part_pool, part_stat)
        vector_CHD, stat_Q2 = launch.join(part_pool, part_stat)
        weight_CHV = launch.by_code(score_HS, stat_Q2, weigh=True)
        ctx.save_for_backward(
            vector_ID, query_CHD, bias_CHV, vector_CHD, weight_CHV, score_HS, stat_Q2
        )
        ctx.launch = launch
        ctx.mark_non_differentiable(score_HS)
        return vector_CHD, weight_CHV, score_HS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_CHD: Tensor, slope_CHV: Tensor, _slope_HS: Tensor) -> Any:
        # Reading the saved tensors makes PyTorch complain if they changed meanwhile.
        vector_ID, query_CHD, bias_CHV, vector_CHD, weight_CHV, score_HS, stat_Q2 = (
            ctx.saved_tensors
        )
        launch = ctx.launch
        slope_CHD, slope_CHV = slope_CHD.contiguous(), slope_CHV.contiguous()
        mean_CH = (slope_CHD * vector_CHD).sum(-1) + (slope_CHV * weight_CHV).sum(-1)
        grad_ID = None
        if ctx.needs_input_grad[0]:
            _refuse_if_deterministic()
            grad_ID = torch.zeros(vector_ID.shape, device=vector_ID.device)
        given = (slope_CHD, slope_CHV, mean_CH)
        part_query, slope_HS = launch.slopes(score_HS, stat_Q2, given, grad_ID)
        grad_query, _ = launch.join(part_query, None)
        grad_bias = launch.by_code(slope_HS, stat_Q2, weigh=False)
        return (
            None if grad_ID is None else grad_ID.to(vector_ID.dtype),
            grad_query.to(query_CHD.dtype),
            grad_bias.to(bias_CHV.dtype),
            None,
        )


def _refuse_if_deterministic() -> None:
    if torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(
            "the Triton ops add gradients of item vectors by atomics, whose order changes from "
            "run to run, but torch.use_deterministic_algorithms is on; use "
            "ops.force('reference'), or train on the CPU"
        )


def _power(count: int, least: int) -> int:
    return max(triton.next_power_of_2(max(count, 1)), least)


def _precision(device: torch.device) -> Literal["tf32x3", "ieee"]:
    """Three tf32 products are float32-exact to a few units and run on the matrix units."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return "tf32x3"
    return "ieee"
