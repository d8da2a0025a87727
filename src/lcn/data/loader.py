"""From sample numbers to batches: collate, the order of an epoch, and prefetching.

The order of an epoch is a function of (seed, epoch) alone, so a run resumes at any batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt

from lcn.config import Config
from lcn.data.batch import Batch, Rows
from lcn.data.dataset import Dataset, EventStore
from lcn.data.windows import UniqueItems, merge_windows, take_runs
from lcn.schema import Split

Int64 = NDArray[np.int64]


class BatchConfig(Config):
    """How many impressions and how much history a batch holds."""

    size: PositiveInt = 1024
    """Candidates (impressions) in a batch."""
    group: PositiveInt = 8
    """Up to this many impressions of one user stand in the same batch and share history rows;
    1 is plain shuffling."""
    lifelong: PositiveInt = 500
    """N: newest source-domain events of the lifelong history."""
    short: PositiveInt = 50
    """Newest events of each domain in the short-term histories."""
    overlap: bool = True
    """Whether the newest source-domain events stand in the lifelong history too, as in the paper;
    False leaves it the events before the short-term ones."""


class Collator:
    """Turns sample numbers of a split into a `Batch`. Not thread-safe; make one per thread."""

    def __init__(self, dataset: Dataset, split: Split, config: BatchConfig) -> None:
        self._dataset = dataset
        self._samples = dataset.samples[split]
        self._config = config
        self._unique = UniqueItems(len(dataset.item_IF))

    def __call__(self, sample: Int64) -> Batch:
        """Collate the given rows of the split; candidates come out ordered by (user, time)."""
        rows = self._samples
        order = np.lexsort((sample, rows.time_S[sample], rows.user_S[sample]))
        sample = np.asarray(sample, np.int64)[order]
        address_U, user_of_C = np.unique(rows.user_S[sample], return_inverse=True)
        user_of_C = user_of_C.astype(np.int64)
        store, source_end_C = self._dataset.events, rows.source_end_S[sample]
        target_end_C = rows.target_end_S[sample]
        user_C = rows.user_S[sample].astype(np.int64)

        lifelong, short = self._config.lifelong, self._config.short
        longest = max(lifelong, short) if self._config.overlap else lifelong + short
        source_R2, source_C2 = _window(store["source"], user_C, user_of_C, source_end_C, longest)
        target_R2, target_C2 = _window(
            store["target"], user_C, user_of_C, target_end_C, self._config.short
        )
        short_source_C2, older_C2 = _cut(source_C2, short)
        address_I, (source_T, target_T, candidate_C) = self._unique.number(
            take_runs(store["source"].item_E, source_R2),
            take_runs(store["target"].item_E, target_R2),
            rows.item_S[sample],
        )
        return Batch(
            item_IF=_tensor(self._dataset.item_IF[address_I]),
            address_I=_tensor(address_I),
            source=_rows(store["source"], source_R2, source_T, source_C2, user_of_C),
            target=_rows(store["target"], target_R2, target_T, target_C2, user_of_C),
            lifelong_C2=_newest(source_C2 if self._config.overlap else older_C2, lifelong),
            short_source_C2=_tensor(short_source_C2),
            short_target_C2=_newest(target_C2, short),
            candidate_C=_tensor(candidate_C).long(),
            candidate_CA=_tensor(rows.candidate_SA[sample]),
            context_CR=_tensor(rows.context_SR[sample]),
            time_C=_tensor(rows.time_S[sample]),
            user_of_C=torch.from_numpy(user_of_C),
            profile_UP=_tensor(self._dataset.user_UP[address_U]),
            address_U=_tensor(address_U.astype(np.int64)),
            label_C=_tensor(rows.label_S[sample].astype(np.float32)),
            sample_C=torch.from_numpy(sample),
        )


def epoch_order(user_S: NDArray[np.int32], group: int, seed: int, epoch: int) -> Int64:
    """The order in which an epoch visits samples: shuffled, in runs of up to `group` per user.

    Args:
        user_S: user of each sample.
        group: longest run of one user's samples; 1 is a plain permutation.
        seed: of the run.
        epoch: number of the epoch.

    Returns:
        A permutation of the samples, the same for the same arguments.
    """
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(user_S))
    if group == 1:
        return shuffled
    by_user = shuffled[np.argsort(user_S[shuffled], kind="stable")]
    user = user_S[by_user]
    first = np.r_[True, user[1:] != user[:-1]] if len(user) else np.zeros(0, bool)
    start = np.flatnonzero(first)
    rank = np.arange(len(user)) - np.repeat(start, np.diff(np.r_[start, len(user)]))
    run = np.cumsum(first | (rank % group == 0)) - 1
    place = generator.permutation(int(run[-1]) + 1 if len(run) else 0)
    return by_user[np.argsort(place[run], kind="stable")]


def user_order(user_S: NDArray[np.int32]) -> Int64:
    """The order for evaluation: users one after the other, so that they share rows."""
    return np.argsort(user_S, kind="stable")


def load_batches(
    dataset: Dataset,
    split: Split,
    config: BatchConfig,
    order: Int64,
    *,
    first: int = 0,
    workers: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of an order, collated ahead of use by background threads.

    Args:
        dataset: an open dataset.
        split: which samples.
        config: batch size and history lengths.
        order: sample numbers, `config.size` of them per batch, the last batch shorter.
        first: number of the first batch wanted (to resume).
        workers: collating threads; 0 collates when asked (for debugging).
    """
    parts = [order[at : at + config.size] for at in range(0, len(order), config.size)][first:]
    if workers == 0:
        collate = Collator(dataset, split, config)
        yield from map(collate, parts)
        return
    idle = deque(Collator(dataset, split, config) for _ in range(workers + 2))
    waiting: deque[tuple[Future[Batch], Collator]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="collate") as pool:
        try:
            for part in parts:
                collate = idle.popleft()
                waiting.append((pool.submit(collate, part), collate))
                if not idle:
                    yield _finish(waiting, idle)
            while waiting:
                yield _finish(waiting, idle)
        finally:
            pool.shutdown(cancel_futures=True)


def _finish(waiting: deque[tuple[Future[Batch], Collator]], idle: deque[Collator]) -> Batch:
    future, collate = waiting.popleft()
    batch = future.result()
    idle.append(collate)
    return batch


def _window(
    store: EventStore, user_C: Int64, user_of_C: Int64, end_C: Int64, longest: int
) -> tuple[Int64, Int64]:
    start_C = np.maximum(store.offsets_U[user_C], end_C - longest)
    return merge_windows(start_C, np.asarray(end_C), user_of_C)


def _rows(
    store: EventStore, run_R2: Int64, item_T: NDArray, span_C2: Int64, user_of_C: Int64
) -> Rows:
    users = int(user_of_C[-1]) + 1 if len(user_of_C) else 0
    # A user's rows end where the last of its candidates' spans ends.
    end_U = np.zeros(users, np.int64)
    np.maximum.at(end_U, user_of_C, span_C2[:, 1])
    return Rows(
        item_T=torch.from_numpy(item_T),
        context_TG=torch.from_numpy(take_runs(store.context_EG, run_R2)),
        time_T=torch.from_numpy(take_runs(store.time_E, run_R2)),
        offsets_U1=torch.from_numpy(np.r_[0, end_U]),
    )


def _cut(span_C2: Int64, newest: int) -> tuple[Int64, Int64]:
    """The newest rows of each span, and the rows before them."""
    at_C = np.maximum(span_C2[:, 0], span_C2[:, 1] - newest)
    return np.stack([at_C, span_C2[:, 1]], 1), np.stack([span_C2[:, 0], at_C], 1)


def _newest(span_C2: Int64, longest: int) -> torch.Tensor:
    return torch.from_numpy(_cut(span_C2, longest)[0])


def _tensor(column: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(column))
