"""What the commands about data, training and measurement do, as functions.

torch is imported by the functions that need it, so `prepare` stays light.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lcn.data.cache import cache_home
from lcn.data.mapping import Mapping, read_mapping
from lcn.data.sources import SOURCES, find_source
from lcn.errors import ConfigError, DataError, nearest
from lcn.schema import Manifest, Split

if TYPE_CHECKING:
    import pyarrow as pa

    from lcn.evaluate.compare import PairedDifference
    from lcn.evaluate.consistency import ConsistencyConfig
    from lcn.evaluate.half_width import HalfWidth
    from lcn.evaluate.predictions import Predictions
    from lcn.evaluate.readings import ConsistencyRow
    from lcn.evaluate.results import RunResult
    from lcn.train.config import RunConfig
    from lcn.train.run import Run


def fetch(source: str, path: Path | str | None = None) -> Path:
    """Fetch a built-in source into the cache (LCN_DATA) once; return its folder.

    Args:
        source: a name of `lcn data list`.
        path: files already at hand, instead of a download.

    Raises:
        DataError: unknown name, or it cannot be had; the message says what to do.
    """
    return find_source(source).fetch(cache_home(os.environ), Path(path) if path else None)


def prepare(
    logs: str | Path | Mapping,
    folder: Path | str,
    *,
    force: bool = False,
    path: Path | str | None = None,
    threads: int | None = None,
    memory_limit: str = "2GB",
    progress: bool = False,
    **options: Any,
) -> Manifest:
    """Turn logs into a dataset folder.

    Args:
        logs: a built-in source's name (fetched if need be), a mapping file, or a `Mapping`.
        folder: where the dataset goes.
        force: replace a dataset that stands there.
        path: a built-in source's files already at hand.
        threads: default: one per processor.
        memory_limit: of the SQL engine.
        progress: show stages on stderr.
        options: of the source's mapping, such as `domain="tab"` for KuaiRand.

    Raises:
        DataError: see `lcn.data.prepare.prepare`.
        ConfigError: an option the source does not have, or a broken mapping file.
    """
    from lcn.data.prepare import prepare as run_job

    mapping, base = _mapping_of(logs, path, options)
    return run_job(
        mapping,
        Path(folder),
        base=base,
        threads=threads,
        memory_limit=memory_limit,
        force=force,
        progress=progress,
    )


def _mapping_of(
    logs: str | Path | Mapping, path: Path | str | None, options: dict[str, Any]
) -> tuple[Mapping, Path | None]:
    """The mapping that `prepare` is asked for, and where its relative file names start."""
    if not isinstance(logs, Mapping) and str(logs) in SOURCES:
        source = find_source(str(logs), options)
        return source.mapping(fetch(str(logs), path), **options), None
    if options or path:
        given = ", ".join([*options, *(["path"] if path else [])])
        raise ConfigError(
            f"{given}: only built-in sources ({', '.join(SOURCES)}) have options and a path; a "
            "mapping file says itself which logs and what of them"
        )
    if isinstance(logs, Mapping):
        return logs, None
    if Path(logs).suffix in (".yaml", ".yml"):
        return read_mapping(logs), Path(logs).absolute().parent
    raise DataError(
        f"{str(logs)!r} is neither a mapping file (.yaml) nor a source"
        + nearest(str(logs), SOURCES)
    )


def recipe(name: str, dataset: Path | str, *overrides: str) -> RunConfig:
    """Return the config of a named system, with dotted overrides.

    Args:
        name: of `lcn.recipes.RECIPES`.
        dataset: folder of a prepared dataset, which the recipe may look at; empty where an
            override `dataset=...` names it.
        overrides: dotted settings.

    Raises:
        ConfigError: unknown name or setting (the nearest right one is named), or two datasets.
    """
    from lcn.config import load_config
    from lcn.recipes import RECIPES
    from lcn.train.config import RunConfig

    if name not in RECIPES:
        raise ConfigError(f"no recipe is called {name!r}{nearest(name, RECIPES)}")
    named = [each.partition("=")[2] for each in overrides if each.partition("=")[0] == "dataset"]
    for folder in named:
        if str(dataset) not in ("", folder):
            raise ConfigError(
                f"two datasets are named, {str(dataset)!r} and dataset={folder}; give one of them"
            )
        dataset = folder
    start = RECIPES[name](str(dataset)).model_dump(mode="json")
    return load_config(RunConfig, None, overrides, start=start)


def train(
    config: RunConfig, folder: Path | str, *, resume: bool = False, progress: bool = False
) -> Run:
    """Train a model into a run folder and open its best parameters.

    Raises:
        LcnError: see `lcn.train.loop.train`.
    """
    from lcn.train import train as run_training

    run_training(config, folder, resume=resume, progress=progress)
    return open_run(folder)


def open_run(folder: Path | str, dataset: Path | str | None = None) -> Run:
    """Open a run's best model; see `lcn.train.run.open_run`."""
    from lcn.train import open_run

    return open_run(folder, dataset)


def evaluate(
    run: Path | str | Sequence[Path | str],
    split: Split = "test",
    *,
    dataset: Path | str | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> list[RunResult]:
    """Measure runs with intervals over users (and seeds); one result per distinct run.

    Predictions are left in each run folder, where `compare` finds them.

    Raises:
        DataError: runs of one name that are not of different seeds, or whose settings differ in
            more than the seed.
    """
    from lcn.evaluate.compare import group_runs
    from lcn.evaluate.results import result_of

    folders = [run] if isinstance(run, str | Path) else list(run)
    predictions, validation = [], []
    for folder in folders:
        opened = open_run(folder, dataset)
        predicted = opened.predict(split)
        predicted.save(Path(folder) / "predictions" / f"{split}.npz")
        predictions.append(predicted)
        if split == "test":
            validation.append(opened.predict("validation"))
    return [
        result_of(
            group,
            [each for each in validation if each.run == group[0].run],
            generator=np.random.default_rng(seed),
            resamples=resamples,
        )
        for group in group_runs(predictions)
    ]


def consistency(
    run: Path | str,
    split: Split = "test",
    *,
    config: ConsistencyConfig | None = None,
    k1: Sequence[int] = (),
    dataset: Path | str | None = None,
) -> list[ConsistencyRow]:
    """Measure how far a run's search delivers what its attention would choose (Figure 5).

    Args:
        run: a run folder.
        split: which impressions.
        config: sizes; None takes the paper's.
        k1: for LAP, further K1 to measure with (Figure 5b); 0 is all rows.
        dataset: where the dataset is now, if it has moved.

    Raises:
        ConfigError: the backbone attends to nothing, or has no K1.
    """
    from lcn.evaluate.readings import consistency_rows

    opened = open_run(run, dataset)
    return consistency_rows(
        opened.model,
        opened.dataset,
        split,
        opened.config.batch,
        config,
        run=opened.config.title,
        seed=opened.config.train.seed,
        k1=tuple(k1),
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Systems on the same impressions, and how each other one differs from the first."""

    results: tuple[RunResult, ...]
    differences: tuple[PairedDifference, ...]


def compare(
    *runs: Path | str,
    split: Split = "test",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    dataset: Path | str | None = None,
) -> Comparison:
    """Compare systems on the same impressions, each with that of the first run, pair by pair.

    Runs that differ in the seed alone are seeds of one system; every system needs the same seeds.

    Args:
        runs: run folders, predicted now where `evaluate` has not, or files of predictions (.npz).
        split: which samples of run folders.
        level: coverage of the intervals.
        resamples: bootstrap resamples of users.
        seed: of the resampling; every comparison sees the same resamples.
        dataset: where the dataset is now, if it has moved.

    Raises:
        DataError: one system alone, different models of one name, or runs that cannot be paired.
    """
    from lcn.evaluate.compare import compare as compare_pair
    from lcn.evaluate.compare import group_runs
    from lcn.evaluate.results import result_of
    from lcn.train import saved_predictions

    def predicted(run: Path) -> Predictions:
        saved = run / "predictions" / f"{split}.npz" if run.is_dir() else run
        return saved_predictions(saved) if saved.exists() else open_run(run, dataset).predict(split)

    first, *others = group_runs([predicted(Path(run)) for run in runs])
    if not others:
        raise DataError(
            f"all of them are of one run, {first[0].run!r}; give predictions of another run to "
            "compare it with"
        )

    def drawn() -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        return {"generator": generator, "resamples": resamples, "level": level}

    return Comparison(
        tuple(result_of(system, **drawn()) for system in (first, *others)),
        tuple(compare_pair(first, other, **drawn()) for other in others),
    )


def half_width(
    run: Path | str,
    split: Split = "validation",
    *,
    keep: int = 0,
    dataset: Path | str | None = None,
) -> HalfWidth:
    """Measure what half-width histories change of a run; see `lcn.evaluate.half_width`.

    Args:
        run: a run folder.
        split: which samples; validation, if the answer is to decide something.
        keep: rows compared; 0 takes what the first stage keeps.
        dataset: where the dataset is now, if it has moved.
    """
    from lcn.evaluate.half_width import measure_half_width

    opened = open_run(run, dataset)
    return measure_half_width(opened.model, opened.dataset, split, opened.config.batch, keep=keep)


def predict(
    run: Path | str, split: Split = "test", *, dataset: Path | str | None = None
) -> pa.Table:
    """Click probabilities of a split: user, item (as in the logs), time, label, probability."""
    from lcn.train.predictions_table import predictions_table

    return predictions_table(open_run(run, dataset), split)
