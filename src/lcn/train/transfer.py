"""Item vectors of a finished run as the start of another: pre-training, offline search tables."""

from __future__ import annotations

import json
from pathlib import Path

from lcn.errors import CheckpointError
from lcn.model import Model
from lcn.train.checkpoint import load_part


def take_item_vectors(run: Path, model: Model, dataset: str) -> None:
    """Start a model's item encoder from a trained run's.

    Its search encoder where it has one (`search_table` own or frozen), else the one that
    everything reads. The run's own search encoder, if any, is left aside.

    Args:
        run: a run folder with a best model.
        model: changed in place.
        dataset: fingerprint of the dataset that the model will be trained on.

    Raises:
        CheckpointError: no such run, not finished, of another dataset, or of other widths.
    """
    weights = run / "best.safetensors"
    if not weights.exists():
        raise CheckpointError(
            f"item_vectors_from: {run} has no best.safetensors; name the folder of a run that "
            "`lcn train` has finished"
        )
    trained_on = json.loads((run / "environment.json").read_text())["dataset_fingerprint"]
    if trained_on != dataset:
        raise CheckpointError(
            f"item_vectors_from: {run} was trained on dataset {trained_on}, this run is on "
            f"{dataset}; its rows would mean other items"
        )
    load_part(weights, "item.", model.search_item or model.item)
