"""A bundle: everything a server needs of a trained model, in one folder without code in it.

manifest.json         this module's `BundleManifest`, written last
model.safetensors     parameters
tables.safetensors    item_IF, user_UP: field indices of every address
canary.safetensors    a collated batch and the logits it must give
items.parquet  users.parquet  vocabulary/<group>/<field>.parquet   names

A bundle is written under another name and renamed when whole. It loads only when every file has
its checksum, the parameters fit and are finite, and the canary's logits come out.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcn import __version__
from lcn.data.batch import Batch
from lcn.data.loader import BatchConfig
from lcn.errors import CheckpointError, DataError, ServeError
from lcn.files import sha256_of, sync, write_whole
from lcn.model import Model, ModelConfig
from lcn.schema import Manifest
from lcn.serve.canary import CANARY_TOLERANCE, canary_auc, canary_batch, check_canary, flatten
from lcn.serve.catalogue import Catalogue
from lcn.serve.names import NameTables, read_names
from lcn.train.checkpoint import load_weights
from lcn.train.run import open_run

FORMAT_VERSION = 2
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileFacts(_Record):
    """Size and checksum of a file."""

    bytes: int
    sha256: str


class CanaryFacts(_Record):
    """What the canary must give."""

    rows: int
    tolerance: float
    auc: float | None
    """On the canary's own rows; None when they have one label only."""


class BundleManifest(_Record):
    """The first file to read of a bundle and the last to be written."""

    format: Literal["lcn-bundle"] = "lcn-bundle"
    format_version: int
    name: str
    """Of the model: versions of one name replace each other."""
    version: str
    """Names exactly these bytes, unless another was asked for."""
    created: str
    program: str
    config: ModelConfig
    lifelong: int
    """N: newest source-domain events of the lifelong history."""
    short: int
    """Newest events of each domain in the short-term histories."""
    overlap: bool
    """Whether the newest source-domain events stand in the lifelong history too."""
    dataset: Manifest
    """Fields and their sizes; without the mapping."""
    dataset_fingerprint: str
    trained: dict[str, Any]
    """The best validation metric, its step and epoch."""
    cacheable: Literal["time enters as a bias at request time"] = (
        "time enters as a bias at request time"
    )
    """What an event's encoding may depend on: the event alone, so a state is good until the next
    event. A model without this promise is not loaded."""
    canary: CanaryFacts
    files: dict[str, FileFacts]

    @property
    def reads(self) -> int:
        """Newest events of a domain that a request looks at."""
        return max(self.lifelong, self.short) if self.overlap else self.lifelong + self.short


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What goes into a bundle."""

    name: str
    model: Model
    batch: BatchConfig
    manifest: Manifest
    item_IF: np.ndarray
    user_UP: np.ndarray
    names: NameTables
    canary: Batch
    trained: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle, loaded and checked."""

    folder: Path
    manifest: BundleManifest
    model: Model
    """In evaluation mode."""
    item_IF: Tensor
    user_UP: Tensor
    catalogue: Catalogue


def export_run(
    run: Path | str,
    folder: Path | str,
    *,
    name: str | None = None,
    version: str | None = None,
    dataset: Path | str | None = None,
) -> BundleManifest:
    """Make a bundle of a run's best model.

    Args:
        run: a run folder.
        folder: where the bundle goes; must not exist.
        name: of the model; default: the run's title.
        version: default: from the bytes.
        dataset: where the dataset is now, if it has moved.

    Raises:
        CheckpointError: no trained run there.
        ServeError: the folder exists, or a name cannot be one.
    """
    opened = open_run(run, dataset)
    title = re.sub(r"[^A-Za-z0-9._-]+", "-", name or opened.config.title).strip("-.")
    parts = BundleParts(
        name=title,
        model=opened.model,
        batch=opened.config.batch,
        manifest=opened.dataset.manifest,
        item_IF=opened.dataset.item_IF,
        user_UP=opened.dataset.user_UP,
        names=read_names(opened.dataset.folder),
        canary=canary_batch(opened.dataset, opened.config.batch),
        trained=opened.best,
    )
    return write_bundle(Path(folder), parts, version)


def write_bundle(folder: Path, parts: BundleParts, version: str | None = None) -> BundleManifest:
    """Write a bundle atomically; see `export_run` for what is raised."""
    for word in (parts.name, version or "v"):
        if not NAME.fullmatch(word):
            raise ServeError(
                f"{word!r} cannot name a model or version: letters, digits, '.', '_', '-', 64 at "
                "most, beginning with a letter or digit"
            )
    counts = (len(parts.names.items), len(parts.names.users))
    if counts != (len(parts.item_IF), len(parts.user_UP)):
        raise ServeError(
            f"the dataset names {counts[0]} items and {counts[1]} users but has "
            f"{len(parts.item_IF)} and {len(parts.user_UP)}; prepare the dataset again"
        )
    if folder.exists():
        raise ServeError(f"{folder} exists; remove it or give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        manifest = _fill(partial, parts, version)
        partial.chmod(0o755)
        partial.rename(folder)
        sync(folder.parent)
        return manifest
    except OSError as error:
        raise ServeError(f"cannot write bundle {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(partial: Path, parts: BundleParts, version: str | None) -> BundleManifest:
    model = parts.model.eval()
    with torch.inference_mode():
        logit_C = model(parts.canary).logit_C.clone()
    weights = {
        name: each.detach().clone().contiguous() for name, each in model.state_dict().items()
    }
    save_file(weights, partial / "model.safetensors")
    tables = {"item_IF": parts.item_IF, "user_UP": parts.user_UP}
    tables = {name: torch.from_numpy(np.array(each, np.int32)) for name, each in tables.items()}
    save_file(tables, partial / "tables.safetensors")
    save_file({**flatten(parts.canary), "logit_C": logit_C}, partial / "canary.safetensors")
    pq.write_table(parts.names.items, partial / "items.parquet")
    pq.write_table(parts.names.users, partial / "users.parquet")
    for (group, field), table in parts.names.values.items():
        path = partial / "vocabulary" / group / f"{field}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    files = {}
    for path in sorted(each for each in partial.rglob("*") if each.is_file()):
        path.chmod(0o644)  # safetensors writes for the owner alone
        sync(path)
        facts = FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))
        files[path.relative_to(partial).as_posix()] = facts
    dataset = parts.manifest.model_copy(update={"mapping": {}, "rejected": {}})
    manifest = BundleManifest(
        format_version=FORMAT_VERSION,
        name=parts.name,
        version=version or _version_of(files, model.config),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        program=__version__,
        config=model.config,
        lifelong=parts.batch.lifelong,
        short=parts.batch.short,
        overlap=parts.batch.overlap,
        dataset=dataset,
        dataset_fingerprint=parts.manifest.fingerprint,
        trained=dict(parts.trained),
        canary=CanaryFacts(
            rows=len(parts.canary),
            tolerance=CANARY_TOLERANCE,
            auc=canary_auc(logit_C, parts.canary.label_C),
        ),
        files=files,
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1)
    write_whole(partial / "manifest.json", text + "\n")
    return manifest


def read_bundle_manifest(folder: Path) -> BundleManifest:
    """Read a bundle's manifest.

    Raises:
        CheckpointError: no bundle, a newer format, or damaged.
    """
    path = folder / "manifest.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} holds no manifest.json: not a bundle; make one with `lcn export RUN BUNDLE`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; export the bundle again") from error
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has bundle format {version}, this program reads {FORMAT_VERSION}; export "
            "the run again with this program"
        )
    try:
        manifest = BundleManifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {place}: {first['msg']}; export the run again") from error
    for word in (manifest.name, manifest.version):
        if not NAME.fullmatch(word):
            raise CheckpointError(f"{path}: {word!r} cannot name a model or version")
    return manifest


def load_bundle(folder: Path | str) -> Bundle:
    """Load a bundle and see that it does what it did when it was made.

    Raises:
        CheckpointError: damaged, of a newer format, of another shape, with numbers that are not
            finite, or its canary gives other logits.
    """
    folder = Path(folder)
    manifest = read_bundle_manifest(folder)
    _check_files(folder, manifest)
    try:
        tables = load_file(folder / "tables.safetensors")
        model = Model(manifest.config, manifest.dataset)
        load_weights(folder / "model.safetensors", model)
        names = read_names(folder)
    except (OSError, SafetensorError, DataError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read bundle {folder}: {error}") from error
    model.eval()
    _check_finite(folder, model)
    _check_tables(folder, manifest, tables, names)
    bundle = Bundle(
        folder,
        manifest,
        model,
        tables["item_IF"],
        tables["user_UP"],
        Catalogue(manifest.dataset, names),
    )
    check_canary(model, folder, manifest.canary.tolerance, manifest.canary.auc)
    return bundle


def _check_files(folder: Path, manifest: BundleManifest) -> None:
    """Only regular files inside the folder, with the sizes and checksums of the manifest."""
    needed = {"model.safetensors", "tables.safetensors", "canary.safetensors", "items.parquet"}
    missing = sorted(needed - manifest.files.keys())
    if missing:
        raise CheckpointError(f"{folder}: its manifest does not list {missing[0]}")
    root = folder.resolve()
    for name, facts in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.resolve().is_relative_to(root):
            raise CheckpointError(f"{folder}: {name!r} is not a file inside the bundle")
        try:
            size, checksum = path.stat().st_size, sha256_of(path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        if (size, checksum) != (facts.bytes, facts.sha256):
            raise CheckpointError(
                f"{path} has SHA-256 {checksum} and {size} bytes, the manifest says "
                f"{facts.sha256} and {facts.bytes}: damaged; copy or export the bundle again"
            )


def _check_finite(folder: Path, model: Model) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{folder}: parameter {name!r} has values that are not finite")


def _check_tables(
    folder: Path, manifest: BundleManifest, tables: dict[str, Tensor], names: NameTables
) -> None:
    """Every index is one that the model has a row for, and every row has a name."""
    for name, fields, named in (
        ("item_IF", manifest.dataset.item_fields, len(names.items)),
        ("user_UP", manifest.dataset.profile_fields, len(names.users)),
    ):
        table = tables[name]
        if len(table) != named:
            raise CheckpointError(f"{folder}: {name} has {len(table)} rows but {named} names")
        if table.ndim != 2 or table.shape[1] != len(fields) or table.dtype != torch.int32:
            raise CheckpointError(
                f"{folder}: table {name} is {list(table.shape)} {table.dtype}, expected "
                f"{len(fields)} columns of int32"
            )
        for column, field in zip(table.unbind(1), fields, strict=True):
            if len(column) and not (0 <= int(column.min()) <= int(column.max()) < field.size):
                raise CheckpointError(
                    f"{folder}: {name}.{field.name} has indices outside 0..{field.size - 1}"
                )


def _version_of(files: dict[str, FileFacts], config: ModelConfig) -> str:
    text = json.dumps({name: facts.sha256 for name, facts in files.items()}, sort_keys=True)
    return hashlib.sha256((text + config.model_dump_json()).encode()).hexdigest()[:12]
