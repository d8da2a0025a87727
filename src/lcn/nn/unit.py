"""Vectors of length 1, zero vectors included.

Shapes: U rows, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def unit(x_UD: Float[Tensor, "U D"]) -> Float[Tensor, "U D"]:
    """Rows scaled to length 1; a row shorter than 1e-8 becomes zero and gets no gradient."""
    norm_U1 = x_UD.norm(dim=-1, keepdim=True)
    real_U1 = norm_U1 > 1e-8
    scaled_UD = x_UD / torch.where(real_U1, norm_U1, 1.0)
    return torch.where(real_U1, scaled_UD, 0.0)
