"""A toy dataset with names, a model on it, its bundle: what serving tests start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from toy import make_toy

from lcn.backbones import BACKBONES
from lcn.data.batch import Batch
from lcn.data.dataset import Dataset
from lcn.data.loader import BatchConfig
from lcn.model import Model, ModelConfig
from lcn.serve.bundle import BundleParts, write_bundle
from lcn.serve.canary import canary_batch
from lcn.serve.names import read_names

BATCH = BatchConfig(size=64, lifelong=20, short=5)


@dataclass(frozen=True)
class World:
    """A dataset, a model and its bundle."""

    dataset: Dataset
    model: Model
    bundle: Path


def named_toy(folder: Path, **sizes: int) -> Dataset:
    """The toy dataset with keys, titles and vocabularies, as preparation would write them."""
    dataset = make_toy(folder, **sizes)
    items, users = len(dataset.item_IF), len(dataset.user_UP)
    keys = [None, *(f"i{n}" for n in range(1, items))]
    titles = [None, *(f"Item {n}" if n % 3 else None for n in range(1, items))]
    table = {"address": pa.array(range(items), pa.int32()), "key": keys, "title": titles}
    pq.write_table(pa.table(table), folder / "items.parquet")
    keys = [None, *(f"u{n}" for n in range(1, users))]
    table = {"address": pa.array(range(users), pa.int32()), "key": keys}
    pq.write_table(pa.table(table), folder / "users.parquet")
    manifest = dataset.manifest
    for group, fields in (
        ("event", manifest.event_context),
        ("request", manifest.request_context),
        ("candidate", manifest.candidate_fields),
        ("profile", manifest.profile_fields),
    ):
        for field in fields:
            path = folder / "vocabulary" / group / f"{field.name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = range(2, field.size)
            pq.write_table(
                pa.table(
                    {"value": [f"v{n}" for n in values], "index": pa.array(values, pa.int32())}
                ),
                path,
            )
    return dataset


def make_world(
    folder: Path, backbone: str = "lap", seed: int = 0, dataset: Dataset | None = None, **settings
) -> World:
    """A world with an untrained model (parity does not ask how good it is)."""
    batch = settings.pop("batch", BATCH)
    dataset = dataset or named_toy(folder / "dataset")
    torch.manual_seed(seed)
    options = {"sim_hard": {"key": "category"}, "lap": {"k1": 8, "k2": 4}}.get(backbone, {})
    if backbone in ("sim_soft", "twin", "eta", "sim_hard"):
        options["keep"] = 6
    config = BACKBONES[backbone].Config(**{**options, **settings.pop("options", {})})
    model = Model(
        ModelConfig(
            backbone=config, width=16, field_width=8, short={"width": 16}, hidden=(16,), **settings
        ),
        dataset.manifest,
    )
    spread(model)
    bundle = folder / f"bundle-{backbone}-{seed}"
    write_bundle(bundle, parts_of(model, dataset, batch=batch))
    return World(dataset, model.eval(), bundle)


def spread(model: Model) -> None:
    """Make an untrained model's scores differ from item to item."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "tables" in name or "embedding_VE" in name:
                parameter[2:].normal_(std=0.7)


def parts_of(
    model: Model,
    dataset: Dataset,
    name: str = "toy",
    canary: Batch | None = None,
    batch: BatchConfig = BATCH,
):
    """What a bundle of this model is made of."""
    return BundleParts(
        name=name,
        model=model,
        batch=batch,
        manifest=dataset.manifest,
        item_IF=dataset.item_IF,
        user_UP=dataset.user_UP,
        names=read_names(dataset.folder),
        canary=canary or canary_batch(dataset, batch),
        trained={"auc": 0.5},
    )
