"""An open dataset: memory-mapped columns, nothing copied until rows are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lcn.errors import DataError
from lcn.schema import DOMAINS, SPLITS, Domain, Manifest, Split, read_manifest

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EventStore:
    """One domain's events, sorted by (user, known time, time): a history is a range of rows."""

    offsets_U: Int64
    """[U + 1] first row of each user address."""
    item_E: Int32
    """Item address."""
    time_E: Int64
    """UTC milliseconds."""
    context_EG: Int32
    """Event context field indices."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One split's impressions, sorted by time."""

    user_S: Int32
    time_S: Int64
    item_S: Int32
    label_S: NDArray[np.uint8]
    dwell_S: NDArray[np.float32]
    context_SR: Int32
    candidate_SA: Int32
    source_end_S: Int64
    """One past the last source-domain row known strictly before the impression."""
    target_end_S: Int64

    def __len__(self) -> int:
        """Return the number of impressions."""
        return len(self.user_S)

    def end_S(self, domain: Domain) -> Int64:
        """One past the last row of a domain known strictly before each impression."""
        return np.asarray(self.source_end_S if domain == "source" else self.target_end_S)


@dataclass(frozen=True, slots=True, repr=False)
class Dataset:
    """A prepared dataset folder, opened for reading."""

    folder: Path
    manifest: Manifest
    item_IF: Int32
    """Vocabulary indices of every item address; the first field is the item itself."""
    user_UP: Int32
    events: dict[Domain, EventStore]
    samples: dict[Split, Samples]

    def __repr__(self) -> str:
        return f"Dataset({str(self.folder)!r}, {self.manifest.name})"

    def histories(
        self, samples: Samples, domain: Domain = "source", newest: int | None = None
    ) -> tuple[Int64, Int64]:
        """start_S, end_S: the rows of a domain known before each impression, or the newest ones."""
        end_S = samples.end_S(domain)
        start_S = np.asarray(self.events[domain].offsets_U)[np.asarray(samples.user_S)]
        return (start_S if newest is None else np.maximum(start_S, end_S - newest)), end_S

    def lengths(self, samples: Samples, domain: Domain = "source") -> Int64:
        """length_S: how many rows `histories` finds."""
        start_S, end_S = self.histories(samples, domain)
        return end_S - start_S


def open_dataset(folder: Path | str, *, lifelong: Domain = "source") -> Dataset:
    """Open a dataset folder; columns stay on disk until rows are read.

    Args:
        folder: of a prepared dataset.
        lifelong: the domain of lifelong histories; target is the single-domain view, see
            `single_domain`.

    Raises:
        DataError: not a finished dataset, another schema version, or a column missing or cut off.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    dataset = Dataset(
        folder=folder,
        manifest=manifest,
        item_IF=_column(folder / "items.npy"),
        user_UP=_column(folder / "users.npy"),
        events={domain: _open_events(folder / "events" / domain) for domain in DOMAINS},
        samples={split: _open_samples(folder / "samples" / split) for split in SPLITS},
    )
    _check_lengths(dataset)
    return dataset if lifelong == "source" else single_domain(dataset)


def single_domain(dataset: Dataset) -> Dataset:
    """The same impressions with the target domain's own events as their lifelong histories.

    What reads source-domain rows reads target-domain rows instead, so that every backbone works
    unchanged. Source: LCN (arXiv 2312.06424), Table 4.
    """
    samples = {
        split: replace(rows, source_end_S=rows.target_end_S)
        for split, rows in dataset.samples.items()
    }
    target = dataset.events["target"]
    return replace(dataset, events={"source": target, "target": target}, samples=samples)


def _open_events(folder: Path) -> EventStore:
    return EventStore(
        offsets_U=_column(folder / "offsets.npy"),
        item_E=_column(folder / "item.npy"),
        time_E=_column(folder / "time.npy"),
        context_EG=_column(folder / "context.npy"),
    )


def _open_samples(folder: Path) -> Samples:
    names = ("user", "time", "item", "label", "dwell", "source_end", "target_end")
    columns = {f"{name}_S": _column(folder / f"{name}.npy") for name in names}
    return Samples(
        context_SR=_column(folder / "context.npy"),
        candidate_SA=_column(folder / "candidate.npy"),
        **columns,
    )


def _column(path: Path) -> NDArray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; prepare the dataset again") from error
    except (ValueError, EOFError):
        # An empty array cannot be memory-mapped; anything else is damage.
        try:
            column = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{path} is damaged: {error}; prepare the dataset again") from error
        if column.size:
            raise DataError(f"{path} is cut off; prepare the dataset again") from None
        return column


def _check_lengths(dataset: Dataset) -> None:
    count = dataset.manifest.count
    found = {
        "users.npy": (len(dataset.user_UP), count.users),
        "items.npy": (len(dataset.item_IF), count.items),
        **{
            f"events/{domain}": (len(store.item_E), count.events[domain])
            for domain, store in dataset.events.items()
        },
        **{
            f"samples/{split}": (len(samples), count.samples[split])
            for split, samples in dataset.samples.items()
        },
    }
    for name, (got, expected) in found.items():
        if got != expected:
            raise DataError(
                f"{dataset.folder}/{name} has {got} rows, its manifest says {expected}; "
                "prepare the dataset again"
            )
