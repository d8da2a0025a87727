"""Collation against a brute-force twin; epoch orders; prefetching and resuming."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcn.data.batch import Batch
from lcn.data.dataset import Dataset, open_dataset
from lcn.data.loader import BatchConfig, Collator, epoch_order, load_batches, user_order
from lcn.errors import DataError


def history(dataset: Dataset, domain: str, sample: int, longest: int) -> list[tuple]:
    """What a sample may see, straight from the definition: events strictly before, newest N."""
    rows, store = dataset.samples["train"], dataset.events[domain]
    user, moment = rows.user_S[sample], rows.time_S[sample]
    first, last = store.offsets_U[user], store.offsets_U[user + 1]
    before = [row for row in range(first, last) if store.time_E[row] < moment][-longest:]
    return [
        (int(store.item_E[row]), int(store.time_E[row]), *store.context_EG[row].tolist())
        for row in before
    ]


def seen(batch: Batch, rows, span) -> list[tuple]:
    first, last = span.tolist()
    return [
        (
            int(batch.address_I[rows.item_T[row]]),
            int(rows.time_T[row]),
            *rows.context_TG[row].tolist(),
        )
        for row in range(first, last)
    ]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), lifelong=st.integers(1, 90), short=st.integers(1, 30))
def test_25_spans_are_the_newest_events_strictly_before(toy, data, lifelong, short) -> None:
    count = len(toy.samples["train"])
    picked = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=60, unique=True))
    config = BatchConfig(size=64, lifelong=lifelong, short=short)
    batch = Collator(toy, "train", config)(np.array(picked))
    assert sorted(batch.sample_C.tolist()) == sorted(picked)
    for place, sample in enumerate(batch.sample_C.tolist()):
        whole = history(toy, "source", sample, lifelong)
        assert seen(batch, batch.source, batch.lifelong_C2[place]) == whole
        recent = history(toy, "source", sample, short)
        assert seen(batch, batch.source, batch.short_source_C2[place]) == recent
        target = history(toy, "target", sample, short)
        assert seen(batch, batch.target, batch.short_target_C2[place]) == target
        samples = toy.samples["train"]
        assert batch.address_I[batch.candidate_C[place]] == samples.item_S[sample]
        assert batch.label_C[place] == samples.label_S[sample]
        assert batch.address_U[batch.user_of_C[place]] == samples.user_S[sample]
    np.testing.assert_array_equal(batch.item_IF, toy.item_IF[batch.address_I.numpy()])


def test_each_event_stands_in_a_batch_at_most_once(toy: Dataset) -> None:
    batch = Collator(toy, "train", BatchConfig(lifelong=40))(np.arange(300))
    for number in range(len(batch.address_U)):
        first, last = batch.source.offsets_U1[number : number + 2].tolist()
        time_T = batch.source.time_T[first:last]
        store = toy.events["source"]
        user = int(batch.address_U[number])
        own = store.time_E[store.offsets_U[user] : store.offsets_U[user + 1]].tolist()
        assert all(time_T.tolist().count(t) <= own.count(t) for t in set(time_T.tolist()))
    lengths = batch.lifelong_C2[:, 1] - batch.lifelong_C2[:, 0]
    assert len(batch.source.item_T) < int(lengths.sum())


@pytest.mark.parametrize("group", [1, 3, 8])
def test_an_epoch_visits_every_sample_once_in_user_runs(toy: Dataset, group: int) -> None:
    user_S = np.asarray(toy.samples["train"].user_S)
    order = epoch_order(user_S, group, seed=1, epoch=2)
    assert sorted(order) == list(range(len(user_S)))
    assert not np.array_equal(order, epoch_order(user_S, group, seed=1, epoch=3))
    np.testing.assert_array_equal(order, epoch_order(user_S, group, seed=1, epoch=2))
    if group > 1:
        # Runs of one user: with groups the number of changes of user falls by about the group.
        changes = np.count_nonzero(np.diff(user_S[order])) + 1
        runs = sum(-(-count // group) for count in np.bincount(user_S))
        assert changes <= runs


def test_prefetching_changes_nothing_and_any_batch_can_be_first(toy: Dataset) -> None:
    config = BatchConfig(size=100, lifelong=30, short=5)
    order = epoch_order(np.asarray(toy.samples["train"].user_S), 4, 0, 0)
    plain = list(load_batches(toy, "train", config, order, workers=0))
    ahead = list(load_batches(toy, "train", config, order, workers=2))
    late = list(load_batches(toy, "train", config, order, first=3, workers=1))
    assert len(plain) == len(ahead) == len(late) + 3 == -(-len(order) // 100)
    for one, other in [*zip(plain, ahead, strict=True), *zip(plain[3:], late, strict=True)]:
        assert one.sample_C.equal(other.sample_C)
        assert one.source.item_T.equal(other.source.item_T)
        assert one.item_IF.equal(other.item_IF)


def test_leaving_a_loader_early_leaves_no_thread_behind(toy: Dataset) -> None:
    import threading

    before = threading.active_count()
    order = user_order(np.asarray(toy.samples["train"].user_S))
    batches = load_batches(toy, "train", BatchConfig(size=10), order, workers=2)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_editing_the_future_changes_no_batch(toy: Dataset, tmp_path: Path) -> None:
    """Events at or after an impression's time are rewritten; what it sees stays."""
    import shutil

    copied = tmp_path / "copy"
    shutil.copytree(toy.folder, copied)
    samples = toy.samples["train"]
    moment = int(np.median(samples.time_S))
    early = np.flatnonzero(samples.time_S <= moment)
    rng = np.random.default_rng(0)
    for domain in ("source", "target"):
        time = np.load(copied / f"events/{domain}/time.npy")
        for name in ("item", "context"):
            path = copied / f"events/{domain}/{name}.npy"
            column = np.load(path)
            future = time >= moment
            column[future] = rng.permutation(column[future])
            np.save(path, column)
    config = BatchConfig(size=1000, lifelong=50, short=10)
    before = Collator(toy, "train", config)(early)
    after = Collator(open_dataset(copied), "train", config)(early)
    assert before.source.item_T.equal(after.source.item_T)
    assert before.source.context_TG.equal(after.source.context_TG)
    assert before.target.item_T.equal(after.target.item_T)
    assert before.item_IF.equal(after.item_IF)


def test_damaged_datasets_are_refused_with_a_reason(toy: Dataset, tmp_path: Path) -> None:
    import json
    import shutil

    with pytest.raises(DataError, match=r"no manifest\.json.*lcn prepare"):
        open_dataset(tmp_path)
    copied = tmp_path / "copy"
    shutil.copytree(toy.folder, copied)
    np.save(copied / "samples/test/label.npy", np.zeros(3, np.uint8))
    np.save(copied / "samples/test/user.npy", np.zeros(3, np.int32))
    with pytest.raises(DataError, match=r"samples/test has 3 rows, its manifest says"):
        open_dataset(copied)
    (copied / "samples/test/label.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"label\.npy is damaged"):
        open_dataset(copied)
    (copied / "samples/test/label.npy").unlink()
    with pytest.raises(DataError, match=r"label\.npy is missing"):
        open_dataset(copied)
    tree = json.loads((copied / "manifest.json").read_text())
    tree["schema_version"] = 99
    (copied / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="schema version 99, this program reads 1"):
        open_dataset(copied)
