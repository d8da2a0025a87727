"""The click loss: cross-entropy of the model's logit and of its search stages' own."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lcn.data.batch import Batch
from lcn.model import Model, Output


def click_loss(model: Model, output: Output, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """L_CTR plus the search stage's losses where the backbone has some (SIM Soft; LAP's
    `search_loss` and `distill`).

    Returns:
        The loss, and its terms by name: `ctr` and, where there are such, `search` and
        `distillation`.
    """
    total = binary_cross_entropy_with_logits(output.logit_C, batch.label_C)
    terms = {"ctr": total.item()}
    auxiliary = output.interest.auxiliary_logit_C
    if auxiliary is not None and model.backbone.auxiliary_weight:
        search = binary_cross_entropy_with_logits(auxiliary, batch.label_C)
        terms["search"] = search.item()
        total = total + model.backbone.auxiliary_weight * search
    distillation = output.interest.distillation
    if distillation is not None:
        terms["distillation"] = distillation.item()
        total = total + model.backbone.distill_weight * distillation
    return total, terms
