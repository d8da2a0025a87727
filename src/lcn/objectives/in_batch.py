"""The contrast of pairs with the other pairs of their draw, one draw's logits at a time.

Shapes: P draws, U users, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def in_batch_contrast(
    x_PUD: Float[Tensor, "P U D"],
    y_PUD: Float[Tensor, "P U D"],
    x_key_PU: Int[Tensor, "P U"],
    y_key_PU: Int[Tensor, "P U"],
    valid_PU: Bool[Tensor, "P U"],
    temperature: float,
    *,
    with_positive: bool,
) -> Float[Tensor, ""]:
    """Mean over anchors of -log( e^{x_u·y_u/τ} / Σ_v e^{x_u·y_v/τ} ), v over users of one draw.

    v is no negative where its pair is not valid or its second item is one of the anchor's own pair.
    Equals `contrast.info_nce` over the same logits; memory is U², not P U², and a draw's logits
    stay in the cache from the product to the gradient.

    Args:
        x_PUD: unit vectors of the anchors; differentiable.
        y_PUD: unit vectors of the second members; differentiable.
        x_key_PU: what makes anchors the same item; see `contrast.item_key`.
        y_key_PU: of the second members.
        valid_PU: which users have a pair.
        temperature: τ.
        with_positive: whether the sum holds u's own pair (InfoNCE).

    Returns:
        The mean over anchors that have a negative; 0 without any.
    """
    return _InBatch.apply(  # type: ignore[no-any-return]
        x_PUD, y_PUD, x_key_PU, y_key_PU, valid_PU, temperature, with_positive
    )


class _InBatch(torch.autograd.Function):
    """The gradient of a mean is known but for one factor, so forward makes it in passing."""

    @staticmethod
    def forward(
        ctx: Any,
        x_PUD: Tensor,
        y_PUD: Tensor,
        x_key_PU: Tensor,
        y_key_PU: Tensor,
        valid_PU: Tensor,
        temperature: float,
        with_positive: bool,
    ) -> Tensor:
        slope_x_PUD, slope_y_PUD = torch.empty_like(x_PUD), torch.empty_like(y_PUD)
        total, anchors = x_PUD.new_zeros(()), x_PUD.new_zeros(())
        for draw in range(len(x_PUD)):
            x_UD, y_UD, y_key_U = x_PUD[draw], y_PUD[draw], y_key_PU[draw]
            logit_UU = (x_UD @ y_UD.T).div_(temperature)
            positive_U = logit_UU.diagonal().clone()
            # A user stands in a draw once: the diagonal is refused too, its keys are equal.
            refused_UU = y_key_U[:, None] == y_key_U
            refused_UU |= x_key_PU[draw][:, None] == y_key_U
            refused_UU |= ~valid_PU[draw]
            top_U = logit_UU.masked_fill_(refused_UU, -torch.inf).amax(1)
            wanted_U = valid_PU[draw] & (top_U > -torch.inf)
            if with_positive:
                logit_UU.diagonal().copy_(positive_U)
                top_U = torch.maximum(top_U, positive_U)
            # Anchors without a negative weigh nothing: e^-inf, whatever τ is.
            top_U = torch.where(wanted_U, top_U, 0.0)
            logit_UU.masked_fill_(~wanted_U[:, None], -torch.inf)
            weight_UU = logit_UU.sub_(top_U[:, None]).exp_()
            sum_U = torch.where(wanted_U, weight_UU.sum(1), 1.0)
            total += torch.where(wanted_U, sum_U.log() + top_U - positive_U, 0.0).sum()
            anchors += wanted_U.sum()
            slope_UU = weight_UU.mul_((wanted_U / sum_U)[:, None])
            slope_UU.diagonal().sub_(wanted_U.to(slope_UU.dtype))
            torch.mm(slope_UU, y_UD, out=slope_x_PUD[draw])
            torch.mm(slope_UU.T, x_UD, out=slope_y_PUD[draw])
        anchors.clamp_(min=1)
        ctx.save_for_backward(slope_x_PUD, slope_y_PUD, 1 / (temperature * anchors))
        return total / anchors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        slope_x_PUD, slope_y_PUD, scale = ctx.saved_tensors
        factor = grad * scale
        return slope_x_PUD * factor, slope_y_PUD * factor, None, None, None, None, None
