"""Hand-made batches for the tests of objectives, over the items of the toy dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from lcn.backbones.none import NoLifelong
from lcn.data.batch import Batch, Rows
from lcn.data.dataset import Dataset
from lcn.model import Model, ModelConfig
from lcn.objectives import OBJECTIVES, Objective, Setup, View
from lcn.objectives.encoder import EncoderConfig
from lcn.objectives.sampled import SoftmaxConfig
from lcn.objectives.stream import StreamConfig, merge_stream

WIDTH = 16
SOURCE = list(range(1, 41))
TARGET = list(range(41, 81))
SMALL = {
    "stream": StreamConfig(length=8),
    "encoder": EncoderConfig(layers=1, heads=2, hidden=16, dropout=0.0),
    "softmax": SoftmaxConfig(negatives=16, in_batch=16),
    "queue": 64,
    "memory": 32,
    "items": 32,
}


@dataclass
class History:
    """One user: events as (time, item address), labels of its candidates."""

    target: Sequence[tuple[int, int]] = ()
    source: Sequence[tuple[int, int]] = ()
    labels: Sequence[float] = (1.0,)
    unseen: Sequence[int] = field(default=())
    """Source items that lie in the batch's rows but after every candidate's span."""


def small_config(name: str, **changes):
    kind = OBJECTIVES[name].Config
    known = {key: value for key, value in SMALL.items() if key in kind.model_fields}
    return kind(**{**known, **changes})


def make_setup(dataset: Dataset) -> Setup:
    return Setup(dataset, item_width=WIDTH, field_width=WIDTH, batch_size=16)


def make_model(dataset: Dataset, seed: int = 0, **changes) -> Model:
    torch.manual_seed(seed)
    config = ModelConfig(
        **{"backbone": NoLifelong.Config(), "width": WIDTH, "field_width": WIDTH, **changes}
    )
    model = Model(config, dataset.manifest)
    with torch.no_grad():
        # Vectors of about unit length, so that every cosine and score is far from zero.
        model.contrasted_item.embed.tables[0].weight[2:].normal_()
    return model


def build(name: str, dataset: Dataset, seed: int = 0, **changes) -> Objective:
    torch.manual_seed(seed)
    return OBJECTIVES[name](small_config(name, **changes), make_setup(dataset))


def make_batch(dataset: Dataset, users: Sequence[History]) -> Batch:
    items = sorted(
        {SOURCE[0], TARGET[0]}
        | {a for u in users for _, a in (*u.target, *u.source)}
        | {a for u in users for a in u.unseen}
    )
    place = {address: number for number, address in enumerate(items)}
    rows, spans = {}, {}
    for domain in ("source", "target"):
        flat, offsets, span = [], [0], []
        for user in users:
            events = sorted(getattr(user, domain))
            span += [(len(flat), len(flat) + len(events))] * len(user.labels)
            flat += events
            flat += [(10**6, a) for a in (user.unseen if domain == "source" else ())]
            offsets.append(len(flat))
        rows[domain] = Rows(
            item_T=torch.tensor([place[a] for _, a in flat], dtype=torch.int32),
            context_TG=torch.tensor([[2 + a % 3] for _, a in flat], dtype=torch.int32).reshape(
                -1, 1
            ),
            time_T=torch.tensor([t for t, _ in flat], dtype=torch.int64),
            offsets_U1=torch.tensor(offsets),
        )
        spans[domain] = torch.tensor(span, dtype=torch.int64).reshape(-1, 2)
    count = sum(len(user.labels) for user in users)
    owner = [u for u, user in enumerate(users) for _ in user.labels]
    address_I = torch.tensor(items)
    return Batch(
        item_IF=torch.from_numpy(dataset.item_IF[address_I.numpy()]),
        address_I=address_I,
        source=rows["source"],
        target=rows["target"],
        lifelong_C2=spans["source"],
        short_source_C2=spans["source"],
        short_target_C2=spans["target"],
        candidate_C=torch.tensor([place[TARGET[0]] if u % 2 else len(items) - 1 for u in owner]),
        candidate_CA=torch.full((count, 1), 3, dtype=torch.int32),
        context_CR=torch.full((count, 1), 3, dtype=torch.int32),
        time_C=torch.full((count,), 10**6),
        user_of_C=torch.tensor(owner, dtype=torch.int64),
        profile_UP=torch.tensor([[2 + u % 3] for u in range(len(users))], dtype=torch.int32),
        address_U=torch.arange(1, len(users) + 1),
        label_C=torch.tensor([label for user in users for label in user.labels]),
        sample_C=torch.arange(count),
    )


def make_view(model: Model, batch: Batch, seed: int = 0, step: int = 10**6) -> View:
    item_ID = model.embed(batch).contrasted_ID
    generator = torch.Generator().manual_seed(seed)
    return View(batch, item_ID, model.tables, generator, step)


def loss_of(objective: Objective, model: Model, batch: Batch, seed: int = 0, step: int = 10**6):
    """One loss with every random state fixed."""
    torch.manual_seed(seed)
    return objective(make_view(model, batch, seed, step))


def item_gradient(model: Model, addresses: Sequence[int]) -> torch.Tensor:
    """Gradient rows of the item table (the toy's vocabulary index is address + 1)."""
    gradient = model.item.embed.tables[0].weight.grad
    if gradient is None:
        return torch.zeros(len(addresses), WIDTH)
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return dense[torch.tensor(addresses) + 1]


def ordinary(users: int = 8, seed: int = 0) -> list[History]:
    """Users with interleaved events of both domains; the second of every four has few."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for user in range(users):
        count = 2 if user % 4 == 1 else 7
        times = torch.randperm(100, generator=generator)[: 2 * count].tolist()
        target = torch.randint(41, 81, (count,), generator=generator).tolist()
        source = torch.randint(1, 41, (count,), generator=generator).tolist()
        made.append(
            History(
                list(zip(times[:count], target, strict=True)),
                list(zip(times[count:], source, strict=True)),
                labels=(float(user % 3 != 0),),
            )
        )
    return made


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def view_and_stream(toy: Dataset, users: Sequence[History], seed: int = 0):
    """A step in double precision, and the users' streams of up to 8 events."""
    view = make_view(make_model(toy).double(), make_batch(toy, users), seed)
    config = StreamConfig(length=8)
    stream = merge_stream(view.batch, view.latest_candidates(), config, view.generator)
    return view, stream


def assert_same(fast: torch.Tensor, slow: torch.Tensor, *inputs: torch.Tensor) -> None:
    """Values and the gradients of every input agree."""
    assert fast.item() == pytest.approx(slow.item(), rel=1e-9)
    gradients = (torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (fast, slow))
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-10)
