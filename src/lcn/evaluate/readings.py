"""Every reading of a run's consistency: the bars of Figure 5a and the points of Figure 5b."""

from __future__ import annotations

from dataclasses import dataclass

from lcn.backbones.twin import Twin
from lcn.data.dataset import Dataset
from lcn.data.loader import BatchConfig
from lcn.errors import ConfigError
from lcn.evaluate.consistency import (
    Consistency,
    ConsistencyConfig,
    measure_consistency,
    measure_twin,
)
from lcn.model import Model
from lcn.schema import Split


@dataclass(frozen=True, slots=True)
class ConsistencyRow:
    """One reading of one run: a bar of Figure 5a, or a point of Figure 5b."""

    run: str
    backbone: str
    seed: int
    way: str
    """How the exact set is chosen: common (as every backbone), or one of TWIN's own and stale."""
    k1: int | None
    """LAP's K1 where it is another than the trained one; 0 is all rows."""
    consistency: Consistency


def consistency_rows(
    model: Model,
    dataset: Dataset,
    split: Split,
    batch: BatchConfig,
    config: ConsistencyConfig | None = None,
    *,
    run: str = "",
    seed: int = 0,
    k1: tuple[int, ...] = (),
) -> list[ConsistencyRow]:
    """Every reading that a model has: the common one, TWIN's two others, LAP's other K1.

    Args:
        model: trained.
        dataset: where the impressions are.
        split: which of them.
        batch: history lengths and batch size.
        config: what to measure; None takes the defaults.
        run: name of the rows.
        seed: of the run.
        k1: for LAP, further K1 to measure with; 0 is all rows.

    Raises:
        ConfigError: `k1` for a backbone other than LAP, or a backbone that attends to nothing.
    """
    name = model.config.backbone.name
    parts = (model, dataset, split, batch, config)

    def row(way: str, found: Consistency, k1: int | None = None) -> ConsistencyRow:
        return ConsistencyRow(run, name, seed, way, k1, found)

    if isinstance(model.backbone, Twin):
        if k1:
            raise ConfigError("K1 belongs to the backbone 'lap', this is 'twin'")
        twin = measure_twin(*parts)
        rows = [row("common", twin.common), row("own", twin.own)]
        return rows + ([row("stale", twin.stale)] if twin.stale else [])
    rows = [row("common", measure_consistency(*parts))]
    return rows + [row("common", measure_consistency(*parts, k1=size), size) for size in k1]
