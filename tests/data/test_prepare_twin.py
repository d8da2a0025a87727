"""The whole preparation against its slow twin, and laws that hold without one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from prepare_twin import (
    Event,
    Item,
    Logs,
    Shown,
    User,
    enough,
    expected,
    found,
    mapping,
    write,
)

from lcn.data.dataset import open_dataset
from lcn.data.mapping import Limits
from lcn.data.prepare import prepare, verify
from lcn.schema import read_manifest

USERS = ["1", "2", "12", "-3", "ü x", "9223372036854775807"]
ITEMS = ["a", "b", "aa", "7", "07", 'é,"q']
SECONDS = st.integers(0, 50)

events = st.builds(
    Event,
    user=st.sampled_from([*USERS, None]),
    item=st.sampled_from([*ITEMS, None]),
    time=SECONDS,
    arrival=st.none() | SECONDS,
    act=st.sampled_from(["pv", "buy", "fav", None]),
)
impressions = st.builds(
    Shown,
    user=st.sampled_from([*USERS, "only shown", None]),
    item=st.sampled_from([*ITEMS, "new"]),
    time=SECONDS | st.none(),
    label=st.sampled_from([0, 1]),
    hour=st.sampled_from(["0", "1", "11", None]),
)
logs = st.builds(
    Logs,
    events=st.lists(events, min_size=1, max_size=40),
    impressions=st.lists(impressions, max_size=25),
    items=st.lists(
        st.builds(Item, st.sampled_from(ITEMS), st.none() | st.integers(0, 9), st.just("t")),
        unique_by=lambda item: item.item,
    ),
    users=st.lists(
        st.builds(User, st.sampled_from([*USERS, "never seen"]), st.sampled_from(["y", "o", None])),
        unique_by=lambda user: user.user,
    ),
).map(enough)

EDGES = enough(
    Logs(
        # Twice the same; at the very second of an impression; at the very end of training.
        events=[Event("1", "a", 3, None, None)] * 2
        + [Event("1", "b", second, None, "pv") for second in (5, 29, 30, 35)]
        + [Event("1", "aa", 6, 30, "late"), Event("1", "aa", 6, 29, "just")],
        impressions=[],
        items=[],
        users=[],
    )
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # Every try is a whole preparation: shrinking a failure would take minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(logs=logs, suffix=st.sampled_from(["csv", "parquet"]), min_count=st.integers(1, 3))
@example(logs=EDGES, suffix="csv", min_count=1)
def test_equals_the_slow_twin(logs: Logs, suffix: str, min_count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, logs, suffix)
        asked = mapping(suffix, limits=Limits(max_rejected_share=1.0, min_count=min_count))
        prepare(asked, folder / "out", base=folder, threads=1)
        verify(folder / "out")
        got, wanted = found(open_dataset(folder / "out")), expected(logs, min_count)
        assert got.keys() == wanted.keys()
        for column, values in wanted.items():
            assert got[column] == values, column


MANY = enough(
    Logs(
        events=[
            Event(USERS[k % 5], ITEMS[k * k % 6], k * 7 % 51, None, ["pv", "buy"][k % 2])
            for k in range(300)
        ],
        impressions=[
            Shown(USERS[k % 6], ITEMS[k % 5], k * 11 % 51, k % 2, str(k % 3)) for k in range(120)
        ],
        items=[Item(item, number * 2, item) for number, item in enumerate(ITEMS)],
        users=[User(user, "y") for user in USERS[:3]],
    )
)


def _bytes_of(folder: Path) -> dict[str, bytes]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    # Rows left out are listed with their files, so their list may tell files apart.
    return {str(f): (folder / f).read_bytes() for f in files if f.parts[0] != "rejected"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("original")
    write(folder, MANY)
    prepare(mapping(), folder / "out", base=folder, threads=1)
    return _bytes_of(folder / "out")


@pytest.mark.parametrize(("seed", "parts", "threads"), [(1, 1, 2), (2, 5, 4)])
def test_row_order_files_and_threads_change_no_byte(
    tmp_path: Path, original: dict[str, bytes], seed: int, parts: int, threads: int
) -> None:
    write(tmp_path, MANY, parts=parts, seed=seed)
    prepare(mapping(), tmp_path / "out", base=tmp_path, threads=threads)
    assert _bytes_of(tmp_path / "out") == original


def test_hash_seed_changes_no_byte(tmp_path: Path, original: dict[str, bytes]) -> None:
    write(tmp_path, MANY, seed=3)
    here = Path(__file__).parent
    code = (
        "import sys; from pathlib import Path; from prepare_twin import mapping;"
        "from lcn.data.prepare import prepare; folder = Path(sys.argv[1]);"
        "prepare(mapping(), folder / 'out', base=folder)"
    )
    paths = [str(here), *(path for path in sys.path if path)]
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    assert _bytes_of(tmp_path / "out") == original


def test_keys_as_text_and_as_integers_give_the_same_data(tmp_path: Path) -> None:
    numbers = Logs(
        [e._replace(user=str(k % 23 - 3), item=str(k % 17)) for k, e in enumerate(MANY.events)],
        [s._replace(user=str(k % 9), item=str(k)) for k, s in enumerate(MANY.impressions)],
        [Item(str(number), number % 10, "t") for number in range(30)],
        [User(str(2**63 - 1), "y"), User("7", "o")],
    )
    made = {}
    for suffix in ("csv", "parquet"):
        write(tmp_path / suffix, numbers, suffix)
        made[suffix] = prepare(mapping(suffix), tmp_path / suffix / "out", base=tmp_path / suffix)
    assert made["csv"].checksums == made["parquet"].checksums
    assert found(open_dataset(tmp_path / "csv" / "out")) == expected(numbers)


def test_changing_the_future_changes_nothing_before_it(tmp_path: Path) -> None:
    future = Logs(
        events=[e._replace(item="b", act="new") if e.time >= 30 else e for e in MANY.events],
        impressions=[
            s._replace(item="never", hour="9", label=1 - s.label) if s.time >= 40 else s
            for s in MANY.impressions
        ],
        items=MANY.items,
        users=MANY.users,
    )
    later = [Event("2", "zz", 31 + k % 20, None, "new") for k in range(50)]
    future = Logs(future.events + later, future.impressions, future.items, future.users)
    kept = {}
    for name, logs in (("before", MANY), ("after", future)):
        write(tmp_path / name, logs)
        prepare(mapping(), tmp_path / name / "out", base=tmp_path / name)
        kept[name] = _before(tmp_path / name / "out")
    assert kept["before"] == kept["after"]
    assert kept["before"][1], "there is training data to compare"


def _before(folder: Path) -> tuple[dict[str, object], list[object]]:
    """Return all vocabularies, and each training impression with its histories in words."""
    dataset = open_dataset(folder)
    columns = found(dataset)
    vocabularies = {name: v for name, v in columns.items() if name.startswith("vocabulary/")}
    train, rows = dataset.samples["train"], []
    for k in range(len(train)):
        histories = []
        for domain, end_S in (("source", train.source_end_S), ("target", train.target_end_S)):
            store = dataset.events[domain]
            span = slice(int(store.offsets_U[train.user_S[k]]), int(end_S[k]))
            items = dataset.item_IF[store.item_E[span]].tolist()
            histories.append((items, store.time_E[span].tolist(), store.context_EG[span].tolist()))
        item = dataset.item_IF[train.item_S[k]].tolist()
        profile = dataset.user_UP[train.user_S[k]].tolist()
        context = train.context_SR[k].tolist(), train.candidate_SA[k].tolist()
        rows.append((int(train.time_S[k]), item, profile, context, histories))
    return vocabularies, sorted(rows, key=repr)


def test_manifest_counts_and_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, MANY)
    made = prepare(mapping(), tmp_path / "out", base=tmp_path)
    read = read_manifest(tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert read == made
    assert read.fingerprint == made.fingerprint
    for split, samples in dataset.samples.items():
        assert read.count.positives[split] == int(samples.label_S.sum())
    twice = Logs([*MANY.events, MANY.events[0]], MANY.impressions * 2, MANY.items, MANY.users)
    write(tmp_path / "twice", twice)
    again = prepare(mapping(), tmp_path / "twice" / "out", base=tmp_path / "twice")
    assert again.rejected["impressions"] == {"duplicate": 123}
    assert again.rejected["events"]["duplicate"] == 1
    assert again.count == made.count
