"""Codes of item vectors and searches by code: what ETA, SDIM and SIM's hard search rank with.

A code is a few bytes per unique item; a candidate compares its own with those of its span's rows.
Three ways to compare (`Measure`): ETA counts differing bits (Hamming distance of SimHash codes),
SDIM counts differing bytes (each byte is the bucket of one group of hashes), hard search asks
whether the whole code is equal (the code is the value of an item field).

Shapes: I unique items, T history rows, C candidates, D vector width, B hash bits, G groups of P
hashes, Y code bytes, K kept rows, S total span length.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lcn.ops import code_reference, implementation

Measure = Literal["bits", "bytes", "whole"]
"""Distance of two codes: differing bits; differing bytes; 0 when equal and 1 when not."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of the history's items and of the candidates."""

    code_IY: UInt8[Tensor, "I Y"]
    item_T: Int[Tensor, " T"]
    """Row of `code_IY` of each history row."""
    query_CY: UInt8[Tensor, "C Y"]


@torch.no_grad()
def simhash(
    vector_ID: Float[Tensor, "I D"], plane_DB: Float[Tensor, "D B"]
) -> UInt8[Tensor, "I Y"]:
    """On which side of B random planes each vector lies, eight planes a byte.

    Two vectors at an angle of θ differ in a share θ/π of the bits on average.

    Source: Charikar 2002; used by ETA (arXiv 2108.04468).

    Args:
        vector_ID: one vector per row.
        plane_DB: normals of the planes; B a multiple of 8.
    """
    bit_IY8 = (vector_ID @ plane_DB > 0).unflatten(1, (-1, 8))
    return (bit_IY8 * _powers(8, vector_ID.device)).sum(-1, dtype=torch.uint8)


@torch.no_grad()
def bucket_codes(
    vector_ID: Float[Tensor, "I D"], plane_DGP: Float[Tensor, "D G P"]
) -> UInt8[Tensor, "I G"]:
    """Bucket of each vector in each of G groups of P random planes, one byte per group.

    Two vectors at an angle of θ share a bucket with probability (1 − θ/π)^P.

    Source: SDIM (arXiv 2205.10249).
    """
    planes = plane_DGP.shape[2]
    bit_IGP = (vector_ID @ plane_DGP.flatten(1) > 0).unflatten(1, (-1, planes))
    return (bit_IGP * _powers(planes, vector_ID.device)).sum(-1, dtype=torch.uint8)


def value_codes(value_I: Int[Tensor, " I"]) -> UInt8[Tensor, "I Y"]:
    """Field values as codes of four bytes, so that equal codes mean equal values."""
    # A column of one row counts as contiguous whatever its stride, and `view` then refuses it.
    code_I = value_I.new_empty(len(value_I), dtype=torch.int32).copy_(value_I)
    return code_I.view(torch.uint8).unflatten(0, (len(code_I), 4))


@torch.no_grad()
def code_topk(
    codes: Codes,
    span_C2: Int[Tensor, "C 2"],
    keep: int,
    measure: Measure,
    farthest: int | None = None,
) -> Int[Tensor, "C K"]:
    """The `keep` rows of each span nearest by code, nearest first, ties to the later row.

    Args:
        codes: of items and candidates.
        span_C2: first and one-past-last row of each candidate.
        keep: how many rows at most.
        measure: how codes are compared.
        farthest: rows at a greater distance are never kept; None keeps any.

    Returns:
        kept_CK: row numbers, -1 in empty slots.

    Raises:
        ValueError: keep is less than 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    limit = widest(codes, measure) if farthest is None else farthest
    return _ops(codes.code_IY).code_topk(codes, span_C2, keep, measure, limit)


@torch.no_grad()
def code_distance(codes: Codes, span_C2: Int[Tensor, "C 2"], measure: Measure) -> Int[Tensor, " S"]:
    """Distance of every row of every span, candidates one after the other."""
    return _ops(codes.code_IY).code_distance(codes, span_C2, measure)


def widest(codes: Codes, measure: Measure) -> int:
    """The greatest distance two codes can have."""
    width = codes.code_IY.shape[1]
    return {"bits": 8 * width, "bytes": width, "whole": 1}[measure]


def _powers(count: int, device: torch.device) -> Tensor:
    return (2 ** torch.arange(count, device=device)).to(torch.uint8)


def _ops(codes: Tensor) -> ModuleType:
    if implementation() == "reference" or codes.device.type != "cpu":
        return code_reference
    from lcn.ops import cpu_codes

    return cpu_codes
