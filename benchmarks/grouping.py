"""What grouping impressions of one user in a batch costs and gives, on real logs.

    python benchmarks/grouping.py DATASET --recipe lap lap_crp --groups 1 2 4 8 --seeds 3 [--json]

Grouped impressions share history rows, so steps are faster; but a batch then holds fewer users, so
its gradient is noisier, and in-batch negatives (CRP) come from fewer users. Each group size is
trained with the same seeds and settings; the table gives validation AUC and the difference to g=1,
pair by pair of seeds, beside samples per second. Runs that are finished are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from lcn.api import recipe as recipe_config
from lcn.data.dataset import open_dataset
from lcn.train import RunConfig, train
from lcn.train.record import commit, processor


@dataclass(frozen=True)
class Row:
    """One recipe with one group size; lists are by seed."""

    recipe: str
    group: int
    users_per_batch: float
    auc: list[float]
    over_one: list[float]
    """AUC minus that of g=1 of the same seed."""
    steps: list[int]
    """Until the best validation."""
    samples_per_s: list[float]
    wait_share: list[float]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--recipe", nargs="+", default=["lap", "lap_crp"])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], help="settings, as of lcn train")
    parser.add_argument("--folder", type=Path, default=Path("runs/grouping"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for recipe in arguments.recipe:
        found = {group: run_group(arguments, recipe, group) for group in arguments.groups}
        rows += [row_of(recipe, group, found) for group in arguments.groups]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(markdown(rows, arguments))


def run_group(arguments: argparse.Namespace, recipe: str, group: int) -> list[dict]:
    """One summary per seed."""
    summaries = []
    for seed in range(arguments.seeds):
        settings = [
            f"batch.group={group}", f"train.seed={seed}", f"train.threads={arguments.threads}",
            *arguments.set,
        ]  # fmt: skip
        config = recipe_config(recipe, arguments.dataset, *settings)
        folder = arguments.folder / f"{recipe}-g{group}-{seed}"
        done = folder / "grouping.json"
        known = json.loads(done.read_text()) if done.exists() else None
        if known is None or known["config"] != config.model_dump(mode="json"):
            print(f"{recipe} g={group} seed {seed}", file=sys.stderr, flush=True)
            summary = train(config, folder)
            known = {
                "config": config.model_dump(mode="json"),
                "auc": summary.best_value,
                "steps": summary.best_step,
                "samples_per_s": summary.samples_per_s,
                "wait_share": summary.wait_share,
                "users": users_per_batch(arguments.dataset, config),
            }
            done.write_text(json.dumps(known))
        summaries.append(known)
    return summaries


def users_per_batch(dataset: Path, config: RunConfig) -> float:
    """Distinct users of a batch, averaged over some batches of the first epoch."""
    from lcn.data.loader import epoch_order

    user_S = open_dataset(dataset).samples["train"].user_S
    order = epoch_order(user_S, config.batch.group, config.train.seed, 0)
    starts = range(0, min(len(order), 20 * config.batch.size), config.batch.size)
    return statistics.mean(
        len(set(user_S[order[at : at + config.batch.size]].tolist())) for at in starts
    )


def row_of(recipe: str, group: int, found: dict[int, list[dict]]) -> Row:
    """Summaries of the seeds, beside those of g=1 where it was run."""
    mine, one = found[group], found.get(1, [])
    return Row(
        recipe,
        group,
        statistics.mean(each["users"] for each in mine),
        [each["auc"] for each in mine],
        [each["auc"] - other["auc"] for each, other in zip(mine, one, strict=False)],
        [each["steps"] for each in mine],
        [each["samples_per_s"] for each in mine],
        [each["wait_share"] for each in mine],
    )


def markdown(rows: list[Row], arguments: argparse.Namespace) -> str:
    """The table, with its provenance."""
    lines = [
        "| recipe | g | users a batch | validation AUC | minus g=1, by seed | best step | "
        "samples/s | waiting |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        over = ", ".join(f"{each:+.4f}" for each in row.over_one) or "-"
        lines.append(
            f"| {row.recipe} | {row.group} | {row.users_per_batch:.0f} | "
            f"{statistics.mean(row.auc):.4f} ({min(row.auc):.4f} to {max(row.auc):.4f}) | {over} | "
            f"{statistics.mean(row.steps):.0f} | {statistics.median(row.samples_per_s):,.0f} | "
            f"{100 * statistics.median(row.wait_share):.1f} % |"
        )
    command = " ".join(["python", "benchmarks/grouping.py", *sys.argv[1:]])
    lines.append(
        f"\nCommand `{command}`, commit {commit()}, seeds 0 to {arguments.seeds - 1}, "
        f"{processor()}, load {os.getloadavg()[0]:.1f}, {date.today()}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
