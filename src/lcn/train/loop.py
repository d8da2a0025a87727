"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lcn.data.batch import Batch
from lcn.data.dataset import Dataset, open_dataset
from lcn.data.loader import epoch_order, load_batches
from lcn.data.source_clicks import source_clicks
from lcn.errors import ConfigError, TrainingError
from lcn.evaluate.metrics import auc, gauc, log_loss
from lcn.evaluate.predict import predict_logits
from lcn.files import write_whole
from lcn.model import Model
from lcn.objectives import Objective, Setup, View, build_objective
from lcn.train.checkpoint import (
    Identity,
    Trainee,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    unwritable,
)
from lcn.train.config import RunConfig, deciding_settings, refuse_idle_settings
from lcn.train.folder import alone_in, set_up
from lcn.train.loss import click_loss
from lcn.train.optimiser import build_optimisers
from lcn.train.progress import TrainingBar
from lcn.train.record import MetricLog
from lcn.train.transfer import take_item_vectors

PRETRAINING_ORDER = 1_000_000
"""Number of the order of samples in which pre-training begins: no epoch gets there."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended."""

    folder: Path
    best_value: float
    best_step: int
    steps: int
    stopped_early: bool
    samples_per_s: float
    """Of this process, validation excluded."""
    wait_share: float
    """Share of training time spent waiting for the loader."""


def train(
    config: RunConfig,
    folder: Path | str,
    *,
    resume: bool = False,
    progress: bool = True,
    label: str = "",
    after_step: Callable[[int], None] | None = None,
) -> RunSummary:
    """Train a model and leave a run folder behind.

    Args:
        config: everything that decides the result.
        folder: the run folder; must not hold a run unless `resume`.
        resume: continue from the folder's checkpoint, bit for bit (on the CPU, with the same
            number of threads); starts afresh where there is none.
        progress: show a bar on stderr.
        label: the bar's name.
        after_step: called with the step number after each step (for tests and tools).

    Raises:
        ConfigError: the folder holds a run already, another process trains in it, this machine has
            no such device, or settings that nothing would use.
        CheckpointError: its checkpoint is of another config or dataset (then
            `UnusableCheckpointError`), or one cannot be written.
        TrainingError: the loss is not finite (parameters are those before that step), or
            predictions of the validation split are not.
    """
    folder = Path(folder)
    refuse_idle_settings(config)
    _check_device(config.train.device)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    dataset = open_dataset(config.dataset, lifelong=config.lifelong_domain)
    _check_monitor(config.train.monitor, dataset)
    identity = Identity(dataset.manifest.fingerprint, deciding_settings(config))
    torch.manual_seed(config.train.seed)
    model = Model(config.model, dataset.manifest).to(config.train.device)
    model.check(dataset)
    objectives = _build_objectives(config, dataset)
    if (folder / "metrics.jsonl").exists() and not resume:
        raise ConfigError(f"{folder} holds a run already; choose another folder or --resume it")
    with ExitStack() as stack:
        stack.enter_context(alone_in(folder))
        checkpoint = find_checkpoint(folder / "checkpoint") if resume else None
        if config.item_vectors_from and checkpoint is None:
            take_item_vectors(Path(config.item_vectors_from), model, identity.dataset)
        trainee = Trainee(
            modules={"model": model, "objectives": objectives},
            optimisers=build_optimisers([model, objectives], config.train),
            generator=torch.Generator().manual_seed(config.train.seed),
        )
        if checkpoint is not None:
            load_checkpoint(checkpoint, trainee, identity)
        set_up(folder, config, identity.dataset, afresh=checkpoint is None)
        log = MetricLog(folder, lines=trainee.progress.metric_lines, step=trainee.progress.step)
        stack.callback(log.close)
        bar = stack.enter_context(TrainingBar(progress, label or config.title))
        loop = _Loop(config, folder, dataset, model, objectives, trainee, log, bar, identity)
        return loop.run(after_step or (lambda step: None))


def _build_objectives(config: RunConfig, dataset: Dataset) -> torch.nn.ModuleList:
    setup = Setup(dataset, config.model.width, config.model.field_width, config.batch.size)
    objectives = torch.nn.ModuleList(build_objective(each, setup) for each in config.objectives)
    return objectives.to(config.train.device)


@dataclass(slots=True)
class _Loop:
    config: RunConfig
    folder: Path
    dataset: Dataset
    model: Model
    objectives: torch.nn.ModuleList
    trainee: Trainee
    log: MetricLog
    bar: TrainingBar
    identity: Identity
    samples: int = 0
    training_s: float = 0.0
    waiting_s: float = 0.0

    def run(self, after_step: Callable[[int], None]) -> RunSummary:
        """Train until the epochs are used up or validation stops improving."""
        state, train = self.trainee.progress, self.config.train
        source = self._source_impressions()
        self._pretrain(after_step)
        self._learn_from_source(source, after_step)
        while state.epoch < train.epochs and not state.finished:
            for batch in self._timed(self._batches()):
                started = time.perf_counter()
                self._learn(batch)
                state.batch += 1
                self.training_s += time.perf_counter() - started
                if train.evaluate_every and state.step % train.evaluate_every == 0:
                    self._validate()
                if state.step % train.checkpoint_every == 0 or state.finished:
                    self._save()
                after_step(state.step)
                if state.finished:
                    break
            else:
                state.epoch, state.batch = state.epoch + 1, 0
                if not train.evaluate_every:
                    self._validate()
                self._save()
        if state.best_value is None:
            self._validate()
            self._save()
        total = self.training_s + self.waiting_s
        return RunSummary(
            folder=self.folder,
            best_value=float(state.best_value or math.nan),
            best_step=state.best_step,
            steps=state.step,
            stopped_early=state.without_gain >= train.patience,
            samples_per_s=self.samples / total if total else math.nan,
            wait_share=self.waiting_s / total if total else 0.0,
        )

    def _pretrain(self, after_step: Callable[[int], None]) -> None:
        """Steps on the objectives alone, in an order that no epoch has."""
        state, train = self.trainee.progress, self.config.train
        per_pass = math.ceil(len(self.dataset.samples["train"]) / self.config.batch.size)
        while state.pretrained < train.pretrain_steps:
            turn, first = divmod(state.pretrained, per_pass)
            for batch in self._timed(self._ordered(PRETRAINING_ORDER + turn, first)):
                self._learn(batch, kind="pretraining")
                state.pretrained += 1
                if state.step % train.checkpoint_every == 0:
                    self._save()
                after_step(state.step)
                if state.pretrained == train.pretrain_steps:
                    break

    def _learn_from_source(self, source: Dataset, after_step: Callable[[int], None]) -> None:
        """Click steps on the source domain's own impressions."""
        state, config, train = self.trainee.progress, self.config, self.config.train
        per_pass = math.ceil(len(source.samples["train"]) / config.batch.size)
        while state.from_source < train.source_steps:
            turn, first = divmod(state.from_source, per_pass)
            for batch in self._timed(self._ordered(PRETRAINING_ORDER + turn, first, source)):
                self._learn(batch, kind="source")
                state.from_source += 1
                if state.from_source == train.source_steps:
                    # What was summed since the last line is no loss of target-domain clicks.
                    state.loss_sum, state.loss_count = 0.0, 0
                if state.step % train.checkpoint_every == 0:
                    self._save()
                after_step(state.step)
                if state.from_source == train.source_steps:
                    break

    def _source_impressions(self) -> Dataset:
        """The dataset with source-domain impressions to train on, no more than are asked for."""
        train = self.config.train
        if self.trainee.progress.from_source >= train.source_steps:
            return self.dataset
        most = train.source_steps * self.config.batch.size
        samples = source_clicks(self.dataset, most, seed=train.seed)
        return replace(self.dataset, samples={**self.dataset.samples, "train": samples})

    def _batches(self) -> Iterator[Batch]:
        """What is left of this epoch."""
        state, config = self.trainee.progress, self.config
        total = math.ceil(len(self.dataset.samples["train"]) / config.batch.size)
        self.bar.epoch(state.epoch, config.train.epochs, total, state.batch)
        return self._ordered(state.epoch, state.batch)

    def _ordered(self, epoch: int, first: int, dataset: Dataset | None = None) -> Iterator[Batch]:
        """The batches of an epoch's order from the `first` on."""
        config, dataset = self.config, dataset or self.dataset
        samples = dataset.samples["train"]
        order = epoch_order(samples.user_S, config.batch.group, config.train.seed, epoch)
        return load_batches(
            dataset,
            "train",
            config.batch,
            order,
            first=first,
            workers=config.train.workers,
        )

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waiting_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _learn(
        self, batch: Batch, kind: Literal["train", "source", "pretraining"] = "train"
    ) -> None:
        """One optimiser step: on clicks, of the target or the source domain, or on the objectives
        alone."""
        state, train = self.trainee.progress, self.config.train
        self.model.train()
        batch = batch.to(train.device)
        for optimiser in self.trainee.optimisers:
            optimiser.zero_grad(set_to_none=True)
        clicks = kind != "pretraining"
        loss, terms = self._loss(batch) if clicks else self._objectives_alone(batch)
        if not math.isfinite(terms["loss"]):
            raise TrainingError(
                f"the loss is {terms['loss']} at step {state.step + 1} (epoch {state.epoch}, batch "
                f"{state.batch}, first samples {batch.sample_C[:5].tolist()}; terms {terms}); the "
                "parameters are those before this step: lower train.learning_rate or an "
                "objective's weight, or set train.clip_norm"
            )
        loss.backward()
        if train.clip_norm:
            dense = [
                parameter
                for module in self.trainee.modules.values()
                for parameter in module.parameters()
                if parameter.grad is not None and not parameter.grad.is_sparse
            ]
            torch.nn.utils.clip_grad_norm_(dense, train.clip_norm)
        for optimiser in self.trainee.optimisers:
            optimiser.step()
        state.step += 1
        if clicks:
            state.loss_sum, state.loss_count = state.loss_sum + terms["ctr"], state.loss_count + 1
        self.samples += len(batch)
        self.bar.step(state.step, terms["loss"], len(batch))
        if state.step % train.log_every == 0:
            mean = {"mean_ctr": state.loss_sum / state.loss_count} if state.loss_count else {}
            self._write(kind, {**terms, **mean})
            state.loss_sum, state.loss_count = 0.0, 0

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """L = L_CTR + the search stage's own loss + Σ weight · objective."""
        output = self.model(batch)
        total, terms = click_loss(self.model, output, batch)
        if self.config.train.joint_objectives:
            for objective, term in self._objective_terms(batch, output.item_ID, terms):
                total = total + objective.weight * term
        terms["loss"] = total.item()
        return total, terms

    def _objectives_alone(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """L = Σ objective: in pre-training no click loss needs weights to balance against."""
        terms: dict[str, float] = {}
        item_ID = self.model.embed(batch).contrasted_ID
        found = self._objective_terms(batch, item_ID, terms)
        total = torch.stack([term for _, term in found]).sum()
        terms["loss"] = total.item()
        return total, terms

    def _objective_terms(
        self, batch: Batch, item_ID: torch.Tensor, terms: dict[str, float]
    ) -> list[tuple[Objective, torch.Tensor]]:
        """Each objective with its loss, whose values are added to `terms`."""
        step = self.trainee.progress.step
        view = View(batch, item_ID, self.model.tables, self.trainee.generator, step)
        found = []
        for config, objective in zip(self.config.objectives, self.objectives, strict=True):
            assert isinstance(objective, Objective)
            term = objective(view)
            terms[config.name] = term.item()
            found.append((objective, term))
        return found

    def _validate(self) -> None:
        """Evaluate on the validation split; keep the best parameters; decide whether to stop."""
        state, train = self.trainee.progress, self.config.train
        self.bar.validating()
        samples = self.dataset.samples["validation"]
        logit_S = predict_logits(self.model, self.dataset, "validation", self.config.batch)
        if not np.isfinite(logit_S).all():
            raise TrainingError(
                f"training diverged: predictions after step {state.step} are not finite; "
                "lower train.learning_rate or an objective's weight, or set train.clip_norm"
            )
        label_S, user_S = np.asarray(samples.label_S), np.asarray(samples.user_S)
        values = {
            "auc": auc(logit_S, label_S),
            "gauc": gauc(logit_S, label_S, user_S).value,
            "log_loss": log_loss(logit_S, label_S),
        }
        self._write("validation", values)
        value = values[train.monitor]
        sign = -1.0 if train.monitor == "log_loss" else 1.0
        if state.best_value is None or sign * value > sign * state.best_value:
            state.best_value, state.best_step, state.without_gain = value, state.step, 0
            # Saved predictions are of the best model before this one.
            for stale in (self.folder / "predictions").glob("*.npz"):
                stale.unlink(missing_ok=True)
            save_weights(self.folder / "best.safetensors", self.model)
            best = {"monitor": train.monitor, "step": state.step, "epoch": state.epoch, **values}
            with unwritable(self.folder / "best.json"):
                write_whole(self.folder / "best.json", json.dumps(best, indent=1) + "\n")
        else:
            state.without_gain += 1
            state.finished = state.without_gain >= train.patience

    def _write(self, kind: str, values: dict[str, float]) -> None:
        state = self.trainee.progress
        with unwritable(self.folder / "metrics.jsonl"):
            self.log.write(kind, state.step, state.epoch, values)
        state.metric_lines += 1

    def _save(self) -> None:
        save_checkpoint(self.folder / "checkpoint", self.trainee, self.identity)


def _check_device(device: str) -> None:
    """Refuse a device that this machine or this build of PyTorch does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"train.device is {device!r}, which cannot be used here ({error}); PyTorch "
            f"{torch.__version__} sees {torch.cuda.device_count()} GPUs: set train.device to cpu, "
            "or install a build of PyTorch for this machine's GPU"
        ) from error


def _check_monitor(monitor: str, dataset: Dataset) -> None:
    """Refuse a metric that validation does not define: no epoch would ever be the best."""
    samples = dataset.samples["validation"]
    label_S, user_S = np.asarray(samples.label_S), np.asarray(samples.user_S)
    nothing_S = np.zeros(len(label_S))
    if monitor == "auc" and math.isnan(auc(nothing_S, label_S)):
        why = f"all {len(label_S):,} validation impressions have the label {label_S[0]}"
    elif monitor == "gauc" and math.isnan(gauc(nothing_S, label_S, user_S).value):
        why = "no user has validation impressions both clicked and not"
    else:
        return
    raise ConfigError(
        f"train.monitor is {monitor}, which is undefined here: {why}; set train.monitor to "
        f"{'auc or ' if monitor == 'gauc' else ''}log_loss, or prepare the dataset with another "
        "split"
    )
