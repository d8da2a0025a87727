"""What a model said about a split, kept on disk so that runs can be compared later.

A file of predictions is a `.npz` archive of four arrays and a text of JSON; nothing in it is
executable. Shapes: S impressions.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lcn.errors import DataError
from lcn.evaluate.checks import checked_label, checked_logit, checked_user
from lcn.files import written_whole

FORMAT_VERSION = 1
_ARRAYS = ("logit_S", "label_S", "user_S", "sample_S")
_FACTS = ("dataset", "split", "run", "seed")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Predictions:
    """One run's logits for impressions of one split of one dataset.

    Raises:
        DataError: empty, unequal lengths, NaN or infinite logits, labels other than 0 and 1, or
            a sample predicted twice.
    """

    logit_S: NDArray[np.floating]
    label_S: NDArray[np.uint8]
    user_S: NDArray[np.int64]
    """User addresses of the dataset."""
    sample_S: NDArray[np.int64]
    """Row of the split; what runs are aligned by."""
    dataset: str
    """Fingerprint of the dataset."""
    split: str
    run: str
    """What was trained, e.g. `lap + crp`; runs that differ in the seed alone share it."""
    seed: int
    config: str = ""
    """Digest of the run's settings without the seed; empty where unknown."""
    origin: str = ""
    """The file or run folder they come from, for messages; not saved."""

    def __post_init__(self) -> None:
        size = len(self.logit_S)
        try:
            checked_logit(self.logit_S)
            columns = {
                "label_S": checked_label(self.label_S, size),
                "user_S": checked_user(self.user_S, size),
                "sample_S": checked_user(self.sample_S, size),
            }
        except ValueError as error:
            raise DataError(f"predictions of run {self.run!r}: {error}") from error
        for name, column in columns.items():
            object.__setattr__(self, name, column)
        if len(np.unique(self.sample_S)) != size:
            raise DataError(
                f"predictions of run {self.run!r} name {size} samples but only "
                f"{len(np.unique(self.sample_S))} different ones; predict each sample once"
            )

    def __len__(self) -> int:
        """Return the number of impressions."""
        return len(self.logit_S)

    @property
    def title(self) -> str:
        """Run, seed and split, for messages."""
        return f"{self.run!r} (seed {self.seed}, {self.split})"

    def take(self, row_N: NDArray) -> Predictions:
        """Return the predictions of some rows (positions or a mask)."""
        return replace(self, **{name: getattr(self, name)[row_N] for name in _ARRAYS})

    def save(self, path: Path | str) -> Path:
        """Write a `.npz` file: whole or not at all, the same bytes for the same predictions."""
        path = Path(path)
        facts = {name: getattr(self, name) for name in (*_FACTS, "config")}
        facts["format_version"] = FORMAT_VERSION
        try:
            with written_whole(path) as partial, partial.open("wb") as file:
                np.savez(
                    file,
                    allow_pickle=False,
                    facts=np.array(json.dumps(facts, sort_keys=True)),
                    **{name: getattr(self, name) for name in _ARRAYS},
                )
        except OSError as error:
            raise DataError(
                f"cannot write predictions to {path}: {error.strerror}; free some space or "
                "choose another folder"
            ) from error
        return path


def load_predictions(path: Path | str) -> Predictions:
    """Read predictions written by `Predictions.save`.

    Raises:
        DataError: no such file, damaged, of another format version, or not valid predictions.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file):
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            facts = dict(json.loads(str(archive["facts"])))
            columns = {name: archive[name] for name in _ARRAYS}
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; give the .npz file of predictions that evaluation wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is not a whole file of predictions ({error}); predict again"
        ) from error
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has predictions format {version}, this program reads {FORMAT_VERSION}; "
            "predict again"
        )
    try:
        known = {name: facts[name] for name in _FACTS}
    except KeyError as error:
        raise DataError(f"{path} does not say its {error}; predict again") from error
    # Files written before there was a digest do not tell it.
    return Predictions(**columns, **known, config=facts.get("config", ""), origin=str(path))


def check_seeds(runs: Sequence[Predictions]) -> None:
    """Refuse predictions of one name that are not of different seeds of one run.

    Raises:
        DataError: settings that differ in more than the seed, or a seed given twice.
    """
    check_settings(runs)
    first: dict[int, Predictions] = {}
    for run in runs:
        if run.seed in first:
            raise DataError(
                f"run {run.run!r} is given twice with seed {run.seed}"
                f"{_origins(first[run.seed], run)}; give each seed once, and different models "
                "different names"
            )
        first[run.seed] = run


def check_settings(runs: Sequence[Predictions]) -> None:
    """Refuse predictions of one name whose settings are known to differ in more than the seed.

    Raises:
        DataError: they do; the message says what to do.
    """
    known = [run for run in runs if run.config]
    for run in known[1:]:
        if run.config != known[0].config:
            raise DataError(
                f"two models are called {run.run!r}{_origins(known[0], run)}, but their settings "
                "differ in more than the seed; give one of them another `name` in its config.yaml "
                "(`lcn train ... name=NAME` does from the start) and run `lcn evaluate` on both "
                "again"
            )


def _origins(a: Predictions, b: Predictions) -> str:
    return f" ({a.origin} and {b.origin})" if a.origin and b.origin else ""


def align(runs: Sequence[Predictions]) -> tuple[Predictions, ...]:
    """Put runs into one order of samples, the ascending one.

    Raises:
        DataError: the runs saw other datasets, splits or samples, or disagree on a label or user.
    """
    if not runs:
        raise DataError("there are no predictions to compare; give at least one run")
    ordered = tuple(_by_sample(run) for run in runs)
    for run in ordered[1:]:
        _check_pair(ordered[0], run)
    return ordered


def _by_sample(run: Predictions) -> Predictions:
    if (run.sample_S[1:] > run.sample_S[:-1]).all():
        return run
    return run.take(np.argsort(run.sample_S))


def _check_pair(a: Predictions, b: Predictions) -> None:
    for fact in ("dataset", "split"):
        if getattr(a, fact) != getattr(b, fact):
            raise DataError(
                f"runs {a.title} and {b.title} cannot be compared: they predict different {fact}s "
                f"({getattr(a, fact)} and {getattr(b, fact)}); predict both on the same {fact}"
            )
    if not np.array_equal(a.sample_S, b.sample_S):
        shared = len(np.intersect1d(a.sample_S, b.sample_S, assume_unique=True))
        raise DataError(
            f"runs {a.title} and {b.title} predict different samples: {len(a) - shared} only in "
            f"the first, {len(b) - shared} only in the second, {shared} in both; predict the "
            "whole split with both"
        )
    for fact in ("label_S", "user_S"):
        differ_S = getattr(a, fact) != getattr(b, fact)
        if differ_S.any():
            raise DataError(
                f"runs {a.title} and {b.title} disagree on the {fact[:-2]} of "
                f"{int(differ_S.sum())} samples, the first is sample "
                f"{int(a.sample_S[differ_S][0])}; they were not made from the same dataset: "
                "predict again"
            )
