"""One selection from several heads' rankings (TWIN)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcn.ops import code_reference, implementation


@torch.no_grad()
def merge_heads(
    kept_CHK: Int[Tensor, "C H K"], mean_CHK: Float[Tensor, "C H K"], keep: int
) -> Int[Tensor, "C K2"]:
    """Traverse the heads' rankings rank by rank until `keep` unique rows are collected.

    Rows of one rank enter by their mean score over the heads, equal means the later row first.

    Source: TWIN (arXiv 2302.02352), section 4.2.

    Args:
        kept_CHK: each head's rows, best first, -1 in empty slots.
        mean_CHK: mean score over all heads of those rows.
        keep: how many to collect.

    Returns:
        kept_CK: unique rows in order of collection, -1 in empty slots.
    """
    if implementation() == "reference" or kept_CHK.device.type != "cpu":
        return code_reference.merge_heads(kept_CHK, mean_CHK, keep)
    from lcn.ops import cpu_codes

    return cpu_codes.merge_heads(kept_CHK, mean_CHK, keep)
