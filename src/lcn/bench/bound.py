"""What a training step cannot do without, and how fast this machine could do it at best.

Operations: multiply-adds counted as two, forward and backward, of the algorithm as the fast path
has it (absorbed projections, no work for rows that were not kept). Bytes: vectors of the unique
history rows, the row numbers, and the touched table rows with their moments. The bound is the
larger of operations at the measured matrix rate and bytes at the measured rate of reading: it
supposes that computing and reading overlap perfectly and that every operation has the shape of a
large matrix product.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from lcn.backbones import Eta, Lap, Sdim
from lcn.data.batch import Batch
from lcn.model import Model
from lcn.nn.attention import ContextTable

FLOAT = 4
_TRAINED = 12
"""Operations per row, head and width: score and pool (2 each), then the slopes of weights and
queries (2 each) and of vectors (4)."""
_SCORED = 2
"""Of a search that has no gradient."""
_READ_AND_ADDED = 4
"""Times a trained row's vector moves: read forward, read backward, gradient read and written."""
_TABLE = 8
"""Times a touched table row moves: looked up, its gradient, weight and two moments updated."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured rates."""

    flops: float
    """Operations per second in a float32 matrix product."""
    bandwidth: float
    """Bytes read per second."""


@dataclass(frozen=True, slots=True)
class Need:
    """Of one step."""

    flops: float
    bytes: float

    def seconds(self, machine: Machine) -> float:
        """The shortest time in which the machine could do it."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)


def measure_machine(repeats: int = 9) -> Machine:
    """Best of several, with the threads that PyTorch has been given."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    flat = torch.ones(64 << 20)
    product, reading = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        product.append(time.perf_counter() - started)
        started = time.perf_counter()
        flat.sum()
        reading.append(time.perf_counter() - started)
    return Machine(2 * 1024**3 / min(product), FLOAT * flat.numel() / min(reading))


def train_need(model: Model, batch: Batch) -> Need:
    """Operations and bytes of one step, from the batch's own spans and unique rows."""
    count, width = len(batch), model.config.width
    rows, items = len(batch.source.item_T), len(batch.item_IF)
    pairs = _length(batch.lifelong_C2)
    short = _length(batch.short_source_C2) + _length(batch.short_target_C2)
    flops = _TRAINED * width * model.config.short.heads * short + 6.0 * count * _dense(model)
    lifelong = _lifelong(model, batch, pairs)
    moved = FLOAT * width * _vectors(model, rows, count)
    numbers = rows * (4 + 4 * batch.source.context_TG.shape[1] + 8)
    table = _TABLE * FLOAT * model.config.field_width * items * batch.item_IF.shape[1]
    return Need(flops + lifelong, moved + numbers + table)


def _length(span_C2: torch.Tensor) -> int:
    return int((span_C2[:, 1] - span_C2[:, 0]).clamp(min=0).sum())


def _lifelong(model: Model, batch: Batch, pairs: int) -> float:
    """Operations of the backbone beyond its dense projections."""
    backbone, width, count = model.backbone, model.config.width, len(batch)
    config = model.config.backbone
    heads, most = getattr(config, "heads", 1), pairs / max(count, 1)
    trained = _TRAINED * width
    flops = count * min(getattr(config, "keep", 0), most) * heads * trained
    if config.name == "full":
        flops += trained * heads * pairs
    elif isinstance(backbone, Lap):
        passed = count * min(backbone.config.k1 or most, most)
        focused = count * min(backbone.config.k2, most) * heads
        flops += trained * (pairs + passed + focused)
    elif config.name == "sim_soft":
        flops += trained * pairs
    elif config.name == "twin":
        flops += _SCORED * width * heads * pairs
    elif isinstance(backbone, Eta):
        flops += 2.0 * len(batch.item_IF) * width * backbone.config.bits
    elif isinstance(backbone, Sdim):
        chosen = backbone.config
        added = pairs * chosen.hashes / chosen.group / 2**chosen.group
        coded = len(batch.item_IF) * chosen.hashes
        flops = 2.0 * width * (coded + added)  # forward and backward, one addition each
    return flops


def _vectors(model: Model, rows: int, count: int) -> float:
    """How many row vectors move, each once per unique row (candidates of a user share it)."""
    config = model.config.backbone
    kept = min(count * getattr(config, "keep", 0), rows) * _READ_AND_ADDED
    if config.name in ("lap", "full", "sim_soft"):
        return rows * _READ_AND_ADDED
    if config.name == "sdim":
        return rows * 3  # sums need no second reading
    if config.name == "twin":
        return rows + kept
    return kept


def _dense(model: Model) -> int:
    """Weights that every candidate is multiplied with once (tables are only looked up)."""
    looked_up = {
        id(part.weight if isinstance(part, nn.Embedding) else part.embedding_VE)
        for part in model.modules()
        if isinstance(part, nn.Embedding | ContextTable)
    }
    return sum(
        each.numel() for each in model.parameters() if each.ndim == 2 and id(each) not in looked_up
    )
