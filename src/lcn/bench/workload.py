"""Synthetic work of a given size, in memory: a dataset, its batches, a model over it.

Only sizes matter here: labels are coin tosses, so nothing can be learned and nothing is claimed
about quality. Users have source histories of N events (`full`) or of N·u² events with u uniform
(`ragged`: a third of N on average, as logs have many short histories and a few long ones); items
follow a power law. The g impressions of one user are a few events apart, so their spans differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcn.backbones import BACKBONES
from lcn.data.batch import Batch, Rows
from lcn.data.dataset import Dataset, EventStore, Samples
from lcn.data.loader import BatchConfig, Collator
from lcn.model import Model, ModelConfig
from lcn.schema import FIRST_VALUE, Count, Field, Manifest, SplitTimes

Lengths = Literal["full", "ragged"]
Popularity = Literal["power", "uniform", "head"]
"""power: items follow a power law over the whole table; uniform: all alike; head: the power law
over `HEAD` items, wherever they lie, so that tables of any size are touched alike."""

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
SHORT = 50
GAP = 3
"""Events between two impressions of one user."""
HEAD = 100_000
EXPONENT = 1.2
"""Of the power law: the item of rank r is drawn in proportion to r^-1.2."""


@dataclass(frozen=True, slots=True)
class Workload:
    """How much work."""

    backbone: str
    n: int
    """Events of the lifelong history."""
    items: int
    group: int
    lengths: Lengths = "full"
    batch: int = 1024
    width: int = 64
    popularity: Popularity = "power"

    @property
    def users(self) -> int:
        """Users of one batch."""
        return -(-self.batch // self.group)

    @property
    def batches(self) -> BatchConfig:
        """How the loader shall collate."""
        return BatchConfig(size=self.batch, group=self.group, lifelong=self.n, short=SHORT)


def build_model(work: Workload, *, sparse: bool, **settings: object) -> Model:
    """A model of the workload's widths.

    Args:
        work: its backbone, items and width.
        sparse: whether tables give row-sparse gradients.
        settings: fields of the backbone's config.
    """
    wide = {} if work.backbone in ("none", "sdim") else {"width": work.width}
    backbone = BACKBONES[work.backbone].Config(**{**wide, **settings})  # type: ignore[attr-defined]
    config = ModelConfig.model_validate(
        {
            "backbone": backbone.model_dump(),
            "width": work.width,
            "field_width": work.width,
            "short": {"width": work.width},
            "embedding": {"sparse_from": 2048 if sparse else 2**62},
        }
    )
    return Model(config, _manifest(work.items, users=1, samples=1))


def build_batches(work: Workload, count: int, seed: int = 0) -> list[Batch]:
    """Collate batches of different users."""
    dataset = build_dataset(work, count, seed)
    collate = Collator(dataset, "train", work.batches)
    return [
        collate(np.arange(at, at + work.batch)) for at in range(0, count * work.batch, work.batch)
    ]


def per_sample(batch: Batch) -> Batch:
    """The batch as padded frameworks hold it: every candidate brings rows of its own.

    No user's rows are shared and no item is looked up once for several rows: the embedding lookup
    gives a vector per row of every candidate, and its gradient goes back row by row.
    """
    count = len(batch)
    start_C = torch.minimum(batch.lifelong_C2[:, 0], batch.short_source_C2[:, 0])
    source_T, source_C2 = _own_rows(start_C, batch.lifelong_C2[:, 1])
    target_T, target_C2 = _own_rows(*batch.short_target_C2.unbind(1))
    item_J = torch.cat(
        [batch.source.item_T[source_T], batch.target.item_T[target_T], batch.candidate_C]
    ).long()
    places = torch.arange(len(item_J))
    source_I, target_I, candidate_C = places.split([len(source_T), len(target_T), count])
    return replace(
        batch,
        item_IF=batch.item_IF[item_J],
        address_I=batch.address_I[item_J],
        source=_take(batch.source, source_T, source_I, source_C2),
        target=_take(batch.target, target_T, target_I, target_C2),
        lifelong_C2=_ending(source_C2, batch.lifelong_C2),
        short_source_C2=_ending(source_C2, batch.short_source_C2),
        short_target_C2=target_C2,
        candidate_C=candidate_C,
        user_of_C=torch.arange(count),
        profile_UP=batch.profile_UP[batch.user_of_C],
        address_U=batch.address_U[batch.user_of_C],
    )


def _own_rows(start_C: Tensor, end_C: Tensor) -> tuple[Tensor, Tensor]:
    """Batch rows of every candidate one after the other, and the new spans."""
    length_C = end_C - start_C
    end_of_C = length_C.cumsum(0)
    shift_C = start_C - (end_of_C - length_C)
    row_T = torch.arange(int(length_C.sum())) + shift_C.repeat_interleave(length_C)
    return row_T, torch.stack([end_of_C - length_C, end_of_C], 1)


def _take(rows: Rows, row_T: Tensor, item_T: Tensor, span_C2: Tensor) -> Rows:
    offsets_U1 = torch.cat([span_C2.new_zeros(1), span_C2[:, 1]])
    return Rows(item_T.int(), rows.context_TG[row_T], rows.time_T[row_T], offsets_U1)


def _ending(whole_C2: Tensor, part_C2: Tensor) -> Tensor:
    """The newest rows of each span, as many as the part has."""
    length_C = part_C2[:, 1] - part_C2[:, 0]
    return torch.stack([whole_C2[:, 1] - length_C, whole_C2[:, 1]], 1)


def build_dataset(work: Workload, batches: int, seed: int = 0) -> Dataset:
    """Make the logs of as many users as `batches` batches hold, impressions in batch order."""
    rng = np.random.default_rng(seed)
    users, ahead = work.users * batches, GAP * (work.group - 1)
    length_U = np.full(users, work.n)
    if work.lengths == "ragged":
        length_U = np.ceil(work.n * rng.random(users) ** 2).astype(np.int64)
    offsets_U = {
        "source": _offsets(length_U + ahead),
        "target": _offsets(np.full(users, SHORT + ahead)),
    }
    events = {
        domain: _events(work, offsets, rng)  # type: ignore[arg-type]
        for domain, offsets in offsets_U.items()
    }
    count = work.batch * batches
    batch_S, place_S = np.divmod(np.arange(count), work.batch)
    user_S = batch_S * work.users + place_S // work.group
    step_S = GAP * (place_S % work.group)
    end_S = {domain: offsets[user_S + 1] - ahead + step_S for domain, offsets in offsets_U.items()}
    samples = Samples(
        user_S=user_S.astype(np.int32),
        time_S=NOW_MS + step_S,
        item_S=_items(work, count, rng),
        label_S=rng.integers(0, 2, count, np.uint8),
        dwell_S=np.zeros(count, np.float32),
        context_SR=rng.integers(FIRST_VALUE, 26, (count, 1), np.int32),
        candidate_SA=np.zeros((count, 0), np.int32),
        source_end_S=end_S["source"],
        target_end_S=end_S["target"],
    )
    item_IF = np.arange(work.items, dtype=np.int32)[:, None] + FIRST_VALUE
    return Dataset(
        folder=Path(),
        manifest=_manifest(work.items, users, count),
        item_IF=item_IF,
        user_UP=rng.integers(FIRST_VALUE, 10, (users, 1), np.int32),
        events=events,  # type: ignore[arg-type]
        samples={"train": samples},
    )


def _offsets(length_U: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(length_U)]).astype(np.int64)


def _events(work: Workload, offsets_U: NDArray[np.int64], rng: np.random.Generator) -> EventStore:
    count = int(offsets_U[-1])
    length_E = np.repeat(np.diff(offsets_U), np.diff(offsets_U))
    place_E = np.arange(count) - np.repeat(offsets_U[:-1], np.diff(offsets_U))
    # Half a year, evenly: order within a user is all that the ops rely on.
    age_E = 180 * DAY_MS * (length_E - place_E) // np.maximum(length_E, 1)
    return EventStore(
        offsets_U=offsets_U,
        item_E=_items(work, count, rng),
        time_E=NOW_MS - age_E,
        context_EG=rng.integers(FIRST_VALUE, 6, (count, 1), np.int32),
    )


def _items(work: Workload, count: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Draw item addresses; popular items lie anywhere in the table, as in a real one."""
    if work.popularity == "uniform":
        return rng.integers(0, work.items, count, np.int32)
    ranks = min(work.items, HEAD) if work.popularity == "head" else work.items
    # The continuous power law on [1, ranks + 1), by the inverse of its distribution.
    tail = 1 - EXPONENT
    rank = (1 + rng.random(count) * ((ranks + 1.0) ** tail - 1)) ** (1 / tail)
    place_R = np.random.default_rng(0).permutation(work.items).astype(np.int32)
    return place_R[np.minimum(rank.astype(np.int64) - 1, ranks - 1)]


def _manifest(items: int, users: int, samples: int) -> Manifest:
    return Manifest(
        name="benchmark",
        licence="generated",
        item_fields=(Field(name="item", size=items + FIRST_VALUE),),
        event_context=(Field(name="behaviour", size=6),),
        request_context=(Field(name="hour", size=26),),
        candidate_fields=(),
        profile_fields=(Field(name="age", size=10),),
        split=SplitTimes(timezone="UTC", validation_from=0, test_from=0),
        count=Count(
            users=users,
            items=items,
            events={},
            samples={"train": samples},
            positives={},
        ),
        rejected={},
        mapping={},
        checksums={},
    )
