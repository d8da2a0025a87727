"""The click loss: cross-entropy of the model's logit and of its search stage's own."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lcn.data.batch import Batch
from lcn.model import Model, Output


def click_loss(model: Model, output: Output, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """L_CTR plus the search stage's loss where the backbone has one (SIM Soft).

    Returns:
        The loss, and its terms by name: `ctr` and, where there is one, `search`.
    """
    total = binary_cross_entropy_with_logits(output.logit_C, batch.label_C)
    terms = {"ctr": total.item()}
    auxiliary = output.interest.auxiliary_logit_C
    if auxiliary is not None and model.backbone.auxiliary_weight:
        search = binary_cross_entropy_with_logits(auxiliary, batch.label_C)
        terms["search"] = search.item()
        total = total + model.backbone.auxiliary_weight * search
    return total, terms
