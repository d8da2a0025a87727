"""Source-domain events as impressions: who sees what, and a training phase of its own."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killed import check_resumes
from toy import KINDS, SMALL_LAP, make_toy

from lcn.api import recipe
from lcn.config import load_config
from lcn.data.dataset import Dataset, open_dataset
from lcn.data.mapping import Mapping, Responses
from lcn.data.source_clicks import source_clicks
from lcn.errors import ConfigError
from lcn.schema import UNKNOWN, Field, SplitTimes, write_manifest
from lcn.train import RunConfig, open_run, train

VALIDATION_FROM = 800_000_000
SETTINGS = [
    *SMALL_LAP,
    "train.source_steps=20",
    "train.checkpoint_every=4",
    "train.log_every=1",
    "train.threads=1",
]


def tell_responses(dataset: Dataset, **stated) -> Dataset:
    """The toy with a field of events and requests, whose words they number in other orders."""
    words = ["home", "work", "road", "else"]
    for group, index in (("event", [2, 3, 4, 5]), ("request", [5, 2, 3, 4])):
        path = dataset.folder / "vocabulary" / group / "place.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"value": words, "index": index, "count": [1] * 4}), path)
    for domain, store in dataset.events.items():
        place_E = 2 + np.arange(len(store.item_E), dtype=np.int32) % 4
        context_EG = np.c_[store.context_EG, place_E]
        np.save(dataset.folder / f"events/{domain}/context.npy", context_EG)
    responses = {"field": "kind", "clicked": ["liked", "loved"], "shown": ["seen"], **stated}
    manifest = dataset.manifest.model_copy(
        update={
            "mapping": {"responses": responses},
            "event_context": (*dataset.manifest.event_context, Field(name="place", size=6)),
            "request_context": (Field(name="place", size=6),),
            "split": SplitTimes(timezone="UTC", validation_from=VALIDATION_FROM, test_from=10**9),
        }
    )
    write_manifest(dataset.folder, manifest)
    return open_dataset(dataset.folder)


@pytest.fixture
def told(tmp_path) -> Dataset:
    return tell_responses(make_toy(tmp_path / "toy"))


def test_each_known_response_of_the_training_days_is_an_impression(told):
    samples, store = source_clicks(told), told.events["source"]
    expected = []
    for user, (first, last) in enumerate(zip(store.offsets_U, store.offsets_U[1:], strict=False)):
        for row in range(first, last):
            (code, place), time = store.context_EG[row], store.time_E[row]
            if code == KINDS["unsure"] or time >= VALIDATION_FROM:
                continue
            ends = []
            for each in told.events.values():
                own = each.time_E[each.offsets_U[user] : each.offsets_U[user + 1]]
                ends.append(int(each.offsets_U[user] + (own < time).sum()))
            item = int(store.item_E[row])
            expected.append((int(time), user, item, int(code in (2, 3)), *ends, int(place)))
    got = zip(
        *(samples.time_S, samples.user_S, samples.item_S, samples.label_S),
        *(samples.source_end_S, samples.target_end_S, samples.context_SR[:, 0]),
        strict=True,
    )
    turned = {2: 5, 3: 2, 4: 3, 5: 4}
    assert sorted(tuple(map(int, row)) for row in got) == sorted(
        (*row[:-1], turned[row[-1]]) for row in expected
    )
    assert len(expected) > 500
    assert (np.diff(samples.time_S) >= 0).all()


def test_events_of_one_moment_do_not_see_each_other(told):
    store = told.events["source"]
    time_E = np.array(store.time_E) // 10**8 * 10**8
    np.save(told.folder / "events/source/time.npy", time_E)
    samples = source_clicks(open_dataset(told.folder))
    first = np.asarray(store.offsets_U)[samples.user_S]
    for end, start, time in zip(samples.source_end_S, first, samples.time_S, strict=True):
        assert (time_E[start:end] < time).all()
        assert end == len(time_E) or time_E[end] >= time or end in store.offsets_U


def test_what_comes_after_the_training_days_changes_nothing(told):
    before = source_clicks(told)
    store = told.events["source"]
    late = np.asarray(store.time_E) >= VALIDATION_FROM
    assert late.any()
    context = np.array(store.context_EG)
    context[late] = 2
    assert (context != store.context_EG).any()
    np.save(told.folder / "events/source/context.npy", context)
    after = source_clicks(open_dataset(told.folder))
    for name in before.__slots__:
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def config_for(dataset: Dataset, *overrides: str) -> RunConfig:
    return load_config(RunConfig, None, [f"dataset={dataset.folder}", *SETTINGS, *overrides])


def test_source_steps_come_first_and_change_the_model(told, tmp_path):
    summary = train(config_for(told), tmp_path / "with", progress=False)
    plain = train(config_for(told, "train.source_steps=0"), tmp_path / "without", progress=False)
    assert summary.steps == plain.steps + 20
    kinds = [line["kind"] for line in open_run(tmp_path / "with").curves()]
    assert kinds[:21] == ["source"] * 20 + ["train"]


def test_kill_9_among_source_steps_then_resume_is_the_same_run(told, tmp_path):
    check_resumes(config_for(told), tmp_path, step=14)


def test_kill_9_after_the_last_source_step_then_resume_is_the_same_run(told, tmp_path):
    """The loss of source-domain clicks that no line has said yet is no loss of target clicks."""
    config = config_for(told, "train.log_every=3", "train.checkpoint_every=20")
    check_resumes(config, tmp_path, step=20)


def test_the_recipe_looks_at_the_dataset_wherever_it_is_named(told):
    named = recipe("lcn", "", f"dataset={told.folder}")
    assert named == recipe("lcn", told.folder)
    assert [each.name for each in named.objectives] == ["fism"]
    with pytest.raises(ConfigError, match="two datasets are named"):
        recipe("lcn", told.folder, "dataset=elsewhere")


def test_events_logged_less_exactly_than_others_are_no_impressions(told, tmp_path):
    manifest = told.manifest.model_copy(update={"late_events": True})
    with pytest.raises(ConfigError, match="logged less exactly"):
        source_clicks(replace(told, manifest=manifest))
    folder = tmp_path / "late"
    late = tell_responses(make_toy(folder)).manifest.model_copy(update={"late_events": True})
    write_manifest(folder, late)
    assert recipe("lcn", folder).train.source_steps == 0  # the recipe knows


def test_a_log_that_does_not_tell_is_refused_and_recipes_know(tmp_path):
    toy = make_toy(tmp_path / "toy")
    write_manifest(toy.folder, toy.manifest.model_copy(update={"mapping": {}}))
    with pytest.raises(ConfigError, match=r"responses.*train\.source_steps"):
        train(config_for(toy), tmp_path / "run", progress=False)
    config = recipe("lcn", str(toy.folder))
    assert config.train.source_steps == 0
    assert [each.name for each in config.objectives] == ["crp"]


def test_recipes_begin_with_source_clicks_where_the_log_tells(told):
    assert recipe("lcn", str(told.folder)).train.source_steps > 0
    assert recipe("none_fism", str(told.folder)).train.source_steps > 0
    assert [each.name for each in recipe("lcn", str(told.folder)).objectives] == ["fism"]
    assert recipe("lap_crp", str(told.folder)).train.source_steps == 0
    assert recipe("lap", str(told.folder)).train.source_steps == 0
    assert recipe("lcn_paper", str(told.folder)).train.source_steps == 0


def test_values_that_no_event_has_are_refused(tmp_path):
    told = tell_responses(make_toy(tmp_path / "toy"), shown=["hidden"])
    with pytest.raises(ConfigError, match=r"responses.shown.*hidden"):
        source_clicks(told)
    with pytest.raises(ValueError, match="both kinds"):
        Responses(field="kind", clicked=("liked",), shown=())
    with pytest.raises(ValueError, match="liked"):
        Responses(field="kind", clicked=("liked",), shown=("liked", "seen"))


def test_a_response_is_never_its_own_feature(told):
    responses = told.manifest.mapping["responses"]
    manifest = told.manifest.model_copy(
        update={
            "mapping": {"responses": responses},
            "request_context": (Field(name="kind", size=6),),
        }
    )
    write_manifest(told.folder, manifest)
    assert (source_clicks(open_dataset(told.folder)).context_SR == UNKNOWN).all()


def test_events_that_arrive_late_are_no_impressions(told):
    mapping = {**told.manifest.mapping, "events": [{"arrival": "logged_at"}]}
    write_manifest(told.folder, told.manifest.model_copy(update={"mapping": mapping}))
    with pytest.raises(ConfigError, match="arrival"):
        source_clicks(open_dataset(told.folder))
    assert recipe("lcn", str(told.folder)).train.source_steps == 0


def test_no_more_impressions_are_drawn_than_asked_for(told):
    whole, some = source_clicks(told), source_clicks(told, 100, seed=1)
    assert len(some) == 100 < len(whole)
    rows = {row[1:] for row in rows_of(whole)}
    assert {row[1:] for row in rows_of(some)} <= rows
    assert rows_of(source_clicks(told, 100, seed=1)) == rows_of(some)
    assert rows_of(source_clicks(told, 10**9)) == rows_of(whole)


def rows_of(samples) -> list[tuple[int, ...]]:
    columns = (getattr(samples, name).tolist() for name in ("time_S", "user_S", "item_S"))
    return list(zip(range(len(samples)), *columns, strict=True))


def test_what_responses_say_names_the_dataset(told):
    other = {"responses": {"field": "kind", "clicked": ["seen"], "shown": ["liked", "loved"]}}
    plain = told.manifest.model_copy(update={"mapping": {}})
    turned = told.manifest.model_copy(update={"mapping": other})
    assert len({each.fingerprint for each in (told.manifest, plain, turned)}) == 3


def test_one_domain_has_no_source(told):
    with pytest.raises(ConfigError, match="source_steps"):
        config_for(told, "lifelong_domain=target")


def test_a_mapping_names_a_context_field():
    events = {
        "files": ("a.csv",),
        **{name: name for name in ("user", "item", "time")},
        "time_unit": "s",
        "domain": "source",
        "context": {"rating": "rating"},
    }
    stated = {"field": "ratings", "clicked": ("5",), "shown": ("1",)}
    with pytest.raises(ValueError, match="rating"):
        Mapping(name="x", events=(events,), impressions=(), responses=stated)


def test_labels_known_when_validation_has_begun_are_left_out(told):
    manifest = told.manifest
    delay = VALIDATION_FROM // 10
    write_manifest(told.folder, manifest.model_copy(update={"known_after": delay}))
    times = source_clicks(open_dataset(told.folder)).time_S
    everything = source_clicks(told).time_S
    assert 0 < len(times) < len(everything)
    assert times.max() + delay < VALIDATION_FROM
