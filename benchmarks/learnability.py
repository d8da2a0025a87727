"""Do the systems learn planted truth, and stay at chance where there is none?

    python benchmarks/learnability.py --users 20000 --rho 0.9 0.0 --seeds 5 [--json]

Generates logs whose click probabilities are known, prepares them, trains each system with several
seeds and prints test AUC with intervals over users and seeds, the paired difference to `none`, and
the gap to the best reachable AUC. The same epochs, settings and early stopping for every system.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from lcn.api import recipe
from lcn.data.dataset import open_dataset
from lcn.data.mapping import read_mapping
from lcn.data.prepare import prepare, true_probability
from lcn.data.sources import synthetic
from lcn.evaluate.compare import compare
from lcn.evaluate.metrics import auc
from lcn.evaluate.results import result_of
from lcn.train import open_run, train
from lcn.train.record import commit, processor

SETTINGS = (
    "model.width=32",
    "model.field_width=32",
    "model.short={width: 32, heads: 4}",
    "model.embedding.std=0.3",
    "model.products=true",
    "batch.size=512",
    "batch.group=8",
    "batch.lifelong=300",
    "batch.short=20",
    "train.epochs=4",
    "train.patience=1",
    "train.learning_rate=0.002",
    "train.threads=1",
)
"""Alike for every system; chosen by the validation AUC of `none` and `full`, seed 0."""

LOG = {"categories": 20, "source_items": 1000, "target_items": 400, "seed": 1}
"""The generated log: few enough items that the training days show each of them often."""


@dataclass(frozen=True)
class Against:
    """A paired difference in AUC with its interval over users and seeds."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One system on one log."""

    rho: float
    system: str
    auc: float
    low: float
    high: float
    best_auc: float
    over: dict[str, Against]
    """Paired differences in AUC, by the system subtracted."""


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--rho", type=float, nargs="+", default=[0.9, 0.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--systems", nargs="+", default=["none", "sim_soft", "full", "lap", "lcn"])
    parser.add_argument("--against", nargs="+", default=["none"], help="systems to subtract")
    parser.add_argument("--folder", type=Path, default=Path("runs/learnability"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for rho in arguments.rho:
        rows += run_log(arguments, rho)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(markdown(rows, arguments))


def run_log(arguments: argparse.Namespace, rho: float) -> list[Row]:
    """All systems on one generated log."""
    folder = arguments.folder / f"rho-{rho}-{arguments.users}"
    dataset_folder = folder / "dataset"
    if not dataset_folder.exists():
        size = synthetic.SyntheticConfig(users=arguments.users, rho=rho, **LOG)
        if not (folder / "logs").exists():
            synthetic.generate(folder / "logs", size)
        mapping = folder / "logs" / "mapping.yaml"
        prepare(read_mapping(mapping), dataset_folder, base=mapping.parent)
    dataset = open_dataset(dataset_folder)
    label_S = np.asarray(dataset.samples["test"].label_S)
    best = auc(true_probability(dataset, "test"), label_S)
    systems = list(dict.fromkeys([*arguments.against, *arguments.systems]))
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        started = {
            pool.submit(train_one, folder, system, seed): f"rho {rho}: {system} seed {seed}"
            for seed in range(arguments.seeds)
            for system in systems
        }
        for finished in as_completed(started):
            finished.result()
            print(started[finished], file=sys.stderr, flush=True)
    predictions = {
        system: [
            open_run(folder / "runs" / f"{system}-{seed}").predict("test")
            for seed in range(arguments.seeds)
        ]
        for system in systems
    }
    rows = []
    for system, runs in predictions.items():
        found = result_of(runs, generator=np.random.default_rng(0)).intervals.auc
        over = {}
        for other in arguments.against:
            paired = compare(predictions[other], runs, generator=np.random.default_rng(0)).auc
            over[other] = Against(paired.difference, paired.low, paired.high)
        rows.append(Row(rho, system, found.estimate, found.low, found.high, best, over))
    return rows


def train_one(folder: Path, system: str, seed: int) -> None:
    """Train one system with one seed, unless that was done before."""
    config = recipe(system, folder / "dataset", *SETTINGS, f"train.seed={seed}")
    backbone = config.model.backbone
    if "width" in type(backbone).model_fields:
        backbone = backbone.model_copy(update={"width": 32})
    config = config.model_copy(
        update={"name": system, "model": config.model.model_copy(update={"backbone": backbone})}
    )
    train(config, folder / "runs" / f"{system}-{seed}", resume=True, progress=False)


def markdown(rows: list[Row], arguments: argparse.Namespace) -> str:
    """The table, with its provenance."""
    against = arguments.against
    head = ["rho", "system", "test AUC (95 %)", *(f"minus {name} (95 %)" for name in against)]
    head += ["best reachable", "gap to it"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        differences = (row.over[name] for name in against)
        cells = [
            str(row.rho),
            row.system,
            f"{row.auc:.4f} ({row.low:.4f} to {row.high:.4f})",
            *(f"{d.difference:+.4f} ({d.low:+.4f} to {d.high:+.4f})" for d in differences),
            f"{row.best_auc:.4f}",
            f"{row.best_auc - row.auc:.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    command = " ".join(["python", "benchmarks/learnability.py", *sys.argv[1:]])
    lines.append(
        f"\nCommand `{command}`, commit {commit()}, seeds 0 to {arguments.seeds - 1}, "
        f"{processor()}, {date.today()}; settings {', '.join(SETTINGS)}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
