"""Consistency of search and attention (Figure 5): does search deliver what attention would choose?

    R = the 50 rows of the whole span with the largest weight in the final stage
    T = the 50 rows that the preceding stages deliver, best first
    consistency = |R ∩ T| / min(50, n), averaged over impressions with n ≥ 100 rows

One definition for every backbone. The weight of a multi-head stage is the mean of its heads'
softmax weights; TWIN's authors compare with the heads' own aggregation instead, and the choice
alone is worth tens of percentage points (`Exact`). A random T scores 50 / n. A backbone with
nothing to search (`full`) scores 1 by construction.

Source: LCN (arXiv 2312.06424), section 5.5; TWIN (arXiv 2302.02352), section 5.4.
Shapes: C candidates, K rows kept, S impressions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from lcn.backbones.base import Backbone, Query, rank_by_weight
from lcn.backbones.lap import Lap
from lcn.backbones.twin import Twin
from lcn.config import Config
from lcn.data.batch import Batch
from lcn.data.dataset import Dataset
from lcn.data.loader import BatchConfig, load_batches
from lcn.errors import ConfigError
from lcn.model import Model
from lcn.schema import Split

Exact = Literal["common", "own"]
"""How heads agree on R: the mean of their softmax weights, or TWIN's own selection."""
_Choice = Callable[[Any, Query, Tensor, int], Tensor]
"""(state, query, spans, keep) to kept rows [C, keep]."""


class ConsistencyConfig(Config):
    """What to measure."""

    size: PositiveInt = 50
    """Rows in R."""
    least: NonNegativeInt = 100
    """Impressions with fewer lifelong rows are left out: with no more than `size` of them the
    value is 1 whatever the search does."""
    recall_sizes: tuple[int, ...] = (10, 20, 50, 100, 200)
    """Rows in T of the recall curve."""
    limit: NonNegativeInt = 2000
    """Impressions at most, drawn at random; 0 takes all."""
    seed: NonNegativeInt = 0


@dataclass(frozen=True, slots=True)
class Recall:
    """|R ∩ T| / min(size, n) for a T of another size."""

    rows: int
    """Rows in T."""
    value: float
    chance: float
    """Of a random T."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """How far the preceding stages deliver what the final stage would choose."""

    value: float
    """NaN when no impression has enough rows."""
    error: float
    """Standard error over impressions."""
    chance: float
    """Of a random T: the mean of size / n."""
    kept_share: float
    """Share of the split's impressions with enough rows."""
    impressions: int
    """Impressions measured."""
    exact: Exact
    recall: tuple[Recall, ...]


@dataclass(frozen=True, slots=True)
class TwinConsistency:
    """TWIN's consistency in the three readings; see docs/models/twin.md."""

    own: Consistency
    """Search and attention with the same parameters and the same aggregation: 1 by construction."""
    common: Consistency
    """Against the mean of the heads' softmax weights, as every other backbone."""
    stale: Consistency | None
    """Search with older parameters, the model's snapshot (`stale_steps`); None without one."""


def measure_consistency(
    model: Model,
    dataset: Dataset,
    split: Split,
    batch: BatchConfig,
    config: ConsistencyConfig | None = None,
    *,
    k1: int | None = None,
) -> Consistency:
    """Measure a model with the definition that all backbones share.

    Args:
        model: trained.
        dataset: where the impressions are.
        split: which of them.
        batch: history lengths and batch size.
        config: what to measure; None takes the defaults.
        k1: for LAP, another K1 than it was trained with (Figure 5b); 0 is all rows.

    Raises:
        ConfigError: `k1` for a backbone other than LAP, or a backbone that attends to nothing.
    """
    backbone = model.backbone
    if k1 is not None:
        if not isinstance(backbone, Lap):
            raise ConfigError(
                f"K1 belongs to the backbone 'lap', this is {model.config.backbone.name!r}"
            )
        backbone = backbone.passing(k1)
    config = config or ConsistencyConfig()
    return _measure(
        model,
        dataset,
        split,
        batch,
        config,
        _Compared("common", common(backbone), backbone.preceding),
    )


def sweep_k1(
    model: Model,
    dataset: Dataset,
    split: Split,
    batch: BatchConfig,
    config: ConsistencyConfig | None = None,
    sizes: tuple[int, ...] = (50, 100, 200, 500, 1000, 0),
) -> tuple[tuple[int, Consistency], ...]:
    """Figure 5b: LAP's consistency as more rows pass the complete scope; 0 passes all."""
    return tuple(
        (k1, measure_consistency(model, dataset, split, batch, config, k1=k1)) for k1 in sizes
    )


def measure_twin(
    model: Model,
    dataset: Dataset,
    split: Split,
    batch: BatchConfig,
    config: ConsistencyConfig | None = None,
) -> TwinConsistency:
    """Measure TWIN three ways.

    Args:
        model: trained, with the backbone `twin`.
        dataset: where the impressions are.
        split: which of them.
        batch: history lengths and batch size.
        config: what to measure; None takes the defaults.

    Raises:
        ConfigError: the backbone is not `twin`.
    """
    twin = model.backbone
    if not isinstance(twin, Twin):
        raise ConfigError(
            f"three ways of consistency are TWIN's, this is {model.config.backbone.name!r}; "
            "use measure_consistency"
        )
    config = config or ConsistencyConfig()
    parts = (model, dataset, split, batch, config)
    own = _measure(*parts, _Compared("own", twin.own_final, twin.own_final))
    shared = _measure(*parts, _Compared("common", common(twin), twin.own_final))
    stale = None
    if twin.snapshot is not None:
        stale = _measure(*parts, _Compared("own", twin.own_final, twin.preceding))
    return TwinConsistency(own, shared, stale)


@dataclass(frozen=True, slots=True)
class _Compared:
    """Which rows are compared."""

    exact: Exact
    choose: _Choice
    """Gives R."""
    deliver: _Choice
    """Gives T."""


def common(backbone: Backbone) -> _Choice:
    """R by the final stage's softmax weights, heads averaged."""

    def choose(state: Any, query: Query, span_C2: Tensor, keep: int) -> Tensor:
        scoring = backbone.final_scoring(query)
        return rank_by_weight(state.rows, span_C2, scoring, keep)

    return choose


def shared_rows(exact_CK: Int[Tensor, "C K"], found_CJ: Int[Tensor, "C J"]) -> Bool[Tensor, "C J"]:
    """Whether each found row is among the exact ones; empty slots (-1) never are."""
    same_CJK = found_CJ[:, :, None] == exact_CK[:, None, :]
    return same_CJK.any(-1) & (found_CJ >= 0)


def overlap(
    exact_CK: Int[Tensor, "C K"], found_CJ: Int[Tensor, "C J"], rows_C: Int[Tensor, " C"]
) -> Float[Tensor, " C"]:
    """|R ∩ T| / min(K, n) of each candidate.

    Args:
        exact_CK: R, -1 in empty slots.
        found_CJ: T, unique rows, -1 in empty slots.
        rows_C: n, rows in each candidate's span.
    """
    whole_C = rows_C.clamp(max=exact_CK.shape[1]).double()
    return shared_rows(exact_CK, found_CJ).sum(1) / whole_C


def _measure(
    model: Model,
    dataset: Dataset,
    split: Split,
    batch: BatchConfig,
    config: ConsistencyConfig,
    compared: _Compared,
) -> Consistency:
    order, kept_share = eligible(dataset, split, batch, config.least, config.limit, config.seed)
    device = next(model.parameters()).device
    found: list[Tensor] = []
    with _evaluating(model), torch.inference_mode():
        for piece in load_batches(dataset, split, batch, order):
            found.append(_hits(model, piece.to(device), config, compared).cpu())
    widest = max(config.size, *config.recall_sizes)
    table_CX = torch.cat(found) if found else torch.zeros(0, widest + 1)
    rows_C = table_CX[:, -1].double()
    hit_CJ = table_CX[:, :-1].cumsum(1).double() / rows_C.clamp(max=config.size)[:, None]

    def at(size: int) -> Recall:
        chance_C = rows_C.clamp(max=size) / rows_C
        return Recall(size, _mean(hit_CJ[:, size - 1]), _mean(chance_C))

    main = at(config.size)
    spread = hit_CJ[:, config.size - 1]
    error = float(spread.std()) / math.sqrt(len(spread)) if len(spread) > 1 else math.nan
    return Consistency(
        value=main.value,
        error=error,
        chance=main.chance,
        kept_share=kept_share,
        impressions=len(table_CX),
        exact=compared.exact,
        recall=tuple(at(size) for size in config.recall_sizes),
    )


def _hits(model: Model, batch: Batch, config: ConsistencyConfig, compared: _Compared) -> Tensor:
    """[C, J + 1] whether each delivered row is exact, best first; the last column is n."""
    span_C2 = batch.lifelong_C2
    parts = model.embed(batch)
    state = model.backbone.encode(parts.history)
    exact_CK = compared.choose(state, parts.query, span_C2, config.size)
    widest = max(config.size, *config.recall_sizes)
    found_CJ = compared.deliver(state, parts.query, span_C2, widest)
    rows_C1 = span_C2[:, 1:] - span_C2[:, :1]
    return torch.cat([shared_rows(exact_CK, found_CJ).long(), rows_C1], 1)


def eligible(
    dataset: Dataset, split: Split, batch: BatchConfig, least: int, limit: int, seed: int
) -> tuple[NDArray[np.int64], float]:
    """Impressions with enough lifelong rows, users one after the other, and their share.

    Args:
        dataset: where the impressions are.
        split: which of them.
        batch: history lengths.
        least: rows that are enough.
        limit: impressions at most, drawn at random; 0 takes all.
        seed: of the draw.
    """
    samples = dataset.samples[split]
    user_S = np.asarray(samples.user_S)
    rows_S = dataset.lengths(samples)
    if not batch.overlap:
        rows_S = np.maximum(rows_S - batch.short, 0)
    enough = np.flatnonzero(np.minimum(rows_S, batch.lifelong) >= max(least, 1))
    share = len(enough) / len(user_S) if len(user_S) else math.nan
    if limit and len(enough) > limit:
        enough = np.random.default_rng(seed).choice(enough, limit, replace=False)
    return enough[np.lexsort((enough, user_S[enough]))], share


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """The model in evaluation mode for the length of a block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _mean(value_C: Tensor) -> float:
    return float(value_C.mean()) if len(value_C) else math.nan
