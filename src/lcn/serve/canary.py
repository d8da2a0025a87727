"""The canary of a bundle: impressions whose logits must come out as they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lcn.data.batch import Batch, Rows
from lcn.data.dataset import Dataset
from lcn.data.loader import BatchConfig, Collator, user_order
from lcn.errors import CheckpointError, ServeError
from lcn.evaluate.metrics import auc
from lcn.model import Model
from lcn.schema import SPLITS

CANARY_ROWS = 256
CANARY_TOLERANCE = 1e-4
"""Of a logit; other processors add in another order."""
CANARY_AUC_LOSS = 0.002


def canary_batch(dataset: Dataset, config: BatchConfig) -> Batch:
    """Impressions of few users, the newest days first, as the model sees them."""
    for split in reversed(SPLITS):
        order = user_order(np.asarray(dataset.samples[split].user_S))[:CANARY_ROWS]
        if len(order):
            return Collator(dataset, split, config)(order)
    raise ServeError(f"{dataset.folder} has no impressions to check a bundle with")


def check_canary(model: Model, where: Path, tolerance: float, expected: float | None) -> None:
    """See that a loaded model gives the logits it gave when its bundle was made.

    Args:
        model: in evaluation mode.
        where: the bundle's folder.
        tolerance: of a logit.
        expected: AUC on the canary's rows then.

    Raises:
        CheckpointError: it does not, or the canary cannot be read.
    """
    try:
        tensors = load_file(where / "canary.safetensors")
        expected_C = tensors.pop("logit_C")
        batch = unflatten(tensors)
        with torch.inference_mode():
            logit_C = model(batch).logit_C
    except (OSError, SafetensorError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{where}: the canary cannot be scored: {error}") from error
    worst = float((logit_C - expected_C).abs().max()) if len(expected_C) else 0.0
    if logit_C.shape != expected_C.shape or not worst <= tolerance:
        raise CheckpointError(
            f"{where}: the canary's logits are off by {worst:.2g} (at most {tolerance:g}): "
            "these parameters are not those that were exported"
        )
    found = canary_auc(logit_C, batch.label_C)
    if expected is not None and (found is None or found < expected - CANARY_AUC_LOSS):
        raise CheckpointError(f"{where}: the canary's AUC is {found}, was {expected:.4f}")


def canary_auc(logit_C: Tensor, label_C: Tensor) -> float | None:
    """AUC; None where there is one label only."""
    if len(set(label_C.tolist())) < 2:
        return None
    return float(auc(logit_C.double().numpy(), label_C.numpy()))


def flatten(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name, as safetensors keeps them."""
    tensors = {}
    for name in Batch.__slots__:
        value = getattr(batch, name)
        if isinstance(value, Rows):
            tensors |= {f"{name}.{part}": getattr(value, part) for part in Rows.__slots__}
        else:
            tensors[name] = value
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def unflatten(tensors: dict[str, Tensor]) -> Batch:
    """The batch of `flatten`.

    Raises:
        KeyError, TypeError: a tensor is missing, or one is too many.
    """
    plain: dict[str, Any] = {}
    for domain in ("source", "target"):
        parts = {part: tensors.pop(f"{domain}.{part}") for part in Rows.__slots__}
        plain[domain] = Rows(**parts)
    return Batch(**{**plain, **tensors})
