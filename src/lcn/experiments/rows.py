"""What an experiment trains: rows, each a recipe with overrides and the knobs it is tuned over.

A table of the paper is a function of `Sizes` that returns a `Table`; see `table1` to `table5`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lcn.api import recipe
from lcn.errors import ConfigError, nearest
from lcn.recipes import RECIPES
from lcn.train.config import RunConfig

Metric = Literal["auc", "gauc", "log_loss"]
BACKBONES = {"SIM Soft": "sim_soft", "ETA": "eta", "SDIM": "sdim", "TWIN": "twin"}
"""The paper's two-stage baselines: rows by name, and their recipes."""
SIM_SOFT, NONE = "SIM Soft", "no lifelong"
"""The rows every table is compared with: the paper's first baseline, and nothing lifelong."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing that tuning may turn: values, each a group of dotted overrides."""

    name: str
    """Knobs of one name are turned alike in every row that has them; see `tuning.plan_trials`."""
    values: tuple[tuple[str, ...], ...]


def knob(setting: str, *values: object, name: str = "") -> Knob:
    """A knob that turns one setting."""
    return Knob(name or setting, tuple((f"{setting}={value}",) for value in values))


BASE_KNOBS = (
    knob("train.learning_rate", 0.0005, 0.001, 0.002),
    knob("model.dropout", 0.0, 0.2),
    knob("model.embedding.std", 0.05, 0.2),
)
"""Every row's: they move more than the lifelong part does, so every row tunes them."""

STEPS = (300, 1000, 2000)
"""Of an objective alone before the clicks, of every objective alike."""
TEMPERATURES = (0.05, 0.1, 0.3, 1.0, 3.0)
"""Of every contrast alike."""
CRP_KNOBS = (
    knob("objectives.0.temperature", *TEMPERATURES, name="crp temperature"),
    knob("train.pretrain_steps", *STEPS, name="first steps"),
    Knob(
        "crp beside the clicks",
        (
            ("train.joint_objectives=false",),
            ("train.joint_objectives=true", "objectives.0.weight=0.01"),
            ("train.joint_objectives=true", "objectives.0.weight=0.1"),
        ),
    ),
)
FISM_KNOBS = (
    knob("train.pretrain_steps", 200, 400, 800, name="fism steps"),
    knob("train.source_steps", 500, 1000, 2000, name="source steps"),
    knob("objectives.0.alpha", 0.5, 1.0, name="fism alpha"),
)
JOINT = ("train.pretrain_steps=0", "train.joint_objectives=true")
"""CRP beside the click loss from the first step, as Eq. 14 has it."""
FIRST = ("train.pretrain_steps=1000", "train.joint_objectives=false")
"""An objective first and alone, then clicks alone."""
SCHEDULES = (
    JOINT,
    *((f"train.pretrain_steps={steps}", "train.joint_objectives=false") for steps in STEPS),
    ("train.pretrain_steps=1000", "train.joint_objectives=true"),
)
"""Those that CRP's knobs combine, for the other objectives."""
JOINT_KNOBS = (
    knob("objectives.0.weight", 0.001, 0.01, 0.1, 0.3, name="crp weight"),
    CRP_KNOBS[0],
)
RIVAL_WEIGHTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True, slots=True)
class Quoted:
    """What the paper reports for a row; never ours."""

    data: Literal["industrial", "public"]
    auc: float
    gauc: float
    log_loss: float


@dataclass(frozen=True, slots=True)
class Row:
    """One system of a table."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    knobs: tuple[Knob, ...] = ()
    """Beside `BASE_KNOBS`."""
    quoted: tuple[Quoted, ...] = ()
    reference: bool = False
    """Not a row of the paper's table: there to be compared with."""
    beyond: bool = False
    """Beyond the paper: trained only when asked for."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement that two rows decide: `other` beats `reference`."""

    text: str
    other: str
    reference: str
    metric: Metric = "auc"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that are trained, measured and compared together."""

    name: str
    title: str
    rows: tuple[Row, ...]
    references: tuple[str, ...]
    """Every other row is compared with each of these."""
    claims: tuple[Claim, ...] = ()
    note: str = ""

    def select(self, names: Sequence[str] = (), *, beyond: bool = False) -> Table:
        """The rows of some names (none: all of the paper's, and with `beyond` all there are).

        References stay, and claims about rows that are left out go.

        Raises:
            ConfigError: a name that no row has.
        """
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise ConfigError(f"{self.name} has no row {name!r}{nearest(name, known)}")
        kept = tuple(
            row
            for row in self.rows
            if row.name in self.references
            or (row.name in names if names else beyond or not row.beyond)
        )
        left = {row.name for row in kept}
        claims = tuple(
            claim for claim in self.claims if claim.other in left and claim.reference in left
        )
        return replace(self, rows=kept, claims=claims)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many rows search passes on: the paper's 200 and 50, or as fits shorter histories."""

    k1: int = 200
    k2: int = 50

    def scaled(self, k1: int, k2: int) -> tuple[int, int]:
        """The paper's K1 and K2 of a row at these sizes: 100/30 of 200/50 is a half and 3/5."""
        return max(1, round(k1 * self.k1 / 200)), max(1, round(k2 * self.k2 / 50))


def shortened(config: RunConfig, most: int) -> RunConfig:
    """A config with at most so many steps of each kind before its first epoch; 0 leaves it."""
    train = config.train
    steps = {name: min(getattr(train, name), most) for name in ("pretrain_steps", "source_steps")}
    return config.model_copy(update={"train": train.model_copy(update=steps)}) if most else config


def resolve(row: Row, dataset: str, settings: Sequence[str], sizes: Sizes, *more: str) -> RunConfig:
    """The whole config of a row: recipe, settings alike for all, sizes, the row's own, then more.

    Args:
        row: what to train.
        dataset: folder of a prepared dataset.
        settings: overrides that every row gets.
        sizes: K1 and K2; K of a two-stage backbone is K2.
        more: overrides on top: a trial's, and the seed.

    Raises:
        ConfigError: unknown recipe or setting.
    """
    plain = RECIPES[row.recipe](dataset) if row.recipe in RECIPES else recipe(row.recipe, dataset)
    fields = type(plain.model.backbone).model_fields
    backbone = [
        f"model.backbone.{name}={value}"
        for name, value in (("k1", sizes.k1), ("k2", sizes.k2), ("keep", sizes.k2))
        if name in fields
    ]
    width = next((each for each in reversed(settings) if each.startswith("model.width=")), None)
    stated = any(each.startswith("model.backbone.width=") for each in settings)
    if width and "width" in fields and not stated:
        backbone.insert(0, f"model.backbone.width={width.partition('=')[2]}")
    return recipe(
        row.recipe, dataset, *settings, *backbone, *row.overrides, *more, f"name={row.name}"
    )
