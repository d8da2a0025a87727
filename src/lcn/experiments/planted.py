"""Generated logs with planted truth, prepared once per config and kept in the store."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from lcn.data.mapping import read_mapping
from lcn.data.prepare import prepare
from lcn.data.sources import synthetic
from lcn.data.sources.synthetic_config import SyntheticConfig
from lcn.experiments.store import made_once

LOG: dict[str, Any] = {"categories": 20, "source_items": 1000, "target_items": 400, "seed": 1}
"""Few enough items that the training days show each of them often."""


def planted_config(users: int, **dials: float) -> SyntheticConfig:
    """A generated log of the experiments: `LOG` with some dials turned."""
    return SyntheticConfig.model_validate({**LOG, "users": users, **dials})


def planted_dataset(config: SyntheticConfig, root: Path) -> Path:
    """The prepared dataset of a generated log: made once, whole or not at all.

    Args:
        config: what is planted.
        root: the results store.
    """
    text = json.dumps([synthetic.VERSION, config.model_dump(mode="json")], sort_keys=True)
    folder = root / "planted" / hashlib.sha256(text.encode()).hexdigest()[:16]
    return made_once(folder, partial(_make, config))


def _make(config: SyntheticConfig, work: Path) -> Path:
    synthetic.generate(work / "logs", config)
    mapping = work / "logs" / "mapping.yaml"
    prepare(read_mapping(mapping), work / "dataset", base=mapping.parent)
    return work / "dataset"
