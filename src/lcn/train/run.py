"""A run folder, opened: its config, its dataset and its best model.

config.yaml  environment.json  metrics.jsonl  tensorboard/
checkpoint/              to resume from
best.safetensors         parameters with the best validation metric
best.json                that metric, its step and epoch
predictions/<split>.npz  written by evaluation
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lcn.config import load_config
from lcn.data.dataset import Dataset, open_dataset
from lcn.errors import CheckpointError, ConfigError, DataError, nearest
from lcn.evaluate.predict import predict_logits
from lcn.evaluate.predictions import Predictions, load_predictions
from lcn.model import Model
from lcn.schema import SPLITS, Split
from lcn.train.checkpoint import load_weights
from lcn.train.config import RunConfig, settings_digest


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A trained run."""

    folder: Path
    config: RunConfig
    dataset: Dataset
    model: Model
    best: dict[str, Any]

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.config.title}, seed {self.config.train.seed})"

    def curves(self) -> list[dict[str, Any]]:
        """The metric lines."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def predict(self, split: Split) -> Predictions:
        """Score every impression of a split with the best model.

        Raises:
            ConfigError: no such split.
            DataError: the split is empty.
        """
        if split not in SPLITS:
            raise ConfigError(f"no split is called {split!r}{nearest(split, SPLITS)}")
        samples = self.dataset.samples[split]
        logit_S = predict_logits(self.model, self.dataset, split, self.config.batch)
        return Predictions(
            logit_S=logit_S,
            label_S=np.asarray(samples.label_S),
            user_S=np.asarray(samples.user_S, np.int64),
            sample_S=np.arange(len(logit_S)),
            dataset=self.dataset.manifest.fingerprint,
            split=split,
            run=self.config.title,
            seed=self.config.train.seed,
            config=settings_digest(self.config),
            origin=str(self.folder),
        )


def saved_predictions(path: Path | str) -> Predictions:
    """Load predictions; a run's own are those of its settings as the present code reads them.

    The digest in the file is of the day it was written: a switch that is new since is not in it,
    and seeds of before and after would be taken for runs of different settings.

    Raises:
        DataError: not such a file.
    """
    found = load_predictions(path)
    config = Path(path).absolute().parent.parent / "config.yaml"
    if not config.is_file():
        return found
    try:
        return replace(found, config=settings_digest(load_config(RunConfig, config)))
    except ConfigError:
        return found


def open_run(folder: Path | str, dataset: Path | str | None = None) -> Run:
    """Open a run's best model in evaluation mode.

    Args:
        folder: a run folder.
        dataset: where the dataset is now, if it has moved.

    Raises:
        CheckpointError: no run there, none of its validations finished, or trained on other data.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").exists():
        raise CheckpointError(f"{folder} holds no config.yaml: not a run folder of `lcn train`")
    if not (folder / "best.json").exists():
        raise CheckpointError(
            f"{folder} has no best model yet: its training stopped before the first validation; "
            "run `lcn train --resume` on it"
        )
    config = load_config(RunConfig, folder / "config.yaml")
    try:
        opened = open_dataset(dataset or config.dataset, lifelong=config.lifelong_domain)
    except DataError as error:
        moved = "" if dataset else f"; if the dataset of {folder} has moved, name it: --dataset"
        raise DataError(f"{error}{moved}") from error
    trained_on = json.loads((folder / "environment.json").read_text())["dataset_fingerprint"]
    if opened.manifest.fingerprint != trained_on:
        raise CheckpointError(
            f"{folder} was trained on dataset {trained_on}, {opened.folder} is "
            f"{opened.manifest.fingerprint}; indices would not mean the same, train again"
        )
    model = Model(config.model, opened.manifest)
    load_weights(folder / "best.safetensors", model)
    model.eval()
    best = json.loads((folder / "best.json").read_text())
    return Run(folder, config, opened, model, best)
