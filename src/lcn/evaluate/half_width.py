"""The quality gate of half-width histories: what rounding item vectors to bfloat16 changes.

A model passes when search still finds the same rows and ranking is the same to the fourth decimal:
recall of the first stage's rows at least 0.99, AUC within 1e-4. A property of the trained vectors,
so it is measured per run.
Shapes: C candidates, K rows kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lcn.data.dataset import Dataset
from lcn.data.loader import BatchConfig, load_batches, user_order
from lcn.errors import DataError
from lcn.evaluate.consistency import overlap
from lcn.evaluate.metrics import auc
from lcn.evaluate.predict import predict_logits
from lcn.model import Model
from lcn.schema import Split

LEAST_RECALL = 0.99
LARGEST_AUC_CHANGE = 1e-4


@dataclass(frozen=True, slots=True)
class HalfWidth:
    """What half-width histories change in a model."""

    recall: float
    """Mean share of the rows found with float32 vectors that bfloat16 vectors find too, over
    candidates with more rows than are kept; NaN where there are none."""
    keep: int
    """Rows found."""
    auc_float32: float
    auc_bfloat16: float
    largest_logit_change: float
    impressions: int

    @property
    def passed(self) -> bool:
        """Whether half-width histories may be used."""
        found = np.isnan(self.recall) or self.recall >= LEAST_RECALL
        return bool(found and abs(self.auc_bfloat16 - self.auc_float32) <= LARGEST_AUC_CHANGE)


def measure_half_width(
    model: Model, dataset: Dataset, split: Split, batch: BatchConfig, *, keep: int = 0
) -> HalfWidth:
    """Compare a trained model with itself on half-width histories.

    Args:
        model: trained; its own setting of `history_vectors` does not matter.
        dataset: where the impressions are.
        split: which of them; validation, if the answer is to decide something.
        batch: history lengths and batch size.
        keep: rows compared; 0 takes the backbone's first stage (`k1` or `keep`), else 50.

    Raises:
        DataError: the split is empty.
        ConfigError: the backbone attends to nothing.
    """
    config = model.config.backbone
    keep = keep or getattr(config, "k1", 0) or getattr(config, "keep", 0) or 50
    label_S = np.asarray(dataset.samples[split].label_S)
    if not len(label_S):
        raise DataError(f"the {split} split of {dataset.folder} is empty; choose another --split")
    before = model.config
    try:
        logit_S, kept = {}, {}
        for width in ("float32", "bfloat16"):
            model.config = before.model_copy(update={"history_vectors": width})
            logit_S[width] = predict_logits(model, dataset, split, batch)
            kept[width] = _found(model, dataset, split, batch, keep)
    finally:
        model.config = before
    shares = [
        overlap(exact_CK, found_CK, rows_C)[rows_C > keep]
        for (exact_CK, rows_C), (found_CK, _) in zip(kept["float32"], kept["bfloat16"], strict=True)
    ]
    share_C = torch.cat(shares)
    return HalfWidth(
        recall=float(share_C.mean()) if len(share_C) else float("nan"),
        keep=keep,
        auc_float32=auc(logit_S["float32"], label_S),
        auc_bfloat16=auc(logit_S["bfloat16"], label_S),
        largest_logit_change=float(np.abs(logit_S["float32"] - logit_S["bfloat16"]).max()),
        impressions=len(label_S),
    )


@torch.inference_mode()
def _found(
    model: Model, dataset: Dataset, split: Split, batch: BatchConfig, keep: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows that search ranks highest, and the rows there are, batch by batch."""
    model.eval()
    found = []
    order = user_order(np.asarray(dataset.samples[split].user_S))
    for piece in load_batches(dataset, split, batch, order):
        parts = model.embed(piece)
        state = model.backbone.encode(parts.history)
        kept_CK = model.backbone.preceding(state, parts.query, piece.lifelong_C2, keep)
        found.append((kept_CK, piece.lifelong_C2[:, 1] - piece.lifelong_C2[:, 0]))
    return found
