"""Attention to listed rows whose keys and values are projected already. No gradient.

Absorbed projections suit training, where a batch's rows are many and each meets few candidates. A
request turns that round: hundreds of candidates read one user's rows again and again, so their
keys and values are worth computing once, and a row then costs B multiply-adds in place of H D.
Shapes: J items, B all heads' width together, Y = 2 B, H heads, V context codes, E codes of a row,
T rows, C candidates, K listed rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcn.ops import implementation
from lcn.ops.reference import select_topk


@dataclass(frozen=True, slots=True)
class ProjectedRows:
    """Rows as sums of projected parts [key ‖ value]: row[t] = item[item_T[t]] + sum_e code[e]."""

    item_JY: Float[Tensor, "J Y"]
    code_VY: Float[Tensor, "V Y"]
    item_T: Int[Tensor, " T"]
    code_TE: Int[Tensor, "T E"]


@torch.no_grad()
def attend_listed(
    rows: ProjectedRows,
    kept_CK: Int[Tensor, "C K"],
    query_CB: Float[Tensor, "C B"],
    heads: int,
    keep: int = 0,
) -> tuple[Float[Tensor, "C B"], Int[Tensor, "C K2"]]:
    """Softmax attention of every head over the listed rows, and the best of them.

    Args:
        rows: float32 on the CPU for the compiled form.
        kept_CK: rows; -1 marks an empty slot.
        query_CB: queries, heads side by side, scaled.
        heads: H.
        keep: how many best rows (by the first head's score) to return; 0 for none.

    Returns:
        The heads' answers side by side, zero where no row is listed; the best rows as in
        `lcn.ops.Pool.kept_CK`.

    Raises:
        IndexError: an item, a code or a row points outside its table.
    """
    if implementation() != "reference" and _compiles(query_CB, heads):
        from lcn.ops import cpu_heads

        return cpu_heads.attend_listed(rows, kept_CK, query_CB, heads, keep)
    return _plain(rows, kept_CK, query_CB, heads, keep)


def _compiles(query_CB: Tensor, heads: int) -> bool:
    from lcn.ops.lanes import WIDTH

    plain = query_CB.device.type == "cpu" and query_CB.dtype == torch.float32
    return plain and query_CB.shape[1] // heads % WIDTH == 0


def _plain(
    rows: ProjectedRows, kept_CK: Tensor, query_CB: Tensor, heads: int, keep: int
) -> tuple[Tensor, Tensor]:
    """The definition."""
    if not len(rows.item_T):
        return torch.zeros_like(query_CB), kept_CK.new_full((len(kept_CK), keep), -1)
    row_TY = rows.item_JY[rows.item_T.long()] + rows.code_VY[rows.code_TE.long()].sum(1)
    # Ties go to the later row, so rows stand in time order.
    row_CK = kept_CK.sort(1).values
    real_C1K = (row_CK >= 0)[:, None]
    key_CKHB, value_CKHB = (
        part.unflatten(2, (heads, -1)) for part in row_TY[row_CK.clamp(min=0)].chunk(2, 2)
    )
    score_CHK = torch.einsum("chb,ckhb->chk", query_CB.unflatten(1, (heads, -1)), key_CKHB)
    score_CHK = score_CHK.masked_fill(~real_C1K, -torch.inf)
    weight_CHK = torch.where(real_C1K, score_CHK.softmax(-1), 0.0)
    answer_CB = torch.einsum("chk,ckhb->chb", weight_CHK, value_CKHB).flatten(1)
    if not keep:
        return answer_CB, kept_CK[:, :0]
    return answer_CB, select_topk(score_CHK[:, 0], row_CK, keep)
