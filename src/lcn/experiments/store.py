"""Where finished runs lie: one folder per config, shared by every table that has the same row.

<root>/<dataset name>-<fingerprint>/
    runs/<key>/              a run folder; key = hash of config and dataset fingerprint
        predictions/{validation,test}.npz
        done.json            written last: a run without it is unfinished and will be resumed
    records/<experiment>.json  what an experiment found, for `lcn experiment report`

Beside these lie generated logs (planted/) and quick views (views/), each made once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from lcn.backbones import BACKBONES
from lcn.backbones.base import Backbone
from lcn.evaluate.predictions import Predictions, load_predictions
from lcn.files import write_whole
from lcn.objectives import OBJECTIVES
from lcn.objectives.base import Objective
from lcn.schema import Manifest, Split
from lcn.train.config import RunConfig, result_settings, settings_digest

# Files of before write what is undefined as null.
_Value = Annotated[float, BeforeValidator(lambda given: math.nan if given is None else given)]


class Done(BaseModel):
    """The facts of a finished run."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    config: dict[str, Any]
    fingerprint: str
    validation: dict[str, _Value]
    """Metrics of the best step on the validation split: auc, gauc, log_loss; NaN if undefined."""
    best_step: int
    steps: int
    seconds: float
    """Wall time of training in the process that finished it."""
    commit: str
    machine: str
    revisions: dict[str, int] = {}
    """Of the backbone and the objectives it was trained with; see `revisions_of`."""


def revisions_of(config: RunConfig) -> dict[str, int]:
    """The revisions of a config's backbone and objectives, those that were ever raised.

    A revision is raised where a fix changes what the same settings train: runs of before are then
    not taken for runs of now.
    """
    parts: list[tuple[str, type[Backbone] | type[Objective]]] = [
        (each.name, OBJECTIVES[each.name]) for each in config.objectives
    ]
    backbone = config.model.backbone.name
    parts.append((backbone, BACKBONES[backbone]))
    return {name: part.revision for name, part in parts if part.revision}


def config_key(
    config: RunConfig, fingerprint: str, revisions: Mapping[str, int] | None = None
) -> str:
    """A short name of everything that decides a run's result.

    Args:
        config: of the run.
        fingerprint: of the dataset.
        revisions: those that it was trained with; those of the present code by default.
    """
    revisions = revisions_of(config) if revisions is None else revisions
    deciding: list[Any] = [result_settings(config), fingerprint]
    if revisions:
        deciding.append(dict(revisions))
    text = json.dumps(deciding, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(slots=True)
class Store:
    """The runs of one dataset."""

    folder: Path
    fingerprint: str
    _folder_of_key: dict[str, Path] = field(default_factory=dict)

    def run_folder(self, config: RunConfig) -> Path:
        """Where a run of this config is, or will be."""
        key = config_key(config, self.fingerprint)
        return self._folder_of_key.get(key, self.folder / "runs" / key)

    def finished(self, config: RunConfig) -> Done | None:
        """The facts of a run, None while it is unfinished."""
        return read_done(self.run_folder(config))

    def predictions(self, config: RunConfig, split: Split, name: str) -> Predictions:
        """Saved predictions of a finished run, under a row's name.

        The run was found by its config; the digest in the file may be of before a switch existed.
        """
        path = self.run_folder(config) / "predictions" / f"{split}.npz"
        return replace(load_predictions(path), run=name, config=settings_digest(config))

    def record_path(self, experiment: str) -> Path:
        """The file of an experiment's findings."""
        return self.folder / "records" / f"{experiment}.json"


def open_store(root: Path, manifest: Manifest) -> Store:
    """Open the store of a dataset and index its finished runs.

    A run made before a switch existed is found by its config with the switch at its default, which
    by the rule for new switches is what it did.
    """
    fingerprint = manifest.fingerprint
    folder = root / f"{manifest.name}-{fingerprint}"
    store = Store(folder, fingerprint)
    for path in sorted(folder.glob("runs/*/done.json")):
        done = read_done(path.parent)
        if done is None or done.fingerprint != fingerprint:
            continue
        try:
            config = RunConfig.model_validate(done.config)
        except ValidationError:
            continue  # a setting that no longer exists: nothing can ask for this run
        key = config_key(config, fingerprint, done.revisions)
        store._folder_of_key[key] = path.parent
    return store


def note_failure(folder: Path, error: str) -> None:
    """Keep why a run could not be trained, so that it is known without training it again."""
    write_whole(folder / "failed.txt", error + "\n")


def read_failure(folder: Path) -> str:
    """Why a run could not be trained; empty where nothing is known."""
    try:
        return (folder / "failed.txt").read_text("utf-8").strip()
    except OSError:
        return ""


def read_done(folder: Path) -> Done | None:
    """The facts of a run folder; None where it is unfinished or the file is damaged."""
    try:
        return Done.model_validate_json((folder / "done.json").read_bytes())
    except (OSError, ValidationError):
        return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; another one that wants it waits.

    The lock goes with the process that holds it, however that ends.
    """
    with _lock(folder / "lock"):
        yield


def made_once(folder: Path, make: Callable[[Path], Path]) -> Path:
    """A dataset that is made if it is missing, whole or not at all; others that want it wait.

    Args:
        folder: where it goes; the lock lies beside it.
        make: makes it somewhere in the folder that it is given and returns where.
    """
    if (folder / "manifest.json").exists():
        return folder
    with _lock(folder.with_name(f"{folder.name}.lock")):
        # Another process may have made it meanwhile.
        if not (folder / "manifest.json").exists():
            work = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
            shutil.rmtree(work, ignore_errors=True)
            made = make(work)
            shutil.rmtree(folder, ignore_errors=True)
            made.replace(folder)
            shutil.rmtree(work, ignore_errors=True)
    return folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # no such locks on this system: one experiment at a time there
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
