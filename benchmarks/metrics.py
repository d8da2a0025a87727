"""Time the metrics and their intervals on one million impressions of 100k users.

    python benchmarks/metrics.py [--rows 1000000] [--users 100000] [--resamples 1000] [--json]

The limit that the product promises: all metrics of a million rows in under two seconds.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import click
import numpy as np

from lcn.evaluate.bootstrap import bootstrap
from lcn.evaluate.compare import compare
from lcn.evaluate.metrics import measure, sigmoid
from lcn.evaluate.predictions import Predictions

REPEATS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of one task: the best of a few repeats, and the first, which may compile."""

    task: str
    first: float
    best: float


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(min=10))
@click.option("--users", default=100_000, show_default=True, type=click.IntRange(min=2))
@click.option("--resamples", default=1000, show_default=True, type=click.IntRange(min=2))
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(rows: int, users: int, resamples: int, seed: int, as_json: bool) -> None:
    """Time the metrics and their intervals."""
    a, b = make_runs(rows, users, np.random.default_rng(seed))

    def draws() -> np.random.Generator:
        return np.random.default_rng(seed)

    tasks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("all metrics", lambda: measure(a)),
        ("intervals, 200 resamples", lambda: bootstrap(a, resamples=200, generator=draws())),
        (
            f"intervals, {resamples} resamples",
            lambda: bootstrap(a, resamples=resamples, generator=draws()),
        ),
        (
            f"paired comparison, {resamples} resamples",
            lambda: compare(a, b, resamples=resamples, generator=draws()),
        ),
    )
    timings = [time_task(name, task) for name, task in tasks]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, numpy {np.__version__}"
    if as_json:
        facts = {"rows": rows, "users": users, "seed": seed, "machine": machine}
        click.echo(json.dumps({**facts, "timings": [asdict(one) for one in timings]}, indent=1))
        return
    click.echo(f"{rows:,} rows, {users:,} users; {machine}")
    for one in timings:
        click.echo(f"{one.task:40} {one.best:7.2f} s   (first {one.first:.2f} s)")


def make_runs(
    rows: int, users: int, generator: np.random.Generator
) -> tuple[Predictions, Predictions]:
    """Two runs over users of skewed activity, one a little better than the other."""
    user = (users * generator.random(rows) ** 2).astype(np.int64)
    truth = generator.normal(-1.5, 1.0, rows)
    label = (generator.random(rows) < sigmoid(truth)).astype(np.uint8)

    def run(name: str, noise: float) -> Predictions:
        logit = truth + generator.normal(0, noise, rows)
        return Predictions(
            logit_S=logit.astype(np.float32),
            label_S=label,
            user_S=user,
            sample_S=np.arange(rows),
            dataset="made up",
            split="test",
            run=name,
            seed=0,
        )

    return run("worse", 1.0), run("better", 0.9)


def time_task(name: str, task: Callable[[], object]) -> Timing:
    """Run a task a few times."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - start)
    return Timing(name, seconds[0], min(seconds))


if __name__ == "__main__":
    main()
