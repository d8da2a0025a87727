"""Click logits of a split, in the split's order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from lcn.data.batch import Batch
from lcn.data.dataset import Dataset
from lcn.data.loader import BatchConfig, load_batches, user_order
from lcn.model import Model
from lcn.schema import Split


def predict_logits(
    model: Model, dataset: Dataset, split: Split, batch: BatchConfig
) -> NDArray[np.float32]:
    """Score every impression of a split; users go together, so that they share history rows.

    Returns:
        logit_S, aligned with the split's samples.
    """
    device = next(model.parameters()).device
    logit_S = np.full(len(dataset.samples[split]), np.nan, np.float32)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for piece in _batches(dataset, split, batch):
            output = model(piece.to(device))
            logit_S[piece.sample_C.numpy()] = output.logit_C.cpu().numpy()
    model.train(was_training)
    return logit_S


def _batches(dataset: Dataset, split: Split, batch: BatchConfig) -> Iterator[Batch]:
    order = user_order(np.asarray(dataset.samples[split].user_S))
    return load_batches(dataset, split, batch, order)
