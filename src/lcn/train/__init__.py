"""Training: a run from config to a folder with its best model."""

from lcn.train.config import RunConfig, TrainConfig
from lcn.train.loop import RunSummary, train
from lcn.train.run import Run, open_run, saved_predictions

__all__ = [
    "Run",
    "RunConfig",
    "RunSummary",
    "TrainConfig",
    "open_run",
    "saved_predictions",
    "train",
]
