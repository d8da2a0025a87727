"""What each objective adds to a training step: seconds, forward and backward, on this machine.

    python benchmarks/objectives.py --users 256 --items 100000

The batch is random: one candidate per user, 50 events of each domain, item vectors of width 64.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from lcn.backbones.none import NoLifelong
from lcn.data.batch import Batch, Rows
from lcn.data.corpus import DomainItems, ItemCorpus
from lcn.model import Model, ModelConfig
from lcn.objectives import OBJECTIVES, Setup, View
from lcn.schema import Count, Field, Manifest, SplitTimes

WIDTH, SHORT = 64, 50


def main() -> None:
    """Print one line per objective."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=256)
    parser.add_argument("--items", type=int, default=100_000, help="of each domain")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    manifest, corpus = make_corpus(given.items, rng)
    batch = make_batch(given.users, given.items, corpus, rng)
    torch.manual_seed(0)
    model = Model(ModelConfig(backbone=NoLifelong.Config()), manifest)
    print(f"users {given.users}, items {given.items} per domain, threads {given.threads}")
    for name, kind in OBJECTIVES.items():
        setup = Setup(FakeDataset(manifest), WIDTH, WIDTH, given.users)  # type: ignore[arg-type]
        setup.__dict__["corpus"] = corpus
        objective = kind(kind.Config(), setup)  # type: ignore[call-arg]
        seconds = [step(objective, model, batch, number) for number in range(given.repeat + 1)][1:]
        weights = sum(parameter.numel() for parameter in objective.parameters())
        print(f"{name:10s} {statistics.median(seconds):7.3f} s  {weights:9,d} parameters")


class FakeDataset:
    """As much of a dataset as objectives ask for when built."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.samples = {"train": range(10_000)}


def step(objective: torch.nn.Module, model: Model, batch: Batch, number: int) -> float:
    """Seconds of one forward and backward, item vectors of the batch included."""
    generator = torch.Generator().manual_seed(number)
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    item_ID = model.item(batch.item_IF.long())
    objective(View(batch, item_ID, model.tables, generator, 10**6)).backward()
    return time.perf_counter() - started


def make_corpus(items: int, rng: np.random.Generator) -> tuple[Manifest, ItemCorpus]:
    """Items of three fields; counts fall off like 1 / rank."""
    address = np.arange(2 * items + 1)
    item_IF = np.stack([address + 1, 2 + address % 500, 2 + address % 37], 1).astype(np.int32)
    sizes = item_IF.max(0) + 1
    domains = {}
    for number, domain in enumerate(("source", "target")):
        count_I = np.zeros(len(address), np.int64)
        own = slice(1 + number * items, 1 + (number + 1) * items)
        count_I[own] = 1 + 10_000 / (1 + rng.permutation(items))
        domains[domain] = DomainItems(
            torch.from_numpy(address[own].copy()), torch.from_numpy(count_I)
        )
    manifest = Manifest(
        name="random",
        licence="none",
        item_fields=tuple(
            Field(name=name, size=int(size))
            for name, size in zip(("item", "category", "brand"), sizes, strict=True)
        ),
        event_context=(Field(name="kind", size=6),),
        request_context=(),
        candidate_fields=(Field(name="campaign", size=100),),
        profile_fields=(Field(name="age", size=10),),
        split=SplitTimes(timezone="UTC", validation_from=0, test_from=0),
        count=Count(users=0, items=0, events={}, samples={}, positives={}),
        rejected={},
        mapping={},
        checksums={},
    )
    return manifest, ItemCorpus(item_IF, domains)


def make_batch(users: int, items: int, corpus: ItemCorpus, rng: np.random.Generator) -> Batch:
    """One candidate per user and full short-term histories."""
    events = users * SHORT
    drawn = {}
    for domain, of in corpus.domains.items():
        weight = of.count_I[of.address_V].double().numpy()
        drawn[domain] = rng.choice(of.address_V.numpy(), events, p=weight / weight.sum())
    shown = rng.choice(corpus.domains["target"].address_V.numpy(), users)
    address_I, place = np.unique(
        np.concatenate([drawn["source"], drawn["target"], shown]), return_inverse=True
    )
    offsets_U1 = torch.arange(users + 1) * SHORT
    span_C2 = torch.stack([offsets_U1[:-1], offsets_U1[1:]], 1)
    rows = [
        Rows(
            torch.from_numpy(place[number * events :][:events].astype(np.int32)),
            torch.full((events, 1), 3, dtype=torch.int32),
            torch.from_numpy(np.sort(rng.integers(0, 10**9, (users, SHORT)), 1).ravel()),
            offsets_U1,
        )
        for number in range(2)
    ]
    number_U = torch.arange(users)
    return Batch(
        item_IF=torch.from_numpy(corpus.item_IF[address_I]),
        address_I=torch.from_numpy(address_I),
        source=rows[0],
        target=rows[1],
        lifelong_C2=span_C2,
        short_source_C2=span_C2,
        short_target_C2=span_C2,
        candidate_C=torch.from_numpy(place[2 * events :]),
        candidate_CA=torch.full((users, 1), 3),
        context_CR=torch.zeros(users, 0, dtype=torch.int32),
        time_C=torch.full((users,), 10**9),
        user_of_C=number_U,
        profile_UP=torch.full((users, 1), 3),
        address_U=number_U + 1,
        label_C=(torch.rand(users, generator=torch.Generator().manual_seed(0)) < 0.2).float(),
        sample_C=number_U,
    )


if __name__ == "__main__":
    main()
