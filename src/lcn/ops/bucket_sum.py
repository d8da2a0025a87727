"""Sums of the history vectors that fall into a candidate's hash buckets (SDIM).

Shapes: I unique items, T history rows, C candidates, G groups of hashes, B buckets of a group,
D vector width.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lcn.ops import code_reference, implementation
from lcn.ops.simhash import Codes


class BucketSum(NamedTuple):
    """What lies in each candidate's buckets."""

    sum_CGD: Float[Tensor, "C G D"]
    """Sum of the vectors of the rows that share the candidate's bucket of group g."""
    square_C: Float[Tensor, " C"]
    """Sum over rows of (number of groups shared)²; no gradient."""


def bucket_sum(
    vector_ID: Float[Tensor, "I D"], codes: Codes, span_C2: Int[Tensor, "C 2"]
) -> BucketSum:
    """Sum, per group, the vectors of each span's rows that collide with the candidate.

    Differentiable in `vector_ID`; rows that collide nowhere get exactly no gradient.

    Args:
        vector_ID: what is summed.
        codes: bucket codes (`bucket_codes`) of items and candidates.
        span_C2: first and one-past-last row of each candidate.
    """
    return BucketSum(*_ops(vector_ID).bucket_sum(vector_ID, codes, span_C2))


def bucket_table(
    vector_ID: Float[Tensor, "I D"],
    code_IG: UInt8[Tensor, "I G"],
    item_T: Int[Tensor, " T"],
    buckets: int,
) -> Float[Tensor, "G B D"]:
    """The sum of every bucket over all rows: what serving may keep of one user."""
    groups = code_IG.shape[1]
    code_TG = code_IG[item_T.long()].long() + buckets * torch.arange(groups, device=code_IG.device)
    table = vector_ID.new_zeros(groups * buckets, vector_ID.shape[1])
    row_TD = vector_ID[item_T.long()]
    for code_T in code_TG.unbind(1):
        table.index_add_(0, code_T, row_TD)
    return table.unflatten(0, (groups, buckets))


def _ops(floats: Tensor) -> ModuleType:
    fits = floats.device.type == "cpu" and floats.dtype == torch.float32
    if implementation() == "fast" and not fits:
        raise ValueError(
            "the fast ops need float32 tensors on the CPU, got "
            f"{floats.dtype} on {floats.device}; use ops.force('reference')"
        )
    if implementation() == "reference" or not fits:
        return code_reference
    from lcn.ops import cpu_buckets

    return cpu_buckets
