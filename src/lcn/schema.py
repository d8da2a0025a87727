"""What a prepared dataset is: domains, fields, vocabularies, files and their version.

A dataset folder holds columns that are memory-mapped when read:

    manifest.json                this module's `Manifest`
    vocabulary/<group>/<field>.parquet  value (text), index, count; learned from training days
                                 only; groups: item, event, request, candidate, profile
    items.npy      [I, F]        field indices of each item address; row 0 is padding
    items.parquet                address, key (as text), title, and the domains whose logs it is
                                 in (source, target, both, none); rows are addresses
    users.npy      [U, P]        profile field indices of each user address; row 0 is unknown
    users.parquet                address and key (as text) of each user; rows are addresses
    events/<domain>/             one row per event, sorted by (user, known time, time)
        offsets.npy [U + 1]      first row of each user address; the last entry is the row count
        item.npy    [E]          item address
        time.npy    [E]          event time, UTC milliseconds
        context.npy [E, G]       event context field indices
    samples/<split>/             one row per impression, sorted by (time, user, item)
        user.npy, item.npy, time.npy, label.npy, dwell.npy (seconds, NaN when unknown)
        context.npy   [S, R]     request context field indices (known before the impression)
        candidate.npy [S, A]     candidate-only field indices
        probability.npy          true click probability, where known; never read by models
        source_end.npy, target_end.npy  one past the last event row known strictly before
    rejected/<table>.parquet     rows left out: reason, file, row; no part of the checksums

An *address* numbers every user and item that occurs anywhere; it only finds rows. What a model
may learn is a *vocabulary index*: 0 padding, 1 unknown (not seen in training days), then values.
An item's vocabulary index is its first item field, so an item unseen in training keeps its
category.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lcn.errors import DataError
from lcn.files import write_whole

SCHEMA_VERSION = 1
PADDING, UNKNOWN = 0, 1
FIRST_VALUE = 2

Domain = Literal["source", "target"]
DOMAINS: tuple[Domain, Domain] = ("source", "target")
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, Split, Split] = ("train", "validation", "test")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Field(_Record):
    """One categorical field and its number of indices, padding and unknown included."""

    name: str
    size: int


class Count(_Record):
    """Rows per part of a dataset, for humans and for sanity checks."""

    users: int
    items: int
    events: dict[str, int]
    """domain -> rows"""
    samples: dict[str, int]
    """split -> rows"""
    positives: dict[str, int]
    """split -> rows with label 1"""


class SplitTimes(_Record):
    """Bounds in UTC milliseconds: train < validation_from <= validation < test_from <= test."""

    timezone: str
    validation_from: int
    test_from: int


class Manifest(_Record):
    """The first file to read of a dataset folder and the last to be written."""

    schema_version: int = SCHEMA_VERSION
    name: str
    licence: str
    item_fields: tuple[Field, ...]
    """The first is the item itself."""
    event_context: tuple[Field, ...]
    request_context: tuple[Field, ...]
    candidate_fields: tuple[Field, ...]
    profile_fields: tuple[Field, ...]
    split: SplitTimes
    count: Count
    rejected: dict[str, dict[str, int]]
    """table -> reason -> rows"""
    mapping: dict[str, object]
    """The mapping the dataset was prepared with, resolved."""
    checksums: dict[str, str]
    """relative path -> SHA-256 of its bytes"""
    late_events: bool | None = None
    """Whether some events became known later after their logged time than others: they arrived
    late, or are logged less exactly. Times alone then do not tell who knew what. None: unknown."""
    known_after: int = 0
    """Milliseconds from the logged time of any event to when it was known, where all have the same:
    999 for times in whole seconds, a day's for dates. 0 where `late_events`, and unknown."""

    @property
    def fingerprint(self) -> str:
        """A short name for exactly these bytes, and for what `responses` say of them; checkpoints
        carry it."""
        import hashlib

        responses = self.mapping.get("responses")
        seen = [self.checksums, responses] if responses else self.checksums
        text = json.dumps(seen, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically: a folder without it is not a dataset."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
    write_whole(folder / "manifest.json", text + "\n")


def read_manifest(folder: Path | str) -> Manifest:
    """Read a dataset's manifest.

    Raises:
        DataError: the folder is no finished dataset, or was prepared by another schema version.
    """
    path = Path(folder) / "manifest.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no manifest.json: not a prepared dataset, or its preparation did not "
            "finish; run `lcn prepare` to make one"
        ) from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; prepare the dataset again") from error
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{folder} has dataset schema version {version}, this program reads {SCHEMA_VERSION}; "
            "prepare the dataset again"
        )
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        raise DataError(f"{path} is damaged: {error}; prepare the dataset again") from error
