"""A small view of a dataset for a quick look: the impressions of some users, all events kept."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lcn.data.dataset import Dataset, open_dataset
from lcn.experiments.settings import QUICK_USERS
from lcn.experiments.store import made_once
from lcn.files import sha256_of
from lcn.schema import SPLITS, Manifest, write_manifest


def quick_view(dataset: Path, root: Path) -> Path:
    """A dataset's view for a quick look, kept in the results store."""
    manifest = open_dataset(dataset).manifest
    view = root / "views" / f"{manifest.name}-{manifest.fingerprint}-{QUICK_USERS}"
    return take_users(dataset, view, QUICK_USERS)


def take_users(dataset: Path | str, folder: Path, users: int, seed: int = 0) -> Path:
    """Write a dataset with the impressions of `users` random users, once.

    Users are drawn among those with impressions; events, items and vocabularies are the same
    files (linked where the file system can). A dataset of no more users is returned as it is.

    Args:
        dataset: folder of a prepared dataset.
        folder: where the view goes.
        users: how many keep their impressions.
        seed: of the draw.

    Returns:
        The folder to open.
    """
    opened = open_dataset(dataset)
    shown = np.unique(np.concatenate([rows.user_S for rows in opened.samples.values()]))
    if len(shown) <= users:
        return Path(dataset)
    keep_U = np.zeros(len(opened.user_UP), bool)
    keep_U[np.random.default_rng(seed).choice(shown, users, replace=False)] = True
    return made_once(folder, partial(_make, opened, keep_U))


def _make(opened: Dataset, keep_U: NDArray[np.bool_], work: Path) -> Path:
    for path in sorted(opened.folder.rglob("*")):
        inside = path.relative_to(opened.folder)
        if path.is_file() and inside.parts[0] not in ("samples", "manifest.json", "rejected"):
            (work / inside).parent.mkdir(parents=True, exist_ok=True)
            _link(path, work / inside)
    counts: dict[str, dict[str, int]] = {"samples": {}, "positives": {}}
    checksums = dict(opened.manifest.checksums)
    for split in SPLITS:
        row_N = np.flatnonzero(keep_U[opened.samples[split].user_S])
        counts["samples"][split] = len(row_N)
        counts["positives"][split] = int(opened.samples[split].label_S[row_N].sum())
        for path in sorted((opened.folder / "samples" / split).glob("*.npy")):
            out = work / "samples" / split / path.name
            out.parent.mkdir(parents=True, exist_ok=True)
            np.save(out, np.load(path, mmap_mode="r", allow_pickle=False)[row_N])
            name = f"samples/{split}/{path.name}"
            checksums[name] = sha256_of(out)
    count = opened.manifest.count.model_copy(update=counts)
    update = {"count": count, "checksums": checksums}
    manifest: Manifest = opened.manifest.model_copy(update=update)
    write_manifest(work, manifest)
    return work


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)
