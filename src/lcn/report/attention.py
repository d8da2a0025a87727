"""What a trained model looked at, in words: the events each level kept for one candidate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import numpy as np
import torch

from lcn.backbones.base import Level
from lcn.data.batch import Batch
from lcn.data.dataset import Dataset
from lcn.data.loader import Collator
from lcn.data.names import Names
from lcn.report.records import AttentionCase, AttentionLevel, KeptEvent
from lcn.schema import Split
from lcn.train.run import Run

LEVEL_NAMES = {
    "complete": "complete scope",
    "median": "median scope",
    "focused": "focused scope",
    "search": "search",
    "exact": "attention over what the search kept",
    "full": "attention over everything",
}


def explain(
    run: Run, split: Split, sample: int, *, shown: int = 6, genre: str = "genre", rating: str = ""
) -> AttentionCase:
    """Explain one prediction: per level, how many events it kept and the strongest of them.

    Args:
        run: a trained run with a lifelong backbone.
        split: where the sample is.
        sample: row of the split.
        shown: events per level.
        genre: the item field to name beside titles.
        rating: the event context field that holds a number; "" for none.
    """
    config = run.config.batch
    batch = Collator(run.dataset, split, config)(np.array([sample]))
    with torch.inference_mode():
        output = run.model(batch, levels=True)
    names, zone = Names(run.dataset.folder), ZoneInfo(run.dataset.manifest.split.timezone)
    words = _Words(run.dataset, names, zone, genre, rating)
    address = int(batch.address_I[batch.candidate_C[0]])
    first, last = batch.lifelong_C2[0].tolist()
    seen = last - first
    levels = []
    for level in output.interest.levels:
        kept = int((level.kept_CK[0] >= 0).sum())
        events = _strongest(level, batch, words, min(shown, kept))
        name: str = LEVEL_NAMES.get(level.name) or level.name
        levels.append(AttentionLevel(name=name, kept=kept, total=seen, events=events))
    return AttentionCase(
        user=names.user_key(int(batch.address_U[0])),
        title=names.item_title(address),
        genre=words.item_value(address),
        when=words.when(int(batch.time_C[0])),
        label=int(batch.label_C[0]),
        probability=float(torch.sigmoid(output.logit_C[0])),
        run=run.config.title,
        levels=tuple(levels),
    )


def pick_samples(dataset: Dataset, split: Split, count: int, lifelong: int) -> list[int]:
    """Samples worth looking at: clicked ones of the users with the longest histories, one each."""
    samples = dataset.samples[split]
    length_S = dataset.lengths(samples)
    clicked = np.flatnonzero(np.asarray(samples.label_S) == 1)
    # Histories about as long as the model reads, so that the levels have something to leave out.
    by_fit = clicked[np.argsort(np.abs(length_S[clicked] - lifelong), kind="stable")]
    chosen: dict[int, int] = {}
    for row in by_fit:
        chosen.setdefault(int(samples.user_S[row]), int(row))
        if len(chosen) == count:
            break
    return list(chosen.values())


class _Words:
    """Names of what stands in a batch."""

    def __init__(
        self, dataset: Dataset, names: Names, zone: tzinfo, genre: str, rating: str
    ) -> None:
        manifest = dataset.manifest
        self._dataset, self._names, self._zone = dataset, names, zone
        self._genre = _position([field.name for field in manifest.item_fields], genre)
        self._rating = _position([field.name for field in manifest.event_context], rating)
        self._genre_name, self._rating_name = genre, rating

    def title(self, address: int) -> str:
        return self._names.item_title(address)

    def item_value(self, address: int) -> str:
        if self._genre is None:
            return ""
        index = int(self._dataset.item_IF[address, self._genre])
        return self._names.value("item", self._genre_name, index)

    def rating(self, context_G: Sequence[int]) -> float | None:
        if self._rating is None:
            return None
        text = self._names.value("event", self._rating_name, context_G[self._rating])
        try:
            return float(text)
        except ValueError:
            return None

    def when(self, milliseconds: int) -> datetime:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone(self._zone)


def _strongest(level: Level, batch: Batch, words: _Words, count: int) -> tuple[KeptEvent, ...]:
    weight_K = level.weight_CK[0]
    total = float(weight_K.sum()) or 1.0
    events = []
    for place in torch.argsort(weight_K, descending=True, stable=True)[:count].tolist():
        row = int(level.kept_CK[0, place])
        address = int(batch.address_I[batch.source.item_T[row]])
        events.append(
            KeptEvent(
                title=words.title(address),
                genre=words.item_value(address),
                rating=words.rating(batch.source.context_TG[row].tolist()),
                when=words.when(int(batch.source.time_T[row])),
                weight=float(weight_K[place]) / total,
            )
        )
    return tuple(events)


def _position(names: Sequence[str], name: str) -> int | None:
    return list(names).index(name) if name in names else None
