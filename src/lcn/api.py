"""What the commands do, as functions.

torch is imported by the functions that need it, so `prepare` stays light.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lcn.data.cache import cache_home
from lcn.data.mapping import Mapping, read_mapping
from lcn.data.sources import SOURCES
from lcn.errors import ConfigError, DataError, nearest
from lcn.schema import Manifest, Split

if TYPE_CHECKING:
    import pyarrow as pa

    from lcn.evaluate.compare import PairedDifference
    from lcn.evaluate.consistency import ConsistencyConfig
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
    if source not in SOURCES:
        raise DataError(f"no source is called {source!r}{nearest(source, SOURCES)}")
    return SOURCES[source].fetch(cache_home(os.environ), Path(path) if path else None)


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
        source = SOURCES[str(logs)]
        known = [option.partition(":")[0] for option in source.options]
        for name in options:
            if name not in known:
                hint = nearest(name, known) if known else "; it has none"
                raise ConfigError(f"source {logs} has no option {name!r}{hint}")
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
    import json

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
    base = RECIPES[name](str(dataset)).model_dump(mode="json")
    # A whole config as overrides of the empty one, so that the given overrides merge into it.
    given = [f"{key}={json.dumps(value)}" for key, value in base.items()]
    return load_config(RunConfig, None, [*given, *overrides])


def train(
    config: RunConfig, folder: Path | str, *, resume: bool = False, progress: bool = False
) -> Run:
    """Train a model into a run folder and open its best parameters.

    Raises:
        LcnError: see `lcn.train.loop.train`.
    """
    from lcn.train import open_run
    from lcn.train import train as run_training

    run_training(config, folder, resume=resume, progress=progress)
    return open_run(folder)


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
    from lcn.train import open_run

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
    from lcn.train import open_run

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


def compare(
    reference: Sequence[Path | str],
    other: Sequence[Path | str],
    *,
    split: Split = "test",
    resamples: int = 1000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two systems (each one or several seeds) on the same impressions, pair by pair.

    Args:
        reference: run folders of the system to compare with.
        other: run folders of the system to judge, with the same seeds.
        split: which samples.
        resamples: bootstrap resamples of users.
        seed: of the resampling.
    """
    from lcn.evaluate.compare import compare as compare_predictions
    from lcn.train import open_run, saved_predictions

    def predicted(folder: Path | str) -> Any:
        saved = Path(folder) / "predictions" / f"{split}.npz"
        return saved_predictions(saved) if saved.exists() else open_run(folder).predict(split)

    return compare_predictions(
        [predicted(folder) for folder in reference],
        [predicted(folder) for folder in other],
        resamples=resamples,
        generator=np.random.default_rng(seed),
    )


def predict(run: Path | str, split: Split = "test") -> pa.Table:
    """Click probabilities of a split: user, item (as in the logs), time, label, probability."""
    from lcn.train import open_run
    from lcn.train.predictions_table import predictions_table

    return predictions_table(open_run(run), split)
