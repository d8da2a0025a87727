"""No event at or after an impression is in its history: every row of a real dataset."""

from pathlib import Path

import numpy as np
import pytest

from lcn.data.dataset import Dataset, open_dataset
from lcn.data.loader import BatchConfig, load_batches, user_order
from lcn.data.prepare import prepare
from lcn.data.sources import kuairand
from lcn.schema import SPLITS


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("kuairand")
    logs = kuairand.fetch(folder / "cache", shared_data / "kuairand-pure-slice")
    prepare(kuairand.mapping(logs), folder / "dataset")
    return open_dataset(folder / "dataset")


@pytest.mark.parametrize("domain", ["source", "target"])
def test_every_span_ends_at_the_last_event_before_the_impression(real: Dataset, domain) -> None:
    store = real.events[domain]
    checked = 0
    for split in SPLITS:
        samples = real.samples[split]
        user_S, time_S = np.asarray(samples.user_S), np.asarray(samples.time_S)
        end_S = samples.end_S(domain)
        first_S, last_S = store.offsets_U[user_S], store.offsets_U[user_S + 1]
        assert ((first_S <= end_S) & (end_S <= last_S)).all()
        some = end_S > first_S
        assert (store.time_E[end_S[some] - 1] < time_S[some]).all()
        more = end_S < last_S
        assert (store.time_E[end_S[more]] >= time_S[more]).all()
        checked += len(samples)
    assert checked > 85_000
    # Within a user times never fall, so the newest row bounds all others of the span.
    falls = np.flatnonzero(np.diff(store.time_E) < 0) + 1
    assert np.isin(falls, store.offsets_U).all()


def test_every_row_of_every_batch_is_older_than_its_impression(real: Dataset) -> None:
    config = BatchConfig(size=4096, lifelong=100, short=20)
    rows = 0
    for split in SPLITS:
        order = user_order(np.asarray(real.samples[split].user_S))
        for batch in load_batches(real, split, config, order):
            for history, span_C2 in (
                (batch.source, batch.lifelong_C2),
                (batch.source, batch.short_source_C2),
                (batch.target, batch.short_target_C2),
            ):
                some_C = span_C2[:, 1] > span_C2[:, 0]
                newest_C = history.time_T[span_C2[some_C, 1] - 1]
                assert (newest_C < batch.time_C[some_C]).all()
            rows += len(batch)
    assert rows == sum(real.manifest.count.samples.values())
