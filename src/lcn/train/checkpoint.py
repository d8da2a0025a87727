"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is a folder of safetensors files and one JSON file, written under another name and
renamed when whole; no pickle anywhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lcn.errors import CheckpointError
from lcn.files import written_whole
from lcn.train.config import RunConfig, deciding_settings


class UnusableCheckpointError(CheckpointError):
    """A checkpoint that is there and that a run cannot go on from."""


@dataclass(slots=True)
class Progress:
    """Where a run stands."""

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch already used."""
    step: int = 0
    pretrained: int = 0
    """Steps on objectives alone, counted in `step` too."""
    from_source: int = 0
    """Steps on source-domain impressions, counted in `step` too."""
    best_value: float | None = None
    best_step: int = 0
    without_gain: int = 0
    """Validations since the best one."""
    metric_lines: int = 0
    """Lines of metrics.jsonl that belong to the run so far."""
    finished: bool = False
    """Validation has stopped improving; more epochs would not be used."""
    loss_sum: float = 0.0
    """Sum of the losses since the last metric line."""
    loss_count: int = 0
    """Number of the losses since the last metric line."""


@dataclass(slots=True)
class Trainee:
    """The parts of a run that change while it trains."""

    modules: dict[str, nn.Module]
    optimisers: Sequence[torch.optim.Optimizer]
    generator: torch.Generator
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a checkpoint belongs to."""

    dataset: str
    """Fingerprint."""
    settings: dict[str, Any]
    """Of `config.deciding_settings`."""


def save_checkpoint(folder: Path, trainee: Trainee, identity: Identity) -> None:
    """Write a checkpoint atomically, replacing an older one of the same name.

    Args:
        folder: where it shall stand.
        trainee: what to save.
        identity: what a resuming run must agree with.

    Raises:
        CheckpointError: it cannot be written (disk full, say); an older checkpoint is still whole.
    """
    with unwritable(folder):
        try:
            _write_checkpoint(folder, trainee, identity)
        except BaseException:
            shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
            raise


def _write_checkpoint(folder: Path, trainee: Trainee, identity: Identity) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, module in trainee.modules.items():
        _save(_contiguous(module.state_dict()), partial / f"{name}.safetensors")
    scalars = []
    for number, optimiser in enumerate(trainee.optimisers):
        tensors, plain = _split_state(optimiser)
        _save(tensors, partial / f"optimiser-{number}.safetensors")
        scalars.append(plain)
    random = {"global": torch.get_rng_state(), "objectives": trainee.generator.get_state()}
    _save(random, partial / "random.safetensors")
    state = {
        "identity": asdict(identity),
        "progress": asdict(trainee.progress),
        "optimisers": scalars,
    }
    (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        # Not before: where a kill left nothing but `old`, that is the only checkpoint.
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint to resume from: the folder, or the one it was replacing when killed."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / "state.json").exists():
            return candidate
    return None


def load_checkpoint(folder: Path, trainee: Trainee, identity: Identity) -> None:
    """Restore everything in place, global random state included.

    Raises:
        UnusableCheckpointError: damaged, or of other code or another model, config or dataset.
    """
    try:
        _restore(folder, trainee, identity)
    except CheckpointError as error:
        raise UnusableCheckpointError(str(error)) from error
    except (LookupError, TypeError, ValueError) as error:
        raise UnusableCheckpointError(
            f"checkpoint {folder} is damaged or was left by other code ({error!r}); start a new "
            "run folder"
        ) from error


def _restore(folder: Path, trainee: Trainee, identity: Identity) -> None:
    try:
        state = json.loads((folder / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read checkpoint {folder}: {error}") from error
    _check_identity(folder, state["identity"], identity)
    for name, module in trainee.modules.items():
        load_weights(folder / f"{name}.safetensors", module)
    for number, optimiser in enumerate(trainee.optimisers):
        tensors = _load(folder / f"optimiser-{number}.safetensors")
        _join_state(optimiser, tensors, state["optimisers"][number])
    random = _load(folder / "random.safetensors")
    torch.set_rng_state(random["global"])
    trainee.generator.set_state(random["objectives"])
    trainee.progress = Progress(**state["progress"])


def _check_identity(folder: Path, found: dict[str, Any], identity: Identity) -> None:
    """Refuse a checkpoint of other data or settings, naming the first setting that differs."""
    if found["dataset"] != identity.dataset:
        raise CheckpointError(
            f"checkpoint {folder} belongs to another dataset ({found['dataset']}, this run has "
            f"{identity.dataset}); start a new run folder, or go back to that dataset"
        )
    if "settings" not in found:
        raise CheckpointError(
            f"checkpoint {folder} is of an older format, which does not say its settings; start a "
            "new run folder"
        )
    # Read as the present code reads it: a switch that is new since has its default.
    try:
        read = RunConfig.model_validate({**found["settings"], "dataset": ""})
    except ValidationError as error:
        raise CheckpointError(
            f"checkpoint {folder} has settings that this program does not know ({error}); start a "
            "new run folder"
        ) from error
    differs = first_difference(deciding_settings(read), identity.settings)
    if differs is not None:
        name, before, now = differs
        raise CheckpointError(
            f"checkpoint {folder} belongs to another config: {name} was {before!r}, this run has "
            f"{now!r}; start a new run folder, or go back to that setting"
        )


def first_difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The dotted name of the first setting that differs, with both values; None if none does."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (name, before, now)
    for key in dict.fromkeys((*before, *now)):
        inner = f"{name}.{key}" if name else key
        found = first_difference(before.get(key), now.get(key), inner)
        if found is not None:
            return found
    return None


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a module's parameters atomically as safetensors.

    Raises:
        CheckpointError: they cannot be written (disk full, say); an older file is still whole.
    """
    with unwritable(path), written_whole(path) as partial:
        _save(_contiguous(module.state_dict()), partial)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors to a file that whoever may read its folder may read, not its owner alone."""
    save_file(tensors, path)
    path.chmod(path.parent.stat().st_mode & 0o666)


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Say which file of a run cannot be written, and what to do about it.

    Raises:
        CheckpointError: in the place of the system's error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path}: {error}; the run stops here. Free some space, then go on from "
            "the last whole checkpoint with `lcn train --resume`"
        ) from error


def load_weights(path: Path, module: nn.Module) -> None:
    """Read parameters into a module.

    Raises:
        CheckpointError: damaged, or names or shapes are those of another model.
    """
    _load_into(path, _load(path), module)


def load_part(path: Path, prefix: str, module: nn.Module) -> None:
    """Read the parameters whose names start with `prefix` into a part of a model.

    Raises:
        CheckpointError: damaged, or names or shapes are those of another model.
    """
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in _load(path).items()
        if name.startswith(prefix)
    }
    _load_into(path, tensors, module)


def _load_into(path: Path, tensors: dict[str, Tensor], module: nn.Module) -> None:
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors or name not in own:
            where = "the file" if name in tensors else "this model"
            raise CheckpointError(
                f"{path} is a checkpoint of another model: only {where} has {name!r}; "
                "check the backbone and its switches"
            )
        if tensors[name].shape != own[name].shape:
            raise CheckpointError(
                f"{path} is a checkpoint of another model or dataset: {name!r} is "
                f"{list(tensors[name].shape)} there and {list(own[name].shape)} here"
            )
    module.load_state_dict(tensors)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory (tied projections); each gets its own bytes.
    own, seen = {}, set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.detach().contiguous()
        own[name] = whole.clone() if place in seen else whole
        seen.add(place)
    return own


def _split_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, plain = {}, {}
    for index, entries in optimiser.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().contiguous()
            else:
                plain[f"{index}.{key}"] = value
    return tensors, plain


def _join_state(
    optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *plain.items()]:
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    whole = optimiser.state_dict()
    whole["state"] = state
    optimiser.load_state_dict(whole)
