"""What a training step cannot do without, and how fast this machine could do it at best.

Operations: multiply-adds counted as two, forward and backward, of the algorithm as the fast path
has it (absorbed projections, no work for rows that were not kept). Bytes: vectors of the unique
history rows, the row numbers, and the touched table rows with their moments.

Two bounds. The *ideal* one is the larger of all operations at the rate of a large matrix product
and all bytes at the rate of reading: it supposes that computing and reading overlap perfectly and
that every operation has the shape of a large matrix product. The *reachable* one adds up what
cannot overlap on one core, each at the rate that the machine reaches at the size that occurs:
attention in pieces of 64 rows and g candidates, dense layers as they are, exponentials, one look
at every score that is ranked, kept rows gathered, tables streamed. No rate is that of our kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
_WEIGHED = 2
"""Times a softmax weight is computed: backward finds it again, or reads what it costs as much."""
_READ_AND_ADDED = 4
"""Times a trained row's vector moves: read forward, read backward, gradient read and written."""
_TABLE = 8
"""Times a touched table row moves: looked up, its gradient, weight and two moments updated."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured rates, per second."""

    flops: float
    """Operations in a large float32 matrix product."""
    bandwidth: float
    """Bytes read."""
    piece_flops: float
    """Operations in many products of 64 rows of width 64 with g columns."""
    exps: float
    """Exponentials of numbers in the cache."""
    scores: float
    """Numbers in the cache looked at once (a maximum)."""
    gathered: float
    """Bytes of single rows gathered from a table."""


@dataclass(frozen=True, slots=True)
class Need:
    """Of one step."""

    flops: float
    """All operations of products."""
    bytes: float
    """All bytes that are read or written in order."""
    piece_flops: float
    """Those of `flops` that come in pieces: attention of g candidates over rows."""
    exps: float
    scores: float
    """Scores that are ranked."""
    gathered: float
    """Bytes of kept rows, beyond `bytes`."""

    def seconds(self, machine: Machine) -> float:
        """The shortest time in which an ideal machine of these rates could do it."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)

    def reachable_seconds(self, machine: Machine) -> float:
        """The time of all parts, one after the other, at the rates of their sizes."""
        return (
            self.piece_flops / machine.piece_flops
            + (self.flops - self.piece_flops) / machine.flops
            + self.exps / machine.exps
            + self.scores / machine.scores
            + self.gathered / machine.gathered
            + self.bytes / machine.bandwidth
        )


def measure_machine(group: int = 8, repeats: int = 9) -> Machine:
    """Best of several, with the threads that PyTorch has been given."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    flat = torch.ones(64 << 20)
    rows, queries = torch.randn(256, 64, 64), torch.randn(256, 64, group)
    inside = torch.rand(1 << 16)
    table, chosen = torch.randn(100_000, 64), torch.randint(100_000, (50_000,))
    square, pieces = torch.empty_like(a), torch.empty(256, 64, group)
    out, rows_out = torch.empty_like(inside), torch.empty(50_000, 64)

    def best(work: Callable[[], object]) -> float:
        spent = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            work()
            spent.append(time.perf_counter() - started)
        return min(spent)

    return Machine(
        flops=2 * 1024**3 / best(lambda: torch.mm(a, b, out=square)),
        bandwidth=FLOAT * flat.numel() / best(flat.sum),
        piece_flops=2 * 64 * rows.numel() * group / 64 / best(
            lambda: torch.bmm(rows, queries, out=pieces)
        ),
        exps=inside.numel() / best(lambda: torch.exp(inside, out=out)),
        scores=inside.numel() / best(inside.max),
        gathered=FLOAT * rows_out.numel() / best(
            lambda: torch.index_select(table, 0, chosen, out=rows_out)
        ),
    )  # fmt: skip


def train_need(model: Model, batch: Batch) -> Need:
    """Operations and bytes of one step, from the batch's own spans and unique rows."""
    count, width = len(batch), model.config.width
    rows, items = len(batch.source.item_T), len(batch.item_IF)
    pairs = _length(batch.lifelong_C2)
    short = _length(batch.short_source_C2) + _length(batch.short_target_C2)
    heads = model.config.short.heads
    attention = _TRAINED * width * heads * short
    dense = 6.0 * count * _dense(model)
    lifelong = _lifelong(model, batch, pairs)
    moved = FLOAT * width * _vectors(model, rows, count)
    numbers = rows * (4 + 4 * batch.source.context_TG.shape[1] + 8)
    table = _TABLE * FLOAT * model.config.field_width * items * batch.item_IF.shape[1]
    weighed, ranked, kept = _selected(model, count, pairs)
    return Need(
        flops=attention + dense + lifelong,
        bytes=moved + numbers + table,
        piece_flops=attention + lifelong,
        exps=_WEIGHED * (heads * short + weighed),
        scores=ranked,
        gathered=FLOAT * width * _READ_AND_ADDED * kept,
    )


def _selected(model: Model, count: int, pairs: int) -> tuple[float, float, float]:
    """Numbers of softmax weights, of ranked scores and of kept rows of the lifelong part."""
    config, backbone = model.config.backbone, model.backbone
    most = pairs / max(count, 1)
    heads, kept = getattr(config, "heads", 1), count * min(getattr(config, "keep", 0), most)
    if config.name == "full":
        return heads * pairs, 0, 0
    if isinstance(backbone, Lap):
        first = count * min(backbone.config.k1 or most, most)
        second = count * min(backbone.config.k2, most)
        return pairs + first + heads * second, pairs + first, first + second
    if config.name == "sdim":
        return 0, 0, 0
    ranked = pairs * (heads if config.name == "twin" else config.name != "none")
    return heads * kept + (pairs if config.name == "sim_soft" else 0), ranked, kept


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
