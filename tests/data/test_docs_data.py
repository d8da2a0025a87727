"""The mapping example of docs/data.md is complete and runs."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcn.data.mapping import (
    Events,
    Impressions,
    Items,
    Limits,
    Responses,
    Source,
    SplitRule,
    Users,
    read_mapping,
)
from lcn.data.mapping import Mapping as LogMapping
from lcn.data.prepare import prepare

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
SECOND = 1_709_632_800
"""2024-03-05 10:00 UTC"""
DAY = 86_400


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    text = DOCS.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    (tmp_path / "mapping.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "video").mkdir()
    (tmp_path / "shop").mkdir()
    watched = [(SECOND + n) * 1000 for n in (0, 0, 60, 5 * DAY)]
    tables = {
        "video/day-1.parquet": {
            "user_id": [1, 1, 1, 2],
            "video_id": [7, 7, 8, 7],
            "watched_at": watched,
            # The third is only known on 9 March.
            "logged_at": [watched[0], watched[1], watched[2] + 4 * DAY * 1000, watched[3]],
            "event_id": ["a", "a", "b", "c"],
        },
        "video/videos.parquet": {
            "video_id": [7, 8],
            "title": ["Cats", "Dogs"],
            "genre": ["animals", "animals"],
            "channel": ["A", "B"],
        },
        "shop/impressions.parquet": {
            "customer": [1, 2, 1, 2],
            "product": [7, 9, 7, 7],
            "shown_at": [SECOND + 2 * DAY, SECOND, SECOND + 4 * DAY + 61, SECOND + 5 * DAY],
            "clicks": [2, 1, 0, 1],
            "seconds_on_page": [12.5, 3.0, None, 1.0],
            "device": ["phone", "web", "phone", "web"],
            "campaign": [1, 1, 2, 2],
        },
        "customers.parquet": {"customer": [1, 2], "country": ["DE", "AT"], "birth_year": [1984, 2]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / name)
    clicks = "customer;product;clicked_at;action;bot\n1;7;2024-03-05 11:00:00;view;no\n"
    with gzip.open(tmp_path / "shop" / "clicks-1.csv.gz", "wt") as file:
        file.write(clicks + "1;9;2024-03-05 11:00:01;view;no\n1;9;2024-03-05 11:00:02;view;yes\n")
    (tmp_path / "shop" / "products.csv").write_text(
        "product,name,category,brand,department,price\n7,Shirt,tops,X,fashion,19\n9,Pan,,Y,home,5\n"
    )
    return tmp_path


def test_the_example_prepares(shop):
    mapping = read_mapping(shop / "mapping.yaml")
    manifest = prepare(mapping, shop / "dataset", base=shop)
    # Two videos of user 1 and one of user 2, and the pan: the repeated id and the bot are gone.
    assert manifest.count.events == {"source": 4, "target": 1}
    assert manifest.count.samples == {"train": 1, "validation": 1, "test": 1}
    assert manifest.rejected["events_1"] == {"duplicate": 1}


def test_the_table_of_keys_is_complete():
    keys = DOCS.read_text(encoding="utf-8").split("### Every key")[1].split("### ")[0]
    groups = {"split.": SplitRule, "limits.": Limits}
    plain = (LogMapping, Events, Impressions, Items, Users, Source, Responses)
    tables = {"events", "impressions", "items", "users", "responses", "split", "limits"}
    wanted = {name for kind in plain for name in kind.model_fields} - tables
    wanted |= {prefix + name for prefix, kind in groups.items() for name in kind.model_fields}
    assert not {name for name in wanted if f"`{name}`" not in keys}
