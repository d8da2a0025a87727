"""The configuration of a run."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from lcn.backbones import BACKBONES
from lcn.config import Config
from lcn.data.loader import BatchConfig
from lcn.errors import ConfigError
from lcn.model import ModelConfig
from lcn.objectives import ObjectiveConfig
from lcn.schema import Domain


class TrainConfig(Config):
    """How a model is fitted."""

    seed: NonNegativeInt = 0
    epochs: PositiveInt = 10
    """At most; early stopping usually ends sooner."""
    pretrain_steps: NonNegativeInt = 0
    """Steps on the objectives alone, at weight 1, before the first epoch; they do not count as
    steps of an epoch."""
    source_steps: NonNegativeInt = 0
    """Click steps on source-domain events as impressions, before the first epoch; the dataset's
    mapping says which are clicks (`responses`)."""
    joint_objectives: bool = True
    """False: objectives are for those first steps only, then clicks alone count."""
    learning_rate: NonNegativeFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's, on parameters with dense gradients; tables of `embedding.sparse_from` rows or more
    have none, since decaying them would touch rows that no batch touched."""
    table_optimiser: Literal["adam", "rowwise_adagrad"] = "adam"
    """Of tables with row-sparse gradients: lazy Adam, or row-wise Adagrad, whose state is one
    number per row and whose learning rate is usually ten times larger."""
    table_learning_rate: NonNegativeFloat = 0.0
    """Of those tables; 0 takes `learning_rate`."""
    patience: PositiveInt = 2
    """Evaluations without a better validation metric before stopping."""
    monitor: Literal["auc", "gauc", "log_loss"] = "auc"
    evaluate_every: NonNegativeInt = 0
    """Steps between validations; 0 validates at the end of each epoch."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints (one is also written at each end of an epoch)."""
    log_every: PositiveInt = 20
    """Steps between metric lines."""
    clip_norm: NonNegativeFloat = 0.0
    """Largest norm of the dense gradient; 0 does not clip."""
    workers: NonNegativeInt = 1
    """Threads that collate batches ahead of the trainer."""
    threads: NonNegativeInt = 0
    """Compute threads; 0 leaves the library's choice."""
    device: str = "cpu"


class RunConfig(Config):
    """Everything that decides a run's result, beside the code and the machine."""

    dataset: str
    """Folder of a prepared dataset."""
    name: str = ""
    """What is trained, for tables; default: backbone and objectives. Seeds of a run share it."""
    lifelong_domain: Domain = "source"
    """Whose events the lifelong history holds; target is single-domain mode (the paper's Table 4):
    histories and candidates of one domain, without objectives."""
    item_vectors_from: str = ""
    """A trained run on the same dataset whose item vectors this one starts from: those of the
    search where `model.search_table` is own or frozen, else the model's."""
    model: ModelConfig = ModelConfig()
    objectives: tuple[ObjectiveConfig, ...] = ()
    """Auxiliary objectives: L = L_CTR + Σ weight · L."""
    batch: BatchConfig = BatchConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _item_vectors_learn(self) -> RunConfig:
        if self.model.stop_gradient == "main" and not self.objectives:
            raise ValueError(
                "model.stop_gradient: main without objectives leaves item vectors untrained; add "
                "an objective (crp) or set it to none"
            )
        if self.model.stop_gradient == "main" and getattr(self.model.backbone, "search_loss", 0):
            raise ValueError(
                "model.backbone.search_loss trains item vectors, which model.stop_gradient: main "
                "leaves to the objectives; set one of them to its default"
            )
        return self

    @model_validator(mode="after")
    def _one_domain_has_no_source(self) -> RunConfig:
        if self.lifelong_domain == "target" and self.train.source_steps:
            raise ValueError(
                "lifelong_domain: target leaves one domain, and train.source_steps learns from the "
                "other; set one of them to its default"
            )
        return self

    @model_validator(mode="after")
    def _one_domain_has_no_pairs(self) -> RunConfig:
        if self.lifelong_domain == "target" and self.objectives:
            names = ", ".join(each.name for each in self.objectives)
            raise ValueError(
                f"lifelong_domain: target leaves one domain, and objectives ({names}) relate two; "
                "remove the objectives or set lifelong_domain to source"
            )
        return self

    @model_validator(mode="after")
    def _frozen_vectors_come_from_somewhere(self) -> RunConfig:
        if self.model.search_table == "frozen" and not self.item_vectors_from:
            raise ValueError(
                "model.search_table: frozen searches with item vectors that nothing trains here; "
                "set item_vectors_from to the folder of a run on this dataset"
            )
        return self

    @model_validator(mode="after")
    def _pretraining_has_something_to_learn(self) -> RunConfig:
        if self.train.pretrain_steps and not self.objectives:
            raise ValueError(
                "train.pretrain_steps trains on objectives alone and there are none; add one (crp) "
                "or set it to 0"
            )
        if self.train.pretrain_steps and self.model.stop_gradient == "objective":
            raise ValueError(
                "train.pretrain_steps with model.stop_gradient: objective would move nothing; set "
                "one of them to its default"
            )
        if self.objectives and not self.train.joint_objectives and not self.train.pretrain_steps:
            raise ValueError(
                "train.joint_objectives: false without train.pretrain_steps never uses the "
                "objectives; set pretrain_steps, or remove them"
            )
        return self

    @property
    def title(self) -> str:
        """`name`, or the backbone and objectives joined by +."""
        parts = [self.model.backbone.name, *(each.name for each in self.objectives)]
        return self.name or " + ".join(parts)


def refuse_idle_settings(config: RunConfig) -> None:
    """Refuse settings that training would not use; a run that was trained so can still be opened.

    Raises:
        ConfigError: an own search table that nothing trains, or recent items that nothing reads.
    """
    model, backbone = config.model, config.model.backbone
    learnt = (
        BACKBONES[backbone.name].trains_search(backbone)
        or (config.objectives and model.stop_gradient != "objective")
        or config.item_vectors_from
    )
    if model.search_table == "own" and not learnt:
        raise ConfigError(
            f"model.search_table: own with the backbone {backbone.name} as it is set searches with "
            "vectors that nothing trains; add an objective (crp), set item_vectors_from, or share "
            "the table"
        )
    wanted = getattr(backbone, "recent_queries", 0)
    if wanted > config.batch.short:
        raise ConfigError(
            f"model.backbone.recent_queries: {wanted} of the newest target-domain items, but a "
            f"short-term history holds {config.batch.short}; raise batch.short or ask for fewer"
        )


# Settings of `train` that do not count when configs are compared, by what is asked; where the data
# lies and what a run is called never count.
_NOT_STEP = ("epochs", "checkpoint_every", "workers")
"""May an interrupted run go on with this config? Its next step depends on none of these; `threads`
and `device` may change its last bits, and `log_every` what a metric line averages."""
_NOT_ROW = ("seed", "workers", "threads", "device", "checkpoint_every", "log_every")
"""Are these runs seeds of one row? They may differ in how fast and on what they went."""
_NOT_RESULT = ("workers", "threads", "checkpoint_every", "log_every")
"""Is a stored run the one that is wanted? Unlike above, its seed and its device count."""


def deciding_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what a run's next step is, as a tree; resuming compares them."""
    return _settings(config, _NOT_STEP)


def result_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide a run's result, as a tree; stored runs are found by them."""
    return _settings(config, _NOT_RESULT)


def settings_digest(config: RunConfig) -> str:
    """A short name of the settings that seeds of one row share."""
    tree = _settings(config, _NOT_ROW)
    # Each seed may start from a run of its own.
    tree["item_vectors_from"] = bool(config.item_vectors_from)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _settings(config: RunConfig, without: tuple[str, ...]) -> dict[str, Any]:
    return config.model_dump(
        mode="json", exclude={"dataset": True, "name": True, "train": set(without)}
    )
