"""Settings that every row of an experiment shares, and what `--quick` makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lcn.experiments.rows import Sizes

SETTINGS = (
    "model.width=32",
    "model.field_width=32",
    "model.short={width: 32, heads: 4}",
    "batch.size=1024",
    "batch.group=8",
    "batch.lifelong=500",
    "batch.short=24",
    "train.epochs=5",
    "train.patience=5",
    "train.checkpoint_every=2000",
    "train.log_every=50",
)
"""Narrower than the paper's 64, so that a table is an evening on two cores. All epochs for every
row, the best one by validation AUC: stopping early at a dip once made a difference that was none.
"""

PLANTED_SETTINGS = (
    *SETTINGS,
    "model.embedding.std=0.3",
    "model.products=true",
    "batch.size=512",
    "batch.lifelong=300",
    "batch.short=20",
    "train.learning_rate=0.002",
)
"""For generated logs: learned far faster there than with the settings above (journal)."""

QUICK = ("train.epochs=1", "batch.lifelong=100")
QUICK_STEPS = 60
"""Steps that a quick look takes at most before the first epoch: on an objective alone, or on
source-domain clicks."""

PRESETS: dict[str, Sizes] = {"kuairand": Sizes(30, 10)}
"""K1 and K2 where histories are too short for 200 and 50, by the dataset's name."""


FIRST_TUNING_SEED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an experiment is run; rows are all treated alike."""

    seeds: tuple[int, ...] = (0, 1, 2)
    trials: int = 6
    """Settings tried per row, by validation alone; the first is the recipe as it stands."""
    trial_epochs: int = 0
    """Epochs of a trial; 0 takes those of the final runs."""
    tuning_seeds: tuple[int, ...] = (FIRST_TUNING_SEED,)
    """Seeds of each trial, none of the reported ones: a seed that is lucky in tuning does not
    lift its own result."""
    settings: tuple[str, ...] = SETTINGS
    """Alike for every row; see the module."""
    planted: tuple[str, ...] = PLANTED_SETTINGS
    """Alike for every row on a generated log (a dataset called `synthetic`)."""
    extra: tuple[str, ...] = ()
    """Settings that override those, given by the user."""
    users: int = 8000
    """Users of a generated log."""
    sizes: Sizes | None = None
    """None: by the dataset's name, else the paper's."""
    jobs: int = 0
    """Runs at once; 0 takes one per core."""
    resamples: int = 1000
    level: float = 0.95
    quick: bool = False
    first_steps: int = 0
    """Most steps of a row before its first epoch, of each kind; 0: as its recipe has them."""
    rows: tuple[str, ...] = ()
    beyond: bool = False
    finished: bool = False
    """Train nothing: show the rows that are finished."""

    def settings_for(self, dataset: str) -> tuple[str, ...]:
        """Settings of every row on a dataset of this name, the user's own on top."""
        planted = dataset == "synthetic"
        return merged(self.planted if planted else self.settings, self.extra)

    def sizes_for(self, dataset: str) -> Sizes:
        """K1 and K2 for a dataset of this name."""
        if self.sizes is not None:
            return self.sizes
        sizes = next((size for name, size in PRESETS.items() if dataset.startswith(name)), Sizes())
        return Sizes(min(sizes.k1, 40), min(sizes.k2, 10)) if self.quick else sizes


def merged(settings: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """Settings with later ones of the same name in the place of earlier ones."""
    found = {each.partition("=")[0]: each for each in (*settings, *more)}
    return tuple(found.values())


QUICK_USERS = 1000
"""Users whose impressions a quick look keeps."""
